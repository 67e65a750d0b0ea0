"""What commands print: names that are data, encodings that lack characters, an output that fails."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import pytest
from PIL import Image

from running import alone, call
from unixkd.cli import screen
from unixkd.errors import show_logged_names
from unixkd.training.run import run

HOSTILE = {
    b"[red]x :cat:.png": "[red]x :cat:.png",
    b"a\nb.png": r"a\nb.png",
    b"c\x1b[31m.png": r"c\x1b[31m.png",
    "d\u202eä.png".encode(): r"d\u202eä.png",
    b"\xff.png": r"\udcff.png",
}
"""Names of files in the order in which they are read, and as they are shown."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    run(alone(epochs=1), folder := tmp_path_factory.mktemp("teacher") / "run")
    return folder


@pytest.fixture
def images(tmp_path) -> Path:
    (folder := tmp_path / "images").mkdir()
    image = io.BytesIO()
    Image.new("L", (8, 8)).save(image, "png")
    for name in HOSTILE:
        (folder / os.fsdecode(name)).write_bytes(image.getvalue())
    return folder


def test_names_of_files_are_shown_on_a_line_each(trained, images, capsys):
    assert call("predict", trained, images) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(": ")[0] for line in lines] == [f"{images}/{name}" for name in HOSTILE.values()]
    assert call("predict", trained, images, "--json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["image"] for line in lines] == [f"{images}/{os.fsdecode(n)}" for n in HOSTILE]


def test_what_an_encoding_lacks_is_printed_as_an_escape_sequence(trained, images, monkeypatch):
    monkeypatch.setattr(sys, "stdout", out := io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert call("predict", trained, images) == 0
    assert rf"{images}/d\u202e\xe4.png: " in out.buffer.getvalue().decode("ascii")


@pytest.mark.parametrize("command", ["predict", "report", "evaluate", "export"])
def test_an_error_is_a_line_whatever_the_name_holds(command, trained, tmp_path, capsys):
    name = tmp_path / "no\n\x1b[31m\udcff"
    assert call(command, *([trained] if command == "predict" else []), name) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.strip().isprintable()


def test_a_warning_shows_names_and_those_of_others_are_left_alone():
    show_logged_names()
    assert logging.lastResort is not None
    ours, others = (
        logging.lastResort.format(logging.LogRecord(name, 30, "", 0, "no image: %s", ("a\n\x1b",), None))
        for name in ("unixkd.data.files", "datasets")
    )
    assert (ours, others) == (r"no image: a\n\x1b", "no image: a\n\x1b")


def full() -> TextIO:
    return Path("/dev/full").open("w")


def closed() -> TextIO:
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


@pytest.mark.parametrize("make", [full, closed])
@pytest.mark.parametrize("command", ["--help", "train", "predict", "report"])
def test_an_output_that_fails_is_a_line(
    command: str, make: Callable[[], TextIO], trained, images, monkeypatch, capsys
):
    words = {"train": ["--help"], "predict": [trained, images], "report": [trained]}.get(command, [])
    if make is full and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with make() as out, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        assert call(command, *words) == 1
        screen.console.quiet = False  # rich's answer to a closed pipe
        del screen.console._buffer[:]
    error = capsys.readouterr().err
    assert error.startswith("unixkd: error: the output cannot be written: ")
    assert error.count("\n") == 1


def test_an_output_that_was_closed_before_the_start_is_none(trained, images, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert call("predict", trained, images) == 0
    monkeypatch.setattr(sys, "stdout", None)
    assert call("--help") == 0
