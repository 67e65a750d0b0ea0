"""A run's store of teacher answers: the key of what they depend on, opening it, filling it ahead of an epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from unixkd.data.disk import DiskSplit
from unixkd.data.split import Split
from unixkd.errors import UserError
from unixkd.method.losses import FeatureLoss
from unixkd.method.resizing import shrinks_by_boxes
from unixkd.models.card import PixelModel
from unixkd.names import local_path
from unixkd.teacher.folder import read_key
from unixkd.teacher.store import AnswerStore
from unixkd.teacher.teacher import Teacher
from unixkd.training.fingerprint import preprocessing_fingerprint, teacher_fingerprint
from unixkd.training.precision import DECODING, TEACHER_PRECISION
from unixkd.training.resolved import Resolved
from unixkd.training.used import uses_answers


def open_store(run: Resolved, path: str, note: Callable[[str], None]) -> AnswerStore | None:
    """Open the store of this teacher's answers, or make it; None where no step of the run can use one.

    Raises:
        UserError: losses that need more than logits, views without end, no space, or answers of something else
    """
    config, split = run.config, run.data.train
    if run.teacher is None or not any(term.loss.needs_teacher for term in run.objective):
        return None
    if any(isinstance(term.loss, FeatureLoss) for term in run.objective):
        raise UserError("stored answers hold logits only: at and sp compare features, give no --answers.path")
    if not uses_answers(config, run.method, run.objective):
        note(
            f"{run.method.name} mixes every image it keeps, so stored answers would never be read: no store is opened"
        )
        return None
    if split.num_views is None:
        raise UserError(
            "random resized crops have no fixed number of views, so their answers cannot be stored: give "
            "--data.views, how many of each image to train on"
        )
    data, folder = run.data, local_path(path)
    if data.fingerprint != data.fingerprint_before == read_key(folder).get("data"):
        raise UserError(
            f"{folder}: version 0.1.0 stored these answers, which did not look into the images: they may have changed "
            "since. Give another folder, or remove this one"
        )
    key = store_key(run.teacher, data.fingerprint, split.views_key(), config.train.teacher_precision)
    if run.teacher.card.size is not None and shrinks_by_boxes(data.size, run.teacher.card.size):
        key["teacher's images"] = "shrunk by box means"  # version 0.1 shrank them otherwise
    if config.data.decoding == "scaled":
        key[DECODING] = config.data.decoding
    if "teacher code" in key and (there := read_key(folder)) and "teacher code" not in there:
        note(
            f"{folder} does not say by which code it was filled: taken to be {run.teacher.card.name} as it is now"
        )
        del key["teacher code"]
    return AnswerStore.open(
        folder,
        key,
        images=len(split),
        views=split.num_views,
        classes=run.teacher.card.num_classes,
        precision=config.answers.precision,
        top_k=config.answers.top_k,
        temperature=config.loss.temperature,
        on_disk=isinstance(split, DiskSplit),
        announce=note,
    )


def store_key(teacher: PixelModel, data_fingerprint: str, views: str, precision: str) -> dict[str, str]:
    """The key of an `AnswerStore`: all that decides the teacher's answer to (image index, view number).

    `views` (`Split.views_key`) says what a view's number means.
    """
    parts = teacher_fingerprint(teacher)
    code = {"teacher code": parts["code"]} if "code" in parts else {}
    return code | {
        "teacher weights": parts["weights"],
        "teacher preprocessing": preprocessing_fingerprint(teacher.card),
        TEACHER_PRECISION: precision,
        "data": data_fingerprint,
        "kind of views": views,
    }


FILL_BATCH = 512


@dataclass(frozen=True)
class EpochAnswers:
    """The teacher's answers to an epoch's images, as far as its store has them, and what the store lacks.

    Args:
        teacher: with a store
        place: position of each image in its data set `[m]`, on the CPU
        view: the number of the view in which the epoch shows it `[m]`, on the CPU
        missing: which of the answers the store lacks `[m]`, on the CPU
        logits: on the teacher's device, 0 where they are missing until `ask` `[m, classes]`
    """

    teacher: Teacher
    place: Int[Tensor, " m"]
    view: Int[Tensor, " m"]
    missing: Bool[Tensor, " m"]
    logits: Float[Tensor, "m classes"]

    def ask(self, rows: Int[Tensor, " r"], images: Float[Tensor, "r c h w"]) -> None:
        """Ask the teacher about images, and store and take over what it answers.

        Args:
            rows: which of the epoch's images they are `[r]`, on the CPU
            images: in the views of the epoch
        """
        store, device = self.teacher.store, self.logits.device
        assert store is not None
        logits = self.teacher.ask(images.to(device), self.place[rows], self.view[rows])
        self.teacher.keep(store, self.place[rows], self.view[rows], logits)
        self.logits[rows.to(device)] = store.rounded(logits)
        self.missing[rows] = False

    def ask_batch(self, start: int, images: Float[Tensor, "n c h w"]) -> int:
        """Ask about those of a batch that are missing; returns how many.

        Args:
            start: which of the epoch's images the batch's first one is
            images: the batch, in the views of the epoch
        """
        rows = self.missing[start : start + len(images)].nonzero().flatten()
        if len(rows):
            self.ask(start + rows, images if len(rows) == len(images) else images[rows.to(images.device)])
        return len(rows)


def read_answers(
    teacher: Teacher, split: Split, epoch: int, order: Int[Tensor, " m"]
) -> tuple[EpochAnswers, int]:
    """What the store has of the answers on an epoch's images in its views, and how many the run is charged for.

    Args:
        teacher: with a store
        split: the training images
        epoch: number of the epoch, which decides the views
        order: images to visit `[M]`
    """
    store = teacher.store
    assert store is not None
    views, place = split.epoch_views(epoch, order).cpu(), order.cpu()
    device = next(teacher.network.module.parameters()).device
    answers, known = store.read(place, views)
    lent = store.borrow(place, views, known)
    return EpochAnswers(teacher, place, views, ~known, answers.to(device)), lent


def fetch_answers(
    teacher: Teacher, split: Split, epoch: int, order: Int[Tensor, " m"]
) -> tuple[EpochAnswers, int]:
    """The answers on all of an epoch's images in its views, and how many of them the run is charged for.

    What the store lacks is asked in large batches, for which these images are decoded. Arguments as of `read_answers`.
    """
    answers, charged = read_answers(teacher, split, epoch, order)
    missing = answers.missing.nonzero().flatten()
    if len(missing):
        batches = split.train_batches(epoch, order[missing.to(order.device)], FILL_BATCH)
        for batch, rows in zip(batches, missing.split(FILL_BATCH), strict=True):
            answers.ask(rows, batch.pixels)
    return answers, charged + len(missing)
