"""A distilled student and its export, made once; files of other students have fixtures of the same names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from exporting import ALL
from running import call, distilled, make_teacher
from unixkd.config import MethodConfig
from unixkd.training.run import run


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A distilled student that has seen something."""
    folder = tmp_path_factory.mktemp("runs")
    config = distilled(make_teacher(folder / "teacher"), MethodConfig("unix", keep=0.5), epochs=3)
    run(config, folder / "student")
    return folder / "student"


@pytest.fixture(scope="session")
def exported(trained) -> Path:
    """An export of all formats, in the run's own folder."""
    assert call("export", trained, "--formats", ALL, "--licence", "mit") == 0
    return trained / "export"


@pytest.fixture
def plain(trained, tmp_path) -> Path:
    """A copy of the run without an export."""
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("export", ".lock"))
    return tmp_path / "run"
