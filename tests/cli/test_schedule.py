"""What is chosen where the options do not say how to train: by the weights and the number of images, and never more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from running import SMALL, call
from unixkd.cli.main import parse
from unixkd.cli.schedule import batch_of, schedule, suited
from unixkd.config import DataConfig, TrainConfig


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Class folders with 12 training images and 4 others of 90 × 80 pixels, of two colours."""
    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 6), ("val", 2)):
        for colour in ("red", "blue"):
            (root / split / colour).mkdir(parents=True)
            for number in range(count):
                shade = Image.new("RGB", (90, 80), colour).point(
                    lambda value, n=number: max(value - 9 * n, 0)
                )
                shade.save(root / split / colour / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Weights of a resnet8 for 7 classes."""
    from unixkd import create_model

    path = tmp_path_factory.mktemp("weights") / "seven.pth"
    torch.manual_seed(0)
    torch.save(create_model("resnet8", num_classes=7, in_channels=3).state_dict(), path)
    return path


def chosen(command: str, *words: object) -> tuple[DataConfig, TrainConfig]:
    options = parse(command, [str(word) for word in words])
    return suited(options, options.model if command == "train" else options.student)


@given(st.integers(1, 10_000_000), st.integers(1, 10_000_000), st.booleans())
def test_more_images_never_have_more_epochs_from_nothing(one, other, trained):
    few, many = sorted((one, other))
    assert schedule(few, False)["train.epochs"] >= schedule(many, False)["train.epochs"]
    for images in (few, many):
        assert 1 <= schedule(images, trained)["train.epochs"] <= 160


@given(st.integers(1, 10_000), st.sampled_from([32, 64]), st.integers(1, 40))
def test_no_process_has_one_image_alone(images, most, processes):
    size = batch_of(images, most, processes)
    assert size % processes == 0
    if images < 4 * processes:  # no batch that is half of them
        return
    if size > max(images / 2, 1):
        assert all(images % fewer == 1 for fewer in range(2, images // 2 + 1))
    else:
        assert 2 * processes <= size <= max(most, 2 * processes)
        assert processes > 1 or images % size != 1


def test_the_warm_up_leaves_epochs_to_train_in(photos):
    words = ("train", "--model", "resnet8", "--data", f"folder:{photos}", "--epochs", 3)
    assert chosen(*words)[1].warmup_epochs == 0.5


def test_a_batch_is_shared_out_among_the_processes(photos, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert batch_of(245, most=30, processes=4) == 28
    assert chosen("train", "--model", "resnet8", "--data", f"folder:{photos}")[1].batch_size == 12


def test_the_table():
    """As docs/cli.md has it."""
    rows = [list(schedule(images, False).values())[:2] for images in (12, 100, 1000, 50_000)]
    assert rows == [[160, 6], [160, 32], [60, 32], [30, 64]]
    tuned = [schedule(images, True) for images in (999, 1000)]
    assert [(each["train.epochs"], each["train.lr"]) for each in tuned] == [(4, 2e-5), (10, 1e-4)]


def test_pretrained_weights_are_fine_tuned_and_get_a_new_classifier(photos, weights, capsys):
    data, train = chosen(
        "train", "--model", "resnet8", "--model.weights", weights, "--data", f"folder:{photos}"
    )
    assert (train.optimizer, train.lr, train.epochs, train.fit_head) == ("adamw", 2e-5, 4, True)
    assert data.crop_area == 0.35
    line = capsys.readouterr().out
    assert line.startswith(
        "chosen for 12 training images, from pretrained weights, where you do not say: --tr"
    )
    assert "--train.fit_head true" in line


def test_weights_for_these_classes_keep_their_classifier(photos, tmp_path):
    from unixkd import create_model

    torch.save(create_model("resnet8", num_classes=2, in_channels=3).state_dict(), tmp_path / "two.pth")
    words = ("--model", "resnet8", "--model.weights", tmp_path / "two.pth", "--data", f"folder:{photos}")
    assert not chosen("train", *words)[1].fit_head
    assert chosen("train", *words)[1].optimizer == "adamw"


def test_from_nothing_few_images_are_shown_often(photos):
    data, train = chosen("train", "--model", "resnet8", "--data", f"folder:{photos}")
    assert (train.optimizer, train.lr, train.epochs) == ("sgd", 0.05, 160)
    assert (train.batch_size, train.warmup_epochs) == (6, 5)
    assert data == DataConfig(f"folder:{photos}")


def test_what_is_given_stands_wherever_it_is_given(photos, weights, tmp_path):
    """On the command line and in a file; also where it is the default. A rate belongs to its optimiser."""
    network = ("--model", "resnet8", "--model.weights", weights, "--data", f"folder:{photos}")
    assert chosen("train", *network, "--epochs", 30)[1].epochs == 30
    assert chosen("train", *network, "--train.fit_head", "false")[1].fit_head is False
    config = tmp_path / "options.yaml"
    config.write_text("train:\n  epochs: 30\ndata:\n  crop_area: 0.08\n")
    data, train = chosen("train", *network, "--config", config)
    assert (train.epochs, data.crop_area, train.optimizer) == (30, 0.08, "adamw")
    train = chosen("train", *network, "--lr", 0.05)[1]
    assert (train.optimizer, train.lr, train.weight_decay, train.clip_norm) == ("sgd", 0.05, 5e-4, None)
    assert train.epochs == 4


def test_published_defaults_stay(weights):
    """Of the data sets that have some, and of recipes."""
    assert chosen("train", "--model", "resnet8", "--data", "digits") == (DataConfig(), TrainConfig())
    train = chosen("train", "--recipe", "cifar100/wrn_40_2-wrn_16_2")[1]
    assert (train.epochs, train.lr, train.optimizer) == (240, 0.05, "sgd")
    tuned = chosen("train", "--model", "resnet8", "--model.weights", weights, "--data", "cifar100")[1]
    assert (tuned.optimizer, tuned.epochs, tuned.fit_head) == ("adamw", 10, True)


def test_holdout_and_limit_count(photos):
    few = chosen("train", "--model", "resnet8", "--data", f"folder:{photos}", "--data.limit", 2)[1]
    assert few.epochs == 160
    options = parse("distill", ["--student", "resnet8", "--data", "cifar100", "--data.holdout", "0.5"])
    assert suited(options, options.student)[1] == TrainConfig()


def test_the_images_that_are_held_out_are_counted_by_class(tmp_path):
    """Of classes of two images one is held out, whatever the share: 10 are trained on, not 18."""
    for number in range(20):
        folder = tmp_path / f"class{number // 2}"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (90, 80)).save(folder / f"{number}.png")
    data = ("--data", f"folder:{tmp_path}", "--data.holdout", 0.1)
    assert chosen("train", "--model", "resnet8", *data)[1].batch_size == 5


def test_resume_without_a_run_says_what_is_chosen(photos, tmp_path, capsys):
    options = parse("train", ["--model", "resnet8", "--data", f"folder:{photos}", "--resume"])
    assert suited(options, options.model, tmp_path / "run.yaml")[1].epochs == 160
    assert capsys.readouterr().out.startswith("chosen for 12 training images")


def test_a_rate_that_is_given_again_changes_nothing(photos, tmp_path):
    """The run began with 5 epochs of warm-up, and goes on so where its rate is written out."""
    earlier = tmp_path / "run.yaml"
    earlier.write_text("train: {epochs: 160, batch_size: 6, warmup_epochs: 5.0, lr: 0.05}\n")
    options = parse("train", ["--model", "resnet8", "--data", f"folder:{photos}", "--lr", "0.05"])
    assert suited(options, options.model, earlier)[1].warmup_epochs == 5
    assert suited(options, options.model)[1].warmup_epochs == 0


def test_a_target_goes_on_with_the_epochs_that_it_is_a_share_of(photos, tmp_path):
    """80 of plain KD's 160: the target would halve what run.yaml has once more."""
    earlier = tmp_path / "run.yaml"
    words = ["--student", "resnet8", "--data", f"folder:{photos}", "--budget", "50%"]
    options = parse("distill", words)
    for reference, epochs in ((160, 160), ("null", 80)):
        earlier.write_text(f"train: {{epochs: 80, batch_size: 6}}\nreference_epochs: {reference}\n")
        assert suited(options, options.student, earlier)[1].epochs == epochs
    options = parse("distill", words[:-2])
    assert suited(options, options.student, earlier)[1].epochs == 80


def test_unlabelled_images_fit_no_classifier(photos, weights):
    words = ("--student", "resnet8", "--student.weights", weights, "--data", f"folder:{photos}")
    assert chosen("distill", *words)[1].fit_head
    assert not chosen("distill", *words, "--data.labels", "false")[1].fit_head


def test_a_run_goes_on_with_what_it_began_with(photos, tmp_path, capsys):
    """Also one that began before anything was chosen: 30 epochs then; its run.yaml says so."""
    words = (
        "train",
        "--model",
        "resnet8",
        "--data",
        f"folder:{photos}",
        "--data.size",
        16,
        "--out",
        tmp_path / "run",
    )
    assert call(*words, "--epochs", 2) == 0
    saved = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert (saved["train"]["epochs"], saved["train"]["batch_size"]) == (2, 6)
    capsys.readouterr()
    assert call(*words, "--resume") == 0
    assert "chosen for" not in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["train"]["epochs"] == 2


def test_the_digits_say_nothing(tmp_path, capsys):
    assert call("train", "--model", "resnet8", *SMALL, "--out", tmp_path / "run") == 0
    assert "chosen" not in capsys.readouterr().out
