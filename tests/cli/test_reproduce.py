"""The commands that a report prints, read by the command line again: the same configurations come out."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import Namespace
from PIL import Image

from run_folders import write_run
from running import SMALL, call, make_teacher
from unixkd import create_model
from unixkd.cli import main
from unixkd.cli.reproduce import commands_of, compare_words, config_of
from unixkd.cli.schedule import suited
from unixkd.config import (
    AnswersConfig,
    DataConfig,
    LossConfig,
    MethodConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    flatten,
    to_plain,
)
from unixkd.names import parse_variant, run_words
from unixkd.report.runs import find_runs
from unixkd.training.compare import matched_jobs, plan_jobs

TEACHER = ModelConfig("runs/my teacher", mean=[0.5], std=[0.25])
BASE = RunConfig(ModelConfig("resnet8"), TEACHER, data=DataConfig("digits", views=4, labels=False))
DISTILLED = [
    RunConfig(ModelConfig("resnet8"), ModelConfig("wrn_16_2")),
    replace(BASE, method=MethodConfig("unix", keep=0.5, scorer="margin", per_sample_lambda=True)),
    replace(BASE, loss=LossConfig(kd=0.9, at=1000.0, student_layers=["a.0", "b"], teacher_layers=["c", "d"])),
    replace(BASE, answers=AnswersConfig("where/answers", "fp32"), label="kd@unix:keep=0.5", reference_epochs=9),
    replace(
        BASE,
        data=DataConfig("folder:~/it's here", size=16, flip=False, holdout=0.1, limit=100),
        train=TrainConfig(240, 128, "adamw", 1e-5, milestones=[0.5, 1 / 3], fused=False, clip_norm=1.0, seed=7),
    ),
]  # fmt: skip


def again(words: list[str]) -> RunConfig:
    """What the command line makes of a command, as `distill` and `train` do."""
    program, command, *rest = words
    assert program == "unixkd"
    options = main.parse(command, rest)
    if command == "train":
        method = MethodConfig("student-alone")
        return RunConfig(
            options.model, None, method, data=options.data, train=options.train, label=options.label
        )
    keys = ("student", "teacher", "method", "loss", "data", "answers", "train", "label", "reference_epochs")
    return RunConfig(**{key: options[key] for key in keys})


def words_of(config: RunConfig) -> list[str]:
    return run_words(flatten(to_plain(config)))


def saved(config: RunConfig) -> dict[str, object]:
    """As run.yaml has it."""
    return yaml.safe_load(yaml.safe_dump(to_plain(config)))


@pytest.mark.parametrize("config", DISTILLED, ids=range(len(DISTILLED)))
def test_a_printed_distill_has_the_same_configuration(config):
    assert config_of(saved(config)) == config
    words = shlex.split(shlex.join(words_of(config)))
    assert again(words) == config


@pytest.mark.parametrize("trained", [False, True])
def test_a_printed_command_leaves_nothing_to_choose(trained, tmp_path):
    """The defaults, given for one's own images and weights, are not what is chosen for them."""
    for number in range(4):
        (tmp_path / str(number % 2)).mkdir(exist_ok=True)
        Image.new("RGB", (90, 80)).save(tmp_path / str(number % 2) / f"{number}.png")
    torch.save(create_model("resnet8", 2).state_dict(), tmp_path / "two.pth")
    student = ModelConfig("resnet8", weights=str(tmp_path / "two.pth") if trained else None)
    config = replace(
        BASE, student=student, data=DataConfig(f"folder:{tmp_path}"), train=TrainConfig(epochs=3)
    )
    values = flatten(to_plain(config))
    older = {key: values[key] for key in values if key not in ("train.fit_head", "data.crop_area")}
    for known in (values, older):
        options = main.parse("distill", run_words(known)[2:])
        assert suited(options, options.student) == (config.data, config.train)


def test_only_what_is_not_the_default_is_said():
    words = " ".join(words_of(DISTILLED[0]))
    assert words == (
        "unixkd distill --student resnet8 --teacher wrn_16_2 --method unix --data digits "
        "--train.epochs 30 --train.seed 0"
    )


def test_a_printed_train_has_the_same_configuration():
    alone = MethodConfig("student-alone")
    config = RunConfig(
        ModelConfig("wrn_16_2"), None, alone, train=TrainConfig(lr=0.1, precision="fp32"), label="x"
    )
    assert config_of(saved(config)) == config
    assert again(words_of(config)) == config


@given(
    train=st.builds(
        TrainConfig,
        epochs=st.integers(1, 300),
        lr=st.floats(1e-9, 10),
        weight_decay=st.floats(0, 1),
        milestones=st.lists(st.floats(0, 1), max_size=3),
        seed=st.integers(0, 2**31),
        clip_norm=st.none() | st.floats(1e-3, 1e3),
        schedule=st.sampled_from(["multistep", "cosine"]),
        graph=st.booleans(),
    ),
    keep=st.none() | st.floats(0.01, 1),
)
@settings(max_examples=20)
def test_numbers_survive_the_command_line(train, keep):
    config = replace(DISTILLED[0], train=train, method=MethodConfig("hard", keep=keep))
    assert again(words_of(config)) == config


# Comparisons


def configs(match: bool = True) -> list[RunConfig]:
    """Of `compare`: two seeds of three methods, and the controls at their cost."""
    base = replace(BASE, train=TrainConfig(epochs=10, precision="fp32", teacher_precision="bf16"))
    methods = [parse_variant(word) for word in ("kd", "unix", "unix:keep=0.5:steepness=1000")]
    jobs = plan_jobs(base, methods, [3, 1], Path("out"))
    if match:
        jobs += matched_jobs(base, {"unix": 8, "unix:keep=0.5:steepness=1000": 6}, [3, 1], Path("out"))
    return [job.config for job in jobs]


def folders(configurations: list[RunConfig], base: Path) -> Path:
    for number, config in enumerate(configurations):
        label = config.label or config.method.name
        folder = write_run(base / f"{number:02}", label, config.train.seed)
        (folder / "run.yaml").write_text(yaml.safe_dump(saved(config)))
    return base


def jobs_of(options: Namespace) -> list[RunConfig]:
    """The runs that a parsed `compare` would make, as the command does."""
    keys = ("student", "teacher", "loss", "data", "answers", "train")
    base = RunConfig(**{key: options[key] for key in keys})
    methods = [parse_variant(word) for word in options.methods]
    return [job.config for job in plan_jobs(base, methods, options.seeds, Path("out"))]


@pytest.mark.parametrize("match", [False, True])
def test_a_comparison_is_one_command(match, tmp_path):
    words = compare_words(find_runs([folders(configs(match), tmp_path)]))
    options = main.parse(words[1], words[2:])
    assert words[:2] == ["unixkd", "compare"]
    assert jobs_of(options) == configs(match=False)
    assert options.match_cost is match


@pytest.mark.parametrize(
    "change",
    [
        lambda config: replace(config, train=replace(config.train, lr=0.1)),
        lambda config: replace(config, label="mine"),
        lambda config: replace(config, reference_epochs=None),
        lambda config: replace(config, train=replace(config.train, seed=5)),
        lambda config: replace(config, method=replace(config.method, keep=0.9)),
    ],
)
@pytest.mark.parametrize("which", [0, 2, -1])
def test_runs_that_no_comparison_makes_are_none(change, which, tmp_path):
    own = configs()
    own[which] = change(own[which])
    assert compare_words(find_runs([folders(own, tmp_path)])) == []


def test_every_run_of_a_report_is_in_some_command(tmp_path):
    """Seeds share a line; a run with another learning rate has its own."""
    own = configs()
    own.append(replace(own[0], train=replace(own[0].train, lr=0.1, seed=9)))
    commands = commands_of(find_runs([folders(own, tmp_path)]))
    assert [command.what for command in commands] == [
        "kd, seeds 1, 3 (this one is seed 1)",
        "kd, seed 9",
        "unix, seeds 1, 3 (this one is seed 1)",
        "kd@unix, seeds 1, 3 (this one is seed 1)",
        "unix:keep=0.5:steepness=1000, seeds 1, 3 (this one is seed 1)",
        "kd@unix:keep=0.5:steepness=1000, seeds 1, 3 (this one is seed 1)",
    ]
    parsed = [again(shlex.split(command.text)) for command in commands]
    reached = [replace(p, train=replace(p.train, seed=seed)) for p in parsed for seed in (1, 3, 9)]
    assert all(config in reached for config in own)


def test_what_this_version_does_not_know_is_taken_from_its_file(tmp_path):
    folder = folders([DISTILLED[0]], tmp_path) / "00"
    values = yaml.safe_load((folder / "run.yaml").read_text())
    (folder / "run.yaml").write_text(
        yaml.safe_dump(values | {"method": {"name": "unix", "from_the_future": 1}})
    )
    (command,) = commands_of(find_runs([tmp_path]))
    assert command.text == f"unixkd distill --config {folder}/run.yaml --out again/unix-seed0"


@pytest.mark.slow
def test_a_printed_command_makes_the_same_run_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_teacher(Path("teacher"))
    words = ("--teacher", "teacher", "--student", "resnet8", *SMALL)
    assert (
        call("compare", *words, "--methods", "kd,unix", "--seeds", "0", "--match-cost", "--out", "runs") == 0
    )
    first, *others = (command.text for command in commands_of(find_runs([Path("runs")])))
    for command in (first, *others):
        assert call(*shlex.split(command)[1:]) == 0
    for name in ("kd", "unix"):
        made = [
            json.loads((Path(folder) / f"{name}-seed0/summary.json").read_text())
            for folder in ("runs/runs", "again/runs", "again")
        ]
        assert made[0]["accuracy"] == made[1]["accuracy"] == made[2]["accuracy"]
        assert made[0]["cost"] == made[1]["cost"] == made[2]["cost"]


def test_commands_of_old_runs_leave_out_options_that_are_gone():
    """Those runs have every option of their day in run.yaml, at its default."""
    runs = find_runs([Path(__file__).parents[1] / "oracles" / "first_house" / "compare"])
    assert all("selection" in run.config["train"] for run in runs)
    commands = [shlex.split(command.text) for command in commands_of(runs)]
    assert len(commands) >= 3
    for _, command, *words in commands:
        assert main.parse(command, words).data.limit == 400
