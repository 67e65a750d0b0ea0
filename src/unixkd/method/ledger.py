"""What a run costs: forward FLOPs per image, a ledger of every forward pass, both conventions.

A training pass of the student is a forward and a backward. The paper counts the backward as one
forward ("backward_1x"); for convolutions it is nearer two ("backward_2x"). Both are always given.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unixkd.errors import UserError
from unixkd.method.method import Method, StepCounts
from unixkd.method.network import evaluating
from unixkd.method.resizing import Size

CONVENTIONS: Mapping[str, int] = {"backward_1x": 1, "backward_2x": 2}
"""Forwards that a backward is counted as, by the name used in every report."""


def relative_cost(keep: float, ratio: float, backward: int, *, scored: bool = True) -> float:
    """Cost of a method over plain KD's: k/N + F_s / (F_t + (1 + backward) · F_s) (the paper's formula).

    Args:
        keep: k/N
        ratio: F_t / F_s
        backward: forwards that a backward is counted as
        scored: whether the student scores all N images first

    >>> f"{relative_cost(0.75, 3.25, backward=1):.2%}"       # wrn_40_2 -> wrn_16_2
    '94.05%'
    """
    return keep + (1 / (ratio + 1 + backward) if scored else 0.0)


def break_even_ratio(method: Method, backward: int) -> float:
    """F_t/F_s below which the method costs more than plain KD; 0 if it never does, inf if always.

    >>> from unixkd.method.unix import unix
    >>> break_even_ratio(unix(), backward=1)
    2.0
    """
    if method.scorer is None:
        return 0.0
    if method.keep == 1:
        return float("inf")
    return max(0.0, 1 / (1 - method.keep) - 1 - backward)


@dataclass
class ImageCounts:
    """Images that passed through each forward; see `StepCounts`, `Ledger.charge_refresh` and `charge_evaluation`."""

    scored: int = 0
    refreshed: int = 0
    teacher_forwarded: int = 0
    teacher_cached: int = 0
    teacher_filled: int = 0
    trained: int = 0
    evaluated: int = 0


@dataclass
class Ledger:
    """Charges every forward pass of a run: the cost is counted here and nowhere else.

    Args:
        student_flops: forward FLOPs of the student per image
        teacher_flops: forward FLOPs of the teacher per image, 0 without one
        images: images that passed through each forward
        seen: images offered to the method; plain KD on these is what a cost is compared with by default
        teacher_evaluated: images the teacher answered for evaluation only
        spent: FLOPs of forwards by purpose, at the size the images had; of the teacher and of plain KD too where
            batches differ in shape
        image_size: height and width of the images; None: nothing is shrunk
        student_at: forward FLOPs of the student per image of another size (`flops_by_size`)
        noun: what is counted

    >>> ledger = Ledger(student_flops=1, teacher_flops=8)
    >>> from unixkd.method.unix import unix
    >>> ledger.charge(unix().counts(64, batch_size=64))
    >>> f"{ledger.relative_to_kd()['backward_1x']:.3f}"
    '0.850'
    """

    student_flops: int
    teacher_flops: int
    images: ImageCounts = field(default_factory=ImageCounts)
    seen: int = 0
    teacher_evaluated: int = 0
    spent: dict[str, int] = field(default_factory=lambda: {"scoring": 0, "student_forward": 0})
    image_size: Size | None = None
    student_at: Callable[[Size], int] | None = field(default=None, repr=False, compare=False)
    noun: str = "images"

    @classmethod
    def of(cls, student: nn.Module, teacher: nn.Module | None, image_shape: tuple[int, int, int]) -> Ledger:
        """An empty ledger with both networks' forward FLOPs on images (C, H, W), measured."""
        channels, height, width = image_shape
        return cls(
            forward_flops(student, image_shape),
            0 if teacher is None else forward_flops(teacher, image_shape),
            image_size=(height, width),
            student_at=flops_by_size(student, channels),
        )

    def emptied(self) -> Ledger:
        """An empty ledger of the same networks."""
        return replace(
            self, images=ImageCounts(), seen=0, teacher_evaluated=0, spent=dict.fromkeys(self.spent, 0)
        )

    def charge(self, counts: StepCounts, each: tuple[int, int] | None = None) -> None:
        """Add one training step.

        Args:
            counts: images that went through each forward
            each: forward FLOPs of student and teacher on a sample of this batch, where batches differ in shape
        """
        self.seen += counts.seen
        self.images.scored += counts.scored
        self.images.teacher_forwarded += counts.teacher_forwarded
        self.images.teacher_cached += counts.teacher_cached
        self.images.teacher_filled += counts.teacher_filled
        self.images.trained += counts.trained
        if each is None:
            self.spend("scoring", counts.scored * self.flops_at(counts.scored_size))
            self.spend("student_forward", counts.trained * self.flops_at(counts.trained_size))
            return
        student, teacher = each
        self.spend("scoring", counts.scored * student)
        self.spend("student_forward", counts.trained * student)
        self.spend("teacher", counts.teacher_forwarded * teacher)
        self.spend("kd_teacher", counts.seen * teacher)
        self.spend("kd_student", counts.seen * student)

    def spend(self, purpose: str, flops: int) -> None:
        """Add FLOPs to those of a purpose."""
        self.spent[purpose] = self.spent.get(purpose, 0) + flops

    def flops_at(self, size: Size | None) -> int:
        """Forward FLOPs of the student per image of a size; None: full size."""
        if size is None:
            return self.student_flops
        if self.student_at is None:
            raise UserError("this ledger knows nothing of smaller images: make it with Ledger.of")
        return self.student_at(size)

    def charge_scoring(self, images: int, size: Size | None = None) -> None:
        """Add forwards of the student without gradient that are no part of a step."""
        self.images.scored += images
        self.spend("scoring", images * self.flops_at(size))

    def charge_refresh(self, images: int) -> None:
        """Add forwards of the student that estimate BatchNorm's statistics anew."""
        self.images.refreshed += images

    def charge_fill(self, images: int) -> None:
        """Add answers that the teacher gave ahead of an epoch, whether a step will use them or not."""
        self.images.teacher_forwarded += images
        self.images.teacher_filled += images

    def charge_evaluation(self, images: int, *, teacher: bool = False) -> None:
        """Add an evaluation of the student (or the teacher); listed beside the training cost, not in it."""
        if teacher:
            self.teacher_evaluated += images
        else:
            self.images.evaluated += images

    def flops(self) -> dict[str, int]:
        """Forward FLOPs of the run by purpose."""
        return {
            "scoring": self.spent["scoring"],
            "refresh": self.images.refreshed * self.student_flops,
            "teacher": self.spent.get("teacher", self.images.teacher_forwarded * self.teacher_flops),
            "student_forward": self.spent["student_forward"],
            "evaluation": self.images.evaluated * self.student_flops
            + self.teacher_evaluated * self.teacher_flops,
        }

    def training_flops(self, backward: int) -> int:
        """Total training FLOPs with a backward counted as so many forwards."""
        flops = self.flops()
        forward = sum(flops[name] for name in ("scoring", "refresh", "teacher", "student_forward"))
        return forward + backward * flops["student_forward"]

    def relative_to_kd(self, reference_images: int | None = None) -> dict[str, float]:
        """Training FLOPs over those of plain KD on `reference_images` (default: the images seen)."""
        images = self.seen if reference_images is None else reference_images
        relative = {}
        for name, backward in CONVENTIONS.items():
            kd = images * (self.teacher_flops + (1 + backward) * self.student_flops)
            if reference_images is None and "kd_teacher" in self.spent:
                kd = self.spent["kd_teacher"] + (1 + backward) * self.spent["kd_student"]
            relative[name] = self.training_flops(backward) / kd if kd else 0.0
        return relative

    def state_dict(self) -> dict[str, object]:
        """Plain numbers that `load_state_dict` takes back."""
        names = ("student_flops", "teacher_flops", "seen", "teacher_evaluated")
        numbers = {name: getattr(self, name) for name in names}
        return {**numbers, "images": asdict(self.images), "spent": dict(self.spent)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue where a saved ledger stood; refuses one of other networks."""
        for name in ("student_flops", "teacher_flops"):
            if state[name] != getattr(self, name):
                raise UserError(f"ledger: {name} was {state[name]} and is now {getattr(self, name)}")
        saved: Any = state
        self.images = ImageCounts(**{f.name: saved["images"].get(f.name, 0) for f in fields(ImageCounts)})
        self.seen, self.teacher_evaluated = saved["seen"], saved["teacher_evaluated"]
        full_size = {  # states of older releases lack "spent": no image was shrunk then
            "scoring": self.images.scored * self.student_flops,
            "student_forward": self.images.trained * self.student_flops,
        }
        self.spent = dict(saved.get("spent") or full_size)

    def add(self, state: Mapping[str, object]) -> None:
        """Add what another ledger of the same networks has charged, as its `state_dict` says."""
        other = self.emptied()
        other.load_state_dict(state)
        both = zip(astuple(self.images), astuple(other.images), strict=True)
        self.images = ImageCounts(*(ours + theirs for ours, theirs in both))
        self.seen += other.seen
        self.teacher_evaluated += other.teacher_evaluated
        self.spent = {name: flops + other.spent[name] for name, flops in self.spent.items()}

    def __str__(self) -> str:
        cost = self.relative_to_kd()
        count = self.images
        stored = f", {count.teacher_cached:,} answered from the store" if count.teacher_cached else ""
        return (
            f"{self.seen:,} {self.noun} seen: {count.scored:,} scored, {count.teacher_forwarded:,} asked of the "
            f"teacher{stored}, {count.trained:,} trained; {cost['backward_1x']:.1%} of plain KD's cost "
            f"(backward = 1 forward), {cost['backward_2x']:.1%} (= 2)"
        )


def forward_flops(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """FLOPs (2 × multiply-adds of convolutions and matrix products) of one eval forward of one image.

    Args:
        model: any module from `[1, C, H, W]` to logits; a copy is measured, the model is not touched
        image_shape: (C, H, W)

    >>> forward_flops(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2))
    120
    """
    first = next(iter(model.parameters()), torch.zeros(()))
    clone = copy.deepcopy(model)
    image = torch.zeros(1, *image_shape, device=first.device, dtype=first.dtype)
    return sample_flops(clone, lambda: clone(image))


def flops_by_size(model: nn.Module, channels: int) -> Callable[[Size], int]:
    """Forward FLOPs per image by size; each size is measured once, at its first use.

    >>> flops_by_size(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), channels=3)((2, 2))
    120
    """
    return cache(lambda size: forward_flops(model, (channels, *size)))


def sample_flops(model: nn.Module, forward: Callable[[], object]) -> int:
    """FLOPs of a forward of the model in eval mode, which is not copied: texts of each length are measured."""
    counter = FlopCounterMode(display=False)
    with evaluating(model), torch.no_grad(), unfused_attention(), uncompiled(), counter:
        forward()
    return int(counter.get_total_flops())


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, compiled modules run as they were written: the counter does not know compiled kernels."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and its import takes a second
        yield
        return
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.filterwarnings("ignore", ".*global hooks on modules")  # the counter's, which only watch
        yield


@contextlib.contextmanager
def unfused_attention() -> Iterator[None]:
    """Inside, attention runs as matrix products: the counter misses some of torch's fused kernels."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
