"""Configuration to objects: every name, every field, every nonsense."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from safetensors.torch import save_file

from slow import TinyNet
from unixkd.config import DataConfig, LossConfig, MethodConfig, ModelConfig, RunConfig, TrainConfig
from unixkd.errors import UsageError, UserError
from unixkd.method.epoch_choice import StaleChoice, Uncertainty
from unixkd.method.from_config import LOSSES, SCORERS, build_method, build_objective
from unixkd.method.losses import DIST, DKD, KD, AttentionTransfer, CrossEntropy, SimilarityPreserving
from unixkd.method.method import Ramp, Scoring
from unixkd.method.mixing import SigmoidCurve, StepCurve, full_curve
from unixkd.method.objective import Term
from unixkd.method.scoring import TrueLoss, entropy, least_confidence, margin
from unixkd.method.unix import METHODS, student_alone, unix
from unixkd.models import create_model
from unixkd.training.device import pick_device
from unixkd.training.optimizer import OPTIMIZERS, build_optimizer
from unixkd.training.resolved import build_run

# Methods


@pytest.mark.parametrize("name", METHODS)
def test_a_name_alone_is_the_named_method(name):
    assert build_method(MethodConfig(name)) == METHODS[name]()


FIELDS = {
    "keep": [(0.5, "keep", 0.5)],
    "mix_from": [(0.25, "curve", SigmoidCurve(0.25, 10.0))],
    "steepness": [(1000.0, "curve", SigmoidCurve(0.5, 1000.0))],
    "curve": [
        ("sigmoid", "curve", SigmoidCurve(0.5, 10.0)),
        ("step", "curve", StepCurve(0.5)),
        ("none", "curve", None),
    ],
    "scorer": [
        ("entropy", "scorer", entropy),
        ("margin", "scorer", margin),
        ("least_confidence", "scorer", least_confidence),
        ("true_loss", "scorer", TrueLoss()),
        ("random", "scorer", None),
    ],
    "scoring_mode": [("train", "scoring", Scoring()), ("eval", "scoring", Scoring("eval"))],
    "scoring_size": [(0.5, "scoring", Scoring(size=0.5))],
    "scoring_precision": [
        ("bf16", "scoring", Scoring(dtype=torch.bfloat16)),
        ("fp32", "scoring", Scoring(dtype=torch.float32)),
    ],
    "mixes_answers": [(True, "mixes_answers", True), (False, "mixes_answers", False)],
    "size": [(0.5, "size", 0.5)],
    "size_end": [(0.5, "ramp", Ramp(size=0.5))],
    "per_sample_lambda": [(True, "per_sample_lambda", True), (False, "per_sample_lambda", False)],
    "sampling": [(2.0, "sampling", 2.0)],
    "keep_end": [(0.25, "ramp", Ramp(keep=0.25))],
    "mix_from_end": [(0.25, "ramp", Ramp(mix_from=0.25))],
    "steepness_end": [(1000.0, "ramp", Ramp(steepness=1000.0))],
    "full_last": [(0.25, "ramp", Ramp(full_last=0.25))],
}
CHOICES = {
    "random-epoch": [("keep", 0.5), ("full_last", 0.25)],
    "stale": [("keep", 0.5), ("random_share", 0.5), ("max_age", 9), ("full_last", 0.25)],
    "infobatch": [("prune", 0.25), ("full_last", 0.25)],
}


def test_every_field_is_tried():
    of_choices = {field for cases in CHOICES.values() for field, _ in cases}
    assert set(FIELDS) | of_choices == {f.name for f in fields(MethodConfig)} - {"name", "ramp"}
    assert {value for value, *_ in FIELDS["scorer"]} == set(SCORERS)


@pytest.mark.parametrize(
    ("field", "given", "attribute", "expected"),
    [(field, *case) for field, cases in FIELDS.items() for case in cases],
)
def test_every_field_takes_effect_and_changes_nothing_else(field, given, attribute, expected):
    method = build_method(replace(MethodConfig("unix"), **{field: given}))
    assert getattr(method, attribute) == expected
    assert method == replace(unix(), **{attribute: expected})


@pytest.mark.parametrize(
    ("name", "field", "value"), [(name, *case) for name, cases in CHOICES.items() for case in cases]
)
def test_every_field_of_a_choice_takes_effect_and_changes_nothing_else(name, field, value):
    method, usual = build_method(replace(MethodConfig(name), **{field: value})), METHODS[name]()
    assert getattr(method.choice, field) == value != getattr(usual.choice, field)
    assert method == replace(usual, choice=replace(usual.choice, **{field: value}))


def test_a_ramp_has_a_shape_and_several_ends():
    config = MethodConfig("unix", keep_end=0.5, steepness_end=100.0, ramp="cosine", full_last=0.1)
    expected = Ramp(keep=0.5, steepness=100.0, shape="cosine", full_last=0.1)
    assert build_method(config) == replace(unix(), ramp=expected)


def test_stale_remembers_by_the_scorer_that_is_given():
    method = build_method(MethodConfig("stale", scorer="margin"))
    assert method == replace(METHODS["stale"](), choice=StaleChoice(row_score=Uncertainty(margin)))
    assert method.scorer is None  # no forward is spent on it


def test_fields_together():
    config = MethodConfig("unix", 0.5, 0.25, None, "step", "margin", "eval", per_sample_lambda=True)
    assert build_method(config) == replace(
        unix(0.5, scorer=margin),
        curve=StepCurve(0.25),
        per_sample_lambda=True,
        scoring=Scoring("eval"),
    )
    sigmoid = MethodConfig("hard", mix_from=0.25, steepness=20.0, curve="sigmoid")
    assert build_method(sigmoid).curve == SigmoidCurve(0.25, 20.0)
    assert build_method(MethodConfig("mixup", keep=0.5)).curve is full_curve


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MethodConfig("kd", mix_from=0.5), "mix_from needs the curve sigmoid or step"),
        (MethodConfig("kd", mix_from=0.25), "mix_from needs the curve sigmoid or step"),
        (MethodConfig("kd", steepness=10.0), "steepness belongs to the sigmoid curve"),
        (MethodConfig("mixup", steepness=20.0), "steepness belongs to the sigmoid curve"),
        (MethodConfig("unix", curve="step", steepness=20.0), "steepness belongs to the sigmoid curve"),
        (MethodConfig("unix", curve="none", mix_from=0.25), "mix_from needs the curve sigmoid or step"),
        (MethodConfig("kd", scoring_mode="eval"), "method kd does not score: scoring_mode does not apply"),
        (MethodConfig("random", scoring_mode="eval"), "does not score"),
        (MethodConfig("unix", scorer="random", scoring_mode="eval"), "does not score"),
        (MethodConfig("hard", per_sample_lambda=True), "does not mix: per_sample_lambda does not apply"),
        (MethodConfig("student-alone", keep=0.5), "trains on every image as it is"),
        (MethodConfig("unix", keep=0.0), r"keep \(k/N\) is a share of the batch and must lie in \(0, 1\]"),
        (MethodConfig("unix", keep=1.5), r"keep \(k/N\) is a share of the batch and must lie in \(0, 1\]"),
        (MethodConfig("unix", mix_from=1.5), r"mix_from \(b\) is a share"),
        (MethodConfig("unix", scoring_mode="test"), "train or eval, not 'test'"),
        (MethodConfig("unix", scoring_size=1.5), r"scoring_size is a share of the image's side .* got 1.5"),
        (MethodConfig("hard", mixes_answers=True), "does not mix: mixes_answers does not apply"),
        (MethodConfig("kd", size=0.0), r"method kd: size is a share of the image's side"),
        (MethodConfig("kd", size_end=2.0), r"size_end is a share of the image's side"),
        (MethodConfig("unix", prune=0.5), "method unix: prune does not apply"),
        (MethodConfig("infobatch", keep=0.5), "method infobatch: keep does not apply"),
        (MethodConfig("random-epoch", max_age=3), "method random-epoch: max_age does not apply"),
        (MethodConfig("random-epoch", keep=0.0), r"keep is a share of the images and must lie in \(0, 1\]"),
        (MethodConfig("stale", random_share=1.5), r"random_share is a share .* in \[0, 1\]"),
        (MethodConfig("stale", max_age=0), "max_age must be at least 1 epoch, got 0"),
        (MethodConfig("infobatch", prune=1.0), r"prune must lie in \[0, 1\), got 1"),
        (MethodConfig("stale", scorer="random"), "method stale: scorer random does not apply"),
        (MethodConfig("stale", scorer="true_loss"), "method stale: scorer true_loss does not apply"),
        (MethodConfig("infobatch", scorer="margin"), "method infobatch: scorer margin does not apply"),
        (MethodConfig("unix", ramp="cosine", full_last=0.5), "a ramp needs keep_end"),
        (MethodConfig("unix", mix_from_end=1.5), r"mix_from \(b\) is a share"),
        (
            MethodConfig("unix", ramp="linear"),
            "a ramp needs keep_end, mix_from_end, steepness_end or size_end",
        ),
        (MethodConfig("hard", steepness_end=9.0), "method hard: its mixing curve has no steepness"),
        (MethodConfig("unix", curve="step", steepness_end=9.0), "its mixing curve has no steepness"),
        (MethodConfig("stale", keep_end=0.5), "a ramp within the batch does not apply"),
        (MethodConfig("unix", keep_end=0.0), r"keep_end is a share"),
        (MethodConfig("unix", full_last=1.5), r"full_last is a share"),
        (MethodConfig("unix", keep_end=0.5, ramp="stairs"), "unknown ramp 'stairs'"),
        (MethodConfig("random", sampling=1.0), "sampling .* needs a scorer"),
        (MethodConfig("stale", curve="step"), "must be of the image unmixed"),
    ],
)
def test_nonsense_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        build_method(config)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: build_method(MethodConfig("unx")), "unknown method 'unx'; did you mean 'unix'"),
        (lambda: build_method(MethodConfig("rndom")), "did you mean 'random'"),
        (
            lambda: build_method(MethodConfig(scorer="entropi")),
            "unknown scorer 'entropi'; did you mean 'entropy'",
        ),
        (
            lambda: build_method(MethodConfig(curve="sigmoyd")),
            "unknown curve 'sigmoyd'; did you mean 'sigmoid'",
        ),
        (
            lambda: build_optimizer(TrainConfig(optimizer="adam"), [], torch.device("cpu")),
            "unknown optimizer 'adam'; did you mean 'adamw'",
        ),
        (lambda: pick_device(TrainConfig(device="cdua")), "unknown device 'cdua'; did you mean"),
    ],
)
def test_unknown_names_offer_the_nearest(build, message):
    with pytest.raises(UsageError, match=message):
        build()


# Losses


def test_the_default_objective_is_that_of_the_paper():
    assert build_objective(LossConfig(), unix()) == [Term("kd", KD(4.0), 1.0)]


WANTED = {
    "kd": KD(2.0),
    "dkd": DKD(2.0, 3.0, 5.0),
    "dist": DIST(2.0),
    "at": AttentionTransfer(("a",), ("b",)),
    "sp": SimilarityPreserving(("a",), ("b",)),
    "ce": CrossEntropy(0.1),
}


@pytest.mark.parametrize("name", WANTED)
def test_every_loss_by_name(name):
    assert set(WANTED) == {*LOSSES, "ce"}
    config = LossConfig(
        kd=0.0,
        temperature=2.0,
        dkd_alpha=3.0,
        dkd_beta=5.0,
        student_layers=["a"],
        teacher_layers=["b"],
    )
    config = replace(config, **{name: 7.0})
    assert build_objective(config, unix(), label_smoothing=0.1) == [Term(name, WANTED[name], 7.0)]


def test_all_losses_at_once():
    config = LossConfig(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    weights = {term.name: term.weight for term in build_objective(config, unix())}
    assert weights == {"kd": 1.0, "ce": 2.0, "dkd": 3.0, "dist": 4.0, "at": 5.0, "sp": 6.0}


def test_no_loss_at_all():
    with pytest.raises(UserError, match="every loss has weight 0; give one of kd, dkd, dist, at, sp, ce"):
        build_objective(LossConfig(kd=0.0), unix())


def test_a_temperature_of_0():
    with pytest.raises(UserError, match=r"temperature must be (above|greater than) 0"):
        build_objective(LossConfig(temperature=0.0), unix())


def test_without_a_teacher_there_is_cross_entropy():
    assert build_objective(LossConfig(), student_alone(), 0.1) == [Term("ce", CrossEntropy(0.1))]


# Optimisers


def test_optimizers_take_their_settings():
    config = TrainConfig(lr=0.3, momentum=0.8, nesterov=True, weight_decay=0.01)
    parameters = list(TinyNet().parameters())
    sgd = build_optimizer(config, parameters, CPU)
    assert isinstance(sgd, torch.optim.SGD)
    (group,) = sgd.param_groups
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (
        0.3,
        0.8,
        True,
        0.01,
    )
    assert len(group["params"]) == len(parameters)
    adamw = build_optimizer(replace(config, optimizer="adamw"), parameters, CPU)
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.param_groups[0]["lr"], adamw.param_groups[0]["weight_decay"]) == (0.3, 0.01)
    assert set(OPTIMIZERS) == {"sgd", "adamw"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there():
    with pytest.raises(
        UserError, match=r"device cuda is not available here; give --train\.device auto or cpu"
    ):
        pick_device(TrainConfig(device="cuda"))


# Whole runs


DIGITS = DataConfig("digits", limit=200)
SMALL = TrainConfig(batch_size=32)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run on digits; the teacher has weights, as it must."""
    path = tmp_path_factory.mktemp("teacher") / "resnet8.safetensors"
    save_file(create_model("resnet8", num_classes=10, in_channels=1).state_dict(), path)
    return RunConfig(
        ModelConfig("resnet8"), ModelConfig("resnet8", weights=str(path)), data=DIGITS, train=SMALL
    )


def test_parts_of_a_run_fit_together(base):
    parts = build_run(base, CPU)
    assert parts.method == unix()
    assert parts.student.card.num_classes == parts.teacher.card.num_classes == parts.data.num_classes == 10
    assert len(parts.data.train) == 200
    images = parts.data.train.eval_batches(8)
    assert parts.student(next(iter(images)).images).shape == (8, 10)


def test_initial_weights_depend_on_the_seed_alone(base):
    """Not on the method, nor on whether a teacher was built before."""
    alone = replace(base, teacher=None, method=MethodConfig("student-alone"))
    other_seed = replace(base, train=replace(SMALL, seed=1))
    a, b, other = (build_run(c, CPU).student.net.conv1.weight for c in (base, alone, other_seed))
    assert torch.equal(a, b)
    assert not torch.equal(a, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None}, "method unix needs a teacher"),
        (
            {"train": TrainConfig(batch_size=201)},
            "digits has 200 training images, fewer than a batch of 201",
        ),
        ({"train": TrainConfig(epochs=0)}, "epochs: .* >= 1, got 0"),
        ({"train": TrainConfig(batch_size=0)}, "batch_size: .* >= 1, got 0"),
        ({"method": MethodConfig("unix", keep=0.01)}, r"keep 0\.01 of a batch of 32 keeps no image"),
        (
            {"loss": LossConfig(ce=1.0), "data": DataConfig("digits", labels=False)},
            "training images of digits have no labels, which the loss ce needs",
        ),
        ({"student": ModelConfig("resnet9")}, "unknown model 'resnet9'; did you mean 'resnet8'"),
        ({"data": DataConfig("digts")}, "did you mean 'digits'"),
    ],
)
def test_runs_that_do_not_fit(base, changes, message):
    with pytest.raises(UserError, match=message):
        build_run(replace(base, **changes), CPU)


def test_unlabelled_data_takes_the_teachers_classes(base):
    parts = build_run(replace(base, data=replace(DIGITS, labels=False)), CPU)
    assert parts.student.card.num_classes == parts.teacher.card.num_classes
