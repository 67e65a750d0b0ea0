"""Which options a run reads: another value of one that it does not read makes no other run."""

from __future__ import annotations

from dataclasses import fields

from unixkd.config import AnswersConfig, LossConfig, RunConfig
from unixkd.method.from_config import LOSSES, build_method, build_objective
from unixkd.method.method import Method, pure_rows
from unixkd.method.objective import Objective

_OF_LOSSES = {
    "temperature": {"kd", "dkd", "dist"},
    "dkd_alpha": {"dkd"},
    "dkd_beta": {"dkd"},
    "student_layers": {"at", "sp"},
    "teacher_layers": {"at", "sp"},
}
"""Options of `loss` that these losses alone read."""


def uses_answers(config: RunConfig, method: Method, objective: Objective) -> bool:
    """Whether stored answers would serve some row of the run."""
    epochs, size = config.train.epochs, config.train.batch_size
    asked = any(term.loss.needs_teacher for term in objective)
    return asked and any(pure_rows(method.at(epoch / epochs), size) for epoch in range(epochs))


def unread_options(config: RunConfig) -> set[str]:
    """The options, by dotted name, that decide nothing in a run of this method with these losses.

    >>> from unixkd.config import MethodConfig, ModelConfig
    >>> config = RunConfig(ModelConfig("resnet8"), ModelConfig("wrn_16_2"), MethodConfig("unix"))
    >>> {"answers.path", "loss.dkd_beta"} <= unread_options(config), "loss.kd" in unread_options(config)
    (True, False)
    """
    method = build_method(config.method)
    objective = build_objective(config.loss, method, config.train.label_smoothing)
    losses = {term.name for term in objective}
    readers = _OF_LOSSES if method.teacher else {f.name: set(LOSSES) for f in fields(LossConfig)}
    unread = {f"loss.{name}" for name, its_readers in readers.items() if not its_readers & losses}
    if not uses_answers(config, method, objective):
        unread |= {f"answers.{f.name}" for f in fields(AnswersConfig)}
    elif config.answers.path is None:
        unread |= {f"answers.{f.name}" for f in fields(AnswersConfig) if f.name != "path"}
    if "ce" not in losses:
        unread.add("train.label_smoothing")
    return unread
