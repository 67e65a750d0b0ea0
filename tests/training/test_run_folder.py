"""The files of a run: opening, refusing, whole writes, plain values and back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from unixkd.config import (
    LossConfig,
    MethodConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    flatten,
    read_yaml,
    to_plain,
)
from unixkd.errors import UserError, checksum
from unixkd.models.folder import EXPORTED
from unixkd.training import run_folder
from unixkd.training.run_folder import RunFolder

CONFIG = RunConfig(ModelConfig("resnet8"), ModelConfig("teacher"), MethodConfig("unix", keep=0.5))


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    """A folder that holds a run with everything."""
    folder = RunFolder(tmp_path / "deep" / "run")
    assert not folder.open(CONFIG, "new")
    for name in ("metrics.jsonl", "summary.json", "selection.json", "model.safetensors", "config.json"):
        (folder.path / name).write_text(f"{name}\n")
    (folder.checkpoints / "epoch-00001").mkdir(parents=True)
    (folder.path / "notes.txt").write_text("the user's own")
    return folder


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir() if path.name != ".lock")


@pytest.mark.parametrize("mode", ["new", "resume", "overwrite"])
def test_a_folder_without_a_run_is_made_in_every_mode(mode, tmp_path):
    folder = RunFolder(tmp_path / "a" / "b")
    assert not folder.open(CONFIG, mode)
    assert names(folder) == ["run.yaml"]
    assert not folder.is_finished()


def test_new_refuses_a_run_and_touches_nothing(folder):
    before = names(folder)
    with pytest.raises(UserError, match="already holds a run"):
        folder.open(CONFIG, "new")
    assert names(folder) == before


def test_overwrite_removes_the_run_and_leaves_what_is_not_its_own(folder):
    other = replace(CONFIG, label="other")
    assert not folder.open(other, "overwrite")
    assert names(folder) == ["notes.txt", "run.yaml"]
    folder.check_same(other)


def test_resume_says_whether_there_is_a_checkpoint(folder):
    assert folder.open(CONFIG, "resume")
    (folder.checkpoints / "epoch-00001").rmdir()
    assert not folder.open(CONFIG, "resume")


def test_an_option_younger_than_the_run_is_taken_to_be_as_usual(folder):
    path = folder.path / "run.yaml"
    text = path.read_text()
    assert "  bn_images: 2048\n" in text
    path.write_text(text.replace("  bn_images: 2048\n", ""))
    folder.check_same(CONFIG)
    with pytest.raises(UserError, match=r"train\.bn_images: 2048 then, 64 now"):
        folder.check_same(replace(CONFIG, train=replace(CONFIG.train, bn_images=64)))


def test_check_same_lists_every_difference_and_nothing_else(folder):
    other = replace(CONFIG, method=MethodConfig("kd"), train=TrainConfig(lr=0.1, milestones=[0.5]))
    with pytest.raises(UserError) as caught:
        folder.check_same(other)
    listed = str(caught.value).partition("differs: ")[2].split("; ")
    assert listed == [
        "method.keep: 0.5 then, None now",
        "method.name: unix then, kd now",
        "train.lr: 0.05 then, 0.1 now",
        "train.milestones: [0.625, 0.75, 0.875] then, [0.5] now",
    ]


def test_tuples_and_lists_are_the_same_values(tmp_path):
    folder = RunFolder(tmp_path / "run")
    config = replace(CONFIG, student=ModelConfig("resnet8", mean=(0.5,), std=(0.25,)))  # type: ignore[arg-type]
    folder.open(config, "new")
    folder.check_same(config)
    folder.check_same(replace(CONFIG, student=ModelConfig("resnet8", mean=[0.5], std=[0.25])))


@pytest.mark.parametrize("lr", [1e-5, 1e-30, 0.1 + 0.2, 5e-4, 1.0])
def test_numbers_survive_the_file(lr, tmp_path):
    folder = RunFolder(tmp_path / "run")
    config = replace(CONFIG, train=TrainConfig(lr=lr))
    folder.open(config, "new")
    folder.check_same(config)


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "\0", "!!python/object/apply:os.system [x]"])
def test_a_damaged_run_yaml_is_a_clear_error(text, folder):
    (folder.path / "run.yaml").write_text(text)
    with pytest.raises(UserError, match=r"run\.yaml (cannot be read|holds no configuration)"):
        folder.open(CONFIG, "resume")


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to the output folder"):
        RunFolder(tmp_path / "file").open(CONFIG, "new")
    with pytest.raises(UserError, match="cannot write to the output folder"):
        RunFolder(tmp_path / "file" / "below").open(CONFIG, "new")


def test_metrics_are_kept_up_to_an_epoch(tmp_path):
    folder = RunFolder(tmp_path)
    for epoch in (1, 2, 3):
        folder.append_metrics({"epoch": epoch})
    with folder.metrics.open("a") as file:
        file.write('{"epoch": 4, "lo')  # killed while writing
    assert folder.keep_metrics(2) == [{"epoch": 1}, {"epoch": 2}]
    assert folder.metrics.read_text() == '{"epoch": 1}\n{"epoch": 2}\n'
    with pytest.raises(UserError, match="has 2 lines, but the checkpoint has 3 epochs"):
        folder.keep_metrics(3)
    assert folder.keep_metrics(0) == []
    assert RunFolder(tmp_path / "nowhere").metrics.exists() is False


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.write_json("summary.json", {"a": 1})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": 1}
    with pytest.raises(TypeError):
        folder.write_json("summary.json", {"a": object()})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": 1}
    assert names(folder) == ["summary.json"]


def test_plain_values_hold_the_whole_configuration_of_a_distillation():
    plain = to_plain(CONFIG)
    assert set(plain) == set(vars(CONFIG))
    assert plain["method"] == vars(CONFIG.method)
    assert RunConfig(
        ModelConfig(**plain["student"]),
        ModelConfig(**plain["teacher"]),
        MethodConfig(**plain["method"]),
        LossConfig(**plain["loss"]),
    ) == replace(CONFIG)


def test_plain_values_of_a_run_on_labels_are_the_options_of_train():
    plain = to_plain(RunConfig(ModelConfig("vgg8"), None, MethodConfig("student-alone"), label="teacher"))
    assert list(plain) == ["model", "data", "train", "label"]
    assert (plain["model"]["name"], plain["label"]) == ("vgg8", "teacher")


def test_flatten_keeps_lists_and_empty_values():
    assert flatten({"a": {"b": {"c": 1}, "d": []}, "e": None}) == {"a.b.c": 1, "a.d": [], "e": None}


def test_reading_what_was_written(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open(CONFIG, "new")
    assert read_yaml(tmp_path / "run" / "run.yaml") == yaml.safe_load(yaml.safe_dump(to_plain(CONFIG)))


def test_every_file_a_run_writes_is_removed_by_overwrite():
    assert set(run_folder.FILES) == {
        *("run.yaml", "plan.json", "metrics.jsonl", "summary.json", "selection.json", "left_out.json"),
        *("disagreements.json", "model.safetensors", "config.json", "checksums.json"),
        *(f"export/{name}" for name in EXPORTED),
    }


def lines(folder: RunFolder, *epochs: int) -> list[dict[str, int]]:
    records = [{"epoch": epoch} for epoch in epochs]
    for record in records:
        folder.append_metrics(record)
    return records


def test_lines_after_the_checkpoint_are_dropped_torn_or_not(folder):
    folder.metrics.unlink()
    records = lines(folder, 1, 2, 3)
    with folder.metrics.open("ab") as file:
        file.write(b'{"epoch": \xfa')
    assert folder.keep_metrics(2) == records[:2]
    assert folder.metrics.read_text() == '{"epoch": 1}\n{"epoch": 2}\n'


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"epoch": 1}\n{"epoch": 3}\n', "line 2 is not that of epoch 2"),
        (b'{"epoch": 1}\n[2]\n', "line 2 is not that of epoch 2"),
        (b'{"epoch": 1}\n', "has 1 lines, but the checkpoint has 2"),
        (b'{"epoch": 1}\n{"epoch": 2}', "has 1 lines, but the checkpoint has 2"),
        (b'{"epoch": 1}\n{"epoch": \xfa}\n', "is damaged"),
    ],
)
def test_damaged_lines_of_epochs_that_are_saved_are_an_error(content, told, folder):
    folder.metrics.write_bytes(content)
    with pytest.raises(UserError, match=told):
        folder.keep_metrics(2)
    assert folder.metrics.read_bytes() == content


def test_lines_that_are_not_the_checkpoint_s_are_an_error(folder):
    folder.metrics.unlink()
    lines(folder, 1, 2)
    known = checksum(folder.metrics)
    lines(folder, 3)
    folder.keep_metrics(2, known)
    content = folder.metrics.read_bytes().replace(b'"epoch": 1', b'"epoch": 1.0')
    folder.metrics.write_bytes(content)
    with pytest.raises(UserError, match="was edited: the checkpoint's epochs had other lines"):
        folder.keep_metrics(2, known)
    assert folder.metrics.read_bytes() == content


def test_an_option_that_no_version_has_is_told(folder):
    path = folder.path / "run.yaml"
    path.write_text(path.read_text().replace("  clip_norm: null", "  clip_norn: null"))
    with pytest.raises(UserError, match=r"train\.clip_norn: None then, no option now"):
        folder.check_same(CONFIG)


MINE = (".notes.tmp", ".run.yaml.mine.tmp", "checkpoints/epoch-notes.txt", "checkpoints/epoch-00001-best/a")
MINE += (
    ".run.yaml.deadbeef.tmp",
    "checkpoints/asked-since-monday.bin",
    "logs/notes",
    "export/README.md",
)


def test_overwrite_and_resume_remove_nothing_that_a_run_did_not_write(folder):
    for name in MINE:
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_text("mine")
    ours = (
        "checkpoints/epoch-00001/state.json",
        "checkpoints/asked-since-epoch-00001.1.bin",
        "logs/wandb-id",
    )
    killed = f".{'0f' * 16}.tmp"
    ours += (f".summary.json{killed}", f"checkpoints/.epoch-00002{killed}")
    for name in ours:
        (folder.path / name).write_text("ours")
    folder.open(CONFIG, "resume")
    folder.close()
    assert [name for name in ours if (folder.path / name).exists()] == list(ours[:3])
    folder.open(CONFIG, "overwrite")
    assert [name for name in ours if (folder.path / name).exists()] == []
    assert {(folder.path / name).read_text() for name in MINE} == {"mine"}
    assert {"run.yaml", "metrics.jsonl", "checkpoints/epoch-00001", "logs/wandb-id"} <= set(folder.removed)
    assert not {name for name in folder.removed if "notes" in name}


@pytest.mark.parametrize("mode", ["new", "resume", "overwrite"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "metrics.jsonl", "checksums.json"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_file_of_the_users_own_is_not_replaced(kind, name, mode, tmp_path):
    mine = tmp_path / name if kind == "file" else tmp_path / name / "mine"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match=f"holds {name}, which no run wrote"):
        RunFolder(tmp_path).open(CONFIG, mode)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", ["plan.json/mine", "left_out.json/mine", "checkpoints/epoch-00001/mine"])
def test_overwrite_refuses_what_it_would_take_along(name, folder):
    """Before anything is removed: the folder of a file's name, files of one's own in a checkpoint."""
    (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
    (folder.path / name).write_text("mine")
    (folder.path / "checkpoints/epoch-00001").mkdir(parents=True, exist_ok=True)
    (folder.path / "checkpoints/epoch-00001/state.json").write_text("ours")
    before = sorted(folder.path.rglob("*"))
    with pytest.raises(UserError, match="is in the way, which no run wrote"):
        RunFolder(folder.path).open(CONFIG, "overwrite")
    assert sorted(folder.path.rglob("*")) == before


@pytest.mark.parametrize("text", ["a: 1\n", "train: {epochs: 3}\n"])
def test_overwrite_refuses_a_run_yaml_that_is_no_runs(text, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError, match=r"run\.yaml is not that of a run"):
        RunFolder(tmp_path).open(CONFIG, "overwrite")
    assert (tmp_path / "run.yaml").read_text() == text


@pytest.mark.parametrize("name", ["checkpoints", "logs", "logs/wandb", "export", ".lock"])
def test_a_folder_that_is_a_link_is_refused(name, tmp_path):
    (tmp_path / "outside").mkdir()
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match=f"{name}' is a link"):
        RunFolder(tmp_path / "run").open(CONFIG, "new")
    assert list((tmp_path / "outside").iterdir()) == []


def test_no_file_of_a_run_is_written_through_a_link(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text('{"epoch": 1}\n')
    for name in ("plan.json", "summary.json", "run.yaml", "metrics.jsonl"):
        (folder.path / name).unlink(missing_ok=True)
        (folder.path / name).symlink_to(outside)
    with pytest.raises(UserError, match="cannot write to the run folder"):
        folder.append_metrics({"epoch": 2})
    folder.keep_metrics(0)
    folder.append_metrics({"epoch": 1, "a": 1})
    folder.write_json("plan.json", {"a": 1})
    folder.write_json("summary.json", {"a": 1})
    assert outside.read_text() == '{"epoch": 1}\n'
    assert folder.metrics.read_text() == '{"epoch": 1, "a": 1}\n'
