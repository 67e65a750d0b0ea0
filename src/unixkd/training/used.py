"""Which options a run reads: another value of one that it does not read makes no other run."""

from __future__ import annotations

from dataclasses import fields

from unixkd.config import AnswersConfig, LossConfig, RunConfig
from unixkd.method.from_config import build_method, build_objective
from unixkd.method.losses import CrossEntropy
from unixkd.method.method import Method, pure_rows
from unixkd.method.objective import Objective


def uses_answers(config: RunConfig, method: Method, objective: Objective) -> bool:
    """Whether stored answers would serve some row of the run."""
    epochs, size = config.train.epochs, config.train.batch_size
    asked = any(term.loss.needs_teacher for term in objective)
    return asked and any(pure_rows(method.at(epoch / epochs), size) for epoch in range(epochs))


def unread_options(config: RunConfig) -> set[str]:
    """The options, by dotted name, that decide nothing in a run of this method with these losses.

    >>> from unixkd.config import MethodConfig, ModelConfig
    >>> config = RunConfig(ModelConfig("resnet8"), ModelConfig("wrn_16_2"), MethodConfig("unix"))
    >>> "answers.path" in unread_options(config), "loss.kd" in unread_options(config)
    (True, False)
    """
    method = build_method(config.method)
    objective = build_objective(config.loss, method, config.train.label_smoothing)
    unread = set[str]()
    if not method.teacher:
        unread |= {f"loss.{field.name}" for field in fields(LossConfig)}
    if not uses_answers(config, method, objective):
        unread |= {f"answers.{field.name}" for field in fields(AnswersConfig)}
    elif config.answers.path is None:
        unread |= {f"answers.{field.name}" for field in fields(AnswersConfig) if field.name != "path"}
    if not any(isinstance(term.loss, CrossEntropy) for term in objective):
        unread.add("train.label_smoothing")
    return unread
