"""A training step on a GPU: eager, captured, compiled, several side by side, on stored answers, on photos, with EMA.

First, whether a captured run is the eager one: the losses of 200 steps and the weights after them, and that the
comparison would notice a graph that is a row of its tables late. Then milliseconds per step: contenders in turns
(A B B A ...), windows of steps between two synchronisations, medians. Beside them, what a step's arithmetic and
traffic take at best (`floor.py`). The images are random and made on the device, photos are JPEGs written before;
nothing is downloaded. Each case is saved, and not measured again with the same --out.

fp32 is timed as torch runs it by default, with convolutions in TF32, and compared in full float32.

Targets: captured equals eager in every case; a captured step of 64 images in bf16 takes at most 1.8 ms on an
H100 or H200.

    PYTHONPATH=src python benchmarks/gpu/speed.py --out runs/gpu-speed           # 10 minutes at most
    PYTHONPATH=src python benchmarks/gpu/speed.py --quick --out runs/gpu-quick   # on a CPU, without CUDA graphs
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from cases import Case, Scale
from common import environment, finish
from measure import Bench
from runs import rehearse

TARGET_MS = 1.8
STOPPED = 75
"""The exit code where the time was too short; the same command goes on."""
FULL = Scale(
    device=torch.device("cuda"),
    pairs=(("resnet56", "resnet20"), ("wrn_40_2", "wrn_16_2"), ("vgg13", "vgg8")),
    images=50_000,
    size=32,
    classes=100,
    batch_sizes=(64, 256),
    check_steps=200,
    window=100,
    rounds=6,
    side_by_side=8,
    backend="inductor",
    compile_seconds=120,
    compiled=("bf16", "fp32"),
    photos=2_000,
    photo_size=224,
    photo_pair=("torchvision:resnet34", "torchvision:resnet18"),
)
QUICK = Scale(
    device=torch.device("cpu"),
    pairs=(("resnet8", "resnet8"),),
    images=68,
    size=8,
    classes=10,
    batch_sizes=(8, 12),
    check_steps=4,
    window=1,
    rounds=2,
    side_by_side=2,
    backend="eager",
    compile_seconds=10,
    compiled=("fp32",),
    photos=20,
    photo_size=16,
    photo_pair=("resnet8", "resnet8"),
    record=rehearse,
)
MINUTES, QUICK_MINUTES = 10.0, 2.0
KINDS = ("check", "single", "side_by_side", "stored", "ema", "photos", "compile")

Stage = tuple[str, Case]
Figures = dict[str, Any]


def plan(scale: Scale) -> list[Stage]:
    """What is measured, the most important first, as a run may be cut short."""

    def cases(precision: str, batch_size: int) -> list[Case]:
        return [
            Case(*pair, method, precision, batch_size) for method in ("unix", "kd") for pair in scale.pairs
        ]

    usual, extra = scale.batch_sizes
    return [
        *[("check", case) for precision in ("fp32", "bf16") for case in cases(precision, usual)],
        *[("single", case) for case in cases("bf16", usual)],
        *[("side_by_side", case) for case in cases("bf16", usual) if case.method == "unix"],
        *[("stored", case) for case in cases("bf16", usual) if case.method == "kd"],
        *[("ema", case) for case in cases("bf16", usual) if case.method == "unix"],
        ("photos", Case(*scale.photo_pair, "kd", "bf16", usual)),
        *[("single", case) for case in cases("fp32", usual) + cases("bf16", extra)],
        *[("compile", case) for precision in scale.compiled for case in cases(precision, usual)],
    ]


def take_stages(
    stages: Sequence[Stage],
    measure: Callable[[str, Case], Figures],
    save: Callable[[Figures], None],
    minutes: float,
    expected: Mapping[str, float],
    clock: Callable[[], float] = time.monotonic,
    before: Figures | None = None,
) -> Figures:
    """Measure what fits into the minutes; what fails does not stop the rest.

    Args:
        stages: in order of importance
        measure: gives a stage's figures
        save: is given all figures after each stage
        minutes: no stage begins that would end later
        expected: seconds that the first stage of a kind may take (default: as long as the longest of all so far); later
            ones: as long as the longest of their kind
        clock: in seconds
        before: figures of an earlier call, which are not measured again unless they failed
    """
    figures: Figures = {kind: {} for kind, _ in stages} | (before or {}) | {"left_out": []}
    started, longest = clock(), dict[str, float]()
    for kind, case in stages:
        if "error" not in figures[kind].get(str(case), {"error": "not measured"}):
            continue
        begun = clock()
        likely = longest.get(kind) or expected.get(kind) or max(longest.values(), default=0.0)
        if begun - started + likely > 60 * minutes:
            figures["left_out"].append(f"{kind}: {case}")
            continue
        try:
            found = measure(kind, case)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        seconds = clock() - begun
        longest[kind] = max(seconds, longest.get(kind, 0))
        figures[kind][str(case)] = found | {"stage_seconds": seconds}
        print(f"[{clock() - started:4.0f} s] {kind}: {case}: {summarise(found)}", flush=True)
        save(figures)
    return figures | {"seconds": clock() - started}


def measured_before(path: Path, facts: Figures) -> Figures:
    """The figures of an earlier call in the same folder, by kind; none where it ran on something else."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    same = all(found.get(name) == value for name, value in facts.items())
    return {kind: found[kind] for kind in KINDS if kind in found} if same else {}


def summarise(found: Figures) -> str:
    """A stage's figures in a few words."""
    if "error" in found:
        return found["error"].partition("\n")[0]
    if "passed" in found:
        how = "bit for bit" if found["equal"] else f"losses differ by {found['loss_difference']:.1e}"
        return f"{'passed' if found['passed'] else 'FAILED'}: {how}"
    return ", ".join(f"{name} {each['ms_per_step']:.3f} ms" for name, each in found["contenders"].items())


def reached(figures: Figures, stages: Sequence[Stage], *, known: bool) -> bool:
    """Whether every check was made and passed, nothing failed and, on a known chip, the target is met."""
    done = [(kind, case, figures[kind][str(case)]) for kind, case in stages if str(case) in figures[kind]]
    if any("error" in found for _, _, found in done):
        return False
    passed = [found["passed"] for kind, _, found in done if kind == "check"]
    usual = [
        found["contenders"]["graph"]["ms_per_step"]
        for kind, case, found in done
        if kind == "single" and (case.precision, case.batch_size) == ("bf16", FULL.batch_sizes[0])
    ]
    all_checked = len(passed) == sum(kind == "check" for kind, _ in stages)
    return all_checked and all(passed) and not (known and max(usual, default=0) > TARGET_MS)


def hardware(scale: Scale) -> Figures:
    """What is measured on."""
    if scale.device.type == "cpu":
        return {"device": "cpu"}
    return {
        "device": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def main() -> int:
    """Measure in the order of `plan`, as far as the time goes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-speed"), help="folder for speed.json")
    parser.add_argument(
        "--minutes", type=float, help=f"no stage begins that would end later (default: {MINUTES:g})"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what is measured")
    parser.add_argument("--quick", action="store_true", help="small networks on a CPU: does it run?")
    options = parser.parse_args()
    if not options.quick and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is available here; --quick tries the script on a CPU")
    scale = QUICK if options.quick else FULL
    options.out.mkdir(parents=True, exist_ok=True)
    file, facts = options.out / "speed.json", hardware(scale) | {"environment": environment()}

    def save(figures: Figures) -> None:
        file.write_text(json.dumps(facts | figures, indent=2) + "\n")

    bench, stages = Bench(scale), [stage for stage in plan(scale) if stage[0] in options.kinds]

    def measure(kind: str, case: Case) -> Figures:
        try:
            return bench.measure(kind, case)
        finally:
            gc.collect()  # graphs and their memory

    usual = QUICK_MINUTES if options.quick else MINUTES
    minutes = usual if options.minutes is None else options.minutes
    expected, before = {"compile": scale.compile_seconds}, measured_before(file, facts)
    figures = take_stages(stages, measure, save, minutes, expected, before=before)
    known = bench.chip is not None
    code = finish(
        "gpu_speed",
        hardware(scale) | figures,
        target=f"captured equals eager; bf16, 64 images: at most {TARGET_MS} ms (not checked with --quick)",
        passed=reached(figures, stages, known=known),
        quick=options.quick,
    )
    measured = [(kind, case) for kind, case in stages if str(case) in figures[kind]]
    cut_short = figures["left_out"] and reached(figures, measured, known=known)
    return STOPPED if cut_short else code


if __name__ == "__main__":
    sys.exit(main())
