"""Images per second of plain KD on a CPU: unixkd's trainer against timm's and torchdistill's own loops.

All three train the same networks in batches of 64 by KD alone (temperature 4) on the same PNG files of random
pixels. A step is loading, both forwards, the backward and the optimiser's step. The contenders take turns step
by step in one process; by a peer's turn its loader processes have the next batches ready. None of the three
chooses the number of threads: --threads does, for all. unixkd sets `torch.set_flush_denormal`, which holds for
the whole process: the peers have it, too. CPU seconds are the process's own; loader processes come on top.

- out of the box: everything else as it ships: `SETUP` here, in `peers_timm.py` and in `peers_torchdistill.py`
- equal terms: fp32, contiguous tensors (torchdistill has no option for channels_last), random crop and flip,
  loading in the training process

Targets, the better peer's seconds over ours: out of the box 1.5, which only a CPU that computes bfloat16 natively
can reach (on any other the same float32 arithmetic is left, and only layout and loader can gain); on equal terms 0.98.

    python benchmarks/speed/peers.py             # about 9 minutes on 2 slow cores
    python benchmarks/speed/peers.py --quick     # resnet20 -> resnet8, a few steps; the targets are not checked
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file

from unixkd.config import DataConfig, MethodConfig, ModelConfig, RunConfig, TrainConfig
from unixkd.models import create_model
from unixkd.training.display import silent
from unixkd.training.precision import has_native_bf16
from unixkd.training.run import start
from unixkd.training.run_folder import RunFolder
from unixkd.training.state import Run

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish
from inputs import make_images, write_images
from plain_way import our_steps
from timing import Samples, interleave, ratio

OUT_OF_THE_BOX = 1.5
EQUAL_TERMS = 0.98
PEERS = {"timm": "1.0.31", "torchdistill": "1.1.5"}
"""The oldest release that the comparison is written for."""
PAIRS = (("vgg13", "vgg8"), ("wrn_40_2", "wrn_16_2"))
QUICK = (("resnet20", "resnet8"),)
BATCH, CLASSES, SIZE = 64, 100, 32
SETUP = {
    "workers": "none: decoded once, augmented a batch at a time",
    "layout": "channels_last",
    "precision": "auto: bf16 where a probe finds it faster",
    "augmentation": "random crop with 4 pixels of padding, flip",
    "loss": "KD alone",
}


def import_peers() -> dict[str, ModuleType]:
    """Their loops; ends with a message where a peer is missing or too old."""
    try:
        return {name: importlib.import_module(f"peers_{name}") for name in PEERS}
    except ImportError as error:
        wanted = " ".join(f"'{name}>={oldest}'" for name, oldest in PEERS.items())
        raise SystemExit(f"{error}; the comparison needs: pip install {wanted}") from None


def make_trainer(teacher: str, student: str, folder: Path, equal: bool) -> Run:
    """Our side: plain KD, everything else by default or on equal terms."""
    weights = folder / "teacher.safetensors"
    save_file(create_model(teacher).state_dict(), weights)
    train = TrainConfig(batch_size=BATCH, device="cpu")
    if equal:
        train = replace(train, precision="fp32", teacher_precision="fp32", channels_last=False)
    config = RunConfig(
        ModelConfig(student),
        ModelConfig(teacher, weights=str(weights)),
        method=MethodConfig("kd"),
        data=DataConfig(f"folder:{folder / 'images'}"),
        train=train,
    )
    return start(config, RunFolder(folder / f"run-{equal}"), "new", silent)


def compare(
    teacher: str, student: str, folder: Path, peers: dict[str, ModuleType], rounds: int, equal: bool
) -> dict[str, Any]:
    """Seconds of a step of each contender, and how many times longer the peers take."""
    trainer = make_trainer(teacher, student, folder, equal)
    steps: dict[str, Iterator[None]] = {"unixkd": our_steps(trainer)}
    for name, peer in peers.items():
        steps[name] = peer.steps(folder / "images", teacher, student, batch=BATCH, equal=equal)
    samples = interleave({name: each.__next__ for name, each in steps.items()}, rounds, warmup=2)
    train = trainer.config.train
    return {
        **{name: each.figures(BATCH) for name, each in samples.items()},
        "unixkd_precision": {"teacher": train.teacher_precision, "student": train.precision},
        **over_ours(samples),
    }


def over_ours(samples: dict[str, Samples]) -> dict[str, Any]:
    """The peers' seconds over ours, and the better peer's."""
    ours = samples["unixkd"]
    ratios = {f"{name}_over_unixkd": ratio(each, ours) for name, each in samples.items() if each is not ours}
    return {**ratios, "better_peer_over_unixkd": min(each["median"] for each in ratios.values())}


def reached(pair: dict[str, Any]) -> bool:
    """Whether a pair's two comparisons reach their targets."""
    targets = {"out_of_the_box": OUT_OF_THE_BOX, "equal_terms": EQUAL_TERMS}
    return all(pair[name]["better_peer_over_unixkd"] >= target for name, target in targets.items())


def measure(teacher: str, student: str, peers: dict[str, ModuleType], quick: bool) -> dict[str, Any]:
    """Both comparisons of a pair."""
    count, rounds = (512, 3) if quick else (2048, 8)
    with tempfile.TemporaryDirectory(prefix="unixkd-peers-") as name:
        folder = Path(name)
        write_images(*make_images(count, SIZE, CLASSES), folder / "images")
        return {
            "out_of_the_box": compare(teacher, student, folder, peers, rounds, equal=False),
            "equal_terms": compare(teacher, student, folder, peers, rounds, equal=True),
        }


def main() -> int:
    """Measure every pair, check the targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="of every contender's training process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peers, native = import_peers(), has_native_bf16(torch.device("cpu"))
    pairs = {
        f"{teacher} -> {student}": measure(teacher, student, peers, options.quick)
        for teacher, student in (QUICK if options.quick else PAIRS)
    }
    setups = {name: {"version": version(name), **peer.SETUP} for name, peer in peers.items()}
    return finish(
        "peers",
        {
            "native_bf16": native,
            "threads": options.threads,
            "setups": {"unixkd": SETUP, **setups},
            "pairs": pairs,
        },
        target=f"better_peer_over_unixkd >= {OUT_OF_THE_BOX} out of the box and >= {EQUAL_TERMS} on "
        "equal terms (not checked with --quick)",
        passed=options.quick or all(reached(pair) for pair in pairs.values()),
        quick=options.quick,
    )


if __name__ == "__main__":
    sys.exit(main())
