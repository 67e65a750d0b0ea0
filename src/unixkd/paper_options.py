"""Options of `plan` for what is not at hand: many GPUs, a large training set; imports no torch."""

from __future__ import annotations

from typing import Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveFloat, PositiveInt

from unixkd.communication import BETWEEN, WITHIN
from unixkd.errors import UsageError

IMAGENET = 1_281_167
"""Training images of ImageNet-1k (ILSVRC 2012)."""

PAPER = (
    *("gpus", "nodes", "images", "classes", "bandwidth", "node_bandwidth", "tflops", "precision"),
    *("loading", "hourly_price", "train.selection"),
)


def paper_options(parser: ArgumentParser) -> None:
    """Add them; each alone asks for a plan on paper."""
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
        help=f"GB/s between GPUs of a node, each way (default: {WITHIN.bandwidth / 1e9:g})",
    )
    parser.add_argument(
        "--node_bandwidth",
        type=PositiveFloat,
        help=f"GB/s between nodes, each way (default: {BETWEEN.bandwidth / 1e9:g})",
    )
    parser.add_argument(
        "--tflops",
        type=PositiveFloat,
        help="TFLOPs per second that a GPU reaches in training; nothing is timed here",
    )
    parser.add_argument(
        "--precision", type=Literal["fp32", "bf16"], help="of the steps that are timed (default: fp32)"
    )
    parser.add_argument(
        "--loading", type=PositiveFloat, help="images per second that the loaders of one process deliver"
    )
    parser.add_argument("--hourly_price", type=PositiveFloat, help="of one GPU, in any currency")
    parser.add_argument(
        "--train.selection",
        type=Literal["local", "global"],
        help="each process keeps its share of its own rows, or all together of the whole batch (default: local)",
    )


def asks_for_paper(options: Namespace) -> bool:
    """Whether any of the options asks for a plan on paper.

    Raises:
        UsageError: a target is given too, or the number of images is none
    """
    given = [name for name in PAPER if options.get(name) is not None] if "gpus" in options else []
    if given and (options.budget is not None or options.match_kd):
        raise UsageError(
            f"--budget and --match-kd rank ways for this machine: leave --{given[0]} or the target out"
        )
    if "images" in given:
        parse_images(options.images)
    return bool(given)


def parse_images(text: str) -> int:
    """A number of images, as people write it.

    Raises:
        UsageError: it is none

    >>> parse_images("imagenet"), parse_images("1e9"), parse_images("50_000")
    (1281167, 1000000000, 50000)
    """
    if text.strip().lower() == "imagenet":
        return IMAGENET
    try:
        number = float(text)
        if number >= 1 and number == int(number):
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise UsageError(f"--images is a number of images such as 1281167 or 1e9, or imagenet, not '{text}'")
