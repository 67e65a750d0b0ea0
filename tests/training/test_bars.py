"""Bars on a terminal: the last picture is of the end, and nothing is cut at any width."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable

import pytest
from rich.console import Console

from unixkd import names
from unixkd.training import bars as bars_of
from unixkd.training import stopping
from unixkd.training.bars import BarDisplay
from unixkd.training.display import Began, EpochDone, Event, Finished, Note, Started, Stepped
from unixkd.training.forecast import Forecast

LONG = "unix:keep=0.5:steepness=1000.0:scorer=margin-seed0"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(names, "_state", names._State())


class Screen:
    """A terminal of some width whose clock is set by hand, and what it showed."""

    def __init__(
        self, width: int = 80, forecast: Callable[[], dict[str, int]] | None = None, workers: int = 1
    ):
        self.time = 0.0
        self.console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
        runs = None if forecast is None else Forecast(forecast(), workers, now=lambda: self.time)
        self.bars = BarDisplay(self.console, runs, now=lambda: self.time)
        self.bars.live.auto_refresh = False

    def show(self, *events: Event) -> None:
        for event in events:
            self.bars(event)

    def picture(self) -> list[str]:
        """The lines of the bars as they are now."""
        probe = Console(file=io.StringIO(), width=self.console.width, color_system=None)
        probe.print(self.bars)
        return probe.file.getvalue().splitlines()  # type: ignore[attr-defined]

    def last(self) -> list[str]:
        """What a terminal shows in the end: of each line what was written last."""
        text = self.console.file.getvalue()  # type: ignore[attr-defined]
        lines: list[str] = [""]
        at = 0
        for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r\n|\n|\r|[^\x1b\r\n]+", text):
            if token in ("\n", "\r\n"):
                at += 1
                lines += [""] * (at + 1 - len(lines))
            elif token == "\x1b[2K":
                lines[at] = ""
            elif token == "\x1b[1A":
                at -= 1
            elif not token.startswith("\x1b") and token != "\r":
                lines[at] += token
        return [line.rstrip() for line in lines if line]


def done(epoch: int, run: str = "run", epochs: int = 2, accuracy: float | None = 0.4567) -> EpochDone:
    cost = {"backward_1x": 0.4, "backward_2x": 0.4321}
    record = {"epoch": epoch, "loss": 1.23456, "accuracy": accuracy, "agreement": 0.89, "cost": cost}
    return EpochDone(run, epochs, record, images_per_second=12345.6, seconds_left=83.4)


def test_the_last_picture_is_of_the_end():
    screen = Screen(120)
    screen.show(Began("run"), Started("run", 2, 10), Stepped("run", 5, 12345.6, 0.1))
    screen.time = 10.0
    screen.show(done(1), Stepped("run", 19, 100.0, 0.4), done(2, accuracy=0.9876))
    screen.time = 11.0
    screen.show(Finished("run"))
    screen.bars.close()
    assert re.split(r" {2,}", screen.last()[-1]) == [
        "run", "━" * 24, "100 %", "acc 98.76 %", "12,346 images/s", "cost 43.2 % of KD", "0:11, done",
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["stopped", "failed"])
def test_where_a_run_was_stopped_or_failed_is_the_last_picture(how):
    screen = Screen()
    screen.show(Began("run"), Started("run", 2, 10), Stepped("run", 5, 12345.6, 0.1))
    screen.time = 65.0
    screen.show(done(1), Stepped("run", 13, 50.0, 0.4))
    screen.bars.close(how)
    last = screen.last()[-1]
    assert " 65 %" in last
    assert "acc 45.67 %" in last
    assert "50 images/s" in last
    assert last.endswith(f"{how} after 1:05")


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("name", ["run", LONG, "漢字" * 20])
@pytest.mark.parametrize("several", [False, True])
def test_times_and_rates_are_whole_at_every_width(width, name, several):
    screen = Screen(width, (lambda: {name: 300, "b": 300, "c": 300}) if several else None)
    screen.show(Began(name), Started(name, 300, 1000), Stepped(name, 1, 0.5, None))
    screen.time = 36000.0
    screen.show(done(150, name, 300), Stepped(name, 150_000, 12345.6, 1.2346))
    picture = screen.picture()
    assert max(map(len, picture)) <= width
    assert "10:00:00, 10:00:00 left" in picture[-1]
    if several:
        assert width < 60 or "0 of 3 done" in picture[0]
        assert "10:00:00, 50:00:00 left" in picture[0]
    if width >= 60:
        assert "12,346 images/s" in picture[-1]
    if width >= 120:
        assert "acc 45.67 %" in picture[-1]
        assert "cost 123.5 % of KD" in picture[-1]
    assert re.search(r"\bcost\b", picture[-1]) is None or "% of KD" in picture[-1]
    screen.bars.close()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_above_the_bar_break_between_figures(width):
    screen = Screen(width)
    note = "teacher compiled: of its eager forward's time here it takes 80 %; set up in 12 s, 45 images/s, 1.2 MB"
    screen.show(Note("run", note), Began("run"), Started("run", 2, 10), done(1))
    screen.bars.close()
    lines = screen.last()
    assert max(map(len, lines)) <= width
    for whole in ("80 %", "12 s", "45 images/s", "1.2 MB", "accuracy 45.67 %", "cost so far 43.21 % of KD"):
        assert sum(whole in line for line in lines) == 1, whole


def test_a_slow_rate_has_a_digit_after_the_point():
    assert [bars_of.rate(value) for value in (0.25, 9.96, 1234.5)] == [
        "0.2 images/s",
        "10 images/s",
        "1,234 images/s",
    ]


def test_of_several_runs_the_first_line_counts_all_and_finished_ones_go():
    screen = Screen(100, lambda: {"kd-seed0": 2, "unix-seed0": 2, "kd-seed1": 2, "unix-seed1": 2}, workers=2)
    screen.show(Finished("kd-seed0"))  # by an earlier command
    screen.show(
        Began("unix-seed0"), Began("kd-seed1"), Started("unix-seed0", 2, 10), Started("kd-seed1", 2, 10)
    )
    screen.time = 10.0
    screen.show(done(1, "unix-seed0"), done(1, "kd-seed1"))
    # half of two runs is left, 10 s each, and 20 s of one that has not begun: 40 s of work for two workers
    assert screen.picture()[0].split("  ")[0] == "all runs"
    assert "1 of 4 done" in screen.picture()[0]
    assert screen.picture()[0].endswith("0:10, 0:20 left")
    assert len(screen.picture()) == 3
    screen.time = 20.0
    screen.show(done(2, "unix-seed0"), Finished("unix-seed0"))
    assert [line.split()[0] for line in screen.picture()] == ["all", "kd-seed1"]
    screen.bars.close("failed")
    assert screen.last()[-2].startswith("all runs")
    assert screen.last()[-2].endswith("failed after 0:20")


def test_what_is_waited_for_stands_below_the_bar(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    screen = Screen()
    with names.phase("reading [x]\n"):
        assert screen.picture() == []  # over in a moment, mostly
        clock[0] += 7
        assert screen.picture() == [r"reading [x]\n … 0:07"]
    screen.show(Began("run"), Started("run", 2, 10))
    with names.phase("training", counted=True):
        clock[0] += 7
        assert screen.picture()[-1] == "training … 0:07"
        screen.show(Stepped("run", 1, 2.0, None))
        assert len(screen.picture()) == 1  # the bar moves
    monkeypatch.setitem(stopping._state, "asked", True)
    assert screen.picture()[-1] == "stopping after this step; Ctrl-C once more stops at once"
    screen.bars.close()
    assert screen.last()[-1].startswith("run ")
    assert not names.is_live()


def test_a_resumed_run_starts_where_it_stood():
    screen = Screen()
    screen.show(Began("run"), Started("run", 4, 10, first_epoch=3))
    assert " 75 %" in screen.picture()[0]
    assert "– left" in screen.picture()[0]
    screen.bars.close()


def test_nothing_breaks_without_accuracy_and_cost():
    screen = Screen()
    record = {"epoch": 1, "loss": 1.0, "accuracy": None, "agreement": None, "cost": None}
    screen.show(Began("run"), Started("run", 1, 10), Stepped("run", 5, 3.0, None))
    screen.show(EpochDone("run", 1, record, 3.0, 0.0), Finished("run"))
    screen.bars.close()
    assert screen.last()[0] == "epoch   1/1  loss 1.0000"
    assert "acc" not in screen.last()[-1]
    assert "KD" not in screen.last()[-1]


@pytest.mark.parametrize("width", [20, 40, 60, 80])
def test_a_sentence_is_broken_between_figures(width):
    text = "final accuracy 92.20 % (best epoch 92.20 %), training cost 111.70 % of plain KD, 12 images/s, 3.2 MB, 5 min"
    lines = bars_of.broken(text, width)
    assert " ".join(lines) == text
    assert max(map(len, lines)) <= width
    for whole in ("111.70 %", "12 images/s", "3.2 MB", "5 min"):
        assert any(whole in line for line in lines)
    assert bars_of.broken("a/very/long/path/" * 9, width) == ["a/very/long/path/" * 9]


def test_what_is_printed_meanwhile_stands_above_the_bar(capsys):
    """Standard error that goes to a file gets what belongs there, and none of the bar."""
    screen = Screen()
    screen.show(Began("run"), Started("run", 2, 10), Stepped("run", 5, 3.0, None))
    sys.stdout.write("printed\n")
    sys.stderr.write("a warning\n")
    screen.bars.close("failed")
    assert capsys.readouterr().err == "a warning\n"
    assert "a warning" not in "".join(screen.last())
    assert screen.last()[0] == "printed"
    assert screen.last()[-1].startswith("run ")
