"""`evaluate`: its figures against those worked out from the networks, its teacher, its outputs."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from rich.cells import cell_len

from evaluations import evaluation
from pages import read_page, words
from running import SMALL, alone, call, distilled, make_teacher, summary
from unixkd.cli.evaluate import judge_answers
from unixkd.cli.evaluation_text import say_evaluation
from unixkd.data.load import load_data
from unixkd.models import ModelCard, PixelModel, create_model, save_model
from unixkd.models.folder import load_model
from unixkd.names import percent
from unixkd.training.predictions import Predictions
from unixkd.training.run import run


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A teacher in `teacher` and a student of it in `student`."""
    base = tmp_path_factory.mktemp("evaluate")
    run(distilled(make_teacher(base / "teacher"), "kd", epochs=2), base / "student")
    return base


@pytest.fixture
def folder(base, tmp_path) -> Path:
    """A copy of both, whose student names the copied teacher."""
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    edit(tmp_path / "student", name=str(tmp_path / "teacher"))
    return tmp_path


def edit(student: Path, **changes: object) -> None:
    """Change what a student's run.yaml says of its teacher."""
    config = yaml.safe_load((student / "run.yaml").read_text())
    config["teacher"] |= changes
    (student / "run.yaml").write_text(yaml.safe_dump(config))
    (student / "checksums.json").unlink(missing_ok=True)


def figures(capsys, *words: object) -> dict:
    """The JSON object of an evaluation without timing."""
    assert call("evaluate", *words, "--rounds", 0, "--json") == 0
    return json.loads(capsys.readouterr().out)


def logits(folder: Path) -> torch.Tensor:
    test = load_data(alone().data).test
    with torch.no_grad():
        return load_model(folder)(next(test.eval_batches(1000)).images)


def test_json_has_what_the_networks_say_of_the_same_images(folder, capsys):
    found = figures(capsys, folder / "student", "--batch_size", 100)
    labels = load_data(alone().data).test.labels
    said = {name: logits(folder / name) for name in ("student", "teacher")}
    right = {name: each.argmax(1) == labels for name, each in said.items()}
    for name, each in said.items():
        quality = found[name]["quality"]
        assert quality["accuracy"] == pytest.approx(right[name].double().mean().item())
        top = each.topk(5).indices == labels[:, None]
        assert quality["top_5"] == pytest.approx(top.any(1).double().mean().item())
        matrix = torch.zeros(10, 10, dtype=torch.int64)
        matrix.index_put_((labels, each.argmax(1)), torch.ones_like(labels), accumulate=True)
        assert quality["confusion"] == matrix.tolist()
        assert quality["balanced_accuracy"] == pytest.approx((matrix.diag() / matrix.sum(1)).mean().item())
        assert found[name]["parameters"] == sum(p.numel() for p in load_model(folder / name).parameters())
        assert found[name]["speed"] is None
    assert (
        found["student"]["quality"]["calibration_error"] == summary(folder / "student")["calibration_error"]
    )
    both = found["comparison"]
    assert both["agreement"] == summary(folder / "student")["agreement"]
    where = right["teacher"]
    assert both["student_where_teacher_right"] == pytest.approx(
        right["student"][where].double().mean().item()
    )
    assert both["only_teacher_right"] == (right["teacher"] & ~right["student"]).sum().item()
    assert found["teacher"]["source"] == str(folder / "teacher")
    size = (folder / "teacher" / "model.safetensors").stat().st_size / 1e6
    assert found["teacher"]["megabytes"] == pytest.approx(size, rel=0.1)


def test_the_speed_of_both_is_timed_with_the_network_as_it_was(folder, capsys):
    assert call("evaluate", folder / "student", "--rounds", 2, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    for name in ("student", "teacher"):
        speed = found[name]["speed"]
        assert speed["images_per_second"] >= 0.99 * 1000 / speed["milliseconds"]
        assert speed["precision"] == "fp32"
        assert speed["device"] == ("cpu" if not torch.accelerator.is_available() else speed["device"])


def test_the_text_fits_80_columns_and_says_how_both_do(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    edit(folder / "student", name="teacher")
    assert call("evaluate", "student", "--rounds", 2) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    accuracy = percent(summary(folder / "student")["accuracy"]["last"])
    assert first.startswith(f"student: resnet8 on 359 images of digits: accuracy {accuracy}, calibration")
    assert first.endswith("; teacher: resnet14, teacher")
    assert max(map(len, rest)) <= 80
    text = "\n".join(rest)
    for words_ in (
        "accuracy (top-1)",
        "ms per image, one at a time",
        "taken for",
        "teacher's F1",
        "mean confidence",
    ):
        assert words_ in text
    agreement = percent(summary(folder / "student")["agreement"])
    assert f"Student and teacher name the same class for {agreement} of the images." in text


def test_a_page_is_written_and_standard_output_stays_json(folder, capsys):
    page = folder / "out" / "page.html"
    assert call("evaluate", folder / "student", "--rounds", 0, "--json", "--html", page) == 0
    out, err = capsys.readouterr()
    json.loads(out)
    assert f"Report written to {page}" in " ".join(err.split())
    titles = [words(one) for one in read_page(page.read_text()).iter("h2")]
    assert "Where student and teacher disagree" in titles
    (folder / "mine.html").write_text("mine")
    assert call("evaluate", folder / "student", "--html", folder / "mine.html") == 1
    assert (folder / "mine.html").read_text() == "mine"


# The teacher


def left_out(capsys, student: Path, *more: object) -> str:
    """Why the teacher is not there; there is one line about it."""
    found = figures(capsys, student, *more)
    assert found["teacher"] is found["comparison"] is None
    assert found["student"]["quality"]["accuracy"] == summary(student)["accuracy"]["last"]
    (line,) = found["notes"]
    assert line.startswith("The teacher that the run names is left out: ")
    return line


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"name": "gone"}, "gone is not here"),
        ({"name": "https://example.org/teacher"}, "is not here"),
        ({"name": "timm:resnet18", "pretrained": True}, "may have to be downloaded"),
        ({"name": "transformers:owner/net"}, "may have to be downloaded"),
        ({"name": "resnet14:weights.pth"}, "weights.pth is not here"),
        ({"code": "evil.py:Net"}, "it is code, evil.py:Net, which a folder cannot name to be run"),
        ({"name": "evil.py:Net"}, "it is code, evil.py:Net"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_teacher_that_is_not_here_or_is_code_is_left_out(changes, why, folder, capsys, monkeypatch):
    def refuse(*arguments: object, **options: object) -> None:
        pytest.fail("somebody is contacted")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(folder)
    Path("evil.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    edit(folder / "student", **changes)
    assert why in left_out(capsys, folder / "student")
    assert not Path("ran").exists()


def test_a_run_folder_whose_card_is_code_is_left_out_as_a_teacher(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    Path("evil.py").write_text("raise SystemExit('ran')\n")
    card = json.loads(Path("teacher/config.json").read_text())
    Path("teacher/config.json").write_text(json.dumps(card | {"name": "evil.py:Net"}))
    Path("teacher/checksums.json").unlink()
    assert "it is code, evil.py:Net" in left_out(capsys, folder / "student")


def test_a_teacher_that_is_no_longer_what_it_was_is_left_out(folder, capsys):
    shutil.rmtree(folder / "teacher")
    run(alone("resnet14", epochs=1), folder / "teacher")
    assert "its weights are not what the run asked" in left_out(capsys, folder / "student")
    named = figures(capsys, folder / "student", "--teacher", folder / "teacher")
    assert named["teacher"]["name"] == "resnet14"  # who names it means it
    assert named["notes"] == []


def test_without_a_checkpoint_nobody_knows_which_teacher_it_was(folder, capsys):
    shutil.rmtree(folder / "student" / "checkpoints")
    assert "no checkpoint says which weights it had" in left_out(capsys, folder / "student")


def test_an_edited_run_yaml_names_no_teacher(base, tmp_path, capsys):
    shutil.copytree(base / "student", tmp_path / "student")
    with (tmp_path / "student" / "run.yaml").open("a") as file:
        file.write("\n# edited\n")
    assert "is damaged or was edited" in left_out(capsys, tmp_path / "student", "--data", "digits")


def test_a_teacher_of_other_classes_is_an_error_where_it_is_named(folder, tmp_path, capsys):
    words = ("evaluate", folder / "student", "--teacher")
    assert call(*words, "resnet14") == 1
    assert "would have random weights" in capsys.readouterr().err
    assert call("evaluate", folder / "student", "--teacher.weights", "x") == 2
    assert "--teacher is missing" in capsys.readouterr().err


def test_a_run_without_a_teacher_has_none_and_says_nothing(folder, capsys):
    found = figures(capsys, folder / "teacher")
    assert found["teacher"] is None
    assert found["notes"] == []
    assert call("evaluate", folder / "teacher", "--rounds", 0) == 0
    assert "teacher" not in capsys.readouterr().out.partition("\n")[2]


# Data


def test_images_without_labels_give_agreement_and_size(folder, capsys):
    test = load_data(alone().data).test
    (folder / "images").mkdir()
    for i in range(6):
        Image.fromarray(test.image(i)[..., 0]).save(folder / "images" / f"{i}.png")
    words = (folder / "student", "--data", f"folder:{folder / 'images'}")
    found = figures(capsys, *words)
    said = [logits(folder / name)[:6].argmax(1) for name in ("student", "teacher")]
    assert found["comparison"]["agreement"] == pytest.approx((said[0] == said[1]).double().mean().item())
    assert found["comparison"]["both_right"] is found["student"]["quality"] is None
    assert (found["images"], found["unlabelled"], found["absent"]) == (6, 6, [])
    page = folder / "page.html"
    assert call("evaluate", *words, "--rounds", 0, "--html", page) == 0
    assert "The images have no labels" in capsys.readouterr().out
    assert "says what its teacher" in page.read_text()


def test_without_labels_too_a_teacher_of_other_classes_is_refused(folder, capsys):
    """Its class 1 would be another one than the student's."""
    torch.manual_seed(0)
    cases = {
        ("a", "b"): "has 2 classes, the data have 10",
        tuple("1234567890"): "knows the classes in another ord",
    }
    for names, why in cases.items():
        card = ModelCard("resnet8", len(names), 1, (0.3,), (0.2,), 8, names)
        save_model(PixelModel(create_model("resnet8", len(names), 1), card), folder / "other")
        (folder / "images").mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(folder / "images" / "0.png")
        words = ("--data", f"folder:{folder / 'images'}", "--teacher", folder / "other", "--rounds", 0)
        assert call("evaluate", folder / "student", *words) == 1
        assert why in capsys.readouterr().err


def test_long_and_wide_names_leave_80_columns_to_the_figures(capsys):
    names = ["a spider that is very large indeed", "很" * 30, "c"]
    say_evaluation(evaluation([0, 1, 1, 2], [1, 0, 1, 2], [0, 1, 1, 2], classes=3, names=names))
    _, *lines = capsys.readouterr().out.splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert any("taken for" in line and "of the class" in line for line in lines)
    assert any("F1  teacher's F1" in line for line in lines)


def test_classes_without_an_image_are_named(folder, capsys):
    test = load_data(alone().data).test
    for i, label in enumerate(test.labels[:30].tolist()):
        if label < 3:
            (folder / "some" / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(test.image(i)[..., 0]).save(folder / "some" / str(label) / f"{i}.png")
    words = (folder / "student", "--data", f"folder:{folder / 'some'}")
    found = figures(capsys, *words)
    assert found["absent"] == [3, 4, 5, 6, 7, 8, 9]
    assert found["student"]["quality"]["classes"][9]["recall"] is None
    assert found["data_notes"] == [f"there are no splits: all {found['images']} images are evaluated on"]
    assert call("evaluate", *words, "--rounds", 0) == 0
    assert "No image of 7 of 10 classes (3, 4, 5, 6, 7, 8, 9)" in capsys.readouterr().out


def test_files_are_called_by_their_place_in_the_folder(folder, capsys):
    test = load_data(alone().data).test
    for i in range(20):
        place = folder / "named" / "test" / str(int(test.labels[i]))
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(test.image(i)[..., 0]).save(place / f"{i}.png")
    shutil.copytree(folder / "named" / "test", folder / "named" / "train")
    for label in range(10):
        (folder / "named" / "train" / str(label)).mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(folder / "named" / "train" / str(label) / "black.png")
    page = folder / "page.html"
    words = ("--data", f"folder:{folder / 'named'}", "--rounds", 0, "--html", page)
    assert call("evaluate", folder / "student", *words) == 0
    shown = {one.attrib["alt"].partition(",")[0] for one in read_page(page.read_text()).iter("img")}
    assert shown
    assert all((folder / "named" / name).is_file() and name.startswith("test/") for name in shown)


def test_answers_that_are_not_finite_are_wrong_and_in_no_bin():
    nan = float("nan")
    said = Predictions(
        torch.tensor([0, 1, 0, 1]),
        torch.tensor([nan, 0.75, 0.75, 0.9]),
        torch.tensor([0, 1, 1, -1]),
        top=torch.tensor([[0, 1], [1, 0], [0, 1], [1, 0]]),
    )
    found = judge_answers(said, ["a", "b"])
    assert found.accuracy == pytest.approx(1 / 3)  # of the three with a label
    assert found.confusion == [[0, 0], [1, 1]]
    assert found.calibration_error == pytest.approx(0.25)
    assert sum(point["images"] for point in found.calibration_curve) == 2


@pytest.mark.slow
def test_training_and_help_do_without_scikit_learn(tmp_path):
    """It takes a second to import."""
    import subprocess
    import sys

    code = (
        "import sys\nfrom unixkd.cli.main import main\n"
        f"words = ['train', '--model', 'resnet8', '--data', 'digits', *{SMALL!r}, '--out', {str(tmp_path / 'run')!r}]\n"
        "assert main(['--help']) == main(words) == 0\n"
        "sys.exit('sklearn' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
