"""What a run shows in a log; what is true of displays on a terminal too."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from unixkd.names import percent
from unixkd.training.bars import BarDisplay
from unixkd.training.display import (
    Began,
    EpochDone,
    Event,
    Finished,
    LineDisplay,
    Note,
    Started,
    Stepped,
    epoch_line,
    silent,
    unfailing,
)
from unixkd.training.forecast import Forecast


def record(epoch: int, **changes: Any) -> dict[str, Any]:
    values = {
        "epoch": epoch,
        "step": 10 * epoch,
        "loss": 1.23456,
        "accuracy": 0.4567,
        "agreement": 0.89,
        "cost": {"backward_1x": 0.4, "backward_2x": 0.4321},
    }
    return values | changes


def done(epoch: int, run: str = "run", epochs: int = 2, **changes: Any) -> EpochDone:
    return EpochDone(run, epochs, record(epoch, **changes), images_per_second=12345.6, seconds_left=83.4)


NOTHING = {"accuracy": None, "agreement": None, "cost": None}


def events(run: str = "run", **changes: Any) -> list[Event]:
    return [
        Note(run, "teacher [vgg13]: accuracy 75.00 %"),
        Began(run),
        Started(run, 2, 10),
        Stepped(run, 5, 12345.6, None if changes else 0.1234),
        done(1, run, **changes),
        Stepped(run, 15, 12345.6, None if changes else 0.3),
        done(2, run, **changes),
        Finished(run),
    ]


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_percentages():
    assert [percent(v) for v in (0.0, 0.45678, 1.0, None)] == ["0.00 %", "45.68 %", "100.00 %", "–"]


def test_the_line_of_an_epoch_says_everything():
    assert epoch_line(done(1)) == (
        "epoch   1/2  loss 1.2346  accuracy 45.67 %  agrees with teacher 89.00 %  "
        "cost so far 43.21 % of KD  12,346 images/s, 1:23 left"
    )


def test_the_line_of_an_epoch_without_accuracy_agreement_and_cost():
    assert epoch_line(done(2, **NOTHING)) == "epoch   2/2  loss 1.2346  12,346 images/s, 1:23 left"


def test_an_accuracy_of_0_is_shown():
    assert "accuracy 0.00 %" in epoch_line(done(1, accuracy=0.0))


def test_lines_of_one_run():
    console = Console(file=io.StringIO(), width=40)  # narrower than a line: a log is not wrapped
    lines = LineDisplay(console)
    for event in events():
        lines(event)
    assert output(console).splitlines() == [
        "teacher [vgg13]: accuracy 75.00 %",
        epoch_line(done(1)),
        epoch_line(done(2)),
    ]


def test_lines_of_several_runs_are_named_and_only_the_last_epochs():
    console = Console(file=io.StringIO(), width=40)
    lines = LineDisplay(console, Forecast({"kd-seed0": 2, "[x]": 2}, now=lambda: 0.0))
    for name in ("kd-seed0", "[x]"):
        for event in events(name):
            lines(event)
    assert output(console).splitlines() == [
        "kd-seed0: teacher [vgg13]: accuracy 75.00 %",
        f"kd-seed0: {epoch_line(done(2), '0:00 left for all runs')}",
        "[x]: teacher [vgg13]: accuracy 75.00 %",
        f"[x]: {epoch_line(done(2), '0:00 left for all runs')}",
    ]


@pytest.mark.parametrize("bars", [False, True])
def test_a_note_that_is_true_of_all_runs_is_shown_once(bars):
    console, forecast = terminal(), Forecast({"a": 1, "b": 1})
    show = BarDisplay(console, forecast) if bars else LineDisplay(console, forecast)
    for name in ("a", "b", "c"):
        show(Note(name, "teacher is fine", shared=True))
    show(Note("a", "own"))
    if isinstance(show, BarDisplay):
        show.close()
    assert output(console).count("teacher is fine") == 1
    assert "a: own" in output(console)


def test_names_move_no_cursor_and_are_no_markup():
    hostile = "[red]x[/red] :cat:\n\x1b[31m"
    shown = r"[red]x[/red] :cat:\n\x1b[31m"
    lines = Console(file=io.StringIO(), width=120)
    LineDisplay(lines, Forecast({}))(Note(hostile, "teacher " + hostile))
    assert output(lines) == f"{shown}: teacher {shown}\n"
    screen = terminal()
    bars = BarDisplay(screen, Forecast({hostile: 2, "b": 2}))
    bars(Started(hostile, 2, 10))
    bars.close()
    assert shown in output(screen)


def test_silence():
    for event in events():
        assert silent(event) is None


@pytest.mark.parametrize("error", [RuntimeError("no server"), OSError(32, "Broken pipe"), SystemExit(1)])
def test_a_display_that_fails_is_a_warning_once_and_shown_nothing_more(error, capsys):
    seen: list[Event] = []

    def failing(event: Event) -> None:
        seen.append(event)
        if isinstance(event, Stepped):
            raise error

    show = unfailing(failing)
    for event in events():
        show(event)
    assert len(seen) == 4
    told = capsys.readouterr().err
    assert told.count("warning: what shows the run has failed") == 1
    assert ("its output is closed" if isinstance(error, SystemExit) else str(error)) in told


def test_ctrl_c_within_a_display_is_no_failure_of_it():
    def stopped(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unfailing(stopped)(Finished("run"))
