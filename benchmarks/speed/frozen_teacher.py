"""The frozen teacher folded and compiled against the eager one, as a run asks them.

A batch of 64 images of 32 px through each form of a teacher, in bf16 where the processor has units for it, else in
fp32, with one thread, in turns. Weights are random, BatchNorm's statistics those of the images. Beside the seconds:

- what the set-up took, folding and compiling;
- the distance of the logits from those in fp32, over the distance of the eager ones;
- which share each form reaches of the FLOPs a second that one convolution alone reaches here (the best of three that
  are as wide as the teachers' stages): no form can take less than the eager form's share of the eager seconds.

Target: compiled / eager at most 0.6, 0.6 and 0.8: the median over the rounds, in CPU seconds, which with one thread are
the wall's without what other programs took meanwhile.

    python benchmarks/speed/frozen_teacher.py           # 5 to 10 minutes on a slow core
    python benchmarks/speed/frozen_teacher.py --quick   # resnet20, a few rounds; the target is not checked
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unixkd.method.flops import forward_flops
from unixkd.method.network import Network
from unixkd.models import create_model
from unixkd.models.card import ModelCard, PixelModel
from unixkd.training.frozen_teacher import FORMS, TeacherForms
from unixkd.training.precision import DTYPES, has_native_bf16

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish
from timing import interleave, ratio

TARGETS = {"resnet32x4": 0.6, "wrn_40_2": 0.6, "vgg13": 0.8}
TEACHERS = (*TARGETS, "resnet56")
"""The last, without a target, has few channels: less of its time is arithmetic."""
IMAGES, SIZE, CLASSES = 64, 32, 100
CONVOLUTIONS = ((64, 32), (128, 16), (256, 8))
"""Channels and side of the convolutions that are timed alone."""


def peak(dtype: torch.dtype | None, rounds: int) -> dict[str, float]:
    """FLOPs a CPU second of 3 × 3 convolutions alone, by channels and side: the fastest of the rounds."""
    found = {}
    for channels, side in CONVOLUTIONS:
        images, weights = (
            torch.randn(shape, dtype=dtype).to(memory_format=torch.channels_last)
            for shape in ((IMAGES, channels, side, side), (channels, channels, 3, 3))
        )
        samples = interleave({"conv": partial(F.conv2d, images, weights, padding=1)}, rounds)
        flops = 2 * 9 * IMAGES * channels**2 * side**2
        found[f"{channels} channels at {side} px"] = flops / min(samples["conv"].cpu)
    return found


@torch.no_grad()
def make_teacher(name: str, images: Tensor) -> PixelModel:
    """A network whose BatchNorm has seen the images."""
    torch.manual_seed(0)
    card = ModelCard(name, CLASSES, 3, (0.5,) * 3, (0.25,) * 3)
    teacher = PixelModel(create_model(name, CLASSES), card).to(memory_format=torch.channels_last)
    for _ in range(20):
        teacher(images)
    return teacher.eval()


def measure(name: str, precision: str, best: float, rounds: int) -> dict[str, Any]:
    """All forms of a teacher in turns."""
    images = torch.rand(IMAGES, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    teacher, dtype = make_teacher(name, images), DTYPES[precision]
    notes: list[str] = []
    forms = TeacherForms(teacher, dtype, torch.channels_last, lambda: images, notes.append)
    setup = {}
    for form in FORMS[1:]:
        wall, cpu = time.perf_counter(), time.process_time()
        forms.get(form)
        setup[form] = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    with torch.no_grad():
        full = teacher(images)
        logits = {
            form: Network(model, dtype=dtype)(images).logits.float() for form, model in forms.made.items()
        }
    distance = {form: ((each - full).norm() / full.norm()).item() for form, each in logits.items()}
    samples = interleave({form: partial(forms.ask, model) for form, model in forms.made.items()}, rounds)
    flops = IMAGES * forward_flops(teacher, (3, SIZE, SIZE))
    return {
        **{form: each.figures(IMAGES) for form, each in samples.items()},
        **{
            f"{form}_over_eager": ratio(samples[form], samples["eager"])
            for form in samples
            if form != "eager"
        },
        "setup": setup,
        "distance_from_fp32": distance,
        "share_of_peak": {form: flops / statistics.median(each.cpu) / best for form, each in samples.items()},
        "notes": notes,
    }


def main() -> int:
    """Measure every teacher, check the targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    precision = "bf16" if has_native_bf16(torch.device("cpu")) else "fp32"
    rounds = 3 if quick else 12
    alone = peak(DTYPES[precision], rounds)
    names = ("resnet20",) if quick else TEACHERS
    teachers = {name: measure(name, precision, max(alone.values()), rounds) for name in names}
    passed = quick or all(
        name in teachers and teachers[name].get("compiled_over_eager", {"cpu": 1.0})["cpu"] <= target
        for name, target in TARGETS.items()
    )
    return finish(
        "frozen_teacher",
        {
            "threads": 1,
            "precision": precision,
            "image_size": SIZE,
            "flops_per_second_of_a_convolution": alone,
            "teachers": teachers,
        },
        target=f"compiled_over_eager cpu <= {TARGETS} (not checked with --quick)",
        passed=passed,
        quick=quick,
    )


if __name__ == "__main__":
    sys.exit(main())
