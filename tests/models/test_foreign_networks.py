"""Networks from elsewhere: checkpoint folders of other projects, a class of one's own, pairs that differ."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import unixkd
from running import SMALL, call, everything, summary
from unixkd.cli.main import parse
from unixkd.cli.options import check_names
from unixkd.config import ModelConfig
from unixkd.errors import UsageError, UserError
from unixkd.method.flops import forward_flops
from unixkd.models import (
    ModelCard,
    PixelModel,
    build_model,
    create_model,
    load_model,
    load_student,
    save_model,
)
from unixkd.models.loading import own_num_classes

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)
NET = """
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

import beside

torch.rand(7)  # changes no run


@dataclass
class Settings:
    width: int = beside.WIDTH


class Net(nn.Module):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, Settings().width, 3, padding=1)
        self.norm = nn.BatchNorm2d(Settings().width)
        self.fc = nn.Linear(Settings().width, num_classes)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


def colours_only(num_classes):
    return Net(num_classes, 3)


def wants_width(num_classes, in_channels, width):
    return Net(num_classes, in_channels)


def no_module(num_classes):
    return num_classes


def fails(num_classes):
    raise RuntimeError("no such thing")


def wrong_width(num_classes, in_channels):
    return Net(num_classes + 1, in_channels)


not_callable = 3
"""


FAILS = NET.splitlines().index('    raise RuntimeError("no such thing")') + 1


def build(
    name: object, role: str = "teacher", classes: int = 10, channels: int = 3, **options: object
) -> PixelModel:
    return build_model(
        ModelConfig(str(name), **options),
        num_classes=classes,
        in_channels=channels,
        mean=MEAN[:channels],
        std=STD[:channels],
        role=role,
    )


def same(a: nn.Module, b: nn.Module) -> bool:
    state = b.state_dict()
    return all(torch.equal(value, state[name]) for name, value in a.state_dict().items())


# Checkpoints of RepDistiller and mdistiller


def checkpoint(path: Path, name: str, **more: object) -> nn.Module:
    """A checkpoint as these projects write it."""
    net = create_model(name, 10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    net(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 240, "model": net.state_dict(), "optimizer": optimizer.state_dict(), **more}, path)
    return net


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("resnet8x4_vanilla", "resnet8x4"),
        ("wrn_16_1_cifar100_lr_0.05_decay_0.0005_trial_0", "wrn_16_1"),
        ("S:resnet14_T:resnet32x4_cifar100_kd_r:0.1_a:0.9_b:0.0_1", "resnet14"),
        ("mobile_half_vanilla", "MobileNetV2"),
        ("ShuffleV1", "ShuffleV1"),
        ("teacher_vgg8", "vgg8"),
    ],
)
def test_a_checkpoint_folder_is_named_after_its_network(tmp_path, folder, name):
    net = checkpoint(tmp_path / folder / "ckpt_epoch_240.pth", name)
    for path in (tmp_path / folder, tmp_path / folder / "ckpt_epoch_240.pth"):
        model = build(path)
        assert (model.card.name, model.card.mean, model.weights_file) == (name, MEAN, "ckpt_epoch_240.pth")
        assert same(net, model.net)


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (
            ["ckpt_epoch_40.pth", "ckpt_epoch_240.pth", "ckpt_epoch_80.pth", "resnet8_best.pth"],
            "ckpt_epoch_240.pth",
        ),
        (["ckpt_epoch_240.pth", "resnet8_last.pth", "resnet8_best.pth"], "resnet8_last.pth"),
        (["student_40", "student_240", "student_best", "latest", "best", "epoch_240"], "student_240"),
        (["student_40", "student_latest", "student_best"], "student_latest"),
        (["resnet8_best.pth", "worklog.txt"], "resnet8_best.pth"),
    ],
)
def test_the_last_epoch_is_preferred_to_the_best(tmp_path, caplog, files, taken):
    nets = {file: checkpoint(tmp_path / "resnet8_vanilla" / file, "resnet8") for file in files}
    with caplog.at_level(logging.INFO, "unixkd"):
        model = build(tmp_path / "resnet8_vanilla")
    assert same(nets[taken], model.net)
    assert model.weights_file == taken
    best = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(best) == (taken == "resnet8_best.pth")
    assert f"{taken}'" in caplog.text


@pytest.mark.parametrize(
    "extra",
    [
        {"best_acc": np.float64(74.6), "accuracy": np.float32(1), "epoch": np.int64(240)},
        {"best_acc": torch.tensor([74.6]), "opt": argparse.Namespace(lr=0.05, lr_decay_epochs=[150, 180])},
        {"optimizer": OrderedDict(state=1), "best_acc": -1},
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_what_these_projects_write_beside_the_weights_is_read(tmp_path, extra, legacy):
    file, net = tmp_path / "resnet8_vanilla" / "resnet8_last.pth", create_model("resnet8", 10)
    file.parent.mkdir()
    content = {"model": net.state_dict(), **extra}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    assert same(net, build(file).net)


def test_a_number_written_under_numpy_1_is_read(tmp_path):
    file, net = tmp_path / "resnet8_vanilla" / "student_best", create_model("resnet8", 10)
    file.parent.mkdir()
    torch.save(
        {"model": net.state_dict(), "best_acc": np.float64(3)}, file, _use_new_zipfile_serialization=False
    )
    content = file.read_bytes()
    assert content.count(b"numpy._core.multiarray") == 1
    file.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert same(net, build(file).net)


@pytest.mark.parametrize("what", [np.array([Path("x")], object), np.datetime64("2020-01-01"), print])
def test_more_than_that_is_refused(tmp_path, what):
    checkpoint(tmp_path / "resnet8_vanilla" / "resnet8_last.pth", "resnet8", extra=what)
    with pytest.raises(UserError, match="holds more than weights"):
        build(tmp_path / "resnet8_vanilla")


def test_a_hostile_checkpoint_is_not_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    checkpoint(tmp_path / "resnet8_vanilla" / "ckpt_epoch_1.pth", "resnet8", best_acc=Hostile())
    with pytest.raises(UserError, match="refused"):
        build(tmp_path / "resnet8_vanilla")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("folder", ["mine", "resnet8x2_vanilla", "resnet88", "vanilla,res8x4"])
def test_an_unknown_architecture_says_how_to_name_it(tmp_path, folder):
    checkpoint(tmp_path / folder / "ckpt_epoch_1.pth", "resnet8")
    with pytest.raises(UserError, match=r"give --teacher ARCHITECTURE --teacher.weights .*ckpt_epoch_1.pth"):
        build(tmp_path / folder)


@pytest.mark.parametrize("file", ["best.pth", "resnet8_best.pth", "last.pth"])
def test_a_folder_of_the_reference_code_and_a_file_in_it(tmp_path, file):
    net = checkpoint(tmp_path / "teacher_resnet8" / "ckpt" / file, "resnet8")
    for path in (tmp_path / "teacher_resnet8", tmp_path / "teacher_resnet8" / "ckpt" / file):
        model = build(path)
        assert same(net, model.net)
        assert (model.card.name, model.weights_file) == ("resnet8", file)


def test_a_bare_file_gets_its_network_from_the_option_or_from_itself(tmp_path):
    net = checkpoint(tmp_path / "mine" / "net.pth", "resnet8")
    assert same(net, build(f"resnet8:{tmp_path}/mine/net.pth").net)
    assert own_num_classes(ModelConfig(f"resnet8:{tmp_path}/mine/net.pth"), 3) == 10
    with pytest.raises(UserError, match=r"which network is it\?"):
        build(tmp_path / "mine" / "net.pth")
    with pytest.raises(UserError, match=r"there is no weights file '.*gone.pth'"):
        build(tmp_path / "gone.pth")
    with pytest.raises(UserError, match=r"no weights file at 'gone.pth'"):
        build("resnet8:gone.pth")
    with pytest.raises(UsageError, match="unknown model 'resnet9'"):
        build(f"resnet9:{tmp_path}/mine/net.pth")
    net = checkpoint(tmp_path / "mine" / "named.pth", "resnet8", arch="resnet8")
    assert same(net, build(tmp_path / "mine" / "named.pth").net)
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    with pytest.raises(UserError):  # a file of options could name code so
        build(f"{tmp_path}/mine.py:Net:{tmp_path}/mine/net.pth")
    assert not (tmp_path / "executed").exists()


def test_what_is_ambiguous_or_contradictory_is_refused(tmp_path):
    for name in ("resnet8", "resnet14"):
        checkpoint(tmp_path / "mine" / f"{name}_last.pth", name)
    with pytest.raises(
        UserError, match=r"several networks \(resnet14_last.pth, resnet8_last.pth\): name one"
    ):
        build(tmp_path / "mine")
    assert build(tmp_path / "mine" / "resnet14_last.pth").card.name == "resnet14"
    checkpoint(tmp_path / "vgg8_vanilla" / "resnet8_best.pth", "resnet8")
    with pytest.raises(UserError, match="names resnet8 and vgg8"):
        build(tmp_path / "vgg8_vanilla")
    with pytest.raises(UserError, match=r"has its own weights: drop --teacher\.weights"):
        build(tmp_path / "mine" / "resnet14_last.pth", weights="w.pth")
    with pytest.raises(UserError, match="nor a checkpoint as RepDistiller and mdistiller name them"):
        build(tmp_path)


def test_a_checkpoint_s_classes_are_known_for_data_without_any(tmp_path):
    checkpoint(tmp_path / "resnet8_vanilla" / "student_best", "resnet8")
    assert own_num_classes(ModelConfig(str(tmp_path / "resnet8_vanilla")), 3) == 10
    with pytest.raises(UserError, match="10 classes, 7 are needed"):
        build(tmp_path / "resnet8_vanilla", classes=7)


def test_the_command_line_names_the_file_of_its_teacher(tmp_path, capsys):
    file = tmp_path / "resnet8_vanilla" / "ckpt_epoch_240.pth"
    file.parent.mkdir()
    torch.save({"model": create_model("resnet8", 10, 1).state_dict()}, file)
    pair = ("--teacher", file.parent, "--student", "resnet8")
    assert call("distill", *pair, *SMALL, "--out", tmp_path / "run") == 0
    assert "teacher resnet8 (ckpt_epoch_240.pth): accuracy" in capsys.readouterr().out


# A class of one's own


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with mine.py, and that folder as the current one."""
    (tmp_path / "mine.py").write_text(NET)
    (tmp_path / "beside.py").write_text("WIDTH = 5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    return tmp_path


def test_a_class_is_called_with_classes_and_channels(mine):
    net = create_model("mine.py:Net", 7, 1)
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 7)
    assert net.conv.out_channels == 5
    assert create_model(f"{mine}/mine.py:colours_only", 4)(torch.rand(2, 3, 8, 8)).shape == (2, 4)
    assert str(mine) not in sys.path


def test_initial_weights_do_not_depend_on_whether_the_file_was_run_before(mine):
    torch.manual_seed(3)
    first = create_model("mine.py:Net", 7, 1)
    torch.manual_seed(3)
    assert same(first, create_model("mine.py:Net", 7, 1))


def test_a_changed_file_is_run_anew(mine):
    create_model("mine.py:Net", 7)
    (mine / "mine.py").write_text(NET.replace("width: int = beside.WIDTH", "width: int = 6"))
    assert create_model("mine.py:Net", 7).conv.out_channels == 6


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("gone.py:Net", UsageError, "no file 'gone.py'"),
        ("mine.py:Nett", UsageError, "unknown network 'mine.py:Nett'; did you mean 'mine.py:Net'"),
        ("mine.py:not_callable", UsageError, "unknown network"),
        (
            "mine.py:wants_width",
            UserError,
            r"signature \(num_classes, in_channels, width\), but is called as",
        ),
        ("mine.py:no_module", UserError, r"gives a int, not a torch\.nn\.Module"),
        ("mine.py:fails", UserError, rf"^mine\.py:{FAILS}: RuntimeError: no such thing \(mine\.py:fails\)$"),
    ],
)
def test_what_is_wrong_with_a_class_is_said(mine, name, error, message):
    with pytest.raises(error, match=message):
        create_model(name, 7)


def test_a_file_that_cannot_be_run_says_where(mine):
    (mine / "mine.py").write_text("x = 1\ny = z\n")
    with pytest.raises(UserError, match=r"mine\.py:2: NameError: name 'z' is not defined"):
        create_model("mine.py:Net", 7)
    (mine / "mine.py").write_text("x = 1\ndef f(:\n")
    with pytest.raises(UserError, match=r"mine\.py:2: invalid syntax"):
        create_model("mine.py:Net", 7)


def test_logits_of_another_width_are_named(mine):
    with pytest.raises(UserError, match=r"mine.py:wrong_width gives \(2, 11\), not logits \(2, 10\)"):
        build("mine.py:wrong_width", "student")(torch.rand(2, 3, 8, 8))


def test_a_run_folder_never_runs_code_by_itself(mine):
    model = build("mine.py:Net", "student").eval()
    save_model(model, "run")
    (mine / "mine.py").write_text(NET + "\nopen('executed', 'w').close()\n")
    ask = r"'run' is a network of your own, mine\.py:Net, .*give --code mine\.py:Net .*--teacher\.code"
    for load in (
        load_model,
        load_student,
        lambda folder: build(folder),
        lambda folder: build(folder, "student"),
    ):
        with pytest.raises(UserError, match=ask):
            load("run")
    assert not Path("executed").exists()
    pixels = torch.rand(2, 3, 8, 8)
    for loaded in (load_student("run", code="mine.py:Net"), build("run", code="mine.py:Net")):
        torch.testing.assert_close(loaded.eval()(pixels), model(pixels))
    assert Path("executed").exists()
    Path("other.py").write_text(NET.replace("beside.WIDTH", "3"))
    with pytest.raises(UserError, match="another architecture"):
        load_student("run", code="other.py:Net")


def test_code_is_only_for_what_needs_it(mine):
    save_model(build("resnet8", "student"), "run")
    with pytest.raises(UserError, match=r"'run' is a resnet8, no network of your own: leave out mine.py:Net"):
        load_student("run", code="mine.py:Net")
    with pytest.raises(UserError, match=r"--student.code is for a run folder; 'resnet8' is none"):
        build("resnet8", "student", code="mine.py:Net")


def test_a_teacher_of_one_s_own_needs_weights(mine):
    net = create_model("mine.py:Net", 10)
    torch.save(net.state_dict(), "w.pth")
    assert same(net, build("mine.py:Net", weights="w.pth").net)
    assert own_num_classes(ModelConfig("mine.py:Net", weights="w.pth"), 3) == 10
    with pytest.raises(UserError, match=r"teacher 'mine.py:Net' would have random weights"):
        build("mine.py:Net")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "--model", "gone.py:Net"), "no file 'gone.py'"),
        (("train", "--model", "gone.py"), "name the class in it too, as in gone.py:Net"),
        (
            ("distill", "--teacher", "run", "--teacher.code", "gone.py:Net", "--student", "resnet8"),
            "no file 'gone.py'",
        ),
        (
            ("distill", "--teacher", "run", "--teacher.code", "Net", "--student", "resnet8"),
            "give FILE.py:NAME",
        ),
        (("evaluate", "run", "--code", "gone.py:Net"), "no file 'gone.py'"),
        (("predict", "run", "x.png", "--code", "gone.py:Net"), "no file 'gone.py'"),
    ],
)
def test_a_missing_file_is_found_at_once(mine, capsys, words, message):
    (mine / "run").mkdir()
    assert call(*words) == 2
    assert message in capsys.readouterr().err


def test_a_file_of_options_names_no_code_alone(mine, capsys):
    Path("o.yaml").write_text("model:\n  name: mine.py:Net\n")
    assert call("train", "--config", "o.yaml") == 2
    assert (
        "--config file names Python to run, mine.py:Net: name it on the command line too"
        in capsys.readouterr().err
    )
    for words in (("--model", "mine.py:Net"), ("--model.name=mine.py:Net",)):
        check_names(parse("train", ["--config", "o.yaml", *words]))


def test_the_command_line_takes_one_s_own_class_everywhere(mine, capsys):
    small = (*SMALL, "--data.size", "8")
    assert call("train", "--model", "mine.py:Net", *small, "--out", "teacher") == 0
    assert call("evaluate", "teacher") == 1
    assert "give --code mine.py:Net" in capsys.readouterr().err
    assert call("evaluate", "teacher", "--code", "mine.py:Net", "--rounds", 0) == 0
    assert f"accuracy {100 * summary(Path('teacher'))['accuracy']['last']:.2f} %" in capsys.readouterr().out
    pair = ("--teacher", "teacher", "--teacher.code", "mine.py:Net", "--student", "mine.py:Net")
    assert call("distill", *pair, *small, "--out", "student") == 0
    assert call("distill", *pair, *small, "--out", "student", "--resume") == 0
    assert json.loads(Path("student/config.json").read_text())["name"] == "mine.py:Net"
    assert call("distill", "--config", "student/run.yaml", *pair[2:], "--out", "again") == 0
    assert everything(Path("again")) == everything(Path("student"))
    assert call("plan", *pair, "--rounds", "0", "--train.epochs", "1") == 0


@pytest.mark.slow
def test_workers_of_a_comparison_take_one_s_own_class(mine):
    assert call("train", "--model", "mine.py:Net", *SMALL, "--out", "teacher") == 0
    pair = ("--teacher", "teacher", "--teacher.code", "mine.py:Net", "--student", "mine.py:Net")
    words = (*pair, *SMALL, "--methods", "kd,hard", "--seeds", "0", "--out", "out")
    assert call("compare", *words, "--jobs", "2") == 0
    assert len(list(Path("out/runs").glob("*/summary.json"))) == 2


# Teacher and student that want other images


def test_each_of_a_pair_gets_its_own_normalisation_and_size(tmp_path):
    timm = pytest.importorskip("timm")
    net = timm.create_model("test_vit", num_classes=10)
    torch.save(net.state_dict(), tmp_path / "vit.pth")
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    teacher = build("timm:test_vit", weights=str(tmp_path / "vit.pth"), mean=mean, std=std).eval()
    student = build("resnet8", "student")
    assert (teacher.card.size, student.card.size) == (160, None)
    seen = {}
    for name, network in (("teacher", teacher), ("student", student)):
        network.net.register_forward_pre_hook(lambda _m, inputs, name=name: seen.__setitem__(name, inputs[0]))
    distiller = unixkd.Distiller(student, teacher, unixkd.unix(keep=0.5), batch_size=8, seed=0)
    pixels = torch.rand(8, 3, 32, 32)
    result = distiller.step(pixels, torch.arange(8))
    assert result.loss.isfinite()
    assert seen["teacher"].shape == (4, 3, 160, 160)
    assert seen["student"].shape == (4, 3, 32, 32)
    # The student's images undone are the mixed pixels; the teacher's are these, resized and normalised its own way.
    mixed = seen["student"] * student.std + student.mean
    resized = nn.functional.interpolate(mixed, size=(160, 160), mode="bilinear", antialias=True)
    shaped = [torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std)]
    torch.testing.assert_close(seen["teacher"], (resized - shaped[0]) / shaped[1], rtol=1e-4, atol=1e-4)
    flops = forward_flops(teacher, (3, 32, 32))
    assert flops == forward_flops(net, (3, 160, 160))


def test_a_card_without_the_younger_fields_loads(tmp_path):
    save_model(PixelModel(create_model("resnet8", 10), ModelCard("resnet8", 10, 3, MEAN, STD)), tmp_path)
    card = json.loads((tmp_path / "config.json").read_text())
    assert "transformers" not in card
    assert load_model(tmp_path).card.transformers is None
