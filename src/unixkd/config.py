"""The configuration of a run as frozen dataclasses; imports no torch, so help answers at once.

Fields that are ``None`` are decided by what they configure: a data set knows its own padding, a
method its own number of kept samples. Fractions are shares of the *configured* batch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from unixkd.errors import UserError, parse_yaml, read_text

Precision = Literal["auto", "fp32", "bf16", "fp16"]
TeacherForm = Literal["auto", "eager", "folded", "compiled"]
Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Pixels = Annotated[int, Meta(ge=1, le=4096)]
Finite = Annotated[float, Meta(ge=0, le=sys.float_info.max)]
Share = Annotated[float, Meta(ge=0, le=1)]
Part = Annotated[float, Meta(gt=0, le=1)]
Scorer = Literal["entropy", "margin", "least_confidence", "true_loss", "random"]


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are cut and augmented.

    Args:
        name: digits | cifar10 | cifar100 | folder:PATH | parquet:PATH | wds:PATH | hub:ID | stream:ID
        root: folder that holds (or will hold) cifar10/cifar100: Parquet or torchvision layout
        size: side in pixels of the square images the loop sees (default: the data's own)
        limit: train on a class-balanced subset of this many images
        holdout: share of the training images held out, by class, and evaluated on instead of the test set
        evaluate_on: auto (what is held out, else the test set) | test (also where images are held out)
        split_seed: seed of `limit` and `holdout`, and of a stream's order
        crop_padding: zero padding of the random crop in pixels (default: the data's own)
        crop_area: least share of an image that a random resized crop shows, where there is no padding (photographs)
        flip: random horizontal flip (default: the data's own)
        view_seed: seed of the augmentations, apart from the run's seed so that runs can share answers
        views: train on the first so many views of each image only (default: all there are)
        mixes: train on the first so many fixed mixes of each image with another one instead of its views; answers to
            them can be stored (default: none, images are shown as they are)
        labels: false: train without labels, whatever the data has
        image_column: column that holds the image (parquet:, hub:; default: the first image column), or in a table
            beside the images of folder: its file
        label_column: column that holds the label (parquet:, hub:, tables of folder:; default: the first class column);
            of wds: cls, txt or a field of .json
        in_memory: decode once and keep uint8 in memory (default: for images of at most 64 pixels)
        decoding: full | scaled (images much larger than `size` needs are decoded at a smaller scale) | auto: as an
            earlier run or stored answers have it, else scaled
        keep: share of the memory available that decoded images of more than 64 pixels may take, to be decoded once
        workers: threads that read images ahead which are not in memory as they are shown
        stream_images: images of an epoch of a stream (default: all, where their number is known)
        stream_buffer: encoded images of a stream that are kept in memory, and among which the next one is drawn
        max_faulty: leave out up to so many training images that cannot be read, or to which the teacher's answer is
            not finite, and list them; with any, all are read once before training
    """

    name: str = "digits"
    root: str | None = None
    size: Pixels | None = None
    limit: int | None = None
    holdout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    evaluate_on: Literal["auto", "test"] = "auto"
    split_seed: Seed = 0
    crop_padding: NotNegative | None = None
    crop_area: Part = 0.08
    flip: bool | None = None
    view_seed: Seed = 0
    views: Positive | None = None
    mixes: Positive | None = None
    labels: bool = True
    image_column: str | None = None
    label_column: str | None = None
    in_memory: bool | None = None
    decoding: Literal["auto", "full", "scaled"] = "auto"
    keep: Share = 0.25
    workers: NotNegative = 2
    max_faulty: NotNegative = 0
    stream_images: int | None = None
    stream_buffer: Positive = 2000


@dataclass(frozen=True)
class ModelConfig:
    """Which network, and where its weights come from.

    Args:
        name: a CIFAR-family name (wrn_16_2, vgg8, ...) | timm:NAME | torchvision:NAME | transformers:PATH_OR_ID |
            FILE.py:NAME, a class of your own | a run folder | a checkpoint folder of RepDistiller or mdistiller | a
            weights file, with its network before it unless the file or its folder names it (wrn_40_2:best.pth)
        weights: local weights file to load (.safetensors, or .pth read with weights_only)
        pretrained: take the published weights (timm:, torchvision:), those of the folder or ID (transformers:)
        mean: per-channel mean the network expects (default: the weights' own, else the data's)
        std: per-channel standard deviation the network expects
        code: FILE.py:NAME, the class of a run folder's network that is one of your own
    """

    name: str = ""
    weights: str | None = None
    pretrained: bool = False
    mean: list[float] | None = None
    std: list[float] | None = None
    code: str | None = None


@dataclass(frozen=True)
class MethodConfig:
    """How samples are scored, kept and mixed; unset fields keep the named method's own value.

    Args:
        name: of the method: unix, its controls and its relatives, see below
        keep: share of the batch that is kept, k/N; of each epoch's images for random-epoch and stale
        mix_from: rank, as a share of the batch, from which samples are mixed strongly, b/N
        steepness: steepness w of the sigmoid mixing curve
        curve: sigmoid | step (exactly 0 below b, 1 from b on) | none
        scorer: entropy | margin | least_confidence | true_loss | random
        scoring_mode: BatchNorm in the scoring forward: train (the reference) | eval
        scoring_size: share of the image's side that is looked at for scoring, in (0, 1]
        scoring_precision: fp32 | bf16 | fp16 of the scoring forward (default: the student's)
        per_sample_lambda: draw one mixing weight per kept sample instead of one per batch
        mixes_answers: mix the stored answers to both images instead of asking about the mixed image
        sampling: β: draw the kept samples, with a chance of their score's percentile to this power
        random_share: share of an epoch's places that stale gives away at random
        max_age: epochs after which stale visits an image again whatever its score
        prune: share of the images below the mean loss that infobatch drops
        full_last: last share of the run in which all images are kept, pure and unscored
        keep_end: keep at the end of the run, to which it changes epoch by epoch
        mix_from_end: mix_from at the end of the run
        steepness_end: steepness at the end of the run
        size: share of the image's side that the student is trained on, in (0, 1]; the teacher sees all of it
        size_end: size at the end of the run
        ramp: shape of these changes: linear | cosine
    """

    name: str = "unix"
    keep: float | None = None
    mix_from: float | None = None
    steepness: float | None = None
    curve: Literal["sigmoid", "step", "none"] | None = None
    scorer: Scorer | None = None
    scoring_mode: Literal["train", "eval"] | None = None
    scoring_size: float | None = None
    scoring_precision: Literal["fp32", "bf16", "fp16"] | None = None
    per_sample_lambda: bool | None = None
    mixes_answers: bool | None = None
    sampling: float | None = None
    random_share: float | None = None
    max_age: int | None = None
    prune: float | None = None
    full_last: float | None = None
    keep_end: float | None = None
    mix_from_end: float | None = None
    steepness_end: float | None = None
    size: float | None = None
    size_end: float | None = None
    ramp: Literal["linear", "cosine"] | None = None


@dataclass(frozen=True)
class LossConfig:
    """The weight of each loss (0 = off) and what the losses need.

    Args:
        kd: Kullback-Leibler divergence of softened logits
        ce: cross-entropy with the (mixed) labels
        dkd: decoupled KD
        dist: correlation loss of DIST
        at: attention transfer (the paper uses 1000)
        sp: similarity preserving (the paper uses 3000)
        temperature: temperature T of kd, dkd and dist
        dkd_alpha: weight of the target class in dkd
        dkd_beta: weight of the other classes in dkd
        student_layers: layers whose outputs at and sp compare (default: the model's stages)
        teacher_layers: the teacher's layers, in the same order
    """

    kd: float = 1.0
    ce: float = 0.0
    dkd: float = 0.0
    dist: float = 0.0
    at: float = 0.0
    sp: float = 0.0
    temperature: float = 4.0
    dkd_alpha: float = 1.0
    dkd_beta: float = 8.0
    student_layers: list[str] = field(default_factory=list)
    teacher_layers: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class AnswersConfig:
    """Stored answers of the teacher: logits of (image, view), kept on disk and never asked for twice.

    Args:
        path: folder of the stored answers, shared by runs; None: the teacher is asked every time
        precision: fp16 | fp32 of the stored logits
        top_k: keep only so many of an answer's logits, the largest, and spread the others' share evenly when it is
            read, which is exact for their sum at loss.temperature (default: all)
        fill: lazy (when an answer is first needed) | epoch (all that an epoch shows, ahead of it, in
            large batches) | auto (on a GPU epoch, or batch by batch for images that are decoded from disk)
    """

    path: str | None = None
    precision: Literal["fp16", "fp32"] = "fp16"
    top_k: int | None = None
    fill: Literal["auto", "lazy", "epoch"] = "auto"


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation, precision, evaluation and seeds.

    Args:
        epochs: passes over the training images
        batch_size: images per step before selection, N
        optimizer: sgd | adamw
        lr: peak learning rate
        momentum: SGD momentum
        nesterov: Nesterov momentum
        weight_decay: weight decay
        schedule: multistep | cosine | onecycle | constant
        milestones: points of the run, as shares of its length, where multistep multiplies lr by gamma
        gamma: factor of multistep
        warmup_epochs: epochs of linear warm-up
        clip_norm: clip gradients to this norm
        ema_decay: keep an exponential moving average of the weights and evaluate it
        label_smoothing: smoothing of the cross-entropy labels
        fit_head: before training, fit the classifier by logistic regression on the features of the training images,
            computed once
        freeze_batchnorm: BatchNorm normalises by the running statistics it begins with, in training too
        seed: seed of initial weights, order of images and every draw of the method
        precision: auto | fp32 | bf16 | fp16 of the student (weights stay fp32; fp16 with a scale of the loss); auto:
            bf16, or fp16 on a GPU without it, where it is faster here
        teacher_precision: auto | fp32 | bf16 | fp16 of the teacher
        frozen_teacher: eager | folded (BatchNorm into convolutions) | compiled (folded, then torch.compile, weights
            packed once; CPU) | auto: what is fastest here, where a run is long enough to find out
        device: auto | cpu | cuda | mps
        threads: CPU threads, auto (all, or one where a probe says that it is faster here) or null (torch's number)
        channels_last: keep images and weights in channels_last
        fused: one fused kernel for the optimiser's step
        flush_denormal: count denormal numbers as 0 (CPU)
        keep_memory: keep freed memory for the next step instead of giving it back to the system (CPU, glibc)
        graph: replay the whole step as one CUDA graph (cuda)
        compile: compile both networks with torch.compile, which takes minutes before it pays
        eval_every: evaluate every so many epochs (the last one always)
        eval_batch_size: images per evaluation batch
        bn_images: images on which BatchNorm's statistics are estimated anew before each evaluation where training
            has seen only mixed or shrunk ones; 0: never
        checkpoint_every: save a checkpoint every so many epochs (the last one always)
        micro_batch: train on so many of a step's images at once at most, adding up gradients: less memory
        sharding: none | student | both: of several processes each holds a part of this network's weights (FSDP),
            gradients and optimiser state; both: of the teacher's weights too
        sync_batchnorm: BatchNorm normalises by the images of all processes; needs CUDA
    """

    epochs: Positive = 30
    batch_size: Positive = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Finite = 0.05
    momentum: Share = 0.9
    nesterov: bool = False
    weight_decay: Finite = 5e-4
    schedule: Literal["multistep", "cosine", "onecycle", "constant"] = "cosine"
    milestones: list[Share] = field(default_factory=lambda: [0.625, 0.75, 0.875])
    gamma: Finite = 0.1
    warmup_epochs: Finite = 0.0
    clip_norm: Finite | None = None
    ema_decay: Share | None = None
    label_smoothing: Share = 0.0
    fit_head: bool = False
    freeze_batchnorm: bool = False
    seed: Seed = 0
    precision: Precision = "auto"
    teacher_precision: Precision = "auto"
    frozen_teacher: TeacherForm = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Literal["auto"] | Positive | None = "auto"
    channels_last: bool = True
    fused: bool = True
    flush_denormal: bool = True
    keep_memory: bool = True
    graph: bool = True
    compile: bool = False
    eval_every: Positive = 1
    eval_batch_size: Positive = 256
    bn_images: NotNegative = 2048
    checkpoint_every: Positive = 1
    micro_batch: int | None = None
    sharding: Literal["none", "student", "both"] = "none"
    sync_batchnorm: bool = False


@dataclass(frozen=True)
class LogConfig:
    """Where a run's figures also go; no part of the run: it is the same, and can be resumed, with any of these.

    Args:
        tensorboard: event files in logs/
        wandb: project of Weights & Biases; with WANDB_MODE=offline in the environment all of it stays in logs/wandb/
    """

    tensorboard: bool = False
    wandb: str | None = None


NO_LOG = LogConfig()


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a training run; `run.yaml` holds exactly this.

    Args:
        student: the network that is trained
        teacher: the frozen network it learns from; None for training on labels alone
        method: who is scored, kept and mixed
        loss: the weight of each loss
        data: which images
        answers: stored answers of the teacher
        train: optimisation, precision, evaluation and seeds
        label: name of the method in reports (default: the method's own name)
        reference_epochs: epochs of the plain-KD run that costs are compared with (default: this run's)
    """

    student: ModelConfig
    teacher: ModelConfig | None = None
    method: MethodConfig = field(default_factory=MethodConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    answers: AnswersConfig = field(default_factory=AnswersConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    label: str | None = None
    reference_epochs: Positive | None = None


def check_ranges(options: Any, group: str = "") -> None:
    """Raise where a number is outside the range that its field declares; None is what a default decides.

    Args:
        options: one of the dataclasses above; groups in it are not looked into
        group: what it is called in a configuration

    >>> check_ranges(TrainConfig(epochs=0), "train")
    Traceback (most recent call last):
    unixkd.errors.UserError: train.epochs: Expected `int` >= 1, got 0
    """
    for name, kind in get_type_hints(type(options), include_extras=True).items():
        value = getattr(options, name)
        if isinstance(value, bool) or not isinstance(value, Real | list | tuple):
            continue
        if isinstance(value, Real):  # msgspec takes Python's own numbers alone, not NumPy's
            value = int(value) if isinstance(value, Integral) else float(value)
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            key = f"{group}.{name}" if group else name
            raise UserError(f"{key}: {str(error).partition(' - at')[0]}, got {value!r}") from None


GONE: dict[str, Any] = {
    "answers.lender": None,
    "answers.max_faulty": 0,
    "data.max_unreadable": 0,
    "log.csv": False,
    "method.scoring_every": None,
    "method.scoring_batches": None,
    "train.selection": "local",
}
"""Options that older runs have in their run.yaml and this release does not know, and what they were by default."""


def decided_before(values: dict[str, Any]) -> dict[str, Any]:
    """A run.yaml's options with what older runs did without saying so: images decoded in full, an eager teacher."""
    if isinstance(values.get("train"), dict):
        values = {**values, "train": {**values["train"]}}
        values["train"].setdefault("frozen_teacher", "eager")
    data = values.get("data")
    if not isinstance(data, dict) or ":" not in str(data.get("name")):  # digits and CIFAR are at one scale
        return values
    return {**values, "data": {"decoding": "full", **data}}


def without_gone(values: dict[str, Any]) -> dict[str, Any]:
    """A run's options without those that are gone; a `UserError` where one is not what it was by default.

    >>> without_gone({"train": {"selection": "local", "lr": 0.1}})
    {'train': {'lr': 0.1}}
    """
    values = {
        group: dict(options) if isinstance(options, dict) else options for group, options in values.items()
    }
    for key, default in GONE.items():
        group, _, name = key.partition(".")
        options = values.get(group)
        value = options.pop(name, None) if isinstance(options, dict) else None
        if value is not None and value != default:
            raise UserError(f"{key} {value} is an option of unixkd 0.1.0, which still reads it; it is gone")
    return values


def read_yaml(path: Path) -> dict[str, Any]:
    """The values of a run.yaml; a `UserError` where it is damaged."""
    values = parse_yaml(read_text(path, "YAML"), path)
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no configuration")
    values = decided_before(without_gone(values))
    check_types(values, path)
    return values


def check_types(values: Mapping[str, Any], where: object) -> None:
    """Raise a `UserError` where an option of a run.yaml is of another type, or out of range.

    >>> check_types({"train": {"epochs": "two"}}, "run.yaml")
    Traceback (most recent call last):
    unixkd.errors.UserError: run.yaml: train.epochs: Expected `int`, got `str`
    """
    try:
        msgspec.convert({"student": values.get("model", {}), **values}, RunConfig)
    except msgspec.ValidationError as error:
        what, _, key = str(error).partition(" - at `$.")
        raise UserError(f"{where}: {key.rstrip('`') + ': ' if key else ''}{what}") from None


def to_plain(config: RunConfig) -> dict[str, Any]:
    """The configuration as `--config` takes it back: `train` runs have a model, `distill` runs a student."""
    values = asdict(config)
    if config.teacher is None:
        kept = {key: values[key] for key in ("data", "train", "label")}
        return {"model": values["student"], **kept}
    return values


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys.

    >>> flatten({"a": {"b": 1}, "c": 2})
    {'a.b': 1, 'c': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
