"""What a run shows: lines in a log, bars on a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from unixkd.names import percent
from unixkd.training.display import (
    BarDisplay,
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


@pytest.fixture(params=[1, 3], ids=["one run", "several runs"])
def runs(request) -> int:
    return request.param


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
    lines = LineDisplay(console, name_runs=True)
    for name in ("kd-seed0", "[x]"):
        for event in events(name):
            lines(event)
    assert output(console).splitlines() == [
        "kd-seed0: teacher [vgg13]: accuracy 75.00 %",
        f"kd-seed0: {epoch_line(done(2))}",
        "[x]: teacher [vgg13]: accuracy 75.00 %",
        f"[x]: {epoch_line(done(2))}",
    ]


@pytest.mark.parametrize("bars", [False, True])
def test_a_note_that_is_true_of_all_runs_is_shown_once(bars):
    console = terminal()
    show = BarDisplay(console, runs=2) if bars else LineDisplay(console, name_runs=True)
    for name in ("a", "b", "c"):
        show(Note(name, "teacher is fine", shared=True))
    show(Note("a", "own"))
    if isinstance(show, BarDisplay):
        show.close()
    assert output(console).count("teacher is fine") == 1
    assert "a: own" in output(console)


def test_a_bar_shows_rate_cost_accuracy_and_time_left():
    console = terminal()
    bars = BarDisplay(console)
    for event in events("run[0]"):
        bars(event)
        bars.progress.refresh()
        if isinstance(event, Stepped):
            assert bars.progress.tasks[0].completed == event.step
    bars.close()
    text = output(console)
    assert "run[0]" in text  # no markup
    assert "teacher [vgg13]: accuracy 75.00 %" in text
    assert "12,346 images/s" in text
    assert "cost  12.3% of KD" in text
    assert "acc 45.67 %" in text
    assert "agrees with teacher 89.00 %" in text
    assert "0:0" in text
    assert bars.progress.tasks[0].completed == bars.progress.tasks[0].total == 20


def test_nothing_breaks_without_accuracy_and_cost(runs):
    console = terminal()
    bars = BarDisplay(console, runs=runs)
    for event in events(**NOTHING):
        bars(event)
        bars.progress.refresh()
    bars.close()
    assert "of KD" not in output(console).replace("cost so far", "")
    assert "12,346 images/s" in output(console)


def test_an_epoch_without_evaluation_keeps_the_accuracy_on_the_bar():
    console = terminal()
    bars = BarDisplay(console)
    for event in (Started("run", 2, 10), done(1), done(2, accuracy=None), Stepped("run", 20, 1.0, None)):
        bars(event)
    assert "acc 45.67 %" in bars.progress.tasks[0].fields["text"]
    bars.close()


def test_a_resumed_run_starts_where_it_stood():
    bars = BarDisplay(terminal())
    bars(Started("run", 4, 10, first_epoch=3))
    assert (bars.progress.tasks[0].completed, bars.progress.tasks[0].total) == (30, 40)
    bars.close()


def test_several_runs_have_a_bar_each_and_one_for_all():
    console = terminal()
    bars = BarDisplay(console, runs=3)
    bars(Finished("before"))  # finished in an earlier session: it never had a bar
    for name in ("a", "b"):
        for event in events(name)[:-1]:
            bars(event)
    assert [task.description for task in bars.progress.tasks] == ["all runs", "a", "b"]
    bars(Finished("a"))
    assert [task.description for task in bars.progress.tasks] == ["all runs", "b"]
    bars(Finished("b"))
    assert bars.progress.tasks[0].completed == 3
    bars.close()
    assert "loss" not in output(console)  # epochs are not printed
    assert "a: teacher [vgg13]" in output(console)


def test_names_move_no_cursor_and_are_no_markup():
    hostile = "[red]x[/red] :cat:\n\x1b[31m"
    shown = r"[red]x[/red] :cat:\n\x1b[31m"
    lines = Console(file=io.StringIO(), width=120)
    LineDisplay(lines, name_runs=True)(Note(hostile, "teacher " + hostile))
    assert output(lines) == f"{shown}: teacher {shown}\n"
    screen = terminal()
    bars = BarDisplay(screen, runs=2)
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
    assert len(seen) == 3
    told = capsys.readouterr().err
    assert told.count("warning: what shows the run has failed") == 1
    assert ("its output is closed" if isinstance(error, SystemExit) else str(error)) in told


def test_ctrl_c_within_a_display_is_no_failure_of_it():
    def stopped(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unfailing(stopped)(Finished("run"))
