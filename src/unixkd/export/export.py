"""Export formats: written aside, opened again, compared with the student, and only then put in place."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch.export import ExportedProgram

from unixkd.errors import UserError, missing_extra
from unixkd.export.verify import ATOL, RTOL, Agreement, Classifier, Sample, compare
from unixkd.models.card import PixelModel
from unixkd.models.folder import card_values, load_model, save_model
from unixkd.phases import phase
from unixkd.run_files import EXPORTED, holds_export, leftovers, refuse_links, remove, scratch, writing

TORCH_FILE, ONNX_FILE = "model.pt2", "model.onnx"
PIXELS, LOGITS = "pixels", "logits"
"""Names of an ONNX model's input and output."""


@dataclass(frozen=True)
class Artefact:
    """A format's files, and how far they agree with the trained student."""

    format: str
    files: tuple[Path, ...]
    agreement: Agreement

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)


def prepare(run: Path, out: Path, overwrite: bool) -> list[str]:
    """Make the output folder of a run's export ready; the files of an earlier export that are removed from it.

    Raises:
        UserError: it holds a run, or an export that is not to be overwritten, or files of somebody's own where an
            export's would be, or cannot be written to
    """
    if out.resolve() == run.resolve() or (out / "run.yaml").exists():
        raise UserError(f"{out} holds a run: give another --out")
    if out.parent.resolve() == run.resolve():
        refuse_links(out)
    earlier = [name for name in EXPORTED if os.path.lexists(out / name)]
    if earlier and not overwrite:
        raise UserError(f"{out} already holds {earlier[0]}: give --overwrite or another --out")
    if earlier and not holds_export(out):
        raise UserError(
            f"{out} holds {earlier[0]}, which no export wrote: move it away, or give another --out"
        )
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for path in (*(out / name for name in earlier), *leftovers(out, "export")):
            remove(path)
    return earlier


def export_student(
    student: PixelModel, out: Path, formats: Sequence[str], sample: Sample, size: int, code: str | None = None
) -> tuple[list[Artefact], list[str]]:
    """Write each format and compare what was written with the student; what fails is deleted.

    Args:
        student: in eval mode, on the CPU
        out: a folder
        formats: names in `FORMATS`
        sample: images to compare on
        size: side of the square images that `torch` and `onnx` take, in pixels
        code: `FILE.py:NAME` of a network of the user's own

    Returns: what was made, and for each format that failed what is wrong with it

    Raises:
        UserError: the folder cannot be written to
    """
    made: list[Artefact] = []
    failed: list[str] = []
    for name in dict.fromkeys(formats):
        with writing(out), scratch(out / "export") as folder:
            folder.mkdir()
            try:
                with phase(f"exporting as {name}"):
                    FORMATS[name].write(student, size, folder)
                with phase(f"comparing the {name} export with the student"):
                    agreement = compare(student, FORMATS[name].open(folder, code), sample.batches)
            except Exception as error:  # torch's tracers, ONNX translators and runtimes share no base class
                reason = " ".join(str(error).split())[:300]
                failed.append(f"{name} could not be exported: {type(error).__name__}: {reason}")
                continue
            if agreement.within:
                files = tuple(file.replace(out / file.name) for file in sorted(folder.iterdir()))
                made.append(Artefact(name, files, agreement))
            else:
                failed.append(
                    f"{name} disagrees with the trained student and was deleted: {agreement.describe(sample.origin)} "
                    f"(a logit may differ by {ATOL:g}, and by {RTOL:g} of the largest of its image)"
                )
    return made, failed


def trace(student: PixelModel, size: int) -> ExportedProgram:
    """The student with its preprocessing as one graph, for any number of square images of this size in pixels."""
    pixels = torch.zeros(2, student.card.in_channels, size, size)
    program = torch.export.export(student, (pixels,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, which are nobody else's business
    return program


def write_torch(student: PixelModel, size: int, folder: Path) -> None:
    """`torch.export`'s own file."""
    torch.export.save(trace(student, size), folder / TORCH_FILE)


def open_torch(folder: Path, code: str | None = None) -> Classifier:
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
    if card["class_names"] is not None:
        program.model.metadata_props["class_names"] = json.dumps(card["class_names"], ensure_ascii=False)
    program.save(folder / ONNX_FILE)


def open_onnx(folder: Path, code: str | None = None) -> Classifier:
    """What `write_onnx` wrote, in ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run([LOGITS], {PIXELS: pixels.numpy()})[0])


class Format(NamedTuple):
    """How a student is written (student, side of the images, folder) and how the file is opened again.

    `open` gets the code of a network of the user's own (`FILE.py:NAME`), which only weights without a program need.
    """

    write: Callable[[PixelModel, int, Path], None]
    open: Callable[..., Classifier]
    needs: tuple[str, ...] = ()


FORMATS = {
    "safetensors": Format(lambda student, size, folder: save_model(student, folder), load_model),
    "torch": Format(write_torch, open_torch),
    "onnx": Format(write_onnx, open_onnx, needs=("onnx", "onnxscript", "onnxruntime")),
}
"""Every format by the name that the command line knows."""


def check_installed(name: str) -> None:
    """Raise a `UserError` where a format needs a package that is not installed."""
    for package in FORMATS[name].needs:
        if find_spec(package) is None:
            raise missing_extra(package, name, "ONNX exports")
