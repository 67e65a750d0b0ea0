"""Checkpoints: exact continuation, and whatever may happen to their files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from slow import TinyNet, images_of, labels_of
from unixkd.errors import UserError, checksum
from unixkd.training.checkpoint import (
    checkpoint_name,
    checkpoints,
    find_damage,
    load_checkpoint,
    newest_state,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)
from unixkd.training.resume import check_state, of_a_run

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1),
    "momentum": lambda parameters: torch.optim.SGD(
        parameters, 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    ),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 0.01, betas=(0.8, 0.99)),
}


def steps(student: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        loss = nn.functional.cross_entropy(student(images_of(8, seed=number)), labels_of(8, seed=number))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def save(folder: Path, epoch: int, **state: object) -> Path:
    return save_checkpoint(
        folder, checkpoint_name(epoch), {"value": torch.full((3,), float(epoch))}, {"epoch": epoch, **state}
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_continuing_is_bit_identical(name, tmp_path):
    student = TinyNet(seed=1)
    optimizer = OPTIMIZERS[name](student.parameters())
    steps(student, optimizer, range(3))
    tensors, state = pack_optimizer(optimizer)
    tensors = {f"optimizer.{key}": value for key, value in tensors.items()}
    save_checkpoint(tmp_path, checkpoint_name(1), {**student.state_dict(), **tensors}, state)
    steps(student, optimizer, range(3, 6))

    loaded, state, damaged = load_checkpoint(tmp_path)
    assert damaged == []
    again = TinyNet(seed=2)
    again.load_state_dict({key: loaded[key] for key in again.state_dict()})
    optimizer_again = OPTIMIZERS[name](again.parameters())
    unpack_optimizer(
        optimizer_again,
        {key.removeprefix("optimizer."): v for key, v in loaded.items() if key.startswith("optimizer.")},
        state,
    )
    steps(again, optimizer_again, range(3, 6))
    for key, value in student.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_continuing_without_the_optimizer_would_differ(name, tmp_path):
    student, again = TinyNet(seed=1), TinyNet(seed=2)
    optimizer = OPTIMIZERS[name](student.parameters())
    steps(student, optimizer, range(3))
    again.load_state_dict(student.state_dict())
    steps(student, optimizer, range(3, 5))
    steps(again, OPTIMIZERS[name](again.parameters()), range(3, 5))
    assert not torch.equal(again.head.weight, student.head.weight)


def test_every_type_of_tensor_survives(tmp_path):
    shared = torch.rand(4, 3)
    tensors = {
        "half": torch.rand(3).bfloat16(),
        "count": torch.tensor(7),
        "bytes": torch.get_rng_state(),
        "channels_last": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "tied": shared,
        "to": shared,  # the same memory under two names
        "part": shared[1:3, :2],
        "nan": torch.tensor([float("nan"), float("-inf")]),
    }
    state = {"lr": 0.1, "floats": [1 / 3, 1e-300], "names": ["Ö", None], "none": None}
    save_checkpoint(tmp_path, checkpoint_name(1), tensors, state)
    loaded, loaded_state, _ = load_checkpoint(tmp_path)
    assert loaded_state == state
    assert set(loaded) == set(tensors)
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value) or name == "nan"
    assert loaded["nan"][0].isnan()
    assert loaded["nan"][1] == float("-inf")


def test_two_are_kept(tmp_path):
    for epoch in range(1, 6):
        save(tmp_path, epoch)
    assert [path.name for path in checkpoints(tmp_path)] == ["epoch-00004", "epoch-00005"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-00004", "epoch-00005"]  # no leftovers
    assert load_checkpoint(tmp_path)[1]["epoch"] == 5


def test_saving_an_epoch_again_replaces_it(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2, take=1)
    save(tmp_path, 2, take=2)
    assert load_checkpoint(tmp_path)[1] == {"epoch": 2, "take": 2}
    assert len(checkpoints(tmp_path)) == 2


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {
    "bit flip": flip_bit,
    "truncation": truncate,
    "emptied": lambda p: p.write_bytes(b""),
    "lost": Path.unlink,
}


@pytest.mark.parametrize("file", ["state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_named(damage, file, tmp_path):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    DAMAGES[damage](newest / file)
    tensors, state, damaged = load_checkpoint(tmp_path)
    assert state["epoch"] == 1
    assert tensors["value"].tolist() == [1.0] * 3
    assert len(damaged) == 1
    assert str(newest) in damaged[0]


def test_the_damaged_file_is_named(tmp_path):
    path = save(tmp_path, 1)
    assert find_damage(path) is None
    flip_bit(path / "state.json")
    assert find_damage(path) == "checksum of state.json does not match"


@pytest.mark.parametrize("manifest", ["[]", "null", "{}", '{"state.json": "0"}', "3"])
def test_a_manifest_that_is_none(manifest, tmp_path):
    path = save(tmp_path, 1)
    (path / "manifest.json").write_text(manifest)
    assert find_damage(path) is not None


def test_a_half_written_checkpoint_is_not_seen(tmp_path):
    """What a kill while saving leaves: a temporary folder, whole or not."""
    whole = save(tmp_path, 1)
    shutil.copytree(whole, tmp_path / ".epoch-00002.123.tmp")
    (tmp_path / ".epoch-00003.123.tmp").mkdir()
    tensors, state, damaged = load_checkpoint(tmp_path)
    assert (state["epoch"], damaged) == (1, [])
    assert tensors["value"].tolist() == [1.0] * 3


@pytest.mark.parametrize("moment", ["save_file", "checksum", "sync"])
def test_a_failure_while_saving_leaves_the_previous_checkpoint(moment, tmp_path, monkeypatch):
    save(tmp_path, 1)

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"unixkd.training.checkpoint.{moment}", fail)
        with pytest.raises(UserError, match="no space left on device; epoch-00001 is kept"):
            save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-00001"]
    assert load_checkpoint(tmp_path)[1]["epoch"] == 1
    save(tmp_path, 2)
    assert load_checkpoint(tmp_path)[1]["epoch"] == 2


def test_all_damaged_is_an_error_that_names_each(tmp_path):
    paths = [save(tmp_path, 1), save(tmp_path, 2)]
    for path in paths:
        truncate(path / "state.safetensors")
    with pytest.raises(UserError, match="no valid checkpoint") as error:
        load_checkpoint(tmp_path)
    assert all(str(path) in str(error.value) for path in paths)


def test_none_was_saved(tmp_path):
    with pytest.raises(UserError, match="none was saved"):
        load_checkpoint(tmp_path / "missing")


def test_nothing_is_pickled(tmp_path):
    path = save(tmp_path, 1)
    assert sorted(p.name for p in path.iterdir()) == ["manifest.json", "state.json", "state.safetensors"]
    assert json.loads((path / "state.json").read_text()) == {"epoch": 1}


def test_the_users_own_beside_checkpoints_is_neither_read_nor_removed(tmp_path):
    mine = [
        tmp_path / name for name in ("epoch-notes.txt", "epoch-best/a", "epoch-00000/notes", "epoch-99999")
    ]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    saved = [save(tmp_path, epoch) for epoch in (1, 2, 3)]
    assert checkpoints(tmp_path) == saved[1:]
    assert load_checkpoint(tmp_path)[2] == []
    assert [path.read_text() for path in mine] == ["mine"] * 4
    assert (saved[-1] / "state.safetensors").stat().st_mode == (saved[-1] / "state.json").stat().st_mode


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_a_state_of_another_shape_under_right_checksums_is_passed_over(name, tmp_path):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    (newest / name).write_text("[1]")
    manifest = {file: checksum(newest / file) for file in ("state.safetensors", "state.json")}
    (newest / "manifest.json").write_text(json.dumps(manifest))
    _, state, damaged = load_checkpoint(tmp_path)
    assert (state["epoch"], len(damaged)) == (1, 1)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"steps": -1}, r"Expected `int` >= 0 - at `\$\.steps`"),
        ({"done": [[]]}, r"Expected `int`, got `array` - at `\$\.done`"),
        ({"seconds": "\x1b[31m"}, r"at `\$\.seconds`"),
        ({"seconds": {"setup": float("nan")}}, "NaN is no number that a run saves"),
        (
            {"ledger": {"images": {"scored": "7"}, "seen": 1, "teacher_evaluated": 0}},
            r"at `\$\.ledger\.images",
        ),
        ({"data": None}, r"at `\$\.data`"),
        ({"tally": {"seen": None}}, r"Expected `int`, got `null` - at `\$\.tally"),
        ({"process1.tally": {"seen": "4"}}, r"Expected `int`, got `str`"),
        ({"metrics": "\x1b[31mno number"}, r"at `\$\.metrics`"),
    ],
)
def test_a_state_with_values_that_no_run_saves_is_passed_over(values, told, tmp_path):
    whole = {
        "data": "", "seconds": {}, "optimizer": {},
        "ledger": {"images": {}, "seen": 0, "teacher_evaluated": 0, "spent": {"teacher": None}},
    }  # fmt: skip
    save(tmp_path, 1, **whole)
    save(tmp_path, 2, **whole | values)
    assert newest_state(tmp_path, check_state)["epoch"] == 1
    _, state, damaged = load_checkpoint(tmp_path, check_state)
    assert state["epoch"] == 1
    assert re.search(told, damaged[0])
    assert "epoch-00002/state.json" in damaged[0]


def test_a_state_without_what_a_run_needs_is_one_line(tmp_path):
    with (
        pytest.raises(
            UserError, match=r"epoch-1 is whole, but its state is none of this run \(KeyError: 'epoch'\)"
        ),
        of_a_run(tmp_path, tmp_path / "epoch-1"),
    ):
        {}["epoch"]
    with pytest.raises(RuntimeError, match="out of memory"), of_a_run(tmp_path, tmp_path / "epoch-1"):
        raise torch.OutOfMemoryError("out of memory")


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("sgd", "nesterov", None),
        ("sgd", "maximize", True),
        ("sgd", "momentum", 0.5),
        ("sgd", "params", [0, 2]),
        ("adamw", "betas", [0.9, None]),
        ("adamw", "eps", "small"),
    ],
)
def test_options_of_another_optimiser_are_refused(kind, name, value):
    def make() -> torch.optim.Optimizer:
        parameters = [torch.zeros(2, requires_grad=True) for _ in range(2)]
        if kind == "sgd":
            return torch.optim.SGD(parameters, 0.1, momentum=0.9, nesterov=True)
        return torch.optim.AdamW(parameters, 0.1)

    tensors, state = pack_optimizer(make())
    unpack_optimizer(make(), tensors, json.loads(json.dumps(state)))
    state["groups"][0][name] = value
    with pytest.raises(ValueError, match=f"the optimiser's {name} was "):
        unpack_optimizer(make(), tensors, json.loads(json.dumps(state)))
