"""Weights files, run folders and cards: what loads, and what every mistake says."""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import re
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unixkd.config import ModelConfig
from unixkd.errors import UsageError, UserError
from unixkd.models import (
    ModelCard,
    PixelModel,
    build_model,
    create_model,
    load_model,
    load_student,
    load_weights,
    save_model,
)
from unixkd.models.repdistiller import split

DATA = {"num_classes": 10, "in_channels": 3, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1)}
NAMES = tuple("abcdefghij")


def card(**changes: object) -> ModelCard:
    return ModelCard(**{"name": "resnet8", **DATA, "class_names": NAMES, **changes})


def scrambled(name: str = "resnet8", num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """A network whose every float tensor differs from a fresh one's."""
    net = create_model(name, num_classes, in_channels)
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5)
    return net


def same(a: nn.Module, b: nn.Module) -> bool:
    b_state = b.state_dict()
    return all(torch.equal(value, b_state[name]) for name, value in a.state_dict().items())


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    save_model(PixelModel(scrambled(), card()), folder)
    return folder


# Weights files


@pytest.mark.parametrize("key", ["model", "state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_weights_are_found_under_keys_and_prefixes(key, prefix, tmp_path):
    source, net = scrambled(), create_model("resnet8", 10)
    state = {prefix + name: value for name, value in source.state_dict().items()}
    file = tmp_path / "weights.pth"
    torch.save(state if key is None else {"epoch": 240, key: state}, file)
    load_weights(net, file)
    assert same(source, net)


def test_a_safetensors_file_loads(tmp_path):
    source, net = scrambled(), create_model("resnet8", 10)
    save_file({f"module.{k}": v for k, v in source.state_dict().items()}, tmp_path / "w.safetensors")
    load_weights(net, tmp_path / "w.safetensors")
    assert same(source, net)


def test_a_file_with_plain_options_beside_the_weights_loads(tmp_path):
    source, net = scrambled(), create_model("resnet8", 10)
    torch.save({"opt": argparse.Namespace(lr=0.05), "model": source.state_dict()}, tmp_path / "w.pth")
    load_weights(net, tmp_path / "w.pth")
    assert same(source, net)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"no weights file at '.*none.pth'"):
        load_weights(create_model("resnet8"), tmp_path / "none.pth")


def test_a_pickle_is_refused_and_not_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"model": Hostile()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"'.*w.pth' is damaged or holds more than weights.*refused"):
        load_weights(create_model("resnet8"), tmp_path / "w.pth")
    assert not (tmp_path / "executed").exists()


def test_a_pickled_network_is_refused(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w.pth.*save its state_dict\(\) alone"):
        load_weights(create_model("resnet8"), tmp_path / "w.pth")


def under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("key", ["net", "model_state_dict", "ema", "anything"])
@pytest.mark.parametrize(
    "prefix",
    ["model.", "student.", "net.", "module._orig_mod.", "_orig_mod.module.", "ema_model.", "my.own."],
)
def test_any_key_and_any_uniform_prefix(key, prefix, tmp_path, caplog):
    source, net = scrambled(), create_model("resnet8", 10)
    torch.save(
        {"epoch": 1, "loss": torch.ones(1), key: under(prefix, source.state_dict())}, tmp_path / "w.pth"
    )
    load_weights(net, tmp_path / "w.pth")
    assert same(source, net)
    assert not caplog.text


def test_a_network_whose_own_names_begin_alike_loads_as_it_is(tmp_path):
    source, net = (nn.Sequential(OrderedDict(module=scrambled())) for _ in range(2))
    for state in (source.state_dict(), under("module.", source.state_dict())):
        torch.save(state, tmp_path / "w.pth")
        load_weights(net, tmp_path / "w.pth")
        assert same(source, net)


@pytest.mark.parametrize(
    ("kept", "average"),
    [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("net", "ema"), ("anything", "swa")],
)
def test_the_network_in_training_is_taken_and_not_its_average_and_that_is_said(
    kept, average, tmp_path, caplog
):
    source, other, net = scrambled(), scrambled(), create_model("resnet8", 10)
    torch.save({average: other.state_dict(), kept: under("module.", source.state_dict())}, tmp_path / "w.pth")
    load_weights(net, tmp_path / "w.pth")
    assert same(source, net)
    assert f"the weights named {kept}.module.* are taken, not {average}" in caplog.text


@pytest.mark.parametrize(
    "counters",
    [
        {"n_averaged": torch.tensor(5)},
        {"module.total_ops": torch.zeros(1), "module.layer1.0.total_params": torch.zeros(1)},
    ],
)
def test_counters_of_averages_and_profilers_are_passed_over_and_said(counters, tmp_path, caplog):
    source, net = scrambled(), create_model("resnet8", 10)
    torch.save(under("module.", source.state_dict()) | counters, tmp_path / "w.pth")
    load_weights(net, tmp_path / "w.pth")
    assert same(source, net)
    assert all(f"'{name}'" in caplog.text for name in counters)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("average", ["ema.", "swa.module."])
@pytest.mark.parametrize("strict_head", [True, False])
def test_an_average_among_the_network_s_own_names_is_passed_over_and_said(
    prefix, average, strict_head, tmp_path, caplog
):
    source, other = (scrambled(num_classes=10 if strict_head else 100) for _ in range(2))
    net = create_model("resnet8", 10)
    file = tmp_path / "w.pth"
    torch.save(
        under(
            prefix,
            {**source.state_dict(), **under(average, other.state_dict()), "ema.n_averaged": torch.tensor(1)},
        ),
        file,
    )
    load_weights(net, file, strict_head=strict_head)
    assert torch.equal(net.conv1.weight, source.conv1.weight)
    assert same(source, net) == strict_head
    named = f"named {prefix}\\*" if prefix else "without a prefix"
    assert re.search(rf"the weights {named} are taken, not {prefix}{average[:3]}", caplog.text)


def test_another_network_that_is_not_the_same_is_no_average(tmp_path):
    torch.save(
        scrambled().state_dict() | under("aux.", scrambled("resnet14").state_dict()), tmp_path / "w.pth"
    )
    with pytest.raises(UserError, match=r"another architecture: 'aux\..*' is not in this network"):
        load_weights(create_model("resnet8", 10), tmp_path / "w.pth")


def test_a_compiled_part_loads_under_its_own_names(tmp_path, caplog):
    source, net = scrambled(), create_model("resnet8", 10)
    state = {f"module.{k.replace('layer1.', 'layer1._orig_mod.')}": v for k, v in source.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    load_weights(net, tmp_path / "w.pth")
    assert same(source, net)
    assert not caplog.text
    torch.save(under("_orig_mod.", scrambled().state_dict()) | source.state_dict(), tmp_path / "w.pth")
    load_weights(create_model("resnet8", 10), tmp_path / "w.pth")
    assert same(source, net)
    assert "not _orig_mod" in caplog.text


@pytest.mark.filterwarnings("ignore")  # torch's own, of quantised and sparse tensors
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("fc.weight", lambda v: v + 1j, "is torch.complex64 there and torch.float32 here"),
        ("bn1.num_batches_tracked", lambda v: v + 1j, "is torch.complex64 there and torch.int64 here"),
        ("fc.weight", lambda v: v.int(), "is torch.int32 there and torch.float32 here"),
        ("fc.bias", lambda v: v > 1, "is torch.bool there and torch.float32 here"),
        ("fc.bias", lambda v: v / 0, "is not finite in torch.float32"),
        ("fc.bias", lambda v: v.double() * 1e300, "is not finite in torch.float32"),
        ("bn1.running_mean", lambda v: v * float("nan"), "is not finite"),
        ("bn1.running_var", lambda v: -v, "is negative in places"),
        ("fc.weight", lambda v: v.to("meta"), r"is without values \(meta\)"),
        ("fc.weight", lambda v: v.to_sparse(), r"is sparse \(torch.sparse_coo\)"),
        ("fc.weight", lambda v: v.to_sparse_csr(), r"is sparse \(torch.sparse_csr\)"),
        (
            "fc.weight",
            lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8),
            r"is quantised \(torch.qint8\)",
        ),
    ],
)
def test_tensors_that_cannot_be_a_network_s_are_refused_by_name(name, change, message, tmp_path):
    net, state = scrambled(), scrambled().state_dict()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    torch.save({**state, name: change(state[name])}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"^'.*w.pth': its tensor '{name}' {message}[^\n]*$"):
        load_weights(net, tmp_path / "w.pth")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_mask_that_is_infinite_by_design_loads(tmp_path):
    source, net = nn.Linear(2, 2), nn.Linear(2, 2)
    for each in (source, net):
        each.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    load_weights(net, tmp_path / "w.pth")
    assert same(source, net)


@pytest.mark.parametrize("together", [False, True])
def test_teacher_and_student_in_one_file(together, tmp_path, caplog):
    def save(teacher: nn.Module, student: nn.Module) -> None:
        states = {"teacher": teacher.state_dict(), "student": student.state_dict()}
        joined = {f"{part}.{name}": v for part, state in states.items() for name, v in state.items()}
        torch.save({"state_dict": joined} if together else states, tmp_path / "w.pth")

    source, net = scrambled(), create_model("resnet8", 10)
    save(scrambled("resnet14"), source)  # the network tells which
    load_weights(net, tmp_path / "w.pth")
    assert same(source, net)
    save(scrambled(), source)
    with pytest.raises(
        UserError, match=r"several networks that fit, '.*student', '.*teacher'|'teacher', 'st"
    ):
        load_weights(net, tmp_path / "w.pth")


@pytest.mark.parametrize(
    "extra",
    [
        {"acc": np.array([1.0, 2.0]), "names": np.array(["a", "b"]), "mask": np.array([True])},
        {"history": defaultdict(list, {"loss": [1.0]}), "counts": Counter("aab")},
        {"path": Path("a"), "args": argparse.Namespace(out=Path("b"), betas=(0.9, 0.99))},
        {"time": datetime.datetime(2026, 1, 2), "took": datetime.timedelta(seconds=3)},
    ],
)
def test_harmless_things_beside_the_weights(extra, tmp_path):
    source, net = scrambled(), create_model("resnet8", 10)
    torch.save({"model": source.state_dict(), **extra}, tmp_path / "w.pth")
    load_weights(net, tmp_path / "w.pth")
    assert same(source, net)


@pytest.mark.parametrize("kind", ["half", "numpy", "big-endian", "parameter"])
def test_weights_of_other_types(kind, tmp_path):
    source, net = scrambled().half().float(), create_model("resnet8", 10)
    change = {
        "half": lambda v: v.half() if v.is_floating_point() else v,
        "numpy": lambda v: v.numpy(),
        "big-endian": lambda v: v.numpy().astype(v.numpy().dtype.newbyteorder(">")),
        "parameter": lambda v: nn.Parameter(v, requires_grad=v.is_floating_point()),
    }[kind]
    torch.save({name: change(value) for name, value in source.state_dict().items()}, tmp_path / "w.pth")
    load_weights(net, tmp_path / "w.pth")
    assert same(source, net)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"epoch": 3, "opt": {"lr": 0.1}}, r"holds no weights: .*found 'epoch', 'opt'"),
        (
            {"epoch": 3, "model": create_model("vgg8").state_dict()},
            r"has no 'conv1.weight'.*has 'epoch', 'model'",
        ),
        (
            under("a.", create_model("resnet14").state_dict()),
            r"'layer1.1.conv1.weight' is not in .*, a\.\* is 'conv",
        ),
    ],
)
def test_what_is_refused_lists_what_was_found(content, found, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=found):
        load_weights(create_model("resnet8"), tmp_path / "w.pth")


def test_a_file_that_holds_itself_ends(tmp_path):
    content = {}
    content |= dict.fromkeys(map(str, range(200)), content)
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds no weights"):
        load_weights(create_model("resnet8"), tmp_path / "w.pth")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"model": {"a": 1}}, torch.ones(3)])
def test_a_file_without_weights(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth' holds no weights"):
        load_weights(create_model("resnet8"), tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file(name, share, tmp_path):
    file, state = tmp_path / name, scrambled().state_dict()
    save_file(state, file) if name.endswith("safetensors") else torch.save(state, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=rf"'.*{name}' is damaged"):
        load_weights(create_model("resnet8", 10), file)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_file_of_noise(name, tmp_path):
    (tmp_path / name).write_bytes(bytes(range(256)) * 40)
    with pytest.raises(UserError, match=rf"'.*{name}' is damaged"):
        load_weights(create_model("resnet8", 10), tmp_path / name)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("resnet8x4", r"'conv1.weight' is \(32, 3, 3, 3\) there and \(16, 3, 3, 3\) here"),
        ("resnet14", r"'layer1.1.conv1.weight' is not in this network"),
        ("vgg8", r"it has no 'conv1.weight' \(16, 3, 3, 3\)"),
    ],
)
@pytest.mark.parametrize("strict_head", [True, False])
def test_weights_of_another_architecture_name_the_first_mismatch(other, message, strict_head, tmp_path):
    torch.save(create_model(other, 10).state_dict(), tmp_path / "w.pth")
    net = create_model("resnet8", 10)
    before = create_model("resnet8", 10)
    before.load_state_dict(net.state_dict())
    with pytest.raises(UserError, match=f"w.pth' holds weights of another architecture: {message}"):
        load_weights(net, tmp_path / "w.pth", strict_head=strict_head)
    assert same(before, net)


def test_a_head_of_another_class_count(tmp_path, caplog):
    source, net = scrambled(num_classes=100), create_model("resnet8", 10)
    head = net.fc.weight.clone()
    torch.save({"model": source.state_dict()}, tmp_path / "w.pth")
    with pytest.raises(
        UserError, match=r"w.pth' holds weights for 100 classes, 10 are needed \('fc.weight' is"
    ):
        load_weights(net, tmp_path / "w.pth")
    with caplog.at_level(logging.WARNING, "unixkd"):
        load_weights(net, tmp_path / "w.pth", strict_head=False)
    assert "classifier (fc.weight, fc.bias) starts afresh with 10" in caplog.text
    assert torch.equal(net.fc.weight, head)
    assert torch.equal(net.layer3[0].conv2.weight, source.layer3[0].conv2.weight)


# Cards and pixels


def test_pixels_are_resized_and_normalised():
    seen = []
    net = nn.Flatten()
    net.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    pixels = torch.full((2, 3, 4, 4), 0.7)
    PixelModel(net, card(size=8, num_classes=3 * 8 * 8, class_names=None))(pixels)
    assert seen[0].shape == (2, 3, 8, 8)
    for channel, value in enumerate(((0.7 - 0.5) / 0.2, (0.7 - 0.4) / 0.2, (0.7 - 0.3) / 0.1)):
        torch.testing.assert_close(seen[0][:, channel], torch.full((2, 8, 8), value))


def test_the_normalisation_is_not_saved_as_weights():
    model = PixelModel(create_model("resnet8", 10), card())
    assert set(model.state_dict()) == {f"net.{name}" for name in model.net.state_dict()}


@pytest.mark.parametrize(("own", "given"), [(3, 1), (1, 3)])
def test_images_with_other_channels(own, given):
    normal = {"mean": (0.5,) * own, "std": (0.5,) * own}
    model = PixelModel(create_model("resnet8", 10, own), card(in_channels=own, **normal))
    with pytest.raises(UserError, match=f"resnet8 takes {own}-channel images, got {given}"):
        model(torch.rand(2, given, 8, 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.5,)}, "takes 3 channels, but mean has 1 values"),
        ({"std": (0.5, 0.5, 0.0)}, "std must be finite"),
        ({"mean": (0.5, float("nan"), 0.5)}, "mean must be finite"),
        ({"num_classes": 0}, "at least 1"),
        ({"size": 0}, "at least 1"),
        ({"class_names": ("a", "b")}, "10 classes but 2 class names"),
    ],
)
def test_a_contradictory_card(changes, message):
    with pytest.raises(UserError, match=f"resnet8.*{message}"):
        card(**changes)


# Run folders


def test_a_saved_model_comes_back_as_it_was(tmp_path):
    net = scrambled(in_channels=1).to(memory_format=torch.channels_last)
    model = PixelModel(net, card(in_channels=1, mean=(0.25,), std=(0.125,), size=16)).eval()
    save_model(model, tmp_path / "new" / "run")
    loaded = load_model(tmp_path / "new" / "run")
    assert loaded.card == model.card
    assert not loaded.training
    pixels = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels), model(pixels), rtol=1e-5, atol=1e-5)
    assert same(load_student(tmp_path / "new" / "run"), loaded)
    assert {path.name for path in (tmp_path / "new" / "run").iterdir()} == {
        *("model.safetensors", "config.json", "checksums.json")
    }


def test_a_failed_save_leaves_the_old_model(run, monkeypatch):
    old = load_model(run)

    def full(_state, path):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("unixkd.models.folder.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        save_model(PixelModel(scrambled(), card()), run)
    assert same(load_model(run), old)
    assert len(list(run.iterdir())) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "no model card of schema 1"),
        ({"name": "resnet9"}, "unknown model 'resnet9'"),
        ({"name": "../../elsewhere"}, "unknown model"),
        ({"name": 3}, r"Expected `str`.*name"),
        ({"num_classes": 10**12}, r"Expected `int` <= 100000.*num_classes"),
        ({"num_classes": 0}, "class count, channels and size must be at least 1"),
        ({"num_classes": True}, r"Expected `int`, got `bool`.*num_classes"),
        ({"in_channels": "3"}, r"Expected `int`.*in_channels"),
        ({"mean": None}, r"Expected `array`.*mean"),
        ({"std": [0.2, 0.2, 10**400]}, r"out of range.*std"),
        ({"std": [0.2, 0.2, float("nan")]}, r"Expected `float`.*std"),
        ({"std": [0.2, 0.2]}, "takes 3 channels, but std has 2"),
        ({"size": 10**6}, r"Expected `int` <= 4096.*size"),
        ({"class_names": ["a"] * 9}, "10 classes but 9 class names"),
        ({"class_names": "abcdefghij"}, r"Expected `array \| null`.*class_names"),
    ],
)
def test_a_hostile_card_names_the_file_and_what_is_wrong(run, changes, message):
    file = run / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=rf"config.json'.*{message}"):
        load_model(run)


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, "3"])
def test_a_damaged_card(run, content):
    (run / "config.json").write_text(content)
    with pytest.raises(
        UserError, match=r"config.json' (cannot be read|holds no JSON object|is no model card)"
    ):
        load_model(run)


def test_a_folder_without_a_model(tmp_path, run):
    with pytest.raises(UserError, match=r"is no run folder: it has no config\.json"):
        load_student(tmp_path)
    (run / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights file at .*model.safetensors"):
        load_student(run)


# build_model


def build(
    name: str, role: str = "model", names: tuple[str, ...] | None = NAMES, **options: object
) -> PixelModel:
    data = {key: options.pop(key, value) for key, value in DATA.items()}
    return build_model(ModelConfig(name=str(name), **options), **data, class_names=names, role=role)


def test_a_family_name_takes_the_data_s_normalisation():
    model = build("vgg8", "student")
    assert model.card == card(name="vgg8")
    assert model.training


def test_normalisation_comes_from_the_options_then_the_run_folder_then_the_data(run):
    other = {"mean": (0.1,) * 3, "std": (0.9,) * 3}
    assert build(run, "teacher", **other).card.mean == DATA["mean"]
    model = build_model(
        ModelConfig(name=str(run), mean=[0.6, 0.6, 0.6]),
        num_classes=10,
        in_channels=3,
        **other,
        role="teacher",
    )
    assert model.card.mean == (0.6, 0.6, 0.6)
    assert model.card.std == DATA["std"]
    assert model.card.class_names == NAMES
    with pytest.raises(UserError, match="takes 3 channels, but mean has 1"):
        build_model(ModelConfig(name="vgg8", mean=[0.5]), num_classes=10, in_channels=3, **other)


def test_a_teacher_from_a_run_folder_or_a_file_has_its_weights(run, tmp_path):
    source = load_model(run)
    assert same(build(run, "teacher"), source)
    torch.save({"model": source.net.state_dict()}, tmp_path / "t.pth")
    assert same(build("resnet8", "teacher", weights=str(tmp_path / "t.pth")), source)


@pytest.mark.parametrize("file", ["w.pth", "W.PTH", "wfile", "a:b/w.pth", "~/w.pth", "W.SafeTensors"])
def test_an_architecture_with_a_file(file, run, tmp_path, monkeypatch):
    source = load_model(run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = Path(file).expanduser()
    path.parent.mkdir(exist_ok=True)
    (save_file if file.endswith("Tensors") else torch.save)(source.net.state_dict(), path)
    assert same(build(f"resnet8:{file}", "teacher"), source)
    assert same(build("resnet8", "teacher", weights=file), source)


def test_an_architecture_with_what_is_no_file(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options in ({"name": "resnet8:run"}, {"name": "resnet8", "weights": "run"}):
        with pytest.raises(UserError, match="'run' is a folder: name a weights file in it"):
            build(role="teacher", **options)
    for file in ("gone", "GONE.PTH", "a:gone.pth"):
        with pytest.raises(UserError, match=f"no weights file at '{file}'"):
            build(f"resnet8:{file}", "teacher")
    run.rename("resnet8:1")  # a folder of this very name is meant
    assert same(build("resnet8:1", "teacher"), load_model("resnet8:1"))


def test_colons_in_other_names():
    def parts(name: str) -> tuple[str, str | None]:
        config = split(ModelConfig(name))
        return config.name, config.weights

    assert parts("timm:resnet18:a:b.PT") == ("timm:resnet18", "a:b.PT")
    assert parts("resnet9:w.pth") == ("resnet9", "w.pth")
    for name in ("timm:resnet18", "mine.py:Net", "mine.py:Net:w.pth", "resnet8:", "other:net"):
        assert parts(name) == (name, None)


@pytest.mark.parametrize("role", ["teacher", "model"])
def test_another_class_count_is_an_error(run, tmp_path, role):
    with pytest.raises(UserError, match=f"{role} '.*run' has 10 classes, the data have 7"):
        build(run, role, num_classes=7, names=None)
    torch.save(create_model("resnet8", 100).state_dict(), tmp_path / "t.pth")
    with pytest.raises(UserError, match=r"t.pth' holds weights for 100 classes, 10 are needed"):
        build("resnet8", role, weights=str(tmp_path / "t.pth"))


def test_a_student_of_another_class_count_gets_a_fresh_classifier(run, tmp_path, caplog):
    source = load_model(run)
    torch.save(source.net.state_dict(), tmp_path / "s.pth")
    for name, weights in ((run, None), ("resnet8", str(tmp_path / "s.pth"))):
        model = build(name, "student", weights=weights, num_classes=7, names=tuple("abcdefg"))
        assert model.card.num_classes == 7
        assert model.card.class_names == tuple("abcdefg")
        assert model(torch.rand(2, 3, 8, 8)).shape == (2, 7)
        assert torch.equal(model.net.conv1.weight, source.net.conv1.weight)
    assert caplog.text.count("starts afresh with 7") == 2


def test_a_teacher_with_other_class_names(run):
    swapped = ("b", "a", *NAMES[2:])
    message = "classes in another order: class 0 is 'a' there, 'b' in the data; class 1 is 'b' there, 'a' in"
    with pytest.raises(UserError, match=message):
        build(run, "teacher", swapped)
    with pytest.raises(
        UserError, match=r"by other names: .*class 2 is 'c' there, 'C' in the data and 7 more"
    ):
        build(run, "teacher", tuple("ABCDEFGHIJ"))
    assert build(run, "student", swapped).card.class_names == swapped
    assert build(run, "teacher", None).card.class_names == NAMES


@pytest.mark.parametrize("name", ["resnet8", "timm:test_vit", "torchvision:squeezenet1_1"])
def test_a_teacher_with_random_weights_is_refused(name):
    with pytest.raises(
        UserError, match=f"teacher '{name}' would have random weights: give --teacher.weights"
    ):
        build(name, "teacher")


def test_contradictory_requests(run, tmp_path):
    with pytest.raises(UsageError, match=r"name the student: --student\.name"):
        build("", "student")
    with pytest.raises(UserError, match=r"has its own weights: drop --teacher\.weights"):
        build(run, "teacher", weights="w.pth")
    with pytest.raises(UserError, match=r"no published weights to download: drop --student\.pretrained"):
        build("vgg8", "student", pretrained=True)
    with pytest.raises(UserError, match=r"--teacher.weights or --teacher.pretrained, not both"):
        build("timm:test_vit", "teacher", pretrained=True, weights="w.pth")
    with pytest.raises(UserError, match=r"is no run folder: it does not hold model\.safetensors"):
        build(tmp_path, "teacher")
    with pytest.raises(UserError, match=r"there is no run folder '.*/gone'"):
        build(tmp_path / "gone", "teacher")
    with pytest.raises(UsageError, match="unknown model 'vgg9'; did you mean 'vgg19' or 'vgg8'"):
        build("vgg9", "teacher")
    with pytest.raises(UserError, match="trained on 3-channel images, the data have 1 channels"):
        build(run, "teacher", in_channels=1, mean=(0.5,), std=(0.5,))


def test_a_family_name_wins_over_a_folder_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "vgg8").mkdir()
    monkeypatch.chdir(tmp_path)
    assert build("vgg8").card.name == "vgg8"
