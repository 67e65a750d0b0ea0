"""`export --push_to_hub`: what would be sent, what is sent, what is said where it fails."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from exporting import PAIR, names_in
from running import call
from unixkd.models.folder import EXPORTED


class FakeHub:
    """Remembers what it was asked; raises what it is told to."""

    calls: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    error: Exception | None = None

    def __init__(self, **options: Any) -> None:
        type(self).calls = []

    def create_repo(self, name: str, **options: Any) -> None:
        self.calls.append(("create_repo", {"name": name, **options}))

    def upload_folder(self, **options: Any) -> Any:
        self.calls.append(("upload_folder", options))
        if self.error is not None:
            raise self.error
        return type("Commit", (), {"commit_url": "https://hub/commit"})


def test_a_dry_run_lists_the_files_and_asks_nobody(plain, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", None)
    (plain / "export").mkdir()
    (plain / "export" / "secret.txt").write_text("mine")
    words = ("--formats", "safetensors", "--push_to_hub", "me/student", "--dry_run")
    assert call("export", plain, *words) == 0
    sizes = {path.name: path.stat().st_size for path in (plain / "export").iterdir()}
    assert capsys.readouterr().out.splitlines()[2:] == [
        "dry run: would upload to me/student, a model repository (public if it has to be made):",
        *(f"  {name}  {sizes[name]:,} bytes" for name in EXPORTED if name in PAIR),
    ]
    assert call("export", plain, *words, "--private", "--overwrite") == 0
    assert "(private if it has to be made)" in capsys.readouterr().out
    assert 'snapshot_download("me/student")' in (plain / "export" / "README.md").read_text()


def test_the_verified_files_are_uploaded_in_one_commit(plain, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    words = ("--formats", "safetensors", "--push_to_hub", "me/student", "--private")
    assert call("export", plain, *words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "https://hub/commit"
    (first, made), (second, sent) = FakeHub.calls
    assert (first, made) == ("create_repo", {"name": "me/student", "private": True, "exist_ok": True})
    assert (second, sent["repo_id"], sent["folder_path"]) == ("upload_folder", "me/student", plain / "export")
    assert set(sent["allow_patterns"]) == PAIR


def hub_errors() -> list[Exception]:
    import httpx
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

    return [
        *(httpx.ConnectError("no network"), LocalTokenNotFoundError("no\ntoken"), ConnectionError("offline")),
        HFValidationError("no such licence"),
    ]


@pytest.mark.parametrize("error", hub_errors(), ids=lambda error: type(error).__name__)
def test_a_failed_upload_keeps_the_files_and_says_so(error, plain, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "error", error)
    assert call("export", plain, "--formats", "safetensors", "--push_to_hub", "me/student") == 1
    told = capsys.readouterr().err
    assert told.startswith(f"unixkd: error: me/student was not uploaded: {' '.join(str(error).split())}; ")
    assert f"the export stays in {plain / 'export'}" in told
    assert names_in(plain / "export") == PAIR


@pytest.mark.parametrize("name", ["student", "a/b/c", "me/", "/x", "me/a b", "-/x", "me/é"])
def test_what_is_no_repository_is_a_usage_error(name, capsys):
    assert call("export", "run", f"--push_to_hub={name}") == 2
    assert "takes OWNER/NAME" in capsys.readouterr().err


def test_options_of_an_upload_need_one(capsys):
    for word in ("--dry_run", "--private"):
        assert call("export", "run", word) == 2
        assert "--push_to_hub" in capsys.readouterr().err


def test_an_upload_needs_its_extra_and_a_dry_run_does_not(plain, monkeypatch, capsys):
    monkeypatch.setattr("unixkd.export.hub.find_spec", lambda name: None)
    words = ("--formats", "safetensors", "--push_to_hub", "me/x")
    assert call("export", plain, *words) == 1
    assert "pip install 'unixkd[hub]'" in capsys.readouterr().err
    assert not (plain / "export").exists()
    assert call("export", plain, *words, "--dry_run") == 0
