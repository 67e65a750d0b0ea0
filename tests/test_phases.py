"""What lasts is announced, once, after a while without a line."""

from __future__ import annotations

import threading

import pytest

from unixkd import names
from unixkd.names import LEAST, Announcer, announced, current, phase, shown_live, spoke

PATIENCE = 2.5
"""As it is outside of the tests."""


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(names, "PATIENCE", PATIENCE)
    monkeypatch.setattr(names, "_state", names._State())


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    spoke()
    return now


@pytest.fixture
def told(clock):
    """Looks after so many more seconds, and gives all that was told until then."""
    texts: list[str] = []
    announcer = Announcer(texts.append)

    def after(seconds: float) -> list[str]:
        clock[0] += seconds
        announcer.look(clock[0])
        return texts

    return after


def test_what_is_over_soon_is_not_announced(told):
    for _ in range(3):
        with phase("reading"):
            assert told(PATIENCE - LEAST) == []
        spoke()
    assert told(100.0) == []  # nothing goes on


def test_it_is_announced_once_after_silence(told):
    with phase("reading"):
        assert told(PATIENCE) == ["reading"]
        assert told(100.0) == ["reading"]


def test_a_line_puts_it_off(told):
    with phase("reading"):
        told(PATIENCE - 0.1)
        spoke()
        assert told(PATIENCE - 0.1) == []
        assert told(0.2) == ["reading"]


def test_short_phases_in_a_row_leave_no_long_silence(told):
    for number in range(20):
        with phase(f"part {number}"):
            texts = told(LEAST)
    assert len(texts) == 2  # in 5 s
    assert texts[0] == f"part {int(PATIENCE / LEAST) - 1}"


def test_the_outer_phase_is_announced_again_after_an_inner_one_was(told):
    with phase("outer"):
        told(PATIENCE)
        with phase("inner"):
            told(PATIENCE)
        assert told(PATIENCE) == ["outer", "inner", "outer"]


def test_what_comes_in_every_epoch_is_announced_the_first_time(told):
    for _ in range(3):
        with phase("evaluating", once=True):
            texts = told(PATIENCE)
    assert texts == ["evaluating"]


def test_a_live_display_shows_it_instead(told):
    with phase("reading"), shown_live():
        assert names.is_live()
        assert told(PATIENCE) == []
    assert not names.is_live()


def test_phases_end_with_errors_and_work_as_decorators():
    @phase("deciding")
    def fail() -> None:
        assert current().text == "deciding"
        raise ValueError

    for _ in range(2):
        with pytest.raises(ValueError):  # noqa: PT011
            fail()
    assert current() is None


def test_a_thread_tells(monkeypatch):
    monkeypatch.setattr(names, "PATIENCE", 0.0)
    monkeypatch.setattr(names, "LEAST", 0.0)
    monkeypatch.setattr(names, "TICK", 0.01)
    heard = threading.Event()
    with announced(lambda text: heard.set() if text == "reading" else None), phase("reading"):
        assert heard.wait(10)
    assert not [thread for thread in threading.enumerate() if thread.name == "unixkd-phases"]
