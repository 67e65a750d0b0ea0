"""predict.py as somebody runs it: other words, other files, and what an export does around it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from exporting import PAIR, made_for, names_in, small
from running import call
from unixkd.errors import UserError
from unixkd.export import export_script, export_student, random_sample, script
from unixkd.export.script import script_text


def ask(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, folder / "predict.py", *words]
    return subprocess.run(list(map(str, line)), capture_output=True, text=True, check=False)


def stopped(*words: object) -> None:
    raise KeyboardInterrupt


def test_bad_words_and_files_get_one_line(exported, tmp_path):
    (tmp_path / "half.onnx").write_bytes(b"half a file")
    for words, code, end in (
        ((), 2, "the following arguments are required: IMAGE"),
        (("--model",), 2, "--model: expected one argument"),
        (("--model", tmp_path / "half.onnx", "x.png"), 1, ""),
        (("x.png",), 1, "x.png: [Errno 2] No such file or directory: 'x.png'"),
    ):
        done = ask(exported, *words)
        assert (done.returncode, done.stdout) == (code, "")
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].endswith(end)
    assert (
        f"{tmp_path / 'half.onnx'} cannot be loaded: "
        in ask(exported, "--model", tmp_path / "half.onnx", "x.png").stderr
    )


def test_a_model_that_is_gone_is_named(tmp_path):
    student = small()
    (tmp_path / "predict.py").write_text(script_text(student, made_for(student), "onnx"))
    done = ask(tmp_path, "x.png")
    assert done.returncode == 1
    assert done.stderr.startswith(f"{tmp_path / 'model.onnx'} cannot be loaded: ")
    assert len(done.stderr.splitlines()) == 1


def test_what_is_not_verified_is_not_left_and_nothing_of_ones_own_is_written_over(tmp_path, monkeypatch):
    student = small()
    sample = random_sample(student.card, 12)
    made, failed = export_student(student, tmp_path, ["onnx"], sample, made_for(student, 12))
    assert failed == []
    words = (student, tmp_path, [each.format for each in made], sample, made_for(student, 12))
    agreement, _ = export_script(*words)
    assert agreement.describe("photos").startswith(
        "the same class as unixkd on images of 12 × 12 pixels on 72 of 72"
    )

    with monkeypatch.context() as changed:
        changed.setattr(script, "check", stopped)
        with pytest.raises(KeyboardInterrupt):
            export_script(*words)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    (tmp_path / "predict.py").write_text("mine")
    with pytest.raises(UserError, match=r"predict\.py, which no export wrote"):
        export_script(*words)
    assert (tmp_path / "predict.py").read_text() == "mine"


def test_an_export_that_was_stopped_at_its_script_is_known_as_one(plain, monkeypatch):
    with monkeypatch.context() as changed, suppress(KeyboardInterrupt):
        changed.setattr(script, "check", stopped)
        call("export", plain, "--formats", "torch")
    assert names_in(plain / "export") == {"model.pt2", "README.md"}
    assert "predict.py" not in (plain / "export" / "README.md").read_text()
    assert call("export", plain, "--formats", "safetensors", "--overwrite") == 0
    assert names_in(plain / "export") == PAIR
