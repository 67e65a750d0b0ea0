"""Formats into files: written aside, opened again, compared with the student, and only then put in their place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from unixkd.errors import UserError
from unixkd.export.formats import FORMATS
from unixkd.export.sample import Sample
from unixkd.export.verify import ATOL, RTOL, Agreement, compare
from unixkd.models import PixelModel
from unixkd.runfolder import EXPORTED


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
