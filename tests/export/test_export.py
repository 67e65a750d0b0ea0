"""`export`: what is written says what the student says, and what does not is deleted."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from exporting import ALL, PAIR, made_for, names_in, pixels, small
from running import TEST_IMAGES, alone, call, model_bytes
from unixkd import export, load_student
from unixkd.config import DataConfig
from unixkd.data import load_data
from unixkd.export import (
    FORMATS,
    compare,
    export_student,
    random_sample,
    real_sample,
)
from unixkd.export.formats import TORCH_FILE, Format, Subject, write_torch
from unixkd.export.verify import in_batches
from unixkd.models import ModelCard, PixelModel, create_model
from unixkd.models.folder import EXPORTED
from unixkd.training.run_folder import RunFolder

# The formats


def test_the_safetensors_pair_is_the_runs_own(trained, exported):
    assert model_bytes(exported) == model_bytes(trained)
    card = json.loads((exported / "config.json").read_text())
    assert card.pop("preparation")["size"] == card["size"]
    assert card == json.loads((trained / "config.json").read_text())
    assert torch.equal(load_student(exported)(pixels(3)), load_student(trained)(pixels(3)))


@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_any_number_of_images_gets_the_students_logits(name, trained, exported):
    student, given = load_student(trained), FORMATS[name].open(exported)
    for count in (1, 2, 3, 33):
        with torch.no_grad():
            wanted = student(pixels(count))
        torch.testing.assert_close(given(pixels(count)), wanted, rtol=1e-4, atol=1e-4)
    assert wanted.std() > 0.1  # no constant


def test_an_onnx_model_names_its_ends_and_its_classes(exported, trained):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    (given,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("pixels", ["batch", 1, 8, 8])
    assert (answer.name, answer.shape) == ("logits", ["batch", 10])
    said = session.get_modelmeta().custom_metadata_map
    card = json.loads((trained / "config.json").read_text())
    assert json.loads(said["class_names"]) == card["class_names"] == [str(i) for i in range(10)]
    assert json.loads(said["card"]) == {key: value for key, value in card.items() if key != "schema"}


@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_no_path_of_this_machine_is_in_a_file(name, exported):
    file = exported / {"torch": "model.pt2", "onnx": "model.onnx"}[name]
    assert str(Path(export.__file__).parents[1]).encode() not in file.read_bytes()


@pytest.mark.parametrize("size", [12, 5])
def test_images_of_another_size_are_resized_inside(size, tmp_path):
    """By antialiased interpolation, down and up; the network itself wants 8 pixels."""
    student = small()
    made, failed = export_student(
        student, tmp_path, ["torch", "onnx"], random_sample(student.card, size), made_for(student, size)
    )
    assert (len(made), failed) == (2, [])
    answers = FORMATS["onnx"].open(tmp_path)(pixels(2, size))
    torch.testing.assert_close(answers, student(pixels(2, size)).detach(), rtol=1e-4, atol=1e-4)


def test_weights_too_large_for_one_onnx_file_lie_beside_it(tmp_path, monkeypatch):
    """As they are beyond 2 GB; here the limit is put at nothing."""
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 0)
    student = small()
    (made,), failed = export_student(
        student, tmp_path, ["onnx"], random_sample(student.card, 8), made_for(student)
    )
    assert (failed, [file.name for file in made.files]) == ([], ["model.onnx", "model.onnx.data"])
    assert made.size > 4 * sum(value.numel() for value in student.net.parameters())
    assert {file.name for file in made.files} < set(EXPORTED)
    torch.testing.assert_close(FORMATS["onnx"].open(tmp_path)(pixels(2)), student(pixels(2)).detach())


def test_the_size_of_a_model_that_takes_any_has_to_be_given(plain, capsys):
    card = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(card | {"size": None}))
    (plain / "checksums.json").unlink()
    assert call("export", plain) == 1
    assert "give --size" in capsys.readouterr().err
    assert call("export", plain, "--formats", "onnx", "--size", 12) == 0
    assert FORMATS["onnx"].open(plain / "export")(pixels(2, 12)).shape == (2, 10)


# What is printed, and the folder


@pytest.mark.slow
def test_every_artefact_gets_a_line(plain, capsys):
    assert call("export", plain) == 0
    out = plain / "export"
    pair = [out / name for name in ("checksums.json", "config.json", "model.safetensors")]
    size = sum(path.stat().st_size for path in pair)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{' '.join(map(str, pair))}: {size / 1e6:.2f} MB, "
        "largest difference of the logits 0, the same class on 72 of 72 evaluation images of digits",
        f"{out / 'model.pt2'}: {(out / 'model.pt2').stat().st_size / 1e6:.2f} MB, "
        "largest difference of the logits 0, the same class on 72 of 72 evaluation images of digits",
        lines[-2],
        str(out / "README.md"),
    ]
    assert re.fullmatch(
        f"{re.escape(str(out / 'predict.py'))}: the same class as unixkd predict on 72 of 72 "
        "evaluation images of digits, "
        r"largest difference of a probability \d(\.\d)?e-\d\d",
        lines[-2],
    )
    assert names_in(out) == PAIR | {"model.pt2", "predict.py"}


def test_an_export_that_is_there_is_not_overwritten_unless_told(exported, trained, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    assert call("export", trained) == 1
    assert "already holds README.md: give --overwrite or another --out" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    (copy / "mine.txt").write_text("stays")
    (copy / f".export.{'0f' * 16}.tmp").mkdir()  # of a killed one
    assert call("export", trained, "--out", copy, "--formats", "safetensors", "--overwrite") == 0
    assert names_in(copy) == PAIR | {"mine.txt"}


def test_files_that_no_export_wrote_are_not_overwritten(plain, tmp_path, capsys):
    mine = {"checksums.json": '{"a": "x"}', "README.md": "mine", "model.onnx": "mine"}
    (out := tmp_path / "out").mkdir()
    for name, text in mine.items():
        (out / name).write_text(text)
    assert call("export", plain, "--out", out, "--formats", "safetensors", "--overwrite") == 1
    assert "which no export wrote" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in out.iterdir()} == mine


def test_a_run_is_never_written_into(plain, trained, capsys):
    for out in (plain, trained):
        assert call("export", plain, "--out", out, "--overwrite") == 1
        assert "holds a run" in capsys.readouterr().err
    assert model_bytes(plain) == model_bytes(trained)


def test_a_run_that_is_made_anew_loses_the_export_of_its_old_student(plain):
    (plain / "export").mkdir()
    for name in (*EXPORTED, "mine.txt"):
        (plain / "export" / name).write_text("library_name: unixkd, Written by `unixkd export`")
    folder = RunFolder(plain)
    folder.open(alone(), "overwrite")
    folder.close()
    assert names_in(plain / "export") == {"mine.txt"}


def test_a_folder_that_cannot_be_written_to(plain, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert call("export", plain, "--out", tmp_path / "file" / "export") == 1
    assert f"cannot write to {tmp_path / 'file' / 'export'}" in capsys.readouterr().err


def test_what_is_no_run_folder(tmp_path, capsys):
    assert call("export", tmp_path) == 1
    assert "is no run folder" in capsys.readouterr().err
    assert not (tmp_path / "export").exists()


def test_a_format_that_there_is_not(capsys):
    assert call("export", "run", "--formats", "safetensors,onx") == 2
    assert "onnx" in capsys.readouterr().err
    assert call("export", "run", "--formats", "[]") == 2
    assert "no format" in capsys.readouterr().err


def test_a_missing_extra_is_named_before_anything_is_written(plain, monkeypatch, capsys):
    from unixkd.export import formats

    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxscript" else object())
    assert call("export", plain, "--formats", ALL) == 1
    assert "pip install 'unixkd[onnx]'" in capsys.readouterr().err
    assert not (plain / "export").exists()


# An exported student that disagrees


def changed(subject: Subject, folder: Path) -> None:
    """Write a student whose first logit is 0.5 too large."""
    wrong = load_weights_of(subject.student)
    with torch.no_grad():
        wrong.net.fc.bias[0] += 0.5
    write_torch(replace(subject, student=wrong), folder)


def load_weights_of(student: PixelModel) -> PixelModel:
    copy = PixelModel(create_model(student.card.name, student.card.num_classes, 1), student.card).eval()
    copy.net.load_state_dict(student.net.state_dict())
    return copy


def broken(subject: Subject, folder: Path) -> None:
    (folder / TORCH_FILE).write_bytes(b"half a file")


def failing(subject: Subject, folder: Path) -> None:
    (folder / TORCH_FILE).write_bytes(b"half a file")
    raise RuntimeError("cannot trace\nthis")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            changed,
            "torch disagrees with the trained student and was deleted: largest difference of the logits 0.5, ",
        ),
        (broken, "torch could not be exported: "),
        (failing, "torch could not be exported: RuntimeError: cannot trace this"),
    ],
)
def test_an_artefact_that_fails_is_deleted_and_nothing_else_is(write, message, plain, monkeypatch, capsys):
    monkeypatch.setitem(FORMATS, "torch", Format(write, FORMATS["torch"].open))
    monkeypatch.setattr("huggingface_hub.HfApi", None)  # nothing is uploaded
    assert call("export", plain, "--formats", "torch,safetensors", "--push_to_hub", "me/x") == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"unixkd: error: {message}")
    assert captured.err.count("\n") == 1
    out = plain / "export"
    assert names_in(out) == PAIR
    assert model_bytes(out) == model_bytes(plain)
    assert "model.pt2" not in (out / "README.md").read_text()


def test_where_everything_fails_nothing_is_left(plain, monkeypatch, capsys):
    for name in ("torch", "safetensors"):
        monkeypatch.setitem(FORMATS, name, Format(failing, FORMATS[name].open))
    assert call("export", plain) == 1
    assert capsys.readouterr().err.count("cannot trace this") == 2
    assert names_in(plain / "export") == set()


def logits(*rows: list[float]):
    return lambda batch: torch.tensor(rows)[: len(batch)]


def test_how_far_two_students_agree_worked_out_by_hand():
    """Allowed: 1e-4 + 1e-4 · 100 for the first image, 1e-4 + 1e-4 · 1 for the second."""
    batches = [torch.zeros(2, 1, 1, 1)]
    trained_ = logits([100.0, 0.0], [1.0, 0.0])
    agreement = compare(trained_, logits([100.0, 0.01], [1.0, 0.0]), batches)
    assert (agreement.images, agreement.same_class, agreement.within) == (2, 2, True)
    assert agreement.largest == pytest.approx(0.01)
    agreement = compare(trained_, logits([100.0, 0.0], [0.0, 0.01]), batches)
    assert (agreement.same_class, agreement.within, agreement.largest) == (1, False, 1.0)
    assert not compare(trained_, logits([100.0, 0.0], [1.0, 0.01]), batches).within
    assert not compare(trained_, logits([100.0, float("nan")], [1.0, 0.0]), batches).within
    assert np.isnan(compare(trained_, logits([float("nan"), 0.0], [1.0, 0.0]), batches).largest)


def test_a_student_that_is_not_finite_agrees_with_nothing():
    ill = logits([float("inf"), 0.0])
    assert not compare(ill, ill, [torch.zeros(1, 1, 1, 1)]).within


def test_logits_of_another_shape_are_an_error():
    with pytest.raises(RuntimeError, match=r"\(1, 3\) instead of \(1, 2\)"):
        compare(logits([0.0, 0.0]), logits([0.0, 0.0, 0.0]), [torch.zeros(1, 1, 1, 1)])


# The images


def test_real_images_are_spread_over_those_that_are_evaluated():
    sample = real_sample(DataConfig("digits"), small().card, 8)
    assert [len(batch) for batch in sample.batches] == [1, 7, 64]
    wanted = next(load_data(DataConfig("digits")).test.eval_batches(TEST_IMAGES)).images
    given = torch.cat(sample.batches)
    assert torch.equal(given, wanted[[i * TEST_IMAGES // 72 for i in range(72)]])
    assert sample.origin == "evaluation images of digits"


def test_real_images_are_resized_and_few_are_enough(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("L", (8, 8), 60 * i).save(tmp_path / name / f"{i}.png")
    sample = real_sample(DataConfig(f"folder:{tmp_path}"), small().card, 16)
    assert [tuple(batch.shape) for batch in sample.batches] == [(1, 1, 16, 16), (3, 1, 16, 16)]
    assert sample.origin == f"training images of folder:{tmp_path}"
    assert [batch.mean().item() for batch in sample.batches] == pytest.approx(
        [0, 80 / 3 * 1.5 / 255], abs=1e-5
    )


def test_one_image_is_one_batch():
    assert [len(batch) for batch in in_batches(pixels(1))] == [1]


def test_data_of_other_channels_are_refused(plain, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "0.png")
    assert call("export", plain, "--data", f"folder:{tmp_path / 'a'}") == 1
    assert "1-channel" in capsys.readouterr().err


def test_where_the_runs_data_are_gone_random_pixels_are_said_to_be_such(plain, capsys):
    config = plain / "run.yaml"
    config.write_text(config.read_text().replace("name: digits", "name: folder:/nowhere"))
    (plain / "checksums.json").unlink()
    assert call("export", plain, "--formats", "safetensors") == 0
    text = capsys.readouterr().out
    assert text.startswith("WARNING: the run's data cannot be read (")
    assert "/nowhere" in text.splitlines()[0]
    assert "on 72 of 72 random pixels" in text
    assert (
        "compared with the trained student on random pixels" in (plain / "export" / "README.md").read_text()
    )
    assert call("export", plain, "--data", "digits", "--formats", "safetensors", "--overwrite") == 0
    assert "evaluation images of digits" in capsys.readouterr().out


def test_data_that_are_named_have_to_be_there(plain, capsys):
    assert call("export", plain, "--data", "folder:/nowhere") == 1
    assert "/nowhere" in capsys.readouterr().err
    assert call("export", plain, "--data.holdout", "2") == 1
    assert "data.holdout" in capsys.readouterr().err
    assert not (plain / "export").exists()


# Every network


KINDS = ("wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV2", "ResNet18")
PUBLISHED = ("torchvision:mobilenet_v3_small", "timm:vit_tiny_patch16_224")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*KINDS, *PUBLISHED])
def test_every_kind_of_network_can_be_exported(name, tmp_path):
    """Images of 32 pixels, which a vision transformer resizes to its 224."""
    torch.manual_seed(0)
    card = ModelCard(name, 10, 3, (0.5,) * 3, (0.25,) * 3, 224 if "224" in name else 32)
    student = PixelModel(create_model(name, 10, 3), card).eval()
    sample = random_sample(card, 32)
    formats = ["safetensors", "torch", "onnx"]
    made, failed = export_student(student, tmp_path, formats, sample, made_for(student, 32))
    assert (len(made), failed) == (3, [])
