"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import pytest

from unixkd.errors import UserError
from unixkd.run_files import aside, read_json, write


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "kept.json"
    write(path, '{"a": "é"}')
    with pytest.raises(OSError, match="full"), aside(path) as temporary:
        temporary.write_text("half")
        raise OSError("full")
    assert read_json(path) == {"a": "é"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_gets_its_name_when_all_is_in_it(tmp_path):
    with aside(tmp_path / "whole") as temporary:
        temporary.mkdir()
        (temporary / "a").touch()
        assert not (tmp_path / "whole").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["whole", "a"]
    with pytest.raises(OSError, match="not empty"), aside(tmp_path / "whole") as temporary:
        temporary.mkdir()
        (temporary / "b").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["whole", "a"]


@pytest.mark.parametrize(("text", "problem"), [("{", "cannot be read"), ("[1]", "holds no JSON object")])
def test_what_is_no_json_object_is_named(text, problem, tmp_path):
    write(tmp_path / "x.json", text)
    with pytest.raises(UserError, match=rf"x\.json' {problem}"):
        read_json(tmp_path / "x.json")
