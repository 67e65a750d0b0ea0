"""`evaluate` and `predict`: what a saved model says, and what they say when something is missing."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from running import TEST_IMAGES, alone, call, make_teacher, summary
from unixkd.cli import screen
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
    assert call("evaluate", trained, "--rounds", 0) == 0
    result = summary(trained)
    assert capsys.readouterr().out.startswith(
        f"{trained}: resnet14 on {TEST_IMAGES} images of digits: "
        f"accuracy {percent(result['accuracy']['last'])}, "
        f"calibration error {percent(result['calibration_error'])}\n"
    )


def test_the_batch_size_of_an_evaluation_does_not_matter(trained, capsys):
    lines = set()
    for size in (1, 7, 1000):
        assert call("evaluate", trained, "--batch_size", size, "--rounds", 0) == 0
        lines.add(capsys.readouterr().out)
    assert len(lines) == 1


def test_evaluate_on_a_changed_part_of_the_runs_own_data(trained, capsys):
    """Held-out training images: another number of images, and the accuracy of those."""
    assert call("evaluate", trained, "--data.holdout", 0.5, "--rounds", 0) == 0
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
    assert call("evaluate", tmp_path / "run", "--data", "digits", "--rounds", 0) == 0
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
    assert call("evaluate", "vgg8", "--rounds", 0) == 0
    assert percent(summary(trained)["accuracy"]["last"]) in capsys.readouterr().out


def test_evaluate_without_test_images_says_what_to_do(trained, images, tmp_path, capsys):
    folder = tmp_path / "data"
    for i in range(10):
        (folder / str(i)).mkdir(parents=True)
        shutil.copy(images / "00.png", folder / str(i))
    shutil.copytree(trained, tmp_path / "run")
    config = tmp_path / "run" / "run.yaml"
    text = config.read_text().replace("limit: 100", "limit: null")
    config.write_text(text.replace("name: digits", f"name: folder:{folder}"))
    (tmp_path / "run" / "checksums.json").unlink()
    same = f"folder:{tmp_path}/run/../data"
    for words in ((), ("--data", same)):  # its accuracy on what it was trained on would be no evaluation
        assert call("evaluate", tmp_path / "run", *words) == 1
        error = capsys.readouterr().err
        named = same if words else f"folder:{folder}"
        assert error == (
            f"unixkd: error: {named} has no test images; give --data.holdout to hold training images out\n"
        )


def test_evaluate_on_class_folders_without_splits(trained, tmp_path, capsys, caplog):
    """All images count, whichever of the classes there are: the share of those that predict names rightly."""
    test = load_data(alone().data).test
    answers = predict(load_model(trained), test.eval_batches(100))
    known = set(test.labels[answers.classes == test.labels][:5].tolist()) | {2}
    for i, label in enumerate(test.labels[:40].tolist()):
        if label in known:
            (tmp_path / "data" / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(test.image(i)[..., 0]).save(tmp_path / "data" / str(label) / f"{i}.png")
    assert call("predict", trained, tmp_path / "data", "--json") == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    right = [Path(answer["image"]).parent.name == answer["answers"][0]["class"] for answer in answers]
    assert 0 < sum(right) < len(right)
    assert call("evaluate", trained, "--data", f"folder:{tmp_path / 'data'}", "--rounds", 0) == 0
    line = (
        f"on {len(right)} images of folder:{tmp_path / 'data'}: accuracy {percent(sum(right) / len(right))}"
    )
    assert line in capsys.readouterr().out
    assert f"there are no splits: all {len(right)} images are evaluated on" in caplog.text
    (tmp_path / "data" / "2").rename(tmp_path / "data" / "two")
    assert call("evaluate", trained, "--data", f"folder:{tmp_path / 'data'}") == 1
    assert f"has 10 classes, the data have {len(known)}" in capsys.readouterr().err


def test_training_images_are_known_by_any_path(tmp_path, monkeypatch):
    """A folder in the run's, one above it, its own archive, a split of it; not other images of the same names."""
    from unixkd.cli.train import is_trained_on

    monkeypatch.setenv("UNIXKD_CACHE", str(tmp_path / "cache"))
    for top, shade in (("set/inner", 1), ("other", 2), ("splits/train", 3), ("splits/test", 4)):
        for i, name in enumerate(["a", "b"]):
            (tmp_path / top / name).mkdir(parents=True)
            Image.new("L", (4, 4), shade * 10 + i).save(tmp_path / top / name / "0.bmp")
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "set")

    def known(trained, evaluated):
        (tmp_path / "run.yaml").write_text(json.dumps({"data": {"name": f"folder:{tmp_path / trained}"}}))
        return is_trained_on(tmp_path, f"folder:{tmp_path / evaluated}")

    same = ["set", "set/inner", "other/../set", packed]
    assert all(known(one, other) for one in same for other in same)
    part = shutil.make_archive(str(tmp_path / "part"), "tar", tmp_path / "splits" / "train")
    assert known("splits", "splits/train")
    assert known("splits", part)
    assert known(part, "splits/train")
    assert not known(part, "splits/test")
    assert not known("splits", "splits/test")
    assert not any(known(one, other) for one in same for other in ("other", "missing"))
    assert not known("missing", "other")


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
    assert call("evaluate", tmp_path / "run", "--data", "digits", "--rounds", 0) == 0


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


@pytest.fixture
def mixed(images, tmp_path):
    """A good image, a bad one, a good one, an empty folder, and a name with what a terminal would obey."""
    for name, source in (("0.png", "00.png"), ("2.png", "02.png"), ("\x1b[2J\n.png", "03.png")):
        shutil.copy(images / source, tmp_path / name)
    (tmp_path / "1.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    return tmp_path


def classes(probabilities, *rows):
    return [str(int(probabilities[row].argmax())) for row in rows]


def test_predict_goes_on_past_what_cannot_be_read(trained, mixed, probabilities, capsys):
    words = [mixed / name for name in ("2.png", "1.png", "none.png", "empty", "0.png")]
    assert call("predict", trained, *words) == 1
    captured = capsys.readouterr()
    assert [line.split()[:2] for line in captured.out.splitlines()] == [
        [f"{mixed / name}:", label]
        for name, label in zip(("2.png", "0.png"), classes(probabilities, 2, 0), strict=True)
    ]
    first, *errors = captured.err.splitlines()
    assert first == "unixkd: error: no answer for 3 of 5 images:"
    assert errors[0].startswith(f"  {mixed}/1.png: cannot be read as an image (none of the image formats PNG")
    assert errors[1] == f"  {mixed}/none.png: no such file or folder"
    assert errors[2].startswith(f"  {mixed}/empty: no images in this folder")
    assert len(errors) == 3


def test_predict_json_and_csv_have_a_row_for_each_image(trained, mixed, probabilities, capsys):
    words = [mixed / name for name in ("2.png", "1.png", "\x1b[2J\n.png")]
    assert call("predict", trained, *words, "--json") == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == list(map(str, words))
    assert [len(row.get("answers", ())) for row in rows] == [1, 0, 1]
    assert rows[1]["error"].startswith(f"{mixed}/1.png: cannot be read as an image")
    assert call("predict", trained, *words, "--csv", "--top", 2) == 1
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(table[0]) == ["image", "class_1", "probability_1", "class_2", "probability_2", "error"]
    assert [row["image"] for row in table] == list(map(str, words))
    assert [row["class_1"] for row in table] == [*classes(probabilities, 2), "", *classes(probabilities, 3)]
    assert [row["error"] for row in table] == ["", rows[1]["error"], ""]
    top = probabilities[2].topk(2)
    assert [float(table[0][f"probability_{i}"]) for i in (1, 2)] == pytest.approx(
        top.values.tolist(), abs=1e-5
    )
    assert call("predict", trained, *words, "--csv", "--json") == 2
    assert capsys.readouterr().err == "unixkd: error: --json and --csv exclude each other\n"


@pytest.mark.parametrize("form", [(), ("--csv",), ("--json",)])
def test_predict_shows_a_terminal_no_control_characters(form, trained, mixed, capsys, monkeypatch):
    monkeypatch.setattr(screen.console, "_force_terminal", True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert call("predict", trained, mixed, *form) == 1
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert "\x1b[2J" not in text
    assert re.search(r"\\(x1b|u001b)\[2J\\n\.png", text)


def test_colours_that_are_forced_change_no_table(trained, mixed, capsys, monkeypatch):
    monkeypatch.setattr(screen.console, "_force_terminal", True)
    assert call("predict", trained, mixed / "\x1b[2J\n.png", "--csv") == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["image"] == f"{mixed}/\x1b[2J\n.png"


def test_predict_takes_patterns_and_what_exists_by_that_name(trained, mixed, capsys):
    (mixed / "empty" / "a").mkdir()
    shutil.copy(mixed / "0.png", mixed / "empty" / "a" / "[0].png")
    for words, names in (
        ([f"{mixed}/[02].png"], ["0.png", "2.png"]),
        ([f"{mixed}/**/a/*.png"], ["empty/a/[0].png"]),
        ([f"{mixed}/empty/a/[0].png"], ["empty/a/[0].png"]),
        ([f"{mixed}/e*", mixed / "0.png"], ["empty/a/[0].png", "0.png"]),
    ):
        assert call("predict", trained, *words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.partition(": ")[0] for line in lines] == [str(mixed / name) for name in names]
    assert call("predict", trained, f"{mixed}/*.tif") == 1
    assert capsys.readouterr().err == f"unixkd: error: {mixed}/*.tif: no file matches\n"
    assert call("predict", trained, "") == 2
    assert capsys.readouterr() == ("", "unixkd: error: an image's path is empty\n")


def test_predict_reads_paths_from_standard_input(trained, mixed, capsys, monkeypatch):
    def said(text, *words):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        code = call("predict", trained, *words)
        captured = capsys.readouterr()
        return code, [line.partition(": ")[0] for line in captured.out.splitlines()], captured.err

    lines = f"{mixed}/2.png\r\n\n-\n{mixed}/empty/../0.png"
    expected = [f"{mixed}/2.png", f"{mixed}/empty/../0.png"]
    assert said(lines, "-") == (0, expected, "")
    assert said(lines, mixed / "0.png", "-") == (0, [f"{mixed}/0.png", *expected], "")
    assert said("", "-") == (1, [], "unixkd: error: no images were given: standard input is empty\n")
    monkeypatch.setattr("sys.stdin", None)
    assert call("predict", trained, "-") == 1
    assert "standard input is closed" in capsys.readouterr().err


def test_predict_asks_about_fewer_large_images_at_once(trained, images, capsys, monkeypatch):
    from unixkd.cli import predict
    from unixkd.models.card import PixelModel

    sizes, forward = [], PixelModel.forward
    monkeypatch.setattr(PixelModel, "forward", lambda self, x: (sizes.append(len(x)), forward(self, x))[1])
    monkeypatch.setattr(predict, "BATCH_PIXELS", 5 * 8 * 8)
    assert call("predict", trained, images) == 0
    assert sizes == [5, 5, 2]
