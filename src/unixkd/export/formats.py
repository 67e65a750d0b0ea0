"""The formats a student is exported in: how each is written into a folder and opened again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.export import ExportedProgram

from unixkd.errors import missing_extra
from unixkd.models import PixelModel, load_model, save_model
from unixkd.models.folder import card_values

Answering = Callable[[Tensor], Tensor]
"""Pixels in [0, 1] `[N, C, H, W]` -> logits `[N, classes]`."""

TORCH_FILE, ONNX_FILE = "model.pt2", "model.onnx"
PIXELS, LOGITS = "pixels", "logits"
"""Names of an ONNX model's input and output."""


class Format(NamedTuple):
    """How a student is written (student, side of the images, folder) and what is written opened again.

    `open` gets the code of a network of the user's own (`FILE.py:NAME`), which only weights without a program need.
    """

    write: Callable[[PixelModel, int, Path], None]
    open: Callable[..., Answering]
    needs: tuple[str, ...] = ()


def write_safetensors(student: PixelModel, size: int, folder: Path) -> None:
    """The pair that `load_student` reads, which takes images of any size."""
    save_model(student, folder)


def trace(student: PixelModel, size: int) -> ExportedProgram:
    """The student in eval mode with its preprocessing as one graph, for any number of images of one size.

    Args:
        student: on the CPU, in eval mode
        size: side of the square images in pixels
    """
    pixels = torch.zeros(2, student.card.in_channels, size, size)
    program = torch.export.export(student, (pixels,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, which are nobody else's business
    return program


def write_torch(student: PixelModel, size: int, folder: Path) -> None:
    """`torch.export`'s own file."""
    torch.export.save(trace(student, size), folder / TORCH_FILE)


def open_torch(folder: Path, code: str | None = None) -> Answering:
    """What `write_torch` wrote."""
    log = logging.getLogger("torch.export")
    log.disabled = True  # of a damaged file it logs a traceback and then raises it
    try:
        return torch.export.load(folder / TORCH_FILE).module()
    finally:
        log.disabled = False


def write_onnx(student: PixelModel, size: int, folder: Path) -> None:
    """An ONNX model with the card among its metadata; weights beyond 2 GB lie in a file beside it."""
    program = torch.onnx.export(
        trace(student, size),
        input_names=[PIXELS],
        output_names=[LOGITS],
        dynamic_shapes=({0: "batch"},),
        verbose=False,
    )
    assert program is not None  # it is with dynamo, the default
    for node in program.model.graph:
        node.metadata_props.clear()  # where in torch's graph each node comes from
    card = card_values(student.card)
    program.model.metadata_props["card"] = json.dumps(card, ensure_ascii=False)
    if student.card.class_names is not None:
        program.model.metadata_props["class_names"] = json.dumps(card["class_names"], ensure_ascii=False)
    program.save(folder / ONNX_FILE)


def open_onnx(folder: Path, code: str | None = None) -> Answering:
    """What `write_onnx` wrote, in ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run([LOGITS], {PIXELS: pixels.numpy()})[0])


FORMATS = {
    "safetensors": Format(write_safetensors, load_model),
    "torch": Format(write_torch, open_torch),
    "onnx": Format(write_onnx, open_onnx, needs=("onnx", "onnxscript", "onnxruntime")),
}
"""Every format by the name that the command line knows."""


def check_installed(name: str) -> None:
    """Raise where a format needs a package that is not installed.

    Raises:
        UserError: names the package and the extra
    """
    for package in FORMATS[name].needs:
        if find_spec(package) is None:
            raise missing_extra(package, name, "ONNX exports")
