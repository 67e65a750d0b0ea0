"""Every command and its options in one table; imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentParser

from unixkd import recipes
from unixkd.config import DataConfig, LossConfig, MethodConfig, ModelConfig, TrainConfig

GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "teacher": ModelConfig,
    "student": ModelConfig,
    "method": MethodConfig,
    "loss": LossConfig,
    "data": DataConfig,
    "train": TrainConfig,
}


@dataclass(frozen=True)
class Command:
    """A command: what it does, the groups of options it takes, and further options."""

    summary: str
    groups: tuple[str, ...] = ()
    options: Callable[[ArgumentParser], None] = lambda parser: None
    recipe: Callable[[str], dict[str, Any]] | None = None


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
        "--methods", type=list[str], default=["kd", "unix", "random"], help="e.g. kd,unix,hard"
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
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one per CPU core, one on a GPU)")


def evaluate_options(parser: ArgumentParser) -> None:
    """Options of `evaluate`."""
    parser.add_argument("run", type=str, help="run folder; its own data unless --data says otherwise")
    parser.add_argument("--batch_size", type=int, default=256, help="images per batch")


def predict_options(parser: ArgumentParser) -> None:
    """Options of `predict`."""
    parser.add_argument("run", type=str, help="run folder")
    parser.add_argument("images", type=str, nargs="+", help="image files or folders of images")
    parser.add_argument("--top", type=int, default=1, help="classes to print for each image")
    parser.add_argument("--json", action="store_true", help="one JSON object per image")


def plan_options(parser: ArgumentParser) -> None:
    """Options of `plan`."""
    parser.add_argument("--batch_size", type=int, default=64, help="images per step, N")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each method; 0: no timing")
    parser.set_defaults({"method.name": "", "data.name": ""})  # all methods; the data of the teacher


def report_options(parser: ArgumentParser) -> None:
    """Options of `report`."""
    parser.add_argument("folders", type=str, nargs="+", help="run folders, or folders of run folders")
    parser.add_argument("--html", type=str, help="page to write (default: report.html in the first folder)")


def demo_options(parser: ArgumentParser) -> None:
    """Options of `demo`."""
    parser.add_argument(
        "--out", type=str, default="unixkd-demo", help="folder of the demo; resumes by itself"
    )
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one per CPU core)")


_RUN = ("data", "train")
_PAIR = ("teacher", "student")
COMMANDS = {
    "demo": Command(
        "train a teacher on handwritten digits, distil it in four ways, compare", (), demo_options
    ),
    "train": Command(
        "train a model on labels, a teacher say", ("model", *_RUN), run_options, recipes.teacher_recipe
    ),
    "distill": Command(
        "distil a teacher into a student", (*_PAIR, "method", "loss", *_RUN), distill_options, recipes.recipe
    ),
    "evaluate": Command("accuracy and calibration of a trained model", ("data",), evaluate_options),
    "predict": Command("images in, class names out", (), predict_options),
    "compare": Command(
        "methods × seeds under one protocol", (*_PAIR, "loss", *_RUN), compare_options, recipes.recipe
    ),
    "plan": Command(
        "what each method will cost, before training",
        (*_PAIR, "method", "data"),
        plan_options,
        recipes.recipe,
    ),
    "report": Command("table and HTML page of finished runs", (), report_options),
}
