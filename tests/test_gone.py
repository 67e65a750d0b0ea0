"""Options that are gone: at their defaults old configurations load, with another value one line says who reads them."""

from __future__ import annotations

import pytest
import yaml

from running import SMALL, call, make_teacher
from unixkd.config import GONE, read_yaml, without_gone
from unixkd.errors import UserError


@pytest.mark.parametrize("key", GONE)
def test_each_is_passed_over_at_its_default_and_refused_otherwise(key, tmp_path):
    group, name = key.split(".")
    path, old = tmp_path / "run.yaml", {group: {name: GONE[key], "kept": 1}}
    path.write_text(yaml.safe_dump(old))
    assert without_gone(old) == {group: {"kept": 1}}
    assert name not in read_yaml(path)[group]
    with pytest.raises(UserError, match=rf"{key} 3 .* unixkd 0\.1\.0"):
        without_gone({group: {name: 3}})


def test_an_old_configuration_on_the_command_line(tmp_path, capsys):
    teacher, old = make_teacher(tmp_path / "teacher"), tmp_path / "old.yaml"
    words = [
        "distill",
        "--config",
        old,
        "--teacher",
        teacher,
        "--student",
        "resnet8",
        "--data",
        "digits",
        *SMALL,
    ]
    old.write_text("method:\n  name: kd\n  scoring_every: null\ntrain:\n  selection: local\n")
    assert call(*words, "--out", tmp_path / "run") == 0
    old.write_text("method:\n  name: hard\n  scoring_every: 3\n")
    assert call(*words, "--out", tmp_path / "other") == 2
    message = capsys.readouterr().err
    assert "method.scoring_every 3" in message
    assert "0.1.0" in message
    assert not (tmp_path / "other").exists()
