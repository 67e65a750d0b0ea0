"""A run goes on, and a store answers, only for the teacher they began with: weights, mean, std, size and code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from running import alone, call, distilled, everything, make_teacher, summary
from unixkd.config import AnswersConfig, ModelConfig, RunConfig
from unixkd.errors import CHECKSUMS, UserError, checksum
from unixkd.models.user_code import code_fingerprint
from unixkd.training.run import run

NET = """
from torch import nn
from layers import activation

class Net(nn.Module):
    def __init__(self, num_classes=10, in_channels=1):
        super().__init__()
        self.head = nn.Linear(64 * in_channels, num_classes)

    def forward(self, images):
        return activation(self.head(images.flatten(1)))
"""
LAYERS = "def activation(x): return x\n"


def change_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name, value in weights.items() if value.is_floating_point())
    save_file(weights | {name: weights[name] * 1.01}, folder / "model.safetensors")
    (folder / CHECKSUMS).unlink()  # the change is meant


def change_card(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        card = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(card | values))
        (folder / CHECKSUMS).unlink()

    return change


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A teacher, and a run of it that is finished."""
    base = tmp_path_factory.mktemp("house")
    make_teacher(base / "teacher")
    run(distilled(base / "teacher", epochs=1), base / "run")
    return base


def forget(folder: Path) -> None:
    """Leave the newest checkpoint as an earlier version wrote it: it says nothing of networks."""
    path = sorted((folder / "checkpoints").glob("epoch-*"))[-1]
    state = json.loads((path / "state.json").read_text())
    del state["networks"]
    (path / "state.json").write_text(json.dumps(state))
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"state.json": checksum(path / "state.json")}))


CHANGES = [
    (change_weights, "the teacher's weights have changed"),
    (change_card(mean=[0.4]), "the teacher's mean has changed"),
    (change_card(std=[0.4]), "the teacher's std has changed"),
    (change_card(size=16), "the teacher's size has changed"),
    (change_card(mean=[0.4], std=[0.4]), "the teacher's mean and the teacher's std have changed"),
]


@pytest.fixture
def moved(house, tmp_path, monkeypatch) -> Path:
    """A copy of it, whose teacher is called by a relative name, as when the run was begun."""
    shutil.copytree(house, tmp_path / "house")
    text = (tmp_path / "house" / "run" / "run.yaml").read_text()
    (tmp_path / "house" / "run" / "run.yaml").write_text(text.replace(str(house / "teacher"), "teacher"))
    monkeypatch.chdir(tmp_path / "house")
    return tmp_path / "house"


@pytest.mark.parametrize(("change", "told"), CHANGES, ids=[told for _, told in CHANGES])
def test_a_run_does_not_go_on_with_another_teacher(change, told, moved):
    config = distilled(Path("teacher"), epochs=1)
    before = everything(moved / "run")
    change(moved / "teacher")
    with pytest.raises(UserError, match=told):
        run(config, moved / "run", mode="resume")
    assert everything(moved / "run") == before
    if "size" not in told:  # which the ledger would notice
        forget(moved / "run")
        run(config, moved / "run", mode="resume")


def test_the_same_teacher_under_another_date_is_the_same(moved):
    for file in (moved / "teacher").iterdir():
        file.touch()
    before = everything(moved / "run")
    run(distilled(Path("teacher"), epochs=1), moved / "run", mode="resume")
    assert everything(moved / "run") == before


def own(folder: Path, **changes: object) -> RunConfig:
    """A teacher of one's own, in a file that imports one beside it."""
    (folder / "net.py").write_text(NET)
    (folder / "layers.py").write_text(LAYERS)
    code = f"{folder / 'net.py'}:Net"
    if not (folder / "taught").exists():
        run(replace(alone(epochs=1), student=ModelConfig(code)), folder / "taught")
    config = distilled(folder / "taught", "kd", epochs=1)
    return replace(config, teacher=ModelConfig(str(folder / "taught"), code=code), **changes)


@pytest.mark.parametrize("file", ["net.py", "layers.py"])
def test_a_store_answers_only_for_the_code_it_was_filled_by(file, tmp_path):
    config = own(tmp_path, answers=AnswersConfig(str(tmp_path / "answers")))
    run(config, tmp_path / "run")
    run(config, tmp_path / "again")
    assert summary(tmp_path / "again")["accuracy"] == summary(tmp_path / "run")["accuracy"]
    unstored = replace(config, answers=AnswersConfig())
    run(unstored, tmp_path / "plain")
    text = (tmp_path / file).read_text()
    (tmp_path / file).write_text(text.replace("return ", "return 0.5 * "))
    with pytest.raises(UserError, match=r"holds other stored answers. What differs: teacher code\."):
        run(config, tmp_path / "other")
    with pytest.raises(UserError, match="the teacher's code has changed"):
        run(unstored, tmp_path / "plain", mode="resume")


def test_a_store_that_does_not_say_its_code_is_taken_as_it_is(tmp_path):
    config = own(tmp_path, answers=AnswersConfig(str(tmp_path / "answers")))
    run(config, tmp_path / "run")
    index = tmp_path / "answers" / "answers.json"
    content = json.loads(index.read_text())
    del content["key"]["teacher code"]
    index.write_text(json.dumps(content))
    said: list[str] = []
    run(config, tmp_path / "again", display=lambda event: said.append(str(event)))
    assert any("does not say by which code it was filled" in line for line in said)


def test_a_run_does_not_go_on_with_other_code_of_the_student(tmp_path):
    config = replace(own(tmp_path), student=ModelConfig(f"{tmp_path / 'net.py'}:Net"))
    run(config, tmp_path / "run")
    (tmp_path / "layers.py").write_text(LAYERS.replace("x\n", "2 * x\n"))
    with pytest.raises(UserError, match="the teacher's code and the student's code have changed"):
        run(config, tmp_path / "run", mode="resume")


@pytest.mark.parametrize("what", ["teacher", "data"])
def test_a_comparison_does_not_mix_runs_of_two_teachers(what, house, tmp_path, capsys):
    shutil.copytree(house / "teacher", tmp_path / "teacher")
    words = ["compare", "--teacher", tmp_path / "teacher", "--student", "resnet8", "--methods", "kd"]
    words += [
        "--data.limit",
        100,
        "--train.batch_size",
        32,
        "--epochs",
        1,
        "--jobs",
        1,
        "--out",
        tmp_path / "out",
    ]
    assert call(*words, "--seeds", 0) == 0
    if what == "teacher":
        change_weights(tmp_path / "teacher")
    else:
        state = next((tmp_path / "out").glob("runs/*/checkpoints/epoch-00001/state.json"))
        state.write_text(json.dumps(json.loads(state.read_text()) | {"data": "another"}))
        manifest = state.parent / "manifest.json"
        sums = json.loads(manifest.read_text()) | {"state.json": checksum(state)}
        manifest.write_text(json.dumps(sums))
    capsys.readouterr()
    assert call(*words, "--seeds", "0,1") == 1
    error = capsys.readouterr().err
    assert ("the teacher's weights" if what == "teacher" else "the training data has changed") in error
    assert "kd-seed0" in error
    assert not (tmp_path / "out" / "runs" / "kd-seed1").exists()


# The code's fingerprint


TREE = {
    "net.py": "import layers\nfrom nets import tower\nfrom nets.deep.base import Base\ndef f():\n    import late\n",
    "layers.py": "import further\n",
    "further.py": "import layers  # in a circle\n",
    "late.py": "",
    "nets/__init__.py": "",
    "nets/tower.py": "from . import wall\nfrom .deep import base\nfrom .deep.stone import Stone\n",
    "nets/wall.py": "",
    "nets/deep/base.py": "from ..wall import x\nfrom ...below import y\n",
    "nets/deep/stone.py": "",
}


def write(folder: Path, tree: dict[str, str]) -> str:
    for name, text in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return f"{folder / 'net.py'}:Net"


@pytest.mark.parametrize("file", TREE)
def test_every_file_that_is_imported_counts(file, tmp_path):
    name = write(tmp_path, TREE)
    before = code_fingerprint(name)
    (tmp_path / file).write_text(TREE[file] + "# changed\n")
    assert code_fingerprint(name) != before
    (tmp_path / file).write_text(TREE[file])
    assert code_fingerprint(name) == before


def test_other_files_and_the_place_do_not_count(tmp_path):
    name = write(tmp_path / "a", TREE)
    before = code_fingerprint(name)
    write(tmp_path / "a", {"notes.py": "import net", "nets/unused.py": "", "data.txt": "1"})
    assert code_fingerprint(name) == before
    assert code_fingerprint(write(tmp_path / "b", TREE)) == before
    (tmp_path / "b" / "net.py").rename(tmp_path / "b" / "mine.py")
    assert code_fingerprint(f"{tmp_path / 'b' / 'mine.py'}:Net") == before
    assert code_fingerprint(f"{tmp_path / 'b' / 'mine.py'}:Other") != before


def test_versions_of_installed_packages_count_but_for_torch(tmp_path, monkeypatch):
    import importlib.metadata

    name = write(tmp_path, {"net.py": "import json, torch, numpy as np, absent\n"})
    before, original = code_fingerprint(name), importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda d: "9" if d == "torch" else original(d))
    assert code_fingerprint(name) == before
    monkeypatch.setattr(importlib.metadata, "version", lambda d: "9" if d == "numpy" else original(d))
    assert code_fingerprint(name) != before


def test_a_file_that_is_imported_in_vain_is_no_error(tmp_path):
    tree = {"net.py": "try:\n    import broken\nexcept SyntaxError:\n    pass\n", "broken.py": "def\n"}
    assert len(code_fingerprint(write(tmp_path, tree))) == 64
