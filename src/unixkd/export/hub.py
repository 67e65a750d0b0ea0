"""Verified files to a model repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from unixkd.errors import UsageError, UserError, missing_extra
from unixkd.models.folder import exported_files
from unixkd.names import phase


def check_repository(name: str, dry_run: bool) -> None:
    """Raise where this is no repository's name, or huggingface_hub is not installed, which a dry run does not need."""
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]{0,95}", name, re.ASCII):
        raise UsageError(f"--push_to_hub takes OWNER/NAME, not '{name}'")
    if not dry_run and find_spec("huggingface_hub") is None:
        raise missing_extra("huggingface_hub", "hub", "uploads to the Hub")


def uploaded(folder: Path) -> list[Path]:
    """What is uploaded: the files that an export writes, nothing else that lies in the folder."""
    return [path for path in exported_files(folder) if path.is_file()]


def upload_plan(folder: Path, name: str, private: bool) -> str:
    """What `push` would do, in words; nothing is sent or asked."""
    files = "\n".join(f"  {file.name}  {file.stat().st_size:,} bytes" for file in uploaded(folder))
    kind = "private" if private else "public"
    return f"dry run: would upload to {name}, a model repository ({kind} if it has to be made):\n{files}"


@phase("uploading to the Hub")
def push(folder: Path, name: str, private: bool) -> str:
    """Upload an export in one commit to OWNER/NAME, which is made where there is none; the commit's address.

    Raises:
        UserError: the Hub cannot be reached, does not know the user or refuses; the files stay
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi

    hub = HfApi(library_name="unixkd")
    try:
        hub.create_repo(name, private=private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=[file.name for file in uploaded(folder)],
            commit_message="Upload a student distilled with unixkd",
        )
    except (HTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"{name} was not uploaded: {reason}; the export stays in {folder}; `hf auth login` signs in, "
            "the same command with --overwrite tries again"
        ) from None
    return str(commit.commit_url)
