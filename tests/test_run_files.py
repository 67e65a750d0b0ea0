"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unixkd.errors import UserError, read_json, refuse_links
from unixkd.run_files import append, aside, leftovers, remove, usual_mode, write


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


def test_nothing_is_written_or_removed_through_a_link(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    link, folder = tmp_path / "link", tmp_path / "folder"
    link.symlink_to(outside / "mine")
    folder.symlink_to(outside)
    with pytest.raises(OSError, match="link"):
        append(link, b"more")
    with pytest.raises(UserError, match="folder' is a link"):
        refuse_links(tmp_path / "nothing", folder)
    write(link, "new")
    assert (link.is_symlink(), link.read_text()) == (False, "new")
    remove(folder)
    assert not folder.is_symlink()
    assert (outside / "mine").read_text() == "mine"


def test_leftovers_are_only_what_has_our_names(tmp_path):
    ours = [f".{name}.{'0f' * 16}.tmp" for name in ("run.yaml", "epoch-00001")]
    for name in (
        *ours,
        ".notes.tmp",
        ".run.yaml.tmp",
        ".run.yaml.mine.tmp",
        ".run.yaml.deadbeef.tmp",
        ".epoch-notes.1.tmp",
        "run.yaml.1.tmp",
    ):
        (tmp_path / name).touch()
    found = leftovers(tmp_path, r"run\.yaml|epoch-\d{5}")
    assert sorted(path.name for path in found) == sorted(ours)


def test_a_file_of_a_library_gets_the_users_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with usual_mode(tmp_path / "x"):
            (tmp_path / "x").unlink()
            os.close(os.open(tmp_path / "x", os.O_CREAT, 0o600))
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
