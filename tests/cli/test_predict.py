"""`evaluate` and `predict`: what a saved model says, and what they say when something is missing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from running import TEST_IMAGES, alone, call, make_teacher, summary
from unixkd.data import load_data
from unixkd.models import load_model
from unixkd.names import percent
from unixkd.training.predictions import predict
from unixkd.training.run import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """The first 12 test images as files, in order, one of them a folder deeper."""
    folder = tmp_path_factory.mktemp("images")
    test = load_data(alone().data).test
    for i in range(12):
        path = folder / ("deep/11.png" if i == 11 else f"{i:02d}.png")
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(test.image(i)[..., 0]).save(path)
    return folder


@pytest.fixture(scope="module")
def probabilities(trained) -> torch.Tensor:
    """What the model says about the first 12 test images."""
    test = load_data(alone().data).test
    with torch.no_grad():
        return torch.softmax(load_model(trained)(next(test.eval_batches(12)).images), 1)


# evaluate


def test_evaluate_prints_the_accuracy_of_the_summary(trained, capsys):
    assert call("evaluate", trained) == 0
    result = summary(trained)
    assert capsys.readouterr().out == (
        f"{trained}: resnet14 on {TEST_IMAGES} images of digits: "
        f"accuracy {percent(result['accuracy']['last'])}, "
        f"calibration error {percent(result['calibration_error'])}\n"
    )


def test_the_batch_size_of_an_evaluation_does_not_matter(trained, capsys):
    lines = set()
    for size in (1, 7, 1000):
        assert call("evaluate", trained, "--batch_size", size) == 0
        lines.add(capsys.readouterr().out)
    assert len(lines) == 1


def test_evaluate_on_a_changed_part_of_the_runs_own_data(trained, capsys):
    """Held-out training images: another number of images, and the accuracy of those."""
    assert call("evaluate", trained, "--data.holdout", 0.5) == 0
    config = replace(alone().data, holdout=0.5)
    test = load_data(config).test
    answers = predict(load_model(trained), test.eval_batches(100))
    text = capsys.readouterr().out
    assert f"on {len(test)} images of digits: accuracy {percent(answers.accuracy)}" in text


def test_evaluate_takes_the_data_that_is_named_even_where_it_is_the_default(
    trained, images, tmp_path, capsys
):
    """A run on a folder, evaluated on `digits`, which is also the default of every training."""
    shutil.copytree(trained, tmp_path / "run")
    config = tmp_path / "run" / "run.yaml"
    config.write_text(config.read_text().replace("name: digits", f"name: folder:{images.parent}/none"))
    (tmp_path / "run" / "checksums.json").unlink()
    assert call("evaluate", tmp_path / "run") == 1
    assert "none" in capsys.readouterr().err
    assert call("evaluate", tmp_path / "run", "--data", "digits") == 0
    assert percent(summary(trained)["accuracy"]["last"]) in capsys.readouterr().out


def class_folders(folder: Path, names: list[str], mode: str = "L") -> Path:
    for split in ("train", "test"):
        for name in names:
            (folder / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new(mode, (8, 8), 10 * i).save(folder / split / name / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("names", "mode", "told"),
    [
        ([str(i) for i in range(9)], "L", "has 10 classes, the data have 9"),
        ([*"0123456798"[:8], "8x", "9"], "L", "class 8 is '8' there, '8x' in the data"),
        ([str(i) for i in range(10)], "RGB", "1-channel images, the data have 3 channels"),
    ],
)
def test_evaluate_on_data_of_other_classes_is_refused(names, mode, told, trained, tmp_path, capsys):
    folder = class_folders(tmp_path / "data", names, mode)
    assert call("evaluate", trained, "--data", f"folder:{folder}") == 1
    assert told in capsys.readouterr().err


def test_a_run_folder_with_the_name_of_a_model_is_a_run_folder(trained, tmp_path, capsys, monkeypatch):
    shutil.copytree(trained, tmp_path / "vgg8")
    monkeypatch.chdir(tmp_path)
    assert call("evaluate", "vgg8") == 0
    assert percent(summary(trained)["accuracy"]["last"]) in capsys.readouterr().out


def test_evaluate_without_test_images_says_what_to_do(trained, images, tmp_path, capsys):
    folder = tmp_path / "data"
    for i in range(10):
        (folder / str(i)).mkdir(parents=True)
        shutil.copy(images / "00.png", folder / str(i))
    assert call("evaluate", trained, "--data", f"folder:{folder}") == 1
    assert "give --data.holdout" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_missing_run_folder(command, images, tmp_path, capsys):
    words = [images] if command == "predict" else []
    for run_folder in (tmp_path / "nowhere", images):
        assert call(command, run_folder, *words) == 1
        error = capsys.readouterr().err
        assert str(run_folder) in error
        assert "no run folder" in error


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "has no run.yaml that names its data; give --data"),
        ("{}", "does not name its data"),
        ("data:\n  nome: digits\n", "does not name its data"),
        ("data: 3\n", "run.yaml: data: Expected `object`, got `int`"),
        ("data: [\n", "cannot be read"),
    ],
)
def test_a_run_that_does_not_say_its_data(text, told, trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "run.yaml").unlink()
    if text is not None:
        (tmp_path / "run" / "run.yaml").write_text(text)
    assert call("evaluate", tmp_path / "run") == 1
    assert told in capsys.readouterr().err
    assert call("evaluate", tmp_path / "run", "--data", "digits") == 0


# predict


def test_predict_names_a_class_for_each_file(trained, images, probabilities, capsys):
    assert call("predict", trained, images / "00.png", images / "03.png") == 0
    best = probabilities.max(1)
    assert capsys.readouterr().out.splitlines() == [
        f"{images / f'0{i}.png'}: {best.indices[i]} {100 * best.values[i]:.1f} %" for i in (0, 3)
    ]


def test_predict_finds_the_images_of_a_folder(trained, images, capsys):
    assert call("predict", trained, images, images / "05.png") == 0
    names = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [
        *(str(images / f"{i:02d}.png") for i in range(11)),
        f"{images}/deep/11.png",
        f"{images}/05.png",
    ]


def test_predict_top_and_json(trained, images, probabilities, capsys):
    assert call("predict", trained, images / "00.png", "--top", 3, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    top = probabilities[0].topk(3)
    assert answer["image"] == str(images / "00.png")
    assert [entry["class"] for entry in answer["answers"]] == [str(c) for c in top.indices.tolist()]
    assert [entry["probability"] for entry in answer["answers"]] == pytest.approx(
        top.values.tolist(), abs=1e-5
    )


def test_predict_never_prints_more_classes_than_there_are(trained, images, capsys):
    assert call("predict", trained, images / "00.png", "--top", 50, "--json") == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert sorted(entry["class"] for entry in answers) == [str(i) for i in range(10)]
    assert sum(entry["probability"] for entry in answers) == pytest.approx(1, abs=1e-4)


def test_predict_in_parts_says_the_same(trained, images, capsys, monkeypatch):
    from unixkd.cli import predict

    assert call("predict", trained, images) == 0
    whole = capsys.readouterr().out
    monkeypatch.setattr(predict, "PREDICT_BATCH", 5)
    assert call("predict", trained, images) == 0
    assert capsys.readouterr().out == whole


def test_predict_fits_images_of_any_size_and_colour(trained, images, tmp_path, capsys):
    Image.open(images / "00.png").convert("RGB").resize((40, 24)).save(tmp_path / "a.jpg")
    assert call("predict", trained, tmp_path / "a.jpg") == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'a.jpg'}: ")


def test_predict_with_files_that_are_missing_no_images_or_an_empty_folder(trained, tmp_path, capsys):
    (tmp_path / "notes.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    for name in ("missing.png", "notes.png", "empty"):
        assert call("predict", trained, tmp_path / name) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("unixkd: error: ")
        assert name in captured.err
        assert captured.err.count("\n") == 1


def test_predict_without_class_names_prints_numbers(trained, images, probabilities, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    card = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(card | {"class_names": None}))
    (tmp_path / "run" / "checksums.json").unlink()
    assert call("predict", tmp_path / "run", images / "00.png") == 0
    assert f": {int(probabilities[0].argmax())} " in capsys.readouterr().out


def test_predict_needs_to_know_the_size(trained, images, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    card = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(card | {"size": None}))
    (tmp_path / "run" / "checksums.json").unlink()
    assert call("predict", tmp_path / "run", images / "00.png") == 1
    assert "config.json does not say how large" in capsys.readouterr().err


def test_class_names_of_a_folder_are_printed(tmp_path, capsys):
    folder = tmp_path / "data"
    for name in ("[cat]", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (8, 8), 200 if name == "dog" else 20 + i).save(folder / name / f"{i}.png")
    config = alone(epochs=1, batch_size=4)
    run(replace(config, data=replace(config.data, name=f"folder:{folder}", limit=None)), tmp_path / "run")
    assert call("predict", tmp_path / "run", folder / "dog" / "0.png", "--top", 2) == 0
    text = capsys.readouterr().out
    assert "[cat]" in text
    assert "dog " in text


def test_a_name_that_no_system_takes(trained, capsys):
    assert call("predict", trained, "x" * 5000) == 1
    assert "no such file or folder" in capsys.readouterr().err
