"""A run's folder: configuration, metrics, summary. What is written here is what reports read."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

from unixkd.config import RunConfig, flatten, read_yaml, to_plain
from unixkd.errors import CHECKSUMS, UserError, check_unchanged, parse_json, read_bytes, refuse_links
from unixkd.models.folder import EXPORTED, exported_files, holds_export
from unixkd.run_files import CHECKPOINT, append, encoded, leftovers, remove, write
from unixkd.teacher.journal import journals
from unixkd.training import precision
from unixkd.training.checkpoint import FILES as CHECKPOINT_FILES
from unixkd.training.checkpoint import MANIFEST, checkpoints, discard
from unixkd.training.used import unread_options

Mode = Literal["new", "resume", "overwrite"]
"""new: refuse a folder that holds a run; resume: go on from its checkpoint; overwrite: remove it first."""

SEALED = (
    *("run.yaml", "plan.json", "metrics.jsonl", "summary.json", "selection.json", "disagreements.json"),
    "left_out.json",
    *("model.safetensors", "config.json"),
)
"""The files whose checksums a finished run has."""
FILES = (
    *SEALED,
    CHECKSUMS,
    *(f"export/{name}" for name in EXPORTED),  # of the student that is overwritten
)
LOGS = ("events.out.tfevents.*", "wandb-id", "wandb/*run-*", "wandb/debug*.log")
"""What the loggers write, in `logs`."""
ALWAYS = {"epochs", "batch_size", "lr", "seed"}
"""Options of `train` in the run.yaml of every run, which holds all of them; a file of options has those that differ."""
_NO_OPTION = object()
LOCK_SECONDS = 10
"""How long a folder is waited for: what a killed run has started may hold on to it for a moment."""


class RunFolder:
    """The files of one run under one path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.logs = path / "logs"
        self.removed: list[str] = []  # what `open` has removed of an earlier run
        self._lock = FileLock(path.absolute() / ".lock", timeout=LOCK_SECONDS, is_singleton=True)

    def open(self, config: RunConfig, mode: Mode) -> bool:
        """Make the folder ready and keep other processes out until `close`; True: there is a checkpoint to go on from.

        Raises:
            UserError: it holds a run already (mode new), or one with another configuration (mode resume), or files
                of somebody's own where a run's would be, or links, or another process is at work in it
        """
        self.check_free(mode)
        folders = (self.checkpoints, self.logs, self.logs / "wandb", self.path / "export")
        refuse_links(*folders, self.path / ".lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with suppress(NotImplementedError):  # a file system without locks
                self._lock.acquire()
            self.check_free(mode)  # again, as the lock may have been waited for
            if mode == "resume" and self.holds_run():
                self.check_same(config)
                self.tidy()
                return bool(checkpoints(self.checkpoints))
            self.begin(config)
        except Timeout:
            raise UserError(
                f"{self.path}: another process is training here; wait for it, or give another --out"
            ) from None
        except OSError as error:
            where = error.filename or self.path
            raise UserError(
                f"cannot write to the output folder {self.path}: {error.strerror} ('{where}')"
            ) from None
        return False

    def holds_run(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / "run.yaml").exists() or bool(checkpoints(self.checkpoints))

    def check_free(self, mode: Mode) -> None:
        """Raise where a new run would meet one that is there, or replace what no run wrote."""
        if self.holds_run():
            if mode == "new":
                raise UserError(
                    f"{self.path} already holds a run: give --resume, --overwrite or another --out"
                )
            if mode == "overwrite":
                self.check_removable()
        elif foreign := [name for name in (*SEALED, CHECKSUMS) if os.path.lexists(self.path / name)]:
            raise UserError(
                f"{self.path} holds {', '.join(foreign)}, which no run wrote, as it has no run.yaml: move what is "
                "yours away, or give another --out"
            )

    def check_removable(self) -> None:
        """Raise where the run.yaml is no run's, as what lies beside it may be anybody's, or where the run's own files
        could not be removed without what is somebody's.
        """
        own = {*CHECKPOINT_FILES, MANIFEST}
        extra = [
            path
            for saved in checkpoints(self.checkpoints)
            for path in saved.iterdir()
            if path.name not in own
        ]
        extra += [self.path / name for name in FILES if is_folder(self.path / name)]
        if extra:
            raise UserError(
                f"{extra[0]} is in the way, which no run wrote: move it away or give another --out"
            )
        path = self.path / "run.yaml"
        train = read_yaml(path).get("train") if path.exists() else dict.fromkeys(ALWAYS)
        if not isinstance(train, dict) or not train.keys() >= ALWAYS:
            raise UserError(
                f"{path} is not that of a run: nothing is removed, move it away or give another --out"
            )

    def begin(self, config: RunConfig) -> None:
        """Remove an earlier run, what says that there is one last, and write the configuration."""
        if self.holds_run():
            self.remove_run()
        self.tidy()
        write(self.path / "run.yaml", yaml.safe_dump(to_plain(config), sort_keys=False))

    def remove_run(self) -> None:
        """Remove what a run wrote, and nothing else; `removed` lists it."""
        saved = checkpoints(self.checkpoints)
        logs = [path for pattern in LOGS for path in self.logs.glob(pattern)]
        export = self.path / "export"
        files = list(reversed(exported_files(export))) if holds_export(export) else []
        files += [self.path / name for name in reversed(FILES) if not name.startswith("export/")]
        there = [path for path in (*journals(self.checkpoints), *logs, *files) if os.path.lexists(path)]
        self.removed = [path.relative_to(self.path).as_posix() for path in (*saved, *there)]
        for path in saved:
            discard(path)
        for path in there:
            remove(path)
        for folder in (self.checkpoints, self.logs / "wandb", self.logs):
            with suppress(OSError):  # not empty, or not there
                folder.rmdir()

    def close(self) -> None:
        """Let other processes in."""
        self._lock.release(force=True)

    def tidy(self) -> None:
        """Remove what a killed process has left half written."""
        files = "|".join(map(re.escape, (*SEALED, CHECKSUMS)))
        for path in (*leftovers(self.path, files), *leftovers(self.checkpoints, CHECKPOINT)):
            remove(path)

    def check_same(self, config: RunConfig) -> None:
        """Raise where the saved configuration differs in what the run reads; "auto" is what it was decided to be."""
        saved = flatten(read_yaml(self.path / "run.yaml"))
        given = flatten(yaml.safe_load(yaml.safe_dump(to_plain(config))))  # tuples are lists there
        usual = flatten(to_plain(RunConfig(config.student, config.teacher)))
        decided = {"data.decoding", *(f"train.{name}" for name in precision.DECIDED)}
        unread = unread_options(config)
        groups = {key.rpartition(".")[0] for key in saved}
        for key in given.keys() - saved.keys():  # an option that is younger than the run
            if key.rpartition(".")[0] in groups:
                saved[key] = usual[key]
        differences = [
            f"{key}: {saved.get(key)} then, {given.get(key, 'no option')} now"
            for key in sorted((saved.keys() | given.keys()) - unread)
            if saved.get(key) != given.get(key, _NO_OPTION)
            and not (key in decided and given.get(key) == "auto")
        ]
        if differences:
            raise UserError(f"cannot resume {self.path}, its configuration differs: {'; '.join(differences)}")

    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "summary.json").exists()

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add an epoch's line to metrics.jsonl."""
        with self.writing():
            append(self.metrics, f"{json.dumps(record)}\n".encode())

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Within, an error of the system is one that says where; the run's checkpoints are whole.

        Raises:
            UserError: something cannot be written
        """
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write to the run folder {self.path}: {error}") from None

    def keep_metrics(self, epochs: int, known: str | None = None) -> list[dict[str, Any]]:
        """Drop the lines of epochs after `epochs` (they will be run again); the records that stay.

        Args:
            epochs: of the checkpoint
            known: the lines' checksum in the checkpoint; None: one of an earlier version

        Raises:
            UserError: lines of these epochs are missing, damaged or edited; nothing is changed then
        """
        check_unchanged(self.metrics)
        content = read_bytes(self.metrics) if self.metrics.is_file() else b""
        lines = content.decode(errors="replace").split("\n")[:-1][:epochs]  # the rest may be torn
        records = []
        for epoch, line in enumerate(lines, 1):
            wrong = f"{self.metrics} is damaged: line {epoch} is not that of epoch {epoch}"
            records.append(parse_json(line, f"{wrong}: it"))
            if records[-1].get("epoch") != epoch:
                raise UserError(wrong)
        if len(lines) < epochs:
            raise UserError(f"{self.metrics} has {len(lines)} lines, but the checkpoint has {epochs} epochs")
        text = "".join(f"{line}\n" for line in lines)
        if known is not None and not known.startswith(hashlib.sha256(text.encode()).hexdigest()):
            raise UserError(
                f"{self.metrics} is damaged or was edited: the checkpoint's epochs had other lines"
            )
        self.put(self.metrics.name, text)
        return records

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON file whole or not at all."""
        self.put(name, json.dumps(value, indent=2) + "\n")

    def put(self, name: str, text: str) -> None:
        """Write a file whole or not at all; where it says something new, the checksums of a finished run go first."""
        path, content = self.path / name, encoded(text)
        same = path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content
        if not same:
            (self.path / CHECKSUMS).unlink(missing_ok=True)
            write(path, text)


def is_folder(path: Path) -> bool:
    """Whether it is a folder itself, and no link to one."""
    return path.is_dir() and not path.is_symlink()
