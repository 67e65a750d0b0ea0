"""From the configuration to a store of the teacher's answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from unixkd.config import AnswersConfig
from unixkd.data import Split
from unixkd.errors import UserError
from unixkd.models import PixelModel
from unixkd.teacher.fingerprint import TEACHER_PRECISION, store_key
from unixkd.teacher.folder import read_key
from unixkd.teacher.store import AnswerStore


def open_answers(
    path: Path,
    kept: AnswersConfig,
    temperature: float,
    teacher: PixelModel,
    teacher_precision: str,
    split: Split,
    data_fingerprint: str,
    announce: Callable[[str], None],
) -> AnswerStore:
    """The store of this teacher's answers on these images, which is made where there is none.

    Args:
        path: its folder
        kept: how many logits of an answer are kept, in which precision
        temperature: of the losses that use them
        teacher: who answers
        teacher_precision: it computes in
        split: the training images and their views
        data_fingerprint: of the images before augmentation
        announce: is told the size before a store is made

    Raises:
        UserError: views without end, no space, or answers of something else
    """
    if split.num_views is None:
        raise UserError(
            "answers to random resized crops cannot be stored, there is no end of them: give --data.views, "
            "how many of each image to train on"
        )
    return AnswerStore.open(
        path,
        store_key(teacher, data_fingerprint, split.views_key(), teacher_precision),
        images=len(split),
        views=split.num_views,
        classes=teacher.card.num_classes,
        precision=kept.precision,
        top_k=kept.top_k,
        temperature=temperature,
        announce=announce,
    )


def decided_precision(path: str | None) -> dict[str, str]:
    """What a teacher computed in whose answers are stored there, as `train` names it; nothing where none are."""
    key = {} if path is None else read_key(Path(path).expanduser())
    return {"teacher_precision": key[TEACHER_PRECISION]} if TEACHER_PRECISION in key else {}
