"""Files and folders that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from unixkd.errors import UserError
from unixkd.run_files import aside, read_json, write


def half_a_file(path: Path) -> None:
    with aside(path) as temporary:
        temporary.write_text("half")
        raise OSError("full")


def folder_of(path: Path, name: str) -> None:
    with aside(path) as temporary:
        temporary.mkdir()
        (temporary / name).touch()


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "kept.json"
    write(path, '{"a": "é"}')
    with pytest.raises(OSError, match="full"):
        half_a_file(path)
    assert read_json(path) == {"a": "é"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_no_other_folders_place(tmp_path):
    folder_of(tmp_path / "whole", "a")
    assert [path.name for path in tmp_path.rglob("*")] == ["whole", "a"]
    with pytest.raises(OSError, match="not empty"):
        folder_of(tmp_path / "whole", "b")
    assert [path.name for path in tmp_path.rglob("*")] == ["whole", "a"]


@pytest.mark.parametrize(("text", "problem"), [("{", "cannot be read"), ("[1]", "holds no JSON object")])
def test_what_is_no_json_object_is_named(text, problem, tmp_path):
    write(tmp_path / "x.json", text)
    with pytest.raises(UserError, match=rf"x\.json' {problem}"):
        read_json(tmp_path / "x.json")
