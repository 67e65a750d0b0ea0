"""Every command and its options in one table; imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

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


@dataclass(frozen=True)
class Command:
    """A command: what it does, the groups of options it takes, further options, whether many processes can share it."""

    summary: str
    groups: tuple[str, ...] = ()
    options: Callable[[ArgumentParser], None] = lambda parser: None
    recipe: Callable[[str], dict[str, Any]] | None = None
    shared: bool = False


def run_options(parser: ArgumentParser) -> None:
    """Options of commands that make one run."""
    parser.add_argument("--out", type=str, help="run folder (default: runs/ and a name made of the options)")
    parser.add_argument("--resume", action="store_true", help="go on where the run in --out stopped")
    parser.add_argument("--overwrite", action="store_true", help="remove the run in --out first")
    parser.add_argument("--label", type=str, help="name of the method in reports")


def distill_options(parser: ArgumentParser) -> None:
    """Options of `distill`."""
    run_options(parser)
    parser.add_argument(
        "--reference_epochs", type=int, help="epochs of the plain KD that costs are compared with"
    )


def compare_options(parser: ArgumentParser) -> None:
    """Options of `compare`."""
    parser.add_argument(
        "--methods",
        type=list[str],
        default=["kd", "unix", "random"],
        help="e.g. kd,unix,unix:keep=0.5:scorer=margin: names, or names with options of distill's --method",
    )
    parser.add_argument("--seeds", type=list[int], default=[0, 1, 2], help="e.g. 0,1,2")
    parser.add_argument(
        "--match-cost",
        action="store_true",
        help="also run plain KD for as many epochs as each method's cost buys (backward = 2 forwards)",
    )
    parser.add_argument(
        "--out", type=str, default="runs/compare", help="folder of the comparison; resumes by itself"
    )
    parser.add_argument(
        "--jobs", type=PositiveInt, help="runs at a time (default: one per CPU core, one on a GPU)"
    )


def code_option(parser: ArgumentParser) -> None:
    """The option of commands that load a run folder."""
    parser.add_argument(
        "--code",
        type=str,
        help="FILE.py:NAME of the run's network where it is one of your own; the file is run",
    )


def evaluate_options(parser: ArgumentParser) -> None:
    """Options of `evaluate`."""
    parser.add_argument("run", type=str, help="run folder; its own data unless --data says otherwise")
    code_option(parser)
    parser.add_argument("--batch_size", type=PositiveInt, default=256, help="images per batch")
    parser.set_defaults({"data.name": ""})  # the run's own data


def predict_options(parser: ArgumentParser) -> None:
    """Options of `predict`."""
    parser.add_argument("run", type=str, help="run folder")
    parser.add_argument("images", type=str, nargs="+", help="image files or folders of images")
    code_option(parser)
    parser.add_argument("--top", type=PositiveInt, default=1, help="classes to print for each image")
    parser.add_argument("--json", action="store_true", help="one JSON object per image")


def plan_options(parser: ArgumentParser) -> None:
    """Options of `plan`."""
    parser.add_argument("--batch_size", type=PositiveInt, default=64, help="images per step, N")
    parser.add_argument("--train.epochs", type=PositiveInt, default=240, help="epochs of plain KD (--epochs)")
    parser.add_argument("--runs", type=PositiveInt, default=1, help="runs that share stored answers")
    parser.add_argument("--budget", type=str, help="rank strategies within this share of KD's cost, e.g. 50%")
    parser.add_argument(
        "--match-kd", action="store_true", help="rank strategies that are as accurate as plain KD"
    )
    parser.add_argument(
        "--rounds", type=NonNegativeInt, default=5, help="timed steps of each method; 0: no timing"
    )
    cluster_options(parser)
    parser.set_defaults({"method.name": "", "data.name": ""})  # all methods; the data of the teacher


CLUSTER_OPTIONS = ("gpus", "nodes", "images", "classes", "bandwidth", "tflops")
"""Each of them asks `plan` for an estimate on paper."""


def cluster_options(parser: ArgumentParser) -> None:
    """Options of `plan` for GPUs and images that are not at hand."""
    parser.add_argument("--gpus", type=PositiveInt, help="on paper: processes of a node, one per GPU")
    parser.add_argument("--nodes", type=PositiveInt, help="on paper: number of nodes")
    parser.add_argument(
        "--images", type=str, help="on paper: images of the training set, e.g. 1e9, or imagenet; none is read"
    )
    parser.add_argument(
        "--classes", type=PositiveInt, help="classes of these images where no data are named (default: 1000)"
    )
    parser.add_argument(
        "--bandwidth",
        type=PositiveFloat,
        help="GB/s of the slowest link between two GPUs, each way (default: 20 within a node, 1.25 between nodes)",
    )
    parser.add_argument(
        "--tflops",
        type=PositiveFloat,
        help="TFLOPs per second that a GPU reaches in training; nothing is timed here",
    )


def options_on_paper(options: Namespace) -> list[str]:
    """The names of the options that ask `plan` for an estimate on paper."""
    return [name for name in CLUSTER_OPTIONS if options[name] is not None]


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


def report_options(parser: ArgumentParser) -> None:
    """Options of `report`."""
    parser.add_argument("folders", type=str, nargs="+", help="run folders, or folders of run folders")
    parser.add_argument("--html", type=str, help="page to write (default: report.html in the first folder)")


def export_options(parser: ArgumentParser) -> None:
    """Options of `export`."""
    parser.add_argument(
        "run", type=str, help="run folder; verified on its own data unless --data says otherwise"
    )
    code_option(parser)
    parser.add_argument("--out", type=str, help="folder to write (default: export in the run folder)")
    parser.add_argument(
        "--formats",
        type=list[Literal["safetensors", "torch", "onnx"]],
        default=["safetensors", "torch"],
        help="safetensors (for load_student), torch (torch.export), onnx; e.g. safetensors,onnx",
    )
    parser.add_argument(
        "--size",
        type=PositiveInt,
        help="side of the images that torch and onnx take (default: the model's own)",
    )
    parser.add_argument(
        "--licence", type=str, help="licence of the weights, as the Hub names it: apache-2.0, ..."
    )
    parser.add_argument("--data_licence", type=str, help="licence of the data the model was trained on")
    parser.add_argument("--overwrite", action="store_true", help="remove the export in --out first")
    parser.add_argument("--push_to_hub", type=str, help="upload to this model repository, OWNER/NAME")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--dry_run", action="store_true", help="only say what would be uploaded")
    parser.set_defaults({"data.name": ""})  # the run's own data


def demo_options(parser: ArgumentParser) -> None:
    """Options of `demo`."""
    parser.add_argument(
        "--out", type=str, default="unixkd-demo", help="folder of the demo; resumes by itself"
    )
    parser.add_argument("--jobs", type=PositiveInt, help="runs at a time (default: one per CPU core)")


NETWORKS = ("model", "teacher", "student")


def named_code(options: Namespace) -> list[str]:
    """The Python files that the options have run for a network, as `FILE.py:NAME`."""
    values = dict(vars(options))
    networks = [values[group] for group in NETWORKS if values.get(group) is not None]
    named = [network.name for network in networks if is_code(network.name)]
    return [
        *named,
        *(code for each in (*networks, options) if (code := getattr(each, "code", None)) is not None),
    ]


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


def check_plan(options: Namespace) -> None:
    """Raise where options of `plan` exclude each other, or are no number of images or no target."""
    if options.images is not None:
        number_of_images(options.images)
    if parse_target(options.budget, options.match_kd) is None:
        return
    if options.method.name:
        raise UsageError(
            "a target ranks strategies with methods of their own: leave --method or the target out"
        )
    if on_paper := options_on_paper(options):
        raise UsageError(
            f"--budget and --match-kd rank strategies for this machine: leave --{on_paper[0]} or the target out"
        )


_RUN = ("data", "train", "log")
_PAIR = ("teacher", "student")

COMMANDS = {
    "demo": Command(
        "train a teacher on handwritten digits, distil it in four ways, compare", (), demo_options
    ),
    "train": Command(
        "train a model on labels, a teacher say",
        ("model", *_RUN),
        run_options,
        recipes.teacher_recipe,
        shared=True,
    ),
    "distill": Command(
        "distil a teacher into a student",
        (*_PAIR, "method", "loss", "answers", *_RUN),
        distill_options,
        recipes.recipe,
        shared=True,
    ),
    "evaluate": Command("accuracy and calibration of a trained model", ("data",), evaluate_options),
    "predict": Command("images in, class names out", (), predict_options),
    "compare": Command(
        "methods × seeds under one protocol",
        (*_PAIR, "loss", "answers", *_RUN),
        compare_options,
        recipes.recipe,
    ),
    "plan": Command(
        "what methods will cost, which strategy fits a target",
        (*_PAIR, "method", "data"),
        plan_options,
        recipes.planned_recipe,
    ),
    "report": Command("table and HTML page of finished runs", (), report_options),
    "export": Command(
        "a trained model as safetensors, torch.export, ONNX, verified", ("data",), export_options
    ),
}
