"""A student in several formats: written aside, opened again, compared with the student, and only then put in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unixkd.errors import UserError, refuse_links, writing
from unixkd.export.formats import FORMATS, Subject
from unixkd.export.int8 import Accuracy, measure
from unixkd.export.preparation import Preparation
from unixkd.export.script import scripted
from unixkd.export.verify import ATOL, RTOL, Agreement, Sample, check_batches, compare
from unixkd.models.card import PixelModel
from unixkd.models.folder import SCRIPT, exported_files, holds_export
from unixkd.names import phase
from unixkd.run_files import leftovers, remove, scratch


@dataclass(frozen=True)
class Artefact:
    """A format's files, how far they agree with the trained student, and where that is not exact their accuracy."""

    format: str
    files: tuple[Path, ...]
    agreement: Agreement
    accuracy: Accuracy | None = None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def exact(self) -> bool:
        """Whether the format has to give the student's logits."""
        return FORMATS[self.format].exact


def prepare(run: Path, out: Path, overwrite: bool, formats: Sequence[str] = ()) -> list[str]:
    """Make the output folder of a run's export ready; the files of an earlier export that are removed from it.

    Raises:
        UserError: it holds a run, or an export that is not to be overwritten, or files of somebody's own where an
            export's would be, or cannot be written to
    """
    if out.resolve() == run.resolve() or (out / "run.yaml").exists():
        raise UserError(f"{out} holds a run: give another --out")
    if out.parent.resolve() == run.resolve():
        refuse_links(out)
    earlier = [path.name for path in exported_files(out)]
    if earlier and not overwrite:
        raise UserError(f"{out} already holds {earlier[0]}: give --overwrite or another --out")
    own = SCRIPT if scripted(formats) and SCRIPT not in earlier and (out / SCRIPT).exists() else None
    if own or (earlier and not holds_export(out)):
        raise UserError(
            f"{out} holds {own or earlier[0]}, which no export wrote: move it away, or give another --out"
        )
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for path in (*(out / name for name in earlier), *leftovers(out, "export|photos")):
            remove(path)
    return earlier


def export_student(
    student: PixelModel,
    out: Path,
    formats: Sequence[str],
    sample: Sample,
    preparation: Preparation,
    code: str | None = None,
) -> tuple[list[Artefact], list[str]]:
    """Write each format and compare what was written with the student; what fails is deleted.

    Args:
        student: in eval mode, on the CPU
        out: a folder
        formats: names in `FORMATS`
        sample: images to compare on
        preparation: how an image becomes what the files take; its `size` is the side of what `torch` and ONNX take
        code: `FILE.py:NAME` of a network of the user's own

    Returns: what was made, and for each format that failed what is wrong with it

    Raises:
        UserError: the folder cannot be written to
    """
    made: list[Artefact] = []
    failed: list[str] = []
    subject = Subject(student, preparation, sample)
    for name in dict.fromkeys(formats):
        format = FORMATS[name]
        with writing(out), scratch(out / "export") as folder:
            folder.mkdir()
            try:
                with phase(f"exporting as {name}"):
                    format.write(subject, folder)
                with phase(f"comparing the {name} export with the student"):
                    exported = format.open(folder, code)
                    agreement = compare(student, exported, sample.batches)
                    check_batches(exported, sample.batches)
                accuracy = None
                if not format.exact:
                    with phase(f"measuring the accuracy of the {name} export"):
                        accuracy = measure(student, exported, sample, preparation.size)
            except Exception as error:  # torch's tracers, ONNX translators and runtimes share no base class
                kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                failed.append(f"{name} could not be exported: {kind}{' '.join(str(error).split())[:300]}")
                continue
            if wrong := disagreement(name, agreement, sample):
                failed.append(wrong)
            else:
                files = tuple(file.replace(out / file.name) for file in sorted(folder.iterdir()))
                made.append(Artefact(name, files, agreement, accuracy))
    return made, failed


def disagreement(name: str, agreement: Agreement, sample: Sample) -> str | None:
    """What is wrong with a format that is not kept."""
    if not FORMATS[name].exact:
        return None if agreement.finite else f"{name} gives logits that are not finite and was deleted"
    if agreement.within:
        return None
    return (
        f"{name} disagrees with the trained student and was deleted: {agreement.describe(sample.origin)} "
        f"(a logit may differ by {ATOL:g}, and by {RTOL:g} of the largest of its image)"
    )
