"""Classes whose names are numbers: in the order of numbers, or of text where a network of before knows them so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from running import call, summary
from unixkd.config import DataConfig
from unixkd.data import load_data
from unixkd.data.source import class_numbers, class_order
from unixkd.models.card import ModelCard, PixelModel
from unixkd.models.folder import save_model
from unixkd.models.registry import create_model

NUMBERS = tuple(str(i) for i in range(12))
BY_TEXT = tuple(sorted(NUMBERS))  # 0, 1, 10, 11, 2, ...


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Folders 0 to 11 with two images of the folder's number each, but five of 10, and the same to evaluate on."""
    root = tmp_path_factory.mktemp("numbered")
    for part in ("train", "val"):
        for name in NUMBERS:
            (root / part / name).mkdir(parents=True)
            for i in range(5 if name == "10" else 2):
                pixels = np.full((8, 8, 3), int(name), np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


def knowing(names, best, folder):
    """A network that says of every image that it is `best`."""
    net = create_model("resnet8", len(names), 3)
    head = [layer for layer in net.modules() if isinstance(layer, torch.nn.Linear)][-1]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([float(name == best) for name in names]))
    card = ModelCard("resnet8", len(names), 3, (0.5,) * 3, (0.25,) * 3, size=8, class_names=names)
    save_model(PixelModel(net, card), folder)
    return folder


def labels_are_numbers(split):
    return torch.equal(split.labels, split.images[:, 0, 0, 0].long())


def test_folders_are_in_the_order_of_their_numbers_and_a_line_says_so(numbered):
    data = load_data(DataConfig(f"folder:{numbered}"))
    assert data.class_names == NUMBERS
    assert labels_are_numbers(data.train)
    assert labels_are_numbers(data.test)
    (line,) = data.notes
    assert line.startswith("classes are numbers: in their order (0, 1, 2, 3,")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10", "9", "-1", "007"], ("-1", "007", "9", "10")),
        (["b", "10", "9"], ("10", "9", "b")),
        (["1.5", "10", "9"], ("1.5", "10", "9")),
        (["01", "1", "00"], ("00", "01", "1")),
    ],
)
def test_only_integers_are_ordered_as_numbers(names, expected):
    assert class_order(names) == expected
    assert class_numbers(names, None, None, "train")[0] == expected


def test_names_that_are_in_the_same_order_either_way_need_no_line(tmp_path):
    for name in ("00", "01", "10"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "0.png")
    assert load_data(DataConfig(f"folder:{tmp_path}")).notes == ()


def test_what_knows_the_classes_by_text_is_used_in_its_order(numbered, tmp_path, capsys, caplog):
    data = load_data(DataConfig(f"folder:{numbered}"), known_order=BY_TEXT)
    assert data.class_names == BY_TEXT
    for split in (data.train, data.test):
        names = [int(data.class_names[label]) for label in split.labels]
        assert names == split.images[:, 0, 0, 0].tolist()
    share = 5 / (5 + 11 * 2)
    for names in (NUMBERS, BY_TEXT):
        folder = knowing(names, "10", tmp_path / f"teacher{names[2]}")
        caplog.clear()
        assert call("evaluate", folder, "--data", f"folder:{numbered}") == 0
        assert f"accuracy {100 * share:.2f} %" in capsys.readouterr().out
        assert ("which the network knows in the order of text" in caplog.text) == (names == BY_TEXT)
    words = (
        "--student",
        "resnet8",
        "--method",
        "kd",
        "--data",
        f"folder:{numbered}",
        "--train.batch_size",
        9,
    )
    assert call("distill", "--teacher", folder, *words, "--epochs", 1, "--out", tmp_path / "run") == 0
    assert summary(tmp_path / "run")["accuracy"]["teacher"] == pytest.approx(share)
    assert (
        "classes are numbers, which the network knows in the order of text: 0, 1, 10"
        in capsys.readouterr().out
    )


def test_any_other_order_of_a_network_is_refused(numbered, tmp_path, capsys):
    folder = knowing(NUMBERS[::-1], "10", tmp_path / "teacher")
    assert call("evaluate", folder, "--data", f"folder:{numbered}") == 1
    assert "knows the classes in another order" in capsys.readouterr().err
