"""At which scale a run decodes its images: decided once, kept in run.yaml and in the key of stored answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from running import call
from unixkd.cli.train import decoding_of
from unixkd.config import AnswersConfig, DataConfig, MethodConfig, ModelConfig, RunConfig, TrainConfig
from unixkd.errors import UserError
from unixkd.training import resume
from unixkd.training.precision import DECODING, remembered
from unixkd.training.run import run

SIZE = 8


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eight images, large for their use: 256 pixels of the shorter side are left of 520."""
    place, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(8):
        file = place / "ab"[i % 2] / f"{i}.jpg"
        file.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))
        coarse.resize((600, 520)).save(file)
    return place


def config_of(photos, path=None, **options):
    data = DataConfig(f"folder:{photos}", size=SIZE, in_memory=False, workers=2, views=2, **options)
    train = TrainConfig(epochs=2, batch_size=4, device="cpu", precision="fp32", teacher_precision="fp32")
    return RunConfig(
        ModelConfig("resnet8"),
        None,
        MethodConfig("student-alone"),
        data=data,
        train=train,
        answers=AnswersConfig(path=path),
    )


def saved(folder):
    return yaml.safe_load((folder / "run.yaml").read_text())["data"]


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def age(folder):
    """Make a run what an earlier version wrote, which had neither option."""
    values = yaml.safe_load((folder / "run.yaml").read_text())
    del values["data"]["decoding"], values["data"]["keep"]
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    for name in ("summary.json", "checksums.json"):
        (folder / name).unlink(missing_ok=True)
    for place in sorted((folder / "checkpoints").iterdir())[1:]:
        for file in place.iterdir() if place.is_dir() else [place]:
            file.unlink()


def test_the_decision_is_in_run_yaml_and_an_older_run_goes_on_as_it_did(photos, tmp_path):
    run(config_of(photos), tmp_path / "new")
    run(config_of(photos, decoding="full"), tmp_path / "old")
    assert saved(tmp_path / "new")["decoding"] == decoding_of(tmp_path / "new") == "scaled"
    assert losses(tmp_path / "new") != losses(tmp_path / "old")
    before = losses(tmp_path / "old")
    age(tmp_path / "old")
    assert decoding_of(tmp_path / "old") == "full"
    run(config_of(photos), tmp_path / "old", mode="resume")
    assert losses(tmp_path / "old") == before
    (tmp_path / "old" / "summary.json").unlink()
    with pytest.raises(UserError, match=r"data\.decoding: full then, scaled now"):
        run(config_of(photos, decoding="scaled"), tmp_path / "old", mode="resume")


def test_stored_answers_decide_for_the_runs_that_share_them(photos, tmp_path):
    store = tmp_path / "answers"
    store.mkdir()
    for key, expected in (({"data": "x"}, "full"), ({"data": "x", DECODING: "scaled"}, "scaled")):
        (store / "answers.json").write_text(json.dumps({"schema": 1, "key": key}))
        config = config_of(photos, path=str(store))
        assert remembered(config, None).data.decoding == expected
    assert remembered(config_of(photos), None).data.decoding == "scaled"
    assert remembered(config_of(photos, decoding="full"), None).data.decoding == "full"
    assert (
        remembered(RunConfig(ModelConfig("resnet8")), None).data.decoding == "auto"
    )  # digits: nothing is decoded


def test_answers_to_other_pixels_are_refused(photos, tmp_path, capsys):
    run(config_of(photos), tmp_path / "teacher")
    words = (
        *("distill", "--teacher", tmp_path / "teacher", "--student", "resnet8", "--method", "kd"),
        *("--data", f"folder:{photos}", "--data.size", SIZE, "--data.in_memory", "false", "--data.views", 2),
        *("--epochs", 1, "--train.batch_size", 4, "--answers.path", tmp_path / "answers"),
    )
    assert call(*words, "--data.decoding", "full", "--out", tmp_path / "first") == 0
    assert call(*words, "--out", tmp_path / "second") == 0
    assert saved(tmp_path / "second")["decoding"] == "full"
    capsys.readouterr()
    assert call(*words, "--data.decoding", "scaled", "--out", tmp_path / "third") == 1
    assert f"What differs: {DECODING} (nothing there, scaled here)" in capsys.readouterr().err


def test_a_run_that_keeps_its_images_is_the_same_in_the_end_and_after_a_stop(photos, tmp_path, monkeypatch):
    run(config_of(photos), tmp_path / "kept")
    run(config_of(photos, keep=0.0), tmp_path / "not")
    assert losses(tmp_path / "kept") == losses(tmp_path / "not")
    plain, calls = resume.save, []

    def save(state):
        plain(state)
        calls.append(state)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(resume, "save", save)
    with pytest.raises(KeyboardInterrupt):
        run(config_of(photos), tmp_path / "cut")
    monkeypatch.setattr(resume, "save", plain)
    run(config_of(photos), tmp_path / "cut", mode="resume")
    assert losses(tmp_path / "cut") == losses(tmp_path / "kept")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("kept", "not", "cut")]
    assert weights[0] == weights[1] == weights[2]
