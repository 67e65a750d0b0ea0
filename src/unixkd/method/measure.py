"""What an own loop's batches cost: both networks measured at each shape of inputs, and the ledger to charge."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from unixkd.errors import UserError
from unixkd.method.flops import flops_by_size, forward_flops, sample_flops, structure
from unixkd.method.ledger import Ledger
from unixkd.method.method import StepCounts
from unixkd.method.named_inputs import Inputs, NamedInputs
from unixkd.method.network import Network, is_sharded

Flops = tuple[int | None, int | None]
"""Forward FLOPs of student and teacher on a sample; None: not known."""


class Costs:
    """Opens the ledger at the first batch, and measures again where a shape is new or the student has grown.

    Args:
        student: the network that is trained
        teacher: the frozen one, if there is one
        ledger: the caller's own, whose FLOPs hold for the images that they were measured on, or for all where it does
            not say so
        teacher_flops: the teacher's FLOPs on a sample of any shape, as the caller says
    """

    def __init__(
        self, student: Network, teacher: Network | None, ledger: Ledger | None, teacher_flops: int | None
    ) -> None:
        self.student = student.bare()
        self.teacher = None if teacher is None else teacher.bare()
        self.teacher_flops = 0 if teacher is None else teacher_flops
        self.given = ledger is not None
        self._ledger = ledger
        self._saved: Mapping[str, Any] | None = None
        self._flops: dict[object, Flops | None] = {}

    @property
    def ledger(self) -> Ledger:
        """What has been charged so far; empty before the first batch."""
        if self._ledger is None:
            return Ledger(0, 0) if self._saved is None else restored(self._saved)
        return self._ledger

    def charge(self, counts: StepCounts, each: Flops | None) -> None:
        """Charge a step to the open ledger."""
        assert self._ledger is not None
        self._ledger.charge(counts, each)

    def of_batch(self, inputs: Inputs) -> Flops | None:
        """FLOPs on a sample of the batch, for `Ledger.charge`; None: as the ledger has them."""
        images = isinstance(inputs, Tensor) and inputs.ndim == 4
        shapes: Any = inputs.shapes if isinstance(inputs, NamedInputs) else tuple(inputs.shape[1:])
        key = (shapes, structure(self.student.module))
        if key not in self._flops:
            if self.given and images and self._is_stated(shapes, grown=bool(self._flops)):
                self._flops[key] = None
            else:
                self._flops[key] = self._on_image(shapes) if images else self._on_sample(inputs)
            if self._ledger is not None and self._ledger.student_at is not None:
                self._ledger.student_at = flops_by_size(self.student.module, shapes[0])
        if self._ledger is None:
            flops = self._flops[key]
            assert flops is not None
            self._open(flops, shapes if images else None)
        return self._flops[key]

    def measure(self, image_shape: tuple[int, ...]) -> Ledger:
        """The ledger, opened for images of this shape where it is not open yet."""
        if self._ledger is None:
            flops = self._on_image(image_shape)
            self._flops[image_shape, structure(self.student.module)] = flops
            self._open(flops, image_shape)
        return self.ledger

    def state_dict(self) -> Mapping[str, Any] | None:
        """Plain numbers that `load_state_dict` takes back; None before the first batch."""
        return self._saved if self._ledger is None else self._ledger.state_dict()

    def load_state_dict(self, saved: Mapping[str, Any] | None) -> None:
        """Go on where a ledger stood. The caller may hold the open one: it is changed where it is of the same FLOPs."""
        ledger = self._ledger
        if ledger is not None and saved is not None and (self.given or same_flops(saved, ledger)):
            ledger.load_state_dict(saved)
        elif not self.given:
            self._ledger, self._saved = None, saved

    def _is_stated(self, shape: tuple[int, ...], grown: bool) -> bool:
        """Whether the caller's ledger has the FLOPs of images of this shape."""
        size = self.ledger.image_size
        return size is None or (size == shape[1:] and not grown)

    def _on_image(self, shape: tuple[int, ...]) -> Flops:
        """Both networks' FLOPs on an image (C, H, W)."""
        advice = "before you shard it give the Distiller ledger=Ledger.of(student, teacher, (C, H, W))"
        self._check_whole(advice)
        channels, height, width = shape
        student = forward_flops(self.student.module, (channels, height, width))
        return student, self._teacher_on_image((channels, height, width))

    def _teacher_on_image(self, shape: tuple[int, int, int]) -> int | None:
        if self.teacher is None or self.teacher_flops is not None:
            return self.teacher_flops
        return forward_flops(self.teacher.module, shape)

    def _on_sample(self, inputs: Inputs) -> Flops:
        """Both networks' FLOPs on the first sample of a batch that is none of images."""
        self._check_whole("inputs that are no images are measured batch by batch: leave it whole")
        student, teacher = (
            None if network is None else sample_flops(network.module, partial(network, inputs[:1]))
            for network in (self.student, self.teacher if self.teacher_flops is None else None)
        )
        return student, teacher if self.teacher_flops is None else self.teacher_flops

    def _check_whole(self, advice: str) -> None:
        """Raise where a network is sharded: a forward of it is one of all processes."""
        networks = [self.student] if self.teacher is None else [self.student, self.teacher]
        if any(is_sharded(network.module) for network in networks):
            raise UserError(f"a network with sharded weights cannot be measured: {advice}")

    def _open(self, flops: Flops, image_shape: tuple[int, ...] | None) -> None:
        """Open the ledger, where one was saved as it stood."""
        if image_shape is None:
            ledger = Ledger(*flops, noun="samples")
            ledger.itemise()
        else:
            channels, *size = image_shape
            at = flops_by_size(self.student.module, channels)
            ledger = Ledger(*flops, image_size=(size[0], size[1]), student_at=at)
            if self._saved is not None and not same_flops(self._saved, ledger):
                self._check_saved(self._saved, ledger, channels)
        if self._saved is not None:
            fresh, ledger = ledger, restored(self._saved)
            ledger.student_at = fresh.student_at
            ledger.image_size = ledger.image_size or fresh.image_size  # states of older releases lack it
        self._ledger, self._saved = ledger, None

    def _check_saved(self, saved: Mapping[str, Any], now: Ledger, channels: int) -> None:
        """Raise where the saved ledger is another teacher's; note another student, which may have grown."""
        size = saved.get("image_size")
        if size is None:  # of an older release
            if "kd_teacher" not in saved["spent"]:
                now.load_state_dict(saved)  # raises
            return
        shape = (channels, *size)
        teacher = self._teacher_on_image(shape)
        if teacher != saved["teacher_flops"]:
            raise UserError(
                f"ledger: teacher_flops was {saved['teacher_flops']} and is now {teacher}: another teacher"
            )
        student = forward_flops(self.student.module, shape)
        if student != saved["student_flops"]:
            warnings.warn(
                f"ledger: student_flops was {saved['student_flops']} when it was opened and is now {student}: if the "
                "student has not grown, this is another one",
                stacklevel=6,
            )


def same_flops(saved: Mapping[str, Any], ledger: Ledger) -> bool:
    """Whether a saved ledger counts in the same FLOPs as this one."""
    return (saved["student_flops"], saved["teacher_flops"]) == (ledger.student_flops, ledger.teacher_flops)


def restored(state: Mapping[str, Any]) -> Ledger:
    """A ledger as it was saved, whose FLOPs are those of the batch that opened it."""
    older = "samples" if "kd_teacher" in state["spent"] else "images"  # states of older releases do not say
    ledger = Ledger(state["student_flops"], state["teacher_flops"], noun=state.get("noun", older))
    ledger.load_state_dict(state)
    return ledger
