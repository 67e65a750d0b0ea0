"""A flipped bit in weights, an edited record: found by whoever reads them, by the checksums that a run leaves."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from run_folders import write_run
from running import alone, call, distilled
from unixkd import load_student
from unixkd.errors import CHECKSUMS, UserError, checksum, matches
from unixkd.run_files import seal
from unixkd.training.run import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(alone(epochs=1), folder)
    return folder


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    return tmp_path / "run"


def flip_bit(path: Path, where: int = -100) -> None:
    """Flip the lowest bit of a byte; in weights the last bit of a mantissa, which no reader minds."""
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def failure(capsys, *words: object) -> str:
    assert call(*words) == 1
    captured = capsys.readouterr()
    assert all(line.startswith("chosen for ") for line in captured.out.splitlines())
    assert captured.err.startswith("unixkd: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_a_finished_run_has_the_checksums_of_all_its_files(trained):
    sums = json.loads((trained / CHECKSUMS).read_text())
    files = {path.name for path in trained.iterdir() if path.is_file()} - {CHECKSUMS, ".lock"}
    assert set(sums) == files
    assert all(sums[name] == checksum(trained / name) for name in files)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_evaluate_predict_export_and_load_student_find_a_changed_model(name, copy, tmp_path, capsys):
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    if name == "config.json":
        edit(copy / name, '"num_classes": 10', '"num_classes": 10 ')
    else:
        flip_bit(copy / name)
    for words in (["evaluate", copy], ["predict", copy, tmp_path / "0.png"], ["export", copy]):
        assert f"'{copy / name}' is damaged or was edited" in failure(capsys, *words)
    assert not (copy / "export" / "model.safetensors").exists()
    with pytest.raises(UserError, match=f"{name}' is damaged or was edited"):
        load_student(copy)


def test_a_flipped_bit_is_found_in_a_teacher_and_in_weights_named_by_their_file(copy, tmp_path, capsys):
    flip_bit(copy / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors' is damaged or was edited"):
        run(distilled(copy, epochs=1), tmp_path / "student")
    assert not (tmp_path / "student").exists()
    weights = ("--student", "resnet8", "--student.weights", copy / "model.safetensors")
    words = ("distill", "--teacher", "resnet8", "--teacher.weights", copy / "model.safetensors", *weights)
    assert (
        call(*words, "--data", "digits", "--out", tmp_path / "x") == 1
    )  # what is chosen for weights is said before
    assert "is damaged or was edited" in capsys.readouterr().err


def test_an_exported_student_is_checked_too(copy, capsys):
    assert call("export", copy, "--formats", "safetensors") == 0
    load_student(copy / "export")
    flip_bit(copy / "export" / "model.safetensors")
    with pytest.raises(UserError, match="is damaged or was edited"):
        load_student(copy / "export")


def test_evaluate_does_not_trust_an_edited_configuration(copy, capsys):
    edit(copy / "run.yaml", "limit: 100", "limit: 90")
    assert f"'{copy / 'run.yaml'}' is damaged or was edited" in failure(capsys, "evaluate", copy)
    assert call("evaluate", copy, "--data", "digits", "--rounds", 0) == 0


def test_a_card_is_not_written_with_an_edited_accuracy(copy, capsys):
    edit(copy / "summary.json", '"last": 0.', '"last": 0.9')
    assert f"'{copy / 'summary.json'}' is damaged or was edited" in failure(capsys, "export", copy)
    assert not (copy / "export").exists()


def test_a_file_of_another_size_is_not_read(tmp_path):
    """A sparse file takes no room, but hours to read."""
    (tmp_path / "a").write_bytes(b"ab")
    known = checksum(tmp_path / "a")
    digest = hashlib.sha256(b"ab").hexdigest()
    assert known == f"{digest} 2"
    assert matches(tmp_path / "a", known)
    assert matches(tmp_path / "a", digest)  # of an earlier version
    assert not matches(tmp_path / "a", "0" * 64)
    os.truncate(tmp_path / "a", 1 << 40)
    assert not matches(tmp_path / "a", known)


def test_a_folder_without_checksums_is_read_as_before(copy, capsys):
    (copy / CHECKSUMS).unlink()
    flip_bit(copy / "model.safetensors")
    load_student(copy)
    assert call("evaluate", copy, "--rounds", 0) == 0


def test_checksums_follow_a_run_that_is_resumed_or_overwritten(copy, tmp_path, capsys):
    before = json.loads((copy / CHECKSUMS).read_text())
    run(alone(epochs=1), copy, mode="resume")
    after = json.loads((copy / CHECKSUMS).read_text())
    assert {name for name in after if after[name] != before[name]} == {"summary.json"}  # its seconds
    run(alone(epochs=1, seed=1), copy, mode="overwrite")
    assert call("report", copy, "--html", tmp_path / "page.html") == 0
    assert "left out" not in capsys.readouterr().out
    load_student(copy)


def test_a_run_that_goes_on_loses_its_checksums_before_anything_changes(copy):
    """Its last checkpoint is damaged, so an epoch is trained again."""
    config = alone(epochs=2)
    run(config, copy.parent / "two")
    folder = copy.parent / "two"
    flip_bit(folder / "checkpoints" / "epoch-00002" / "state.safetensors")
    run(config, folder, mode="resume")
    sums = json.loads((folder / CHECKSUMS).read_text())
    assert sums["metrics.jsonl"] == checksum(folder / "metrics.jsonl")


def test_an_edited_record_is_not_taken_over_by_a_run_that_is_resumed(copy):
    edit(copy / "metrics.jsonl", '"accuracy": 0.', '"accuracy": 0.9')
    with pytest.raises(UserError, match=r"metrics\.jsonl' is damaged or was edited"):
        run(alone(epochs=1), copy, mode="resume")
    assert (copy / CHECKSUMS).exists()


# The report

NAMES = ("summary.json", "metrics.jsonl", "run.yaml")


@pytest.fixture
def two_runs(tmp_path) -> Path:
    """kd and unix, of which unix has checksums, and kd has none, as runs of earlier versions."""
    write_run(tmp_path / "runs/kd", "kd", cost=1.0)
    folder = write_run(tmp_path / "runs/unix", lines=[{"epoch": 1, "accuracy": 0.9}])
    (folder / "run.yaml").write_text("data: {name: digits}\n")
    seal(folder, NAMES)
    return tmp_path / "runs"


@pytest.mark.parametrize("name", NAMES)
def test_a_report_names_the_changed_file_and_leaves_the_run_out(name, two_runs, capsys):
    file = two_runs / "unix" / name
    text = file.read_text()
    file.write_text(text.replace("0.9", "0.8") if name != "run.yaml" else text.replace("digits", "cifar100"))
    assert call("report", two_runs) == 0
    page, told = (two_runs / "report.html").read_text(), capsys.readouterr().out
    for shown in (page, told.replace("\n", " ")):
        assert "Left out, as a file was damaged or edited after the run ended" in shown
        assert str(file) in shown
        assert "80.00" not in shown
        assert "plain kd was not run" not in shown.lower()
    assert "unix reached" not in page
    assert "1 of 1 run left no checksums" in page


def test_a_report_says_how_many_runs_could_not_be_checked(two_runs, capsys):
    assert call("report", two_runs) == 0
    assert "left out" not in capsys.readouterr().out
    assert "1 of 2 runs left no checksums" in (two_runs / "report.html").read_text()
    seal(two_runs / "kd", NAMES)
    assert call("report", two_runs) == 0
    assert "left no checksums" not in (two_runs / "report.html").read_text()


def test_where_every_run_was_changed_there_is_no_report(two_runs, capsys):
    shutil.rmtree(two_runs / "kd")
    flip_bit(two_runs / "unix" / "metrics.jsonl", 2)
    assert str(two_runs / "unix" / "metrics.jsonl") in failure(capsys, "report", two_runs)
    assert not (two_runs / "report.html").exists()
