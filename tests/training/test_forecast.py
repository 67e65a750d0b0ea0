"""How long several runs still take, against times worked out by hand."""

from __future__ import annotations

from unixkd.training.forecast import Forecast


class Clock:
    time = 0.0

    def __call__(self) -> float:
        return self.time


def test_nothing_is_said_before_an_epoch_was_timed():
    forecast = Forecast({"kd-seed0": 2, "kd-seed1": 2}, 1, Clock())
    forecast.begin("kd-seed0")
    forecast.start("kd-seed0", 0)
    assert forecast.seconds_left() is None
    assert forecast.left_of("kd-seed0") is None


def test_runs_one_by_one():
    clock = Clock()
    forecast = Forecast({"kd-seed0": 4, "unix-seed0": 4, "kd-seed1": 4}, 1, clock)
    forecast.begin("kd-seed0")
    clock.time = 3.0  # it took 3 s to read its data
    forecast.start("kd-seed0", 0)
    clock.time = 13.0
    forecast.reach("kd-seed0", 1)  # 10 s an epoch: 30 of its own, 40 of each other run
    assert forecast.seconds_left() == 30 + 40 + 40
    clock.time = 15.0
    assert forecast.seconds_left() == 28 + 40 + 40
    clock.time = 43.0
    forecast.reach("kd-seed0", 4)
    clock.time = 44.0
    forecast.finish("kd-seed0")  # 4 s around its epochs, which the others will take too
    assert (forecast.finished, forecast.share) == (1, 1 / 3)
    assert forecast.seconds_left() == 2 * (40 + 4)
    forecast.begin("unix-seed0")
    forecast.start("unix-seed0", 0)
    clock.time = 46.0
    forecast.reach("unix-seed0", 1)  # 2 s an epoch; the other seed of kd is as slow as kd was
    assert forecast.left_of("unix-seed0") == 6
    assert forecast.seconds_left() == 6 + 44


def test_runs_side_by_side_and_those_of_an_earlier_command():
    clock = Clock()
    forecast = Forecast({"kd-seed0": 2, "kd-seed1": 2, "kd-seed2": 2, "kd-seed3": 2}, 2, clock)
    forecast.finish("kd-seed0")
    for name in ("kd-seed1", "kd-seed2"):
        forecast.begin(name)
        forecast.start(name, 0)
    clock.time = 10.0
    forecast.reach("kd-seed1", 1)
    forecast.reach("kd-seed2", 1)
    assert forecast.seconds_left() == (10 + 10 + 20) / 2
    clock.time = 20.0
    for name in ("kd-seed1", "kd-seed2"):
        forecast.reach(name, 2)
        forecast.finish(name)
    assert forecast.seconds_left() == 20  # one is left, whatever the number of workers
    assert forecast.share == 3 / 4


def test_a_resumed_run_is_timed_by_what_is_trained_now():
    clock = Clock()
    forecast = Forecast({"a": 10}, 1, clock)
    forecast.begin("a")
    forecast.start("a", 8)
    clock.time = 5.0
    forecast.reach("a", 9)
    assert forecast.seconds_left() == 5


def test_all_is_done():
    forecast = Forecast({"a": 2}, 1, Clock())
    forecast.begin("a")
    forecast.start("a", 0)
    forecast.now.time = 1.0  # type: ignore[attr-defined]
    forecast.reach("a", 2)
    forecast.finish("a")
    assert (forecast.seconds_left(), forecast.share) == (0.0, 1.0)
