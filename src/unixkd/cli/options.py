"""Every command and its options in one table; imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from unixkd.cli import recipes
from unixkd.config import (
    AnswersConfig,
    DataConfig,
    LogConfig,
    LossConfig,
    MethodConfig,
    ModelConfig,
    TrainConfig,
)
from unixkd.errors import UsageError, unknown_name
from unixkd.names import (
    DATA,
    IMAGENET_IMAGES,
    check_code,
    check_folder,
    is_code,
    methods,
    models,
    parse_variants,
)
from unixkd.planning.catalogue import parse_target

if TYPE_CHECKING:
    from jsonargparse import Namespace

GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "teacher": ModelConfig,
    "student": ModelConfig,
    "method": MethodConfig,
    "loss": LossConfig,
    "data": DataConfig,
    "answers": AnswersConfig,
    "train": TrainConfig,
    "log": LogConfig,
}


Option = tuple[str, dict[str, Any]]
"""An option's name and the keywords of `add_argument`."""


def option(name: str, text: str, kind: Any = str, **keywords: Any) -> Option:
    """An option with a value; without dashes before its name it is a positional argument.

    A kind of `jsonargparse.typing` stands as its name: `unixkd --help` is printed without that import.
    """
    return name, {"type": kind, "help": text, **keywords}


def flag(name: str, text: str) -> Option:
    """An option without a value."""
    return name, {"action": "store_true", "help": text}


class Command(NamedTuple):
    """A command: what it does, its groups of options and further options."""

    summary: str
    groups: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    defaults: Mapping[str, Any] = {}  # that differ from a group's own, by dotted name
    recipe: Callable[[str], dict[str, Any]] | None = None  # a recipe's settings by name
    shared: bool = False  # whether many processes can share it


_RUN = ("data", "train", "log")
_PAIR = ("teacher", "student")
_OTHER_DATA = {"data.name": ""}
"""The data are those of the run or of the teacher unless --data names others."""

RUN_OPTIONS = (
    option("--out", "run folder (default: runs/ and a name made of the options)"),
    flag("--resume", "go on where the run in --out stopped"),
    flag("--overwrite", "remove the run in --out first"),
    option("--label", "name of the method in reports"),
)
CODE = option("--code", "FILE.py:NAME of the run's network where it is one of your own; the file is run")
CLUSTER_OPTIONS = (
    option("--gpus", "on paper: processes of a node, one per GPU", "PositiveInt"),
    option("--nodes", "on paper: number of nodes", "PositiveInt"),
    option("--images", "on paper: images of the training set, e.g. 1e9, or imagenet; none is read"),
    option("--classes", "classes of these images where no data are named (default: 1000)", "PositiveInt"),
    option(
        "--bandwidth",
        "GB/s of the slowest link between two GPUs, each way (default: 20 within a node, 1.25 between nodes)",
        "PositiveFloat",
    ),
    option(
        "--tflops", "TFLOPs per second that a GPU reaches in training; nothing is timed here", "PositiveFloat"
    ),
)
"""Each of them asks `plan` for an estimate on paper."""

TARGETS = (
    option("--budget", "the best strategy within this share of plain KD's cost, e.g. 50%"),
    flag("--match-kd", "the cheapest strategy that is as accurate as plain KD"),
)
"""What chooses a strategy: `plan` ranks all of them, `distill` runs the first."""

COMMANDS = {
    "demo": Command(
        "train a teacher on handwritten digits, distil it in four ways, compare",
        options=(
            option("--out", "folder of the demo; resumes by itself", default="unixkd-demo"),
            option("--jobs", "runs at a time (default: one per CPU core)", "PositiveInt"),
        ),
    ),
    "train": Command(
        "train a model on labels, a teacher say",
        ("model", *_RUN),
        RUN_OPTIONS,
        recipe=recipes.teacher_recipe,
        shared=True,
    ),
    "distill": Command(
        "distil a teacher into a student",
        (*_PAIR, "method", "loss", "answers", *_RUN),
        (
            *RUN_OPTIONS,
            option("--reference_epochs", "epochs of the plain KD that costs are compared with", int),
            *TARGETS,
        ),
        recipe=recipes.recipe,
        shared=True,
    ),
    "evaluate": Command(
        "how good and how fast a trained model is, beside its teacher",
        ("data", "teacher"),
        (
            option("run", "run folder; its own data and teacher unless --data and --teacher say otherwise"),
            CODE,
            option("--batch_size", "images per batch", "PositiveInt", default=256),
            option("--rounds", "timed forwards of single images; 0: no timing", "NonNegativeInt", default=30),
            flag("--json", "all figures as one JSON object"),
            option("--html", "page to write"),
        ),
        _OTHER_DATA,
    ),
    "predict": Command(
        "images in, class names out",
        options=(
            option("run", "run folder"),
            option(
                "images", "image files, folders, patterns; -: a list of paths from standard input", nargs="+"
            ),
            CODE,
            option("--top", "classes to print for each image", "PositiveInt", default=1),
            flag("--json", "one JSON object per image"),
            flag("--csv", "a table with a row per image"),
        ),
    ),
    "compare": Command(
        "methods × seeds under one protocol",
        (*_PAIR, "loss", "answers", *_RUN),
        (
            option(
                "--methods",
                "e.g. kd,unix,unix:keep=0.5:scorer=margin: names, or names with options of distill's --method",
                list[str],
                default=["kd", "unix", "random"],
            ),
            option("--seeds", "e.g. 0,1,2", list[int], default=[0, 1, 2]),
            flag(
                "--match-cost",
                "also run plain KD for as many epochs as each method's cost buys (backward = 2 forwards)",
            ),
            option("--out", "folder of the comparison; resumes by itself", default="runs/compare"),
            option("--jobs", "runs at a time (default: one per CPU core, one on a GPU)", "PositiveInt"),
        ),
        recipe=recipes.recipe,
    ),
    "plan": Command(
        "what methods will cost, which strategy fits a target",
        (*_PAIR, "method", "data"),
        (
            option("--batch_size", "images per step, N", "PositiveInt", default=64),
            option("--train.epochs", "epochs of plain KD (--epochs)", "PositiveInt", default=240),
            option("--runs", "runs that share stored answers", "PositiveInt", default=1),
            *TARGETS,
            option("--rounds", "timed steps of each method; 0: no timing", "NonNegativeInt", default=5),
            *CLUSTER_OPTIONS,
        ),
        {"method.name": "", **_OTHER_DATA},  # all methods
        recipes.planned_recipe,
    ),
    "report": Command(
        "table and HTML page of finished runs",
        options=(
            option("folders", "run folders, or folders of run folders", nargs="+"),
            option("--html", "page to write (default: report.html in the first folder)"),
        ),
    ),
    "export": Command(
        "a trained model as safetensors, torch.export, ONNX, verified",
        ("data",),
        (
            option("run", "run folder; verified on its own data unless --data says otherwise"),
            CODE,
            option("--out", "folder to write (default: export in the run folder)"),
            option(
                "--formats",
                "safetensors (for load_student), torch (torch.export), onnx, int8 (ONNX with weights of 8 bits); e.g. "
                "safetensors,onnx",
                list[Literal["safetensors", "torch", "onnx", "int8"]],
                default=["safetensors", "torch"],
            ),
            option(
                "--size",
                "side of the images that torch, onnx and int8 take (default: the model's own)",
                "PositiveInt",
            ),
            flag("--resize", "onnx and int8 take decoded photos of any size, uint8 [N, H, W, C]"),
            option("--licence", "licence of the weights, as the Hub names it: apache-2.0, ..."),
            option("--data_licence", "licence of the data the model was trained on"),
            flag("--overwrite", "remove the export in --out first"),
            option("--push_to_hub", "upload to this model repository, OWNER/NAME"),
            flag("--private", "make a new repository private"),
            flag("--dry_run", "only say what would be uploaded"),
        ),
        _OTHER_DATA,
    ),
}


NETWORKS = ("model", "teacher", "student")


def named_code(options: Namespace) -> list[str]:
    """The Python files that the options have run for a network, as `FILE.py:NAME`."""
    values = dict(vars(options))
    networks = [values[group] for group in NETWORKS if values.get(group) is not None]
    codes = [*(network.code for network in networks), values.get("code")]
    named = [network.name for network in networks if is_code(network.name)]
    return named + [code for code in codes if code is not None]


def check_names(options: Namespace) -> None:
    """Raise for a misspelt model, method (with its options) or data name, and for a target that is none.

    What may be a path or is published is left for later.
    """
    values = dict(vars(options))
    for name in named_code(options):
        check_code(name)
    for group in NETWORKS:
        name = values[group].name if group in values else ""
        if name.startswith("transformers:"):
            check_folder(name)
        if name.endswith(".py"):
            raise UsageError(f"'{name}' is a file: name the class in it too, as in {name}:Net")
        if name and name not in models() and not re.search(r"[:/\\]", name) and not Path(name).exists():
            raise unknown_name("model", name, models())
    if "budget" in values:
        check_target(options)
    if "gpus" in values:
        check_plan(options)
    method = [values["method"].name] if "method" in values else []
    variants = parse_variants(values.get("methods", [])).values()
    for name in [*method, *(variant.name for variant in variants)]:
        if name and name not in methods():
            raise unknown_name("method", name, methods())
    name = values["data"].name if "data" in values else ""
    if name and data_kind(name) not in map(data_kind, DATA) and not Path(name).exists():
        raise unknown_name("data", data_kind(name), DATA)


def data_kind(name: str) -> str:
    """The name of data without the path or ID.

    >>> data_kind("folder:photos"), data_kind("digits")
    ('folder:', 'digits')
    """
    return "".join(name.partition(":")[:2])


SHARES = dict.fromkeys(
    [f"method.{name}" for name in ("keep", "mix_from", "keep_end", "mix_from_end")], "batch_size"
)
SHARES |= dict.fromkeys(["train.milestones", "method.full_last"], "epochs")
"""Shares that others have as counts, and of what."""
PUBLISHED = {"batch_size": 64, "epochs": 240}
"""What a count is a share of that is too large for the command's own."""


def check_shares(options: Namespace) -> None:
    """Raise where a share is given as a count; the message names the share that is meant."""
    train, method = options.get("train"), options.get("method")
    methods = [method, *parse_variants(options.get("methods") or []).values()]
    for key, whole in SHARES.items():
        group, _, name = key.partition(".")
        for config in [train] if group == "train" else methods:
            given = getattr(config, name, None) or 0
            counts = given if isinstance(given, list) else [given]
            most, size = max(counts, default=0), getattr(train, whole, options.get(whole)) or 0
            size = size if most <= size else PUBLISHED[whole]
            per_epoch = getattr(config, "name", "") in ("random-epoch", "stale")  # keep: of an epoch's images
            if 1 < most <= size and all(float(count).is_integer() for count in counts) and not per_epoch:
                said, shares = (", ".join(f"{c / n:g}" for c in counts) for n in (1, size))
                told = f"{said} of {size} ({whole}) is {shares}"
                raise UsageError(f"--{key} takes shares in [0, 1], not counts: {told}")


def check_target(options: Namespace) -> None:
    """Raise where the target is none, or a method is named beside it."""
    target = parse_target(options.budget, options.match_kd)
    if target and options.method != MethodConfig(""):
        raise UsageError(
            "a target chooses among strategies with methods of their own: leave --method or the target out"
        )


def check_plan(options: Namespace) -> None:
    """Raise where options of `plan` exclude each other, or are no number of images."""
    if options.images is not None:
        number_of_images(options.images)
    on_paper = options_on_paper(options)
    if parse_target(options.budget, options.match_kd) and on_paper:
        raise UsageError(
            f"--budget and --match-kd rank strategies for this machine: leave --{on_paper[0]} or the target out"
        )


def options_on_paper(options: Namespace) -> list[str]:
    """The names of the options that ask `plan` for an estimate on paper."""
    return [name[2:] for name, _ in CLUSTER_OPTIONS if options[name[2:]] is not None]


def number_of_images(text: str) -> int:
    """A number of images, as people write it.

    Raises:
        UsageError: it is none

    >>> number_of_images("imagenet"), number_of_images("1e9"), number_of_images("50_000")
    (1281167, 1000000000, 50000)
    """
    if text.strip().lower() == "imagenet":
        return IMAGENET_IMAGES
    try:
        number = float(text)
        if number >= 1 and number == int(number):
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise UsageError(f"--images is a number of images such as 1281167 or 1e9, or imagenet, not '{text}'")
