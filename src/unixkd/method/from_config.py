"""A configuration to a method: the named one with the configured fields changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from unixkd.config import LossConfig, MethodConfig
from unixkd.errors import UserError, lookup, unknown_name
from unixkd.method.epoch_choice import EpochChoice, StaleChoice, Uncertainty
from unixkd.method.losses import DIST, DKD, KD, AttentionTransfer, CrossEntropy, Loss, SimilarityPreserving
from unixkd.method.method import Method, Ramp, Scoring
from unixkd.method.mixing import Curve, SigmoidCurve, StepCurve
from unixkd.method.objective import Objective, Term
from unixkd.method.scoring import Scorer, TrueLoss, entropy, least_confidence, margin
from unixkd.method.unix import METHODS

SCORERS: dict[str, Scorer | TrueLoss | None] = {
    "entropy": entropy,
    "margin": margin,
    "least_confidence": least_confidence,
    "true_loss": TrueLoss(),
    "random": None,  # ranks by noise and so needs no forward
}
CURVES = ("sigmoid", "step", "none")


def build_method(config: MethodConfig) -> Method:
    """The named method with the configured fields changed.

    Raises:
        UserError: no such method, a value out of range, or a field that the method has no use for

    >>> build_method(MethodConfig("unix", keep=0.5)).keep
    0.5
    """
    method = lookup("method", config.name, METHODS)()
    if config.name == "student-alone" and config != MethodConfig(config.name):
        raise UserError("student-alone trains on every image as it is: keep, mixing and scoring do not apply")
    changes = _configured(config, "per_sample_lambda", "sampling", "size", "mixes_answers")
    if method.choice is None:  # else they are those of the choice
        changes |= _configured(config, "keep")
        if config.scorer is not None:
            changes["scorer"] = lookup("scorer", config.scorer, SCORERS)
    changes["curve"] = _curve(config, method)
    changes["choice"] = _choice(config, method)
    changes["ramp"] = _ramp(config, method)
    for name in _configured(config, "scoring_mode", "scoring_size", "scoring_precision"):
        if changes.get("scorer", method.scorer) is None:
            raise UserError(f"method {config.name} does not score: {name} does not apply")
    changes["scoring"] = _scoring(config, method.scoring)
    method = replace(method, **changes)
    if config.per_sample_lambda is not None and method.curve is None:
        raise UserError(f"method {config.name} does not mix: per_sample_lambda does not apply")
    return method


def _configured(config: MethodConfig, *names: str) -> dict[str, Any]:
    """Those of the fields that are not left to the method."""
    return {name: value for name in names if (value := getattr(config, name)) is not None}


def _scoring(config: MethodConfig, scoring: Scoring) -> Scoring:
    """How the method scores, with the configured fields changed."""
    dtypes = {
        "fp32": torch.float32,
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        None: scoring.dtype,
    }
    size = scoring.size if config.scoring_size is None else config.scoring_size
    return Scoring(config.scoring_mode or scoring.mode, size, dtypes[config.scoring_precision])


def _choice(config: MethodConfig, method: Method) -> EpochChoice | None:
    """The method's choice of an epoch's images with the configured fields changed."""
    changes = _configured(config, "random_share", "max_age", "prune")
    if method.choice is not None:
        changes |= _configured(config, "keep", "full_last")
        if config.scorer is not None:
            scorer = lookup("scorer", config.scorer, SCORERS)
            if not isinstance(method.choice, StaleChoice) or scorer is None or isinstance(scorer, TrueLoss):
                raise UserError(f"method {method.name}: scorer {config.scorer} does not apply")
            changes["row_score"] = Uncertainty(scorer)
    for name in changes:
        if not hasattr(method.choice, name):
            raise UserError(f"method {method.name}: {name} does not apply")
    return replace(method.choice, **changes) if changes else method.choice  # type: ignore[type-var]


def _ramp(config: MethodConfig, method: Method) -> Ramp | None:
    """How the method changes over a run, where anything is configured to."""
    full_last = config.full_last if method.choice is None else None
    ends = _configured(config, "keep_end", "mix_from_end", "steepness_end", "size_end")
    if not ends and config.ramp is not None:
        raise UserError(
            f"method {method.name}: a ramp needs keep_end, mix_from_end, steepness_end or size_end"
        )
    if not ends and full_last is None:
        return None
    values = {name.removesuffix("_end"): end for name, end in ends.items()}
    return Ramp(shape=config.ramp or "linear", full_last=full_last or 0.0, **values)


def _curve(config: MethodConfig, method: Method) -> Curve | None:
    """The method's mixing curve with the configured fields changed."""
    sigmoid = method.curve if isinstance(method.curve, SigmoidCurve) else None
    kind = config.curve or ("sigmoid" if sigmoid else None)
    if kind is not None and kind not in CURVES:
        raise unknown_name("curve", kind, CURVES)
    if config.steepness is not None and kind != "sigmoid":
        raise UserError(f"method {method.name}: steepness belongs to the sigmoid curve")
    if config.mix_from is not None and kind not in ("sigmoid", "step"):
        raise UserError(f"method {method.name}: mix_from needs the curve sigmoid or step")
    if kind is None or kind == "none":
        return method.curve if kind is None else None
    curve = replace(sigmoid or SigmoidCurve(), **_configured(config, "mix_from", "steepness"))
    return curve if kind == "sigmoid" else StepCurve(curve.mix_from)


LOSSES: dict[str, Callable[[LossConfig], Loss]] = {
    "kd": lambda c: KD(c.temperature),
    "dkd": lambda c: DKD(c.temperature, c.dkd_alpha, c.dkd_beta),
    "dist": lambda c: DIST(c.temperature),
    "at": lambda c: AttentionTransfer(tuple(c.student_layers), tuple(c.teacher_layers)),
    "sp": lambda c: SimilarityPreserving(tuple(c.student_layers), tuple(c.teacher_layers)),
}


def build_objective(config: LossConfig, method: Method, label_smoothing: float = 0.0) -> Objective:
    """The losses with a weight other than 0; cross-entropy alone for a method without a teacher."""
    if not method.teacher:
        return [Term("ce", CrossEntropy(label_smoothing))]
    if not config.temperature > 0:
        raise UserError(f"loss.temperature must be above 0, got {config.temperature}")
    terms = [
        Term(name, make(config), weight)
        for name, make in LOSSES.items()
        if (weight := getattr(config, name)) != 0
    ]
    if config.ce != 0:
        terms.append(Term("ce", CrossEntropy(label_smoothing), config.ce))
    if not terms:
        raise UserError(f"every loss has weight 0; give one of {', '.join([*LOSSES, 'ce'])} a weight")
    return terms
