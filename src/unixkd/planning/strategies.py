"""What a run of each way to distil will cost here, averaged over runs that share their stored answers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from unixkd.config import MethodConfig
from unixkd.method.batch import Batch
from unixkd.method.from_config import build_method
from unixkd.method.ledger import Ledger
from unixkd.method.method import sees_clean_images
from unixkd.method.network import has_statistics
from unixkd.method.resizing import Size, image_size, shrunk_share
from unixkd.models.card import PixelModel
from unixkd.planning.catalogue import Strategy
from unixkd.planning.expected import answerable, distinct_answers, expected_cost, phases, step_sizes, visited
from unixkd.planning.timing import TEACHER, Step, step_of, step_seconds


@dataclass(frozen=True)
class Setting:
    """What all ways are planned for.

    Args:
        images: of the training set
        batch_size: N
        epochs: of the planned plain KD
        runs: that share one store of answers, empty at first
        views: that an image has; None: without end
        in_turn: whether these are some fixed ones of more already, that take turns
        ahead: whether a store is filled ahead of each epoch, as on a GPU
        bn_images: on which BatchNorm's statistics are estimated anew where training has seen no clean ones
    """

    images: int
    batch_size: int = 64
    epochs: int = 240
    runs: int = 1
    views: int | None = None
    in_turn: bool = False
    ahead: bool = False
    bn_images: int = 2048

    @cached_property
    def sizes(self) -> list[int]:
        """Of an epoch's batches."""
        return step_sizes(self.batch_size, self.images)

    def allows(self, way: Strategy) -> bool:
        """Whether a way can be followed: answers to views without end cannot be stored."""
        return not way.stored or self.views is not None or way.views_share is not None


@dataclass(frozen=True)
class TeacherForwards:
    """Forwards of the teacher on images as they are, per training image, over a run.

    Args:
        visits: images that are trained on as they are
        forwarded: that a run asks for, its share of what the runs ask for together
    """

    visits: float
    forwarded: float


@dataclass(frozen=True)
class Forecast:
    """One way's run.

    Args:
        way: the way
        relative: its cost over that of plain KD for the planned epochs, by convention name
        asked: what of the teacher a store saves
        seconds: of a run here, the median over the timed rounds; None: nothing was timed
        relative_seconds: over those of plain KD's run, the median over the rounds
    """

    way: Strategy
    relative: dict[str, float]
    asked: TeacherForwards
    seconds: float | None = None
    relative_seconds: float | None = None


def make_forecasts(
    ways: Sequence[Strategy],
    teacher: PixelModel,
    student: PixelModel,
    batch: Batch,
    setting: Setting,
    rounds: int,
) -> list[Forecast]:
    """Predict the cost of each way that can be followed, and its seconds from steps timed here.

    Args:
        ways: to predict
        teacher: the teacher
        student: the student, in train mode
        batch: images to time on; its size is the configured batch size
        setting: what they are planned for
        rounds: timed rounds; 0: no timing
    """
    ledger = Ledger.of(student, teacher, (batch.pixels.shape[1], *image_size(batch.pixels)))
    forecasts = []
    for way in ways:
        if setting.allows(way):
            asked = questions(way, setting)
            forecasts.append(
                Forecast(way, run_cost(way, asked, ledger, setting, has_statistics(student)), asked)
            )
    return timed(forecasts, teacher, student, batch, setting, rounds) if rounds else forecasts


def questions(way: Strategy, setting: Setting) -> TeacherForwards:
    """What of the teacher a run needs on images as they are, and what of it is asked."""
    method, epochs = build_method(way.method), way.epochs(setting.epochs)
    each = [(method.at(epoch / epochs), visited(method, epoch / epochs)) for epoch in range(epochs)]
    trained = [share * answerable(now, setting.sizes) for now, share in each]
    visits = math.fsum(trained)
    if not way.stored:
        return TeacherForwards(visits, visits)
    limit = way.views(setting.epochs, setting.views)
    views, in_turn = (setting.views, setting.in_turn) if limit is None else (limit, True)
    assert views is not None
    chances = [share for _, share in each] if setting.ahead else trained
    return TeacherForwards(
        visits, distinct_answers(chances, views, setting.runs, in_turn=in_turn) / setting.runs
    )


def run_cost(
    way: Strategy, asked: TeacherForwards, ledger: Ledger, setting: Setting, refreshes: bool
) -> dict[str, float]:
    """A run's cost over that of plain KD for the planned epochs, by convention name.

    Args:
        way: the way
        asked: what a store saves it
        ledger: an empty one with both networks' forward FLOPs
        setting: what is planned for
        refreshes: whether the student has statistics that may have to be estimated anew
    """
    method, epochs = build_method(way.method), way.epochs(setting.epochs)
    last = method.at((epochs - 1) / epochs)
    if ledger.image_size is not None:
        last = replace(last, size=shrunk_share(ledger.image_size[0], last.size))
    clean = not way.mixed and sees_clean_images(last, epochs - 1)
    refreshed = min(setting.bn_images, setting.images) if refreshes and not clean else 0
    own = expected_cost(
        method,
        ledger,
        setting.sizes,
        epochs,
        answered=(asked.visits - asked.forwarded) / epochs,
        refreshed=refreshed / setting.images / epochs,
    )
    return {name: cost * epochs / setting.epochs for name, cost in own.items()}


def timed(
    forecasts: Sequence[Forecast],
    teacher: PixelModel,
    student: PixelModel,
    batch: Batch,
    setting: Setting,
    rounds: int,
) -> list[Forecast]:
    """The forecasts with seconds: every step that a way takes and the teacher's forward, timed in turns."""
    size = image_size(batch.pixels)
    plain = Strategy("kd", MethodConfig("kd"))
    steps = {way.name: way_steps(way, setting, size) for way in (plain, *(each.way for each in forecasts))}
    seconds = step_seconds(
        teacher, student, [step for own in steps.values() for step, _ in own], batch, rounds
    )

    def run_seconds(way: Strategy, forwarded: float) -> list[float]:
        """Of a run, round by round; what a store lacks is asked in batches."""
        counted = [(seconds[step], times) for step, times in steps[way.name]]
        counted.append((seconds[TEACHER], forwarded * setting.images / setting.batch_size))
        return [math.fsum(own[i] * times for own, times in counted) for i in range(rounds)]

    whole, results = run_seconds(plain, 0.0), []
    for each in forecasts:
        own = run_seconds(each.way, each.asked.forwarded if each.way.stored else 0.0)
        ratio = statistics.median(mine / kd for mine, kd in zip(own, whole, strict=True))
        results.append(replace(each, seconds=statistics.median(own), relative_seconds=ratio))
    return results


def way_steps(way: Strategy, setting: Setting, size: Size) -> list[tuple[Step, float]]:
    """The steps of a run, those that are alike as one, and how many full batches' worth there are of each.

    Args:
        way: the way
        setting: what is planned for
        size: height and width of the images
    """
    epochs = way.epochs(setting.epochs)
    batches = epochs * setting.images / setting.batch_size
    return [
        (step_of(phase, size, answered=way.stored), phase.weight * batches)
        for phase in phases(build_method(way.method), epochs)
    ]
