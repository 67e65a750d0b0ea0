"""A teacher at another size than its own: how its images are shrunk, and which size is taken where none is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from running import SMALL, alone, call
from unixkd.cli import main
from unixkd.cli import plan as cli_plan
from unixkd.config import DataConfig, read_yaml
from unixkd.data.images import fit_all
from unixkd.data.load import load_data
from unixkd.method.ledger import Ledger
from unixkd.models import ModelCard, PixelModel, create_model
from unixkd.models.folder import save_model
from unixkd.training.run import run


class Shows(nn.Module):
    """A network whose logits are its pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def shown(pixels: np.ndarray, size: int) -> torch.Tensor:
    """What a network of this size sees of images `[N, H, W, 1]`, in [0, 255]."""
    card = ModelCard("shows", size * size, 1, (0.0,), (1.0,), size)
    return PixelModel(Shows(), card)(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255) * 255


@pytest.mark.parametrize(
    ("side", "size"), [(32, 16), (32, 8), (64, 4), (128, 64), (48, 16), (30, 10), (16, 1)]
)
def test_a_network_sees_what_data_of_its_size_hold(side, size):
    pixels = np.random.default_rng(side).integers(0, 256, (6, side, side, 1), dtype=np.uint8)
    wanted = torch.from_numpy(fit_all(pixels, size)).flatten(1).float()
    torch.testing.assert_close(shown(pixels, size), wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("side", "size"), [(32, 24), (32, 20), (24, 16)])
def test_other_sizes_are_filtered_alike_but_for_the_rounding(side, size):
    pixels = np.random.default_rng(side).integers(0, 256, (6, side, side, 1), dtype=np.uint8)
    wanted = torch.from_numpy(fit_all(pixels, size)).flatten(1).float()
    assert (shown(pixels, size) - wanted).abs().max() < 1.5


def test_digits_through_a_teacher_of_half_the_size():
    small, whole = (load_data(DataConfig("digits", size=size)).test for size in (4, None))
    pixels = whole.images.numpy()
    assert (shown(pixels, 4).round() == small.images.flatten(1)).all()


# The size where none is given


def saved(folder: Path, name: str, size: int, channels: int = 3, classes: int = 100) -> Path:
    """A run folder without a run.yaml."""
    values = (0.5,) * channels
    save_model(
        PixelModel(
            create_model(name, classes, channels), ModelCard(name, classes, channels, values, values, size)
        ),
        folder,
    )
    return folder


def planned(*words: object) -> tuple[int, float]:
    """Size of the images, and F_t/F_s."""
    options = main.parse("plan", [str(word) for word in words])
    data = cli_plan.planned_data(options)
    shape = cli_plan.planned_shape(options, data)
    teacher, student = cli_plan.planned_networks(options, shape)
    ledger = Ledger.of(student, teacher, (shape.channels, shape.size, shape.size))
    return shape.size, ledger.teacher_flops / ledger.student_flops


def test_a_plan_is_at_the_teachers_size(tmp_path, capsys):
    pair = ["--teacher", saved(tmp_path / "teacher", "wrn_40_2", 16), "--student", "wrn_16_2"]
    for more in ([], ["--data", "cifar100"]):
        size, ratio = planned(*pair, *more)
        assert size == 16
        assert f"{ratio:.2f}" == "3.24"
    assert "images are 16 pixels, as the teacher's were: --data.size 32" in capsys.readouterr().out
    assert planned(*pair, "--images", "1e6", "--classes", 100)[0] == 16
    size, ratio = planned(*pair, "--data", "cifar100", "--data.size", 32)
    assert (size, f"{ratio:.2f}") == (32, "0.81")  # said in so many words
    assert planned("--teacher", saved(tmp_path / "whole", "wrn_40_2", 32), "--student", "wrn_16_2")[0] == 32
    assert "images are 32" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("teacher") / "run", "resnet8", 4, 1, 10)


def sizes(out: Path) -> set[int | None]:
    return {read_yaml(path)["data"]["size"] for path in out.rglob("run.yaml")}


@pytest.mark.parametrize("command", ["distill", "compare"])
def test_runs_are_at_the_teachers_size(command, teacher, tmp_path, capsys):
    words = [command, "--teacher", teacher, "--student", "resnet8", *SMALL, "--out", tmp_path / "out"]
    words += ["--method", "kd"] if command == "distill" else ["--methods", "kd", "--seeds", 0, "--jobs", 1]
    assert call(*words) == 0
    assert "images are 4 pixels" in capsys.readouterr().out
    assert sizes(tmp_path / "out") == {4}
    again = [*words, "--resume"] if command == "distill" else words
    assert call(*again) == 0  # the same run


@pytest.mark.parametrize("command", ["distill", "compare"])
def test_a_run_goes_on_at_the_size_it_began_with(command, teacher, tmp_path, monkeypatch):
    words = [command, "--teacher", teacher, "--student", "resnet8", *SMALL, "--out", tmp_path / "out"]
    words += ["--method", "kd"] if command == "distill" else ["--methods", "kd", "--seeds", 0, "--jobs", 1]
    with monkeypatch.context() as patch:  # as an earlier version began it
        patch.setattr(
            f"unixkd.cli.{'train' if command == 'distill' else 'compare'}.at_teachers_size", lambda d, *_: d
        )
        assert call(*words) == 0
    assert sizes(tmp_path / "out") == {None}
    again = [*words, "--resume"] if command == "distill" else words
    assert call(*again) == 0
    assert sizes(tmp_path / "out") == {None}


def test_a_size_that_is_given_is_taken(teacher, tmp_path):
    words = ["distill", "--teacher", teacher, "--student", "resnet8", *SMALL, "--method", "kd"]
    assert call(*words, "--data.size", 8, "--out", tmp_path / "out") == 0
    assert sizes(tmp_path / "out") == {8}


def test_stored_answers_to_images_that_were_shrunk_otherwise_are_refused(teacher, tmp_path, capsys):
    words = [
        "distill",
        "--teacher",
        teacher,
        "--student",
        "resnet8",
        *SMALL,
        "--method",
        "kd",
        "--data.size",
        8,
    ]
    words += ["--answers.path", tmp_path / "answers"]
    assert call(*words, "--out", tmp_path / "a") == 0
    index = tmp_path / "answers" / "answers.json"
    index.write_text(index.read_text().replace("teacher's images", "images of early versions"))
    assert call(*words, "--out", tmp_path / "b") == 1
    assert "teacher's images" in capsys.readouterr().err


def test_a_teacher_whose_run_knows_its_data_is_planned_at_their_size(tmp_path):
    config = alone("resnet8", epochs=1)
    run(type(config)(**{**vars(config), "data": DataConfig("digits", limit=100, size=4)}), tmp_path / "run")
    assert planned("--teacher", tmp_path / "run", "--student", "resnet8")[0] == 4
    assert planned("--teacher", tmp_path / "run", "--student", "resnet8", "--data", "digits")[0] == 4
