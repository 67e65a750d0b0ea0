"""How a student is written in each format, and how what was written is opened again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.onnx import ONNXProgram

from unixkd.errors import missing_extra
from unixkd.export.int8 import INT8_FILE, quantise
from unixkd.export.photo_input import PHOTO, PIXELS, add_photo_input
from unixkd.export.preparation import PIXEL_STEPS, Preparation
from unixkd.export.verify import Classifier, Sample
from unixkd.models.card import PixelModel
from unixkd.models.folder import card_values, load_model, save_model
from unixkd.run_files import scratch

TORCH_FILE, ONNX_FILE = "model.pt2", "model.onnx"
LOGITS = "logits"
"""Name of an ONNX model's output."""


def trace(student: PixelModel, size: int) -> ExportedProgram:
    """The student with its normalisation as one graph, for any number of square images of this size in pixels."""
    pixels = torch.zeros(2, student.card.in_channels, size, size)
    program = torch.export.export(student, (pixels,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, which are nobody else's business
    return program


def metadata(student: PixelModel, preparation: Preparation) -> dict[str, str]:
    """What stands in a file beside the network: its card, how an image is prepared, and its class names; as JSON."""
    card = card_values(student.card)
    facts = {"card": card, "preparation": preparation.values(), "class_names": card["class_names"]}
    return {name: json.dumps(fact) for name, fact in facts.items() if fact is not None}


def outside(preparation: Preparation) -> Preparation:
    """The same preparation for a file that takes pixels."""
    return replace(preparation, inside=PIXEL_STEPS)


@dataclass(frozen=True, eq=False)
class Subject:
    """What is exported: a student, how an image is prepared for it, and images; it is traced once for all formats."""

    student: PixelModel
    preparation: Preparation
    sample: Sample

    @cached_property
    def traced(self) -> ExportedProgram:
        """The student as torch's graph."""
        return trace(self.student, self.preparation.size)

    @cached_property
    def program(self) -> ONNXProgram:
        """The student as a graph of ONNX that takes pixels."""
        program = torch.onnx.export(
            self.traced,
            input_names=[PIXELS],
            output_names=[LOGITS],
            dynamic_shapes=({0: "batch"},),
            verbose=False,
        )
        assert program is not None  # it is with dynamo, the default
        for node in program.model.graph:
            node.metadata_props.clear()  # where in torch's graph each node comes from
        return program


def write_safetensors(subject: Subject, folder: Path) -> None:
    """The pair that `load_student` reads."""
    save_model(subject.student, folder, preparation=outside(subject.preparation).values())


def write_torch(subject: Subject, folder: Path) -> None:
    """`torch.export`'s own file."""
    facts = metadata(subject.student, outside(subject.preparation))
    files = {f"{name}.json": text for name, text in facts.items()}
    torch.export.save(subject.traced, folder / TORCH_FILE, extra_files=files)


def open_torch(folder: Path, code: str | None = None) -> Classifier:
    """What `write_torch` wrote."""
    log = logging.getLogger("torch.export")
    log.disabled = True  # of a damaged file it logs a traceback and then raises it
    try:
        return torch.export.load(folder / TORCH_FILE).module()
    finally:
        log.disabled = False


def write_onnx(subject: Subject, folder: Path) -> None:
    """An ONNX model, the facts of `metadata` in it; weights beyond 2 GB lie in a file beside it."""
    preparation = subject.preparation
    subject.program.model.metadata_props.update(metadata(subject.student, preparation))
    subject.program.save(folder / ONNX_FILE)
    if preparation.takes_photos:
        add_photo_input(folder / ONNX_FILE, preparation)


def write_int8(subject: Subject, folder: Path) -> None:
    """An ONNX model with weights of 8 bits, made from the one that takes pixels."""
    preparation = subject.preparation
    calibration = subject.sample.calibration(preparation.size)
    with scratch(folder / "fp32") as aside:
        aside.mkdir()
        subject.program.save(aside / ONNX_FILE)
        quantise(aside / ONNX_FILE, folder / INT8_FILE, calibration, metadata(subject.student, preparation))
    if preparation.takes_photos:
        add_photo_input(folder / INT8_FILE, preparation)


def open_onnx(folder: Path, code: str | None = None, file: str = ONNX_FILE) -> Classifier:
    """What `write_onnx` wrote, in ONNX Runtime on the CPU; one that takes photographs is given pixels as
    photographs `[N, H, W, C]`, uint8."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def classify(pixels: Tensor) -> Tensor:
        if name == PHOTO and pixels.dtype != torch.uint8:
            pixels = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        return torch.from_numpy(session.run([LOGITS], {name: pixels.numpy()})[0])

    return classify


def open_int8(folder: Path, code: str | None = None) -> Classifier:
    """What `write_int8` wrote, as `open_onnx`."""
    return open_onnx(folder, code, INT8_FILE)


class Format(NamedTuple):
    """How a student is written into a folder, and how the file is opened again.

    `open` gets the code of a network of the user's own (`FILE.py:NAME`), which only weights without a program need.
    A format that is not `exact` differs from the student by more than the order of sums, and is measured instead.
    """

    write: Callable[[Subject, Path], None]
    open: Callable[..., Classifier]
    needs: tuple[str, ...] = ()
    exact: bool = True


_ONNX = ("onnx", "onnxscript", "onnxruntime")
FORMATS = {
    "safetensors": Format(write_safetensors, load_model),
    "torch": Format(write_torch, open_torch),
    "onnx": Format(write_onnx, open_onnx, _ONNX),
    "int8": Format(write_int8, open_int8, _ONNX, exact=False),
}
"""Every format by the name that the command line knows."""
OF_ONNX = tuple(name for name, format in FORMATS.items() if format.needs == _ONNX)
"""The formats that are files of ONNX, into which the resizing can be put."""


def check_installed(name: str) -> None:
    """Raise a `UserError` where a format needs a package that is not installed."""
    for package in FORMATS[name].needs:
        if find_spec(package) is None:
            raise missing_extra(package, "onnx", "ONNX exports")
