"""What a run costs: a ledger of every forward pass, both conventions.

A training pass of the student is a forward and a backward. The paper counts the backward as one
forward ("backward_1x"); for convolutions it is nearer two ("backward_2x"). Both are always given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from typing import Any

from torch import nn

from unixkd.errors import UserError
from unixkd.method.flops import flops_by_size, forward_flops
from unixkd.method.method import Method, StepCounts
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
        student_flops: forward FLOPs of the student per image; None: not known
        teacher_flops: forward FLOPs of the teacher per image, 0 without one; None: not known
        images: images that passed through each forward
        seen: images offered to the method; plain KD on these is what a cost is compared with by default
        teacher_evaluated: images the teacher answered for evaluation only
        spent: FLOPs of forwards by purpose, at the size the images had; of the teacher and of plain KD too once
            the ledger is itemised; None: not known
        image_size: height and width of the images that the FLOPs are of; None: nothing is shrunk
        student_at: forward FLOPs of the student per image of another size (`flops_by_size`)
        noun: what is counted

    >>> ledger = Ledger(student_flops=1, teacher_flops=8)
    >>> from unixkd.method.unix import unix
    >>> ledger.charge(unix().counts(64, batch_size=64))
    >>> f"{ledger.relative_to_kd()['backward_1x']:.3f}"
    '0.850'
    """

    student_flops: int | None
    teacher_flops: int | None
    images: ImageCounts = field(default_factory=ImageCounts)
    seen: int = 0
    teacher_evaluated: int = 0
    spent: dict[str, int | None] = field(default_factory=lambda: {"scoring": 0, "student_forward": 0})
    image_size: Size | None = None
    student_at: Callable[[Size], int | None] | None = field(default=None, repr=False, compare=False)
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

    @property
    def itemised(self) -> bool:
        """Whether the teacher and plain KD too are charged at each batch's own FLOPs."""
        return "kd_teacher" in self.spent

    def itemise(self) -> None:
        """Charge each batch its own FLOPs from now on: batches differ in shape, or the student has grown."""
        if not self.itemised:
            self.spent["teacher"] = times(self.images.teacher_forwarded, self.teacher_flops)
            self.spent["kd_teacher"] = times(self.seen, self.teacher_flops)
            self.spent["kd_student"] = times(self.seen, self.student_flops)

    def known_flops(self) -> tuple[int, int]:
        """Forward FLOPs of student and teacher per image.

        Raises:
            UserError: those of one are not known
        """
        if self.student_flops is None or self.teacher_flops is None:
            raise UserError(f"costs cannot be worked out: {self.unknown()}")
        return self.student_flops, self.teacher_flops

    def unknown(self) -> str:
        """Whose FLOPs are not known, and what to do."""
        if self.student_flops is None or self.spent["student_forward"] is None:
            return "the student's cost is not known: give ledger=Ledger(student_flops, teacher_flops)"
        reason = "quantised, or not of torch's operations"
        return f"the teacher's cost is not known ({reason}): give the Distiller teacher_flops="

    def charge(self, counts: StepCounts, each: tuple[int | None, int | None] | None = None) -> None:
        """Add one training step.

        Args:
            counts: images that went through each forward
            each: forward FLOPs of student and teacher on a sample of this batch, where batches may differ in shape
        """
        student, teacher = own = self.student_flops, self.teacher_flops
        if each is not None and each != own:
            self.itemise()
            student, teacher = each
        if self.itemised:
            self.spend("teacher", counts.teacher_forwarded, teacher)
            self.spend("kd_teacher", counts.seen, teacher)
            self.spend("kd_student", counts.seen, student)
        self.seen += counts.seen
        self.images.scored += counts.scored
        self.images.teacher_forwarded += counts.teacher_forwarded
        self.images.teacher_cached += counts.teacher_cached
        self.images.teacher_filled += counts.teacher_filled
        self.images.trained += counts.trained
        self.spend("scoring", counts.scored, self.flops_at(counts.scored_size, student))
        self.spend("student_forward", counts.trained, self.flops_at(counts.trained_size, student))

    def spend(self, purpose: str, images: int, flops: int | None) -> None:
        """Add forwards of images at so many FLOPs each to those of a purpose."""
        so_far, more = self.spent.get(purpose, 0), times(images, flops)
        self.spent[purpose] = None if so_far is None or more is None else so_far + more

    def flops_at(self, size: Size | None, full: int | None) -> int | None:
        """Forward FLOPs of the student per image of a size; None: `full`, those at full size."""
        if size is None:
            return full
        if self.student_at is None:
            raise UserError("this ledger knows nothing of smaller images: make it with Ledger.of")
        return self.student_at(size)

    def charge_scoring(self, images: int, size: Size | None = None) -> None:
        """Add forwards of the student without gradient that are no part of a step."""
        self.images.scored += images
        self.spend("scoring", images, self.flops_at(size, self.student_flops))

    def charge_refresh(self, images: int) -> None:
        """Add forwards of the student that estimate BatchNorm's statistics anew."""
        self.images.refreshed += images

    def charge_fill(self, images: int) -> None:
        """Add answers that the teacher gave ahead of an epoch, whether a step will use them or not."""
        self.images.teacher_forwarded += images
        self.images.teacher_filled += images
        if self.itemised:
            self.spend("teacher", images, self.teacher_flops)

    def charge_evaluation(self, images: int, *, teacher: bool = False) -> None:
        """Add an evaluation of the student (or the teacher); listed beside the training cost, not in it."""
        if teacher:
            self.teacher_evaluated += images
        else:
            self.images.evaluated += images

    def flops(self) -> dict[str, int | None]:
        """Forward FLOPs of the run by purpose; None: not known."""
        teacher = times(self.images.teacher_forwarded, self.teacher_flops)
        evaluations = (
            times(self.images.evaluated, self.student_flops),
            times(self.teacher_evaluated, self.teacher_flops),
        )
        return {
            "scoring": self.spent["scoring"],
            "refresh": times(self.images.refreshed, self.student_flops),
            "teacher": self.spent.get("teacher", teacher),
            "student_forward": self.spent["student_forward"],
            "evaluation": total(*evaluations),
        }

    def training_flops(self, backward: int) -> int | None:
        """Total training FLOPs with a backward counted as so many forwards; None: not known."""
        flops = self.flops()
        forwards = (flops[name] for name in ("scoring", "refresh", "teacher", "student_forward"))
        return total(*forwards, times(backward, flops["student_forward"]))

    def relative_to_kd(self, reference_images: int | None = None) -> dict[str, float] | None:
        """Training FLOPs over those of plain KD on `reference_images` (default: the images seen); None: not known."""
        images = self.seen if reference_images is None else reference_images
        relative = {}
        for name, backward in CONVENTIONS.items():
            kd = total(times(images, self.teacher_flops), times(images * (1 + backward), self.student_flops))
            if reference_images is None and self.itemised:
                kd = total(self.spent["kd_teacher"], times(1 + backward, self.spent["kd_student"]))
            training = self.training_flops(backward)
            if kd is None or training is None:
                return None
            relative[name] = training / kd if kd else 0.0
        return relative

    def state_dict(self) -> dict[str, object]:
        """Plain numbers that `load_state_dict` takes back."""
        names = ("student_flops", "teacher_flops", "seen", "teacher_evaluated")
        numbers = {name: getattr(self, name) for name in names}
        size = None if self.image_size is None else list(self.image_size)
        images, spent = asdict(self.images), dict(self.spent)
        return {**numbers, "images": images, "spent": spent, "image_size": size, "noun": self.noun}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue where a saved ledger stood; refuses one of other networks."""
        for name in ("student_flops", "teacher_flops"):
            if state[name] != getattr(self, name):
                raise UserError(f"ledger: {name} was {state[name]} and is now {getattr(self, name)}")
        saved: Any = state
        self.images = ImageCounts(**{f.name: saved["images"].get(f.name, 0) for f in fields(ImageCounts)})
        self.seen, self.teacher_evaluated = saved["seen"], saved["teacher_evaluated"]
        if saved.get("image_size") is not None:
            self.image_size = tuple(saved["image_size"])
        full_size = {  # states of older releases lack "spent": no image was shrunk then
            "scoring": times(self.images.scored, self.student_flops),
            "student_forward": times(self.images.trained, self.student_flops),
        }
        self.spent = dict(saved.get("spent") or full_size)

    def add(self, state: Mapping[str, object]) -> None:
        """Add what another ledger of the same networks has charged, as its `state_dict` says."""
        other = self.emptied()
        other.load_state_dict(state)
        for ledger in (self, other):
            if self.itemised or other.itemised:
                ledger.itemise()
        both = zip(astuple(self.images), astuple(other.images), strict=True)
        self.images = ImageCounts(*(ours + theirs for ours, theirs in both))
        self.seen += other.seen
        self.teacher_evaluated += other.teacher_evaluated
        self.spent = {name: total(flops, other.spent[name]) for name, flops in self.spent.items()}

    def __str__(self) -> str:
        cost, count = self.relative_to_kd(), self.images
        stored = f", {count.teacher_cached:,} answered from the store" if count.teacher_cached else ""
        images = (
            f"{self.seen:,} {self.noun} seen: {count.scored:,} scored, {count.teacher_forwarded:,} asked of the "
            f"teacher{stored}, {count.trained:,} trained"
        )
        if cost is None:
            return f"{images}; {self.unknown()}"
        return (
            f"{images}; {cost['backward_1x']:.1%} of plain KD's cost (backward = 1 forward), "
            f"{cost['backward_2x']:.1%} (= 2)"
        )


def times(number: int, flops: int | None) -> int | None:
    """FLOPs of so many forwards; None: not known, unless there are none.

    >>> times(3, 10), times(3, None), times(0, None)
    (30, None, 0)
    """
    return 0 if number == 0 else None if flops is None else number * flops


def total(*flops: int | None) -> int | None:
    """The sum of FLOPs; None: one of them is not known.

    >>> total(1, 2), total(1, None)
    (3, None)
    """
    known = [each for each in flops if each is not None]
    return sum(known) if len(known) == len(flops) else None
