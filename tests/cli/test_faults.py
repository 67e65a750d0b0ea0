"""Users' mistakes at the command line: exit code, one or two lines, and nothing half-written."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from running import SMALL, call, everything, make_teacher, metrics, summary, weights
from unixkd.config import MethodConfig, TrainConfig
from unixkd.errors import UserError
from unixkd.method.from_config import build_method
from unixkd.models import create_model
from unixkd.training.checks import check_train


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


@pytest.fixture
def failing(capsys, tmp_path):
    """Runs a command into `out`, which must fail as told and leave nothing there; returns the message."""

    def fail(*words: object, code: int = 1) -> str:
        out = tmp_path / "out"
        assert call(*words, "--out", out) == code
        error = capsys.readouterr().err
        assert error.startswith("unixkd: error: ")
        assert error.count("\n") <= 2
        assert "Traceback" not in error
        assert not out.exists()
        return error

    return fail


def distill(teacher: object, *words: object, student: str = "resnet8") -> list[object]:
    return ["distill", "--teacher", teacher, "--student", student, *SMALL, *words]


def picture(path: Path, size: tuple[int, int] = (8, 8), mode: str = "RGB", shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(shade))
    Image.fromarray(noise.to(torch.uint8).numpy()).convert(mode).save(path)
    return path


def folder_of(place: Path, classes: list[str], images: int = 6, **how) -> str:
    for number, name in enumerate(classes):
        for i in range(images):
            picture(place / name / f"{i}.png", shade=100 * number + i, **how)
    return f"folder:{place}"


# 12: teacher and student disagree on the classes


def test_a_teacher_with_another_class_count_is_refused(teacher, failing, tmp_path):
    data = folder_of(tmp_path / "data", ["a", "b", "c"], mode="L")
    message = failing(*distill(teacher), "--data", data, "--data.limit", 18, "--train.batch_size", 8)
    assert "has 10 classes, the data have 3" in message
    assert str(teacher) in message


def test_a_teachers_weights_file_with_another_class_count_is_refused(failing, tmp_path):
    torch.save({"model": create_model("resnet14", 7, 1).state_dict()}, tmp_path / "teacher.pth")
    message = failing(*distill("resnet14", "--teacher.weights", tmp_path / "teacher.pth"))
    assert "7 classes" in message
    assert "10" in message


def test_a_teacher_without_weights_is_refused(failing):
    assert "random weights" in failing(*distill("resnet14"))


def test_a_teacher_of_other_class_names_is_refused(teacher, failing, tmp_path):
    names = [*"012345678", "nine"]
    data = folder_of(tmp_path / "data", names, images=3, mode="L")
    message = failing(*distill(teacher), "--data", data, "--data.limit", 30, "--train.batch_size", 8)
    assert "class 9 is '9' there, 'nine' in the data" in message


def test_a_teacher_for_other_channels_is_refused(teacher, failing, tmp_path):
    data = folder_of(tmp_path / "data", [*"0123456789"], images=3)
    message = failing(*distill(teacher), "--data", data, "--data.limit", 30, "--train.batch_size", 8)
    assert "1-channel images, the data have 3 channels" in message


def test_a_student_whose_run_folder_has_other_classes_gets_a_new_classifier(teacher, tmp_path):
    """Only the teacher's head is sacred."""
    data = folder_of(tmp_path / "data", ["a", "b"], mode="L")
    words = ("--train.batch_size", 4, "--epochs", 1, "--out", tmp_path / "run")
    first = tmp_path / "two"
    assert call("train", "--model", "resnet8", "--data", data, *words[:4], "--out", first) == 0
    words = ("--data", data, "--method", "student-alone", *words)
    assert call("distill", "--teacher", first, "--student", teacher, *words) == 0
    assert weights(tmp_path / "run")["fc.weight"].shape == (2, 64)


# 15: labels


def test_a_label_out_of_range_is_found_before_training(failing, tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    images = [Image.new("L", (8, 8), i) for i in range(12)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    values = {"image": images, "label": [0, 1] * 5 + [-1, 0]}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(values, features=features).to_parquet(str(tmp_path / "data" / "train.parquet"))
    capsys.readouterr()  # the progress of writing
    message = failing(
        "train", "--model", "resnet8", "--data", f"parquet:{tmp_path / 'data'}", "--train.batch_size", 4
    )
    assert "sample 10 has label -1" in message


# 17: not enough images


def test_an_empty_folder_and_an_empty_class(failing, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no images" in failing("train", "--model", "resnet8", "--data", f"folder:{tmp_path / 'empty'}")
    assert "no such folder" in failing(
        "train", "--model", "resnet8", "--data", f"folder:{tmp_path / 'missing'}"
    )
    data = folder_of(tmp_path / "data", ["a", "b"])
    (tmp_path / "data" / "c").mkdir()
    message = failing("train", "--model", "resnet8", "--data", data)
    assert "1 of 3 classes have no images ('c')" in message


def test_fewer_images_than_a_batch(failing, tmp_path):
    data = folder_of(tmp_path / "data", ["a", "b"], images=5)
    message = failing("train", "--model", "resnet8", "--data", data, "--train.batch_size", 64)
    assert "has 10 training images, fewer than a batch of 64" in message
    assert "has 20 training images" in failing("train", "--model", "resnet8", "--data.limit", 20)
    assert "there are 1438 training images" in failing("train", "--model", "resnet8", "--data.limit", 5000)


# 16: images that cannot be read


def test_a_corrupt_image_is_named(failing, tmp_path):
    data = folder_of(tmp_path / "data", ["a", "b"])
    (tmp_path / "data" / "a" / "2.png").write_bytes(b"\x89PNG junk")
    message = failing("train", "--model", "resnet8", "--data", data, "--train.batch_size", 4)
    assert str(tmp_path / "data" / "a" / "2.png") in message


# 18: k, b, N


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--method.keep", 0), "keep (k/N) is a share of the batch and must lie in (0, 1], got 0"),
        (("--method.keep", 1.01), "keep (k/N) is a share of the batch and must lie in (0, 1], got 1.01"),
        (("--method.keep", -0.5), "got -0.5"),
        (("--method.keep", 0.01), "keep 0.01 of a batch of 32 keeps no image"),
        (("--method.mix_from", 1.5), "must lie in [0, 1], got 1.5"),
    ],
)
def test_shares_out_of_range(words, told, teacher, failing):
    assert told in failing(*distill(teacher, *words))


# 19: short last batches


@pytest.mark.parametrize(("limit", "kept"), [(33, 24 + 1), (34, 24 + 2), (55, 24 + 23), (57, 24 + 24)])
def test_a_last_batch_shorter_than_k_is_kept_whole(limit, kept, teacher, tmp_path):
    assert call(*distill(teacher, "--data.limit", limit), "--out", tmp_path / "run") == 0
    images = summary(tmp_path / "run")["cost"]["images"]
    assert (images["scored"], images["teacher_forwarded"], images["trained"]) == (limit, kept, kept)
    assert metrics(tmp_path / "run")[0]["step"] == 2


def test_a_batch_of_one_image_that_batch_norm_cannot_take_is_found_before_training(
    teacher, failing, tmp_path
):
    """vgg8 ends in feature maps of 1 × 1 at 8 pixels; resnet8 does not and takes such a batch."""
    for words in (("--data.limit", 33), ("--method.keep", 0.04)):
        message = failing(*distill(teacher, *words, student="vgg8"))
        assert "would train on 1 image" in message
        assert "vgg8" in message
    frozen = distill(teacher, "--data.limit", 33, "--train.freeze_batchnorm", "true", student="vgg8")
    assert call(*frozen, "--out", tmp_path / "frozen") == 0  # it normalises by what it has
    words = distill(teacher, "--data.limit", 33, "--train.batch_size", 1, "--method", "kd")
    assert call(*words, "--out", tmp_path / "run") == 0


# 24 is in test_cli.py; numbers that no type catches are here


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--epochs", 0), "train.epochs: Expected `int` >= 1, got 0"),
        (("--train.batch_size", 0), "train.batch_size: Expected `int` >= 1, got 0"),
        (("--train.batch_size", -4), "train.batch_size: Expected `int` >= 1, got -4"),
        (("--train.eval_every", 0), "train.eval_every"),
        (("--train.checkpoint_every", 0), "train.checkpoint_every"),
        (("--train.eval_batch_size", 0), "train.eval_batch_size"),
        (("--train.threads", 0), "train.threads"),
        (("--lr", -1), "train.lr: Expected `float` >= 0.0, got -1.0"),
        (("--seed", -1), "train.seed"),
        (("--train.momentum", 1.5), "train.momentum: Expected `float` <= 1.0, got 1.5"),
        (("--train.nesterov", "true", "--train.momentum", 0), "train.nesterov needs a momentum"),
        (("--train.weight_decay", -1), "train.weight_decay"),
        (("--train.clip_norm", -1), "train.clip_norm"),
        (("--train.ema_decay", 2), "train.ema_decay"),
        (("--train.label_smoothing", -0.1), "train.label_smoothing"),
        (
            ("--train.milestones", "[0.5,1.5]"),
            "train.milestones: Expected `float` <= 1.0, got [0.5, 1.5]",
        ),
        (("--train.warmup_epochs", -1), "train.warmup_epochs"),
        (("--data.holdout", 1), "data.holdout"),
        (("--data.size", 0), "data.size"),
        (("--data.workers", -1), "data.workers"),
        (("--device", "cuda"), "device cuda is not available"),
    ],
)
def test_numbers_out_of_range_are_named(words, told, failing, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert told in failing("train", "--model", "resnet8", *SMALL, *words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--loss.temperature", 0), "loss.temperature must be above 0"),
        (("--reference_epochs", 0), "reference_epochs: Expected `int` >= 1, got 0"),
        (("--loss.kd", 0), "every loss has weight 0"),
        (("--method", "student-alone", "--method.keep", 0.5), "student-alone trains on every image"),
        (("--method", "kd", "--method.scoring_mode", "eval"), "kd does not score"),
        (("--method", "hard", "--method.per_sample_lambda", "true"), "hard does not mix"),
        (("--data.labels", "false", "--loss.ce", 1), "no labels, which the loss ce needs"),
        (("--data.labels", "false", "--method", "student-alone"), "no labels, which the loss ce needs"),
    ],
)
def test_what_does_not_fit_together_is_named(words, told, teacher, failing):
    assert told in failing(*distill(teacher, *words))


def test_layers_that_are_not_there_are_answered_with_those_that_are(teacher, failing):
    words = ("--loss.at", 1, "--loss.student_layers", "[layr1]", "--loss.teacher_layers", "[layer1]")
    assert "unknown layer 'layr1'; did you mean 'layer1'" in failing(*distill(teacher, *words), code=2)
    words = ("--loss.at", 1, "--loss.student_layers", "[layer1]", "--loss.teacher_layers", "[layer1,layer2]")
    assert "the student has 1" in failing(*distill(teacher, *words))


def test_numbers_that_are_none():
    """The command line takes them for words; a Python caller may give them."""
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(UserError, match=r"train\.lr: Expected `float`"):
            check_train(TrainConfig(lr=value))
    for method in (MethodConfig(keep=math.nan), MethodConfig(mix_from=math.nan)):
        with pytest.raises(UserError, match=r"must lie in"):
            build_method(method)


# 26: the folder holds a run


def test_an_existing_run_is_refused_at_the_command_line(teacher, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(teacher, out)
    words = ("train", "--model", "resnet8", *SMALL, "--out", out)
    assert call(*words) == 1
    assert "already holds a run: give --resume, --overwrite" in capsys.readouterr().err
    assert call(*words, "--resume") == 1
    assert "model.name: resnet14 then, resnet8 now" in capsys.readouterr().err
    assert everything(out) == everything(teacher)
    assert call(*words, "--overwrite") == 0
    assert summary(out)["parameters"] == 77754


def test_a_damaged_checkpoint_is_said_at_the_command_line(tmp_path, capsys):
    words = ("train", "--model", "resnet8", *SMALL, "--epochs", 2, "--out", tmp_path / "run")
    assert call(*words) == 0
    before = everything(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "epoch-00002" / "state.safetensors").write_bytes(b"")
    assert call(*words, "--resume") == 0
    text = capsys.readouterr().out
    assert "passed over a damaged checkpoint" in text
    assert "resumed after epoch 1" in text
    assert everything(tmp_path / "run") == before
    for path in (tmp_path / "run" / "checkpoints").glob("*/manifest.json"):
        path.unlink()
    assert call(*words, "--resume") == 1
    assert "no valid checkpoint" in capsys.readouterr().err


def test_an_output_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert call("train", "--model", "resnet8", *SMALL, "--out", tmp_path / "file") == 1
    assert "cannot write to the output folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


# 27: weights of another architecture


def test_a_teachers_checkpoint_of_another_architecture_names_the_first_parameter(failing, tmp_path):
    torch.save({"model": create_model("resnet8", 10, 1).state_dict()}, tmp_path / "resnet8.pth")
    message = failing(*distill("resnet14", "--teacher.weights", tmp_path / "resnet8.pth"))
    assert "another architecture" in message
    assert "'layer1.1.conv1.weight'" in message
    save_file(create_model("resnet8x4", 10, 1).state_dict(), tmp_path / "wide.safetensors")
    message = failing(*distill("resnet8", "--teacher.weights", tmp_path / "wide.safetensors"))
    assert "'conv1.weight' is (32, 1, 3, 3) there and (16, 1, 3, 3) here" in message


@pytest.mark.parametrize("content", [b"", b"junk", b"\x80\x02c__main__\nx\n."])
def test_a_weights_file_that_is_none(content, failing, tmp_path):
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        assert name in failing(*distill("resnet14", "--teacher.weights", tmp_path / name))
    assert "missing.pth" in failing(*distill("resnet14", "--teacher.weights", tmp_path / "missing.pth"))


# Unlabelled images


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory) -> Path:
    """40 loose grey images of 8 pixels."""
    folder = tmp_path_factory.mktemp("unlabelled")
    for i in range(40):
        picture(folder / f"{i:02d}.png", mode="L", shade=i)
    return folder


@pytest.mark.parametrize("method", ["kd", "unix"])
def test_unlabelled_images_are_distilled_with_the_teachers_classes(
    method, teacher, unlabelled, tmp_path, capsys
):
    words = [
        "--data",
        f"folder:{unlabelled}",
        "--data.limit",
        40,
        "--train.batch_size",
        16,
        "--method",
        method,
    ]
    assert call(*distill(teacher, *words), "--out", tmp_path / "run") == 0
    result = summary(tmp_path / "run")
    assert result["accuracy"] == {"last": None, "best": None, "teacher": None}
    assert result["agreement"] is result["calibration_error"] is None  # there is no test set
    assert result["cost"]["images"]["evaluated"] == 0
    assert weights(tmp_path / "run")["fc.weight"].shape == (10, 64)
    assert "final accuracy –" in capsys.readouterr().out
    assert call("predict", tmp_path / "run", unlabelled / "00.png") == 0
    assert capsys.readouterr().out.split(": ")[1].split()[0] in set("0123456789")


def test_of_held_out_unlabelled_images_the_agreement_is_shown(teacher, unlabelled, tmp_path, capsys):
    words = [
        "--data",
        f"folder:{unlabelled}",
        "--data.limit",
        20,
        "--data.holdout",
        0.5,
        "--train.batch_size",
        10,
    ]
    assert call(*distill(teacher, *words), "--out", tmp_path / "run") == 0
    result = summary(tmp_path / "run")
    assert result["accuracy"]["last"] is None
    assert 0 <= result["agreement"] <= 1
    assert 20 * result["agreement"] == pytest.approx(round(20 * result["agreement"]))
    assert "agrees with teacher" in capsys.readouterr().out


def test_unlabelled_images_and_what_needs_labels(teacher, unlabelled, failing):
    data = ("--data", f"folder:{unlabelled}", "--data.limit", 40, "--train.batch_size", 16)
    assert "no labels, which the loss ce needs" in failing("train", "--model", "resnet8", *data)
    assert "no labels" in failing(*distill(teacher, *data, "--loss.ce", 1))
    assert "no labels" in failing(*distill(teacher, *data, "--method", "student-alone"))


def test_labels_left_out_change_nothing_of_a_distillation(teacher, tmp_path):
    assert call(*distill(teacher), "--out", tmp_path / "with") == 0
    assert call(*distill(teacher, "--data.labels", "false"), "--out", tmp_path / "without") == 0
    with_, without = summary(tmp_path / "with"), summary(tmp_path / "without")
    assert with_["accuracy"] == without["accuracy"]  # the test set keeps its labels
    same = (weights(tmp_path / name) for name in ("with", "without"))
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in same), strict=True))


def test_a_comparison_on_unlabelled_images_with_matched_cost(teacher, unlabelled, tmp_path):
    words = ["--data", f"folder:{unlabelled}", "--data.limit", 40, "--train.batch_size", 16, "--epochs", 4]
    words += ["--methods", "random", "--seeds", 0, "--match-cost", "--jobs", 1, "--out", tmp_path]
    assert call("compare", "--teacher", teacher, "--student", "resnet8", *words) == 0
    assert summary(tmp_path / "runs" / "kd@random-seed0")["epochs"] == 3  # 12 + 12 + 8 of 40


# Images that stay on disk


def test_large_images_of_all_sizes_through_the_loader(tmp_path):
    place = tmp_path / "data"
    for number, name in enumerate(("cat", "dog")):
        for i in range(6):
            picture(place / "train" / name / f"{i}.jpg", (70 + 9 * i, 90 - 5 * i), shade=10 * number + i)
        picture(place / "val" / name / "0.png", (100, 80), shade=90 + number)
    words = ("--data", f"folder:{place}", "--data.size", 72, "--data.workers", 0, "--data.in_memory", "false")
    words += ("--train.batch_size", 4, "--epochs", 1)
    assert call("train", "--model", "resnet8", *words, "--out", tmp_path / "teacher") == 0
    names = ("one", "two")
    for name in names:
        out = tmp_path / name
        assert (
            call("distill", "--teacher", tmp_path / "teacher", "--student", "resnet8", *words, "--out", out)
            == 0
        )
    result = summary(tmp_path / "one")
    assert result["cost"]["images"]["trained"] == 9  # 3 of 4, three times
    assert result["cost"]["images"]["evaluated"] == 2
    assert result["accuracy"]["teacher"] == summary(tmp_path / "teacher")["accuracy"]["last"]
    assert everything(tmp_path / "one") == everything(tmp_path / "two")
    assert call("evaluate", tmp_path / "one", "--rounds", 0) == 0
