"""`export`: a run's student as files that others can use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jsonargparse import Namespace

from unixkd.cli.screen import say
from unixkd.cli.train import decoding_of, evaluated_data
from unixkd.config import DataConfig
from unixkd.errors import UsageError, UserError
from unixkd.export.export import Artefact, export_student, prepare
from unixkd.export.formats import FORMATS, OF_ONNX, check_installed
from unixkd.export.hub import check_repository, push, upload_plan
from unixkd.export.int8 import WORTH_A_WARNING
from unixkd.export.model_card import Publication, public_name, read_facts, write_model_card
from unixkd.export.preparation import PHOTO_STEPS, preparation_of
from unixkd.export.script import export_script
from unixkd.export.verify import Sample, random_sample, real_sample
from unixkd.models.card import ModelCard
from unixkd.models.folder import SCRIPT, load_model


def export(options: Namespace) -> None:
    """`unixkd export`: write, verify, describe, upload."""
    check_options(options)
    folder = Path(options.run)
    out = Path(options.out or folder / "export")
    student, facts = load_model(folder, options.code), read_facts(folder)
    student.card = replace(
        student.card, name=public_name(student.card.name)
    )  # it is written into every format
    size = options.size or student.card.size
    if size is None:
        raise UserError(f"{folder}: its config.json does not say how large its images are; give --size")
    preparation = preparation_of(student.card, size, decoding_of(folder) != "full")
    if options.resize:
        preparation = replace(preparation, inside=PHOTO_STEPS)
    sample = find_sample(options, folder, student.card, size)
    if removed := prepare(folder, out, options.overwrite, options.formats):
        say(f"removed the export that was in {out}: {', '.join(removed)}")
    made, failed = export_student(student, out, options.formats, sample, preparation, options.code)
    for artefact in made:
        say_artefact(artefact, sample)
    publication = Publication(options.licence, options.data_licence, options.push_to_hub)
    described = (student, facts, made, publication, sample.origin, preparation)
    if made:
        write_model_card(
            out, *described
        )  # by which it is known as an export, should predict.py be interrupted
    script, wrong = export_script(student, out, [each.format for each in made], sample, preparation)
    failed += [wrong] if wrong else []
    if script is not None:
        say(f"{out / SCRIPT}: {script.describe(sample.origin)}")
    if made:
        say(str(write_model_card(out, *described, script)))
    if failed:
        raise UserError("; ".join(failed))
    if options.push_to_hub:
        where = (out, options.push_to_hub, options.private)
        say(*(upload_plan(*where) if options.dry_run else push(*where)).split("\n"))


def check_options(options: Namespace) -> None:
    """Raise before anything is done where something could not be done."""
    if not options.formats:
        raise UsageError(f"--formats names no format: {', '.join(FORMATS)}")
    if options.resize and not set(OF_ONNX) & set(options.formats):
        raise UsageError(f"--resize belongs to the formats {' and '.join(OF_ONNX)}: name one in --formats")
    for name in options.formats:
        check_installed(name)
    if options.push_to_hub:
        check_repository(options.push_to_hub, options.dry_run)
    elif options.dry_run or options.private:
        raise UsageError("--dry_run and --private belong to --push_to_hub OWNER/NAME")


def find_sample(options: Namespace, folder: Path, card: ModelCard, size: int) -> Sample:
    """Images of the data named, else of the run's own, else random pixels, with a warning."""
    try:
        return real_sample(evaluated_data(options.data, folder), card, size)
    except UserError as error:
        if options.data != DataConfig(name=""):  # asked for
            raise
        say(
            f"WARNING: the run's data cannot be read ({error}): what is exported is compared on random pixels only; "
            "--data names real images",
            style="yellow",
        )
        return random_sample(card, size)


def say_artefact(artefact: Artefact, sample: Sample) -> None:
    """Say where an artefact is, how large, how far it agrees with the student, and warn of a lost accuracy."""
    accuracy = artefact.accuracy
    measured = "" if accuracy is None else f"{accuracy.describe(sample.origin)}, "
    if accuracy is None and not artefact.exact:
        measured = "accuracy not measured, as there are no labelled evaluation images, "
    files = " ".join(map(str, artefact.files))
    agreement = artefact.agreement.describe(sample.origin)
    say(f"{files}: {artefact.size / 1e6:.2f} MB, {measured}{agreement}")
    if accuracy is not None and accuracy.loses:
        points = 100 * (accuracy.trained - accuracy.exported)
        say(
            f"WARNING: {artefact.format} loses {points:.1f} points of accuracy, more than {100 * WORTH_A_WARNING:g}: "
            "export onnx where that is too much",
            style="yellow",
        )
