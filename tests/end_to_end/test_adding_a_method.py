"""A method is added in one place, `method/unix.py`: help, runs, `plan`, `compare`, ledger and report know it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from running import SMALL, call, make_teacher, summary
from unixkd import names
from unixkd.method.unix import METHODS

FUNCTION = '''def half() -> Method:
    """Keeps a random half of each batch."""
    return Method("half", 0.5)


METHODS = {
    "half": half,'''


@pytest.fixture
def teacher(tmp_path, monkeypatch) -> Path:
    """A teacher, and a source of `method/unix.py` with one method more."""
    changed = tmp_path / "unix.py"
    changed.write_text(names.METHODS_FILE.read_text().replace("METHODS = {", FUNCTION, 1))
    scope: dict[str, object] = {"__name__": "changed"}
    exec(compile(changed.read_text(), str(changed), "exec"), scope)
    monkeypatch.setitem(METHODS, "half", scope["half"])  # what an import of the changed file would give
    monkeypatch.setattr(names, "METHODS_FILE", changed)
    return make_teacher(tmp_path / "teacher")


def test_it_is_known_everywhere(teacher, tmp_path, capsys):
    out, runs = tmp_path / "run", tmp_path / "runs"
    pair = ("--teacher", teacher, "--student", "resnet8")
    assert call("distill", *pair, "--method", "half", "--data", "digits", *SMALL, "--out", out) == 0
    images = summary(out)["cost"]["images"]
    assert (images["trained"], images["scored"]) == (
        3 * 16 + 4,
        0,
    )  # half of three batches of 32, all of the last 4
    capsys.readouterr()

    assert call("plan", *pair, "--rounds", "0") == 0
    assert " half " in capsys.readouterr().out
    words = ("--methods", "kd,half:keep=0.25", "--seeds", "0", "--jobs", "1", "--data", "digits", *SMALL)
    assert call("compare", *pair, *words, "--out", runs) == 0
    found = {json.loads(path.read_text())["method"] for path in runs.glob("runs/*/summary.json")}
    assert found == {"kd", "half:keep=0.25"}
    capsys.readouterr()

    assert call("report", runs, out, "--html", tmp_path / "report.html") == 0
    assert "half" in capsys.readouterr().out
    assert "keeps a random half of each batch, with keep = 0.25" in (tmp_path / "report.html").read_text()
    assert call("distill", *pair, "--method", "hal") == 2
    assert "did you mean 'half'" in capsys.readouterr().err
    assert call("distill", "--help") == 0
    assert "half" in capsys.readouterr().out


def test_the_source_and_the_methods_agree():
    assert list(names.methods()) == list(METHODS)
    assert all(line.endswith(".") for line in names.methods().values())
