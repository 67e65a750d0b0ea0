"""Export formats: written aside, opened again, compared with the student, and only then put in place."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch.export import ExportedProgram

from unixkd.errors import UserError, missing_extra
from unixkd.export.verify import ATOL, RTOL, Agreement, Answering, Sample, compare
from unixkd.models.card import PixelModel
from unixkd.models.folder import card_values, load_model, save_model
from unixkd.run_files import EXPORTED


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


def prepare(run: Path, out: Path, overwrite: bool) -> None:
    """Make the output folder ready, empty of an earlier export.

    Args:
        run: the run that will be exported
        out: where to
        overwrite: remove an export that is there

    Raises:
        UserError: it holds a run, or an export that is not to be overwritten, or cannot be written to
    """
    if out.resolve() == run.resolve() or (out / "run.yaml").exists():
        raise UserError(f"{out} holds a run: give another --out")
    held = [name for name in EXPORTED if (out / name).exists()]
    if held and not overwrite:
        raise UserError(f"{out} already holds {held[0]}: give --overwrite or another --out")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for name in held:
            (out / name).unlink()
        for left in out.glob(".export-*.tmp"):  # of a killed one
            shutil.rmtree(left)


def export_student(
    student: PixelModel,
    out: Path,
    formats: Sequence[str],
    sample: Sample,
    size: int,
    code: str | None = None,
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
        with writing(out), aside(out) as folder:
            try:
                FORMATS[name].write(student, size, folder)
                agreement = compare(student, FORMATS[name].open(folder, code), sample.batches)
            except (
                Exception
            ) as error:  # torch's tracers, its ONNX translators and runtimes have no common one
                reason = " ".join(str(error).split())[:300]
                failed.append(f"{name} could not be exported: {type(error).__name__}: {reason}")
                continue
            if not agreement.within:
                failed.append(disagreement(name, agreement, sample.origin))
                continue
            files = tuple(file.replace(out / file.name) for file in sorted(folder.iterdir()))
            made.append(Artefact(name, files, agreement))
    return made, failed


def disagreement(name: str, agreement: Agreement, origin: str) -> str:
    """What is wrong with an exported student that says something else than the trained one."""
    return (
        f"{name} disagrees with the trained student and was deleted: largest difference of the logits "
        f"{agreement.largest:.3g} (allowed: {ATOL:g}, and {RTOL:g} of an image's largest logit), the same class on "
        f"{agreement.same_class} of {agreement.images} {origin}"
    )


@contextmanager
def aside(out: Path) -> Iterator[Path]:
    """A folder within the output folder, gone afterwards with what is still in it."""
    folder = out / f".export-{os.getpid()}.tmp"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Within, an error of the system is one that says where.

    Raises:
        UserError: something cannot be written
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error}") from None


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
