"""A method as a value: who is scored, how many rows are kept, how they are mixed, how that changes over a run.

The methods themselves are in `unixkd.method.unix`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

from unixkd.errors import UserError, check_share, unknown_name
from unixkd.method.epoch_choice import EpochChoice, is_last
from unixkd.method.mixing import Curve, num_kept, num_pure
from unixkd.method.resizing import Size, shrunk_size
from unixkd.method.scoring import Scorer, TrueLoss


@dataclass(frozen=True)
class Scoring:
    """How the student is asked for the scores of a batch.

    Args:
        mode: "train": BatchNorm normalises the scoring forward by the batch and updates its running statistics, as
            in the reference; "eval": it uses the running statistics and leaves them alone
        size: share of the image's side that is looked at, in (0, 1]
        dtype: precision of the forward by autocast; None: as in training

    >>> Scoring("eval", size=0.5)
    Scoring(mode='eval', size=0.5, dtype=None)
    """

    mode: Literal["train", "eval"] = "train"
    size: float = 1.0
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("train", "eval"):
            raise UserError(f"scoring_mode is train or eval, not '{self.mode}'")
        check_share("scoring_size", self.size, "the image's side", zero=False)


DEFAULT_SCORING = Scoring()
"""Every batch in its own step, in train mode, whole images, in training's precision."""


@dataclass(frozen=True)
class Method:
    """What one step does with a batch of N images.

    Args:
        name: shown in reports
        keep: share k/N of the configured batch that is kept, in (0, 1]
        scorer: logits `[N, C]` -> uncertainty `[N]`, at a student forward on N images; None: random ranking
        curve: how strongly each rank is mixed; None: pure images
        scoring: how the student is asked for scores
        per_sample_lambda: one λ per kept row instead of one per batch
        teacher: False: trained on labels alone
        sampling: β: rows are drawn with a chance of their score's percentile to this power; None: the first k
        choice: chooses each epoch's images before they are decoded; None: all
        ramp: how keep, curve and size change over a run; None: they stay
        size: share of the image's side that the student is trained on, in (0, 1]; the teacher sees all of it
        mixes_answers: the teacher is not asked about mixed images: its answers to the two are mixed instead
    """

    name: str
    keep: float = 1.0
    scorer: Scorer | TrueLoss | None = None
    curve: Curve | None = None
    scoring: Scoring = DEFAULT_SCORING
    per_sample_lambda: bool = False
    teacher: bool = True
    sampling: float | None = None
    choice: EpochChoice | None = None
    ramp: Ramp | None = None
    size: float = 1.0
    mixes_answers: bool = False

    def __post_init__(self) -> None:
        check_share(f"method {self.name}: keep (k/N)", self.keep, "the batch", zero=False)
        check_share(f"method {self.name}: size", self.size, "the image's side", zero=False)
        if self.scoring != DEFAULT_SCORING and self.scorer is None:
            raise UserError(
                f"method {self.name} does not score: how it would (scoring_mode …) does not apply"
            )
        if self.mixes_answers and self.curve is None:
            raise UserError(f"method {self.name} does not mix: mixes_answers does not apply")
        if self.ramp is not None:
            self.ramp.curve(self, 1.0)  # what it cannot change, or not so far, is found here
            if self.choice is not None and self.ramp.within_batch:
                raise UserError(f"method {self.name} chooses epochs: a ramp within the batch does not apply")
        if self.sampling is not None and (self.scorer is None or self.sampling < 0):
            raise UserError(f"method {self.name}: sampling (β) needs a scorer and a value of at least 0")
        if self.choice is not None and self.choice.row_score is not None and self.curve is not None:
            raise UserError(
                f"method {self.name}: what is remembered of an image must be of the image unmixed"
            )

    @property
    def ranks(self) -> bool:
        """Whether the order of the rows matters: some are dropped, scored or mixed by rank."""
        return self.keep < 1 or self.scorer is not None or self.curve is not None

    def at(self, progress: float) -> Method:
        """The method of an epoch at this point of a run, in [0, 1): itself where nothing changes.

        >>> Method("own", keep=1.0, ramp=Ramp(keep=0.5)).at(0.5).keep
        0.75
        """
        return self if self.ramp is None else self.ramp.applied(self, progress)

    @property
    def selects(self) -> bool:
        """Whether some images are left out of an epoch."""
        return self.keep < 1 or self.choice is not None or self.ramp is not None

    @property
    def remembers(self) -> bool:
        """Whether an image's last score is wanted in later epochs."""
        return self.choice is not None

    def mean_share(self, epochs: int) -> float:
        """Share of the images that an epoch of a run is expected to visit, its mean over the epochs.

        >>> from unixkd.method.unix import stale
        >>> stale(keep=0.75).mean_share(10)
        0.75
        """
        if self.choice is None:
            return 1.0
        return sum(self.choice.expected_fraction(epoch / epochs) for epoch in range(epochs)) / epochs

    def counts(self, images: int, batch_size: int, size: Size | None = None) -> StepCounts:
        """What one step on `images` images costs without stored answers, before it is run.

        Args:
            images: of the batch
            batch_size: the configured N
            size: height and width of the images; None: nothing is shrunk

        >>> from unixkd.method.unix import unix
        >>> counts = unix().counts(64, batch_size=64)
        >>> counts.scored, counts.teacher_forwarded, counts.trained
        (64, 48, 48)
        """
        k = num_kept(self.keep, batch_size, images)
        return StepCounts(
            seen=images,
            scored=images if self.scorer is not None else 0,
            teacher_forwarded=k if self.teacher else 0,
            trained=k,
            scored_size=None if size is None else shrunk_size(size, self.scoring.size),
            trained_size=None if size is None else shrunk_size(size, self.size),
        )


@dataclass(frozen=True)
class StepCounts:
    """Images that passed through each forward of one step.

    Args:
        seen: images offered to the method
        scored: through the student for their scores
        teacher_forwarded: through the teacher
        trained: through the student, forward and backward
        teacher_cached: answered from the store instead
        teacher_filled: of `teacher_forwarded`, those whose answers were stored
        scored_size: height and width of the scored images, where they were shrunk for it
        trained_size: height and width of the images trained on, where they were shrunk for it
    """

    seen: int
    scored: int
    teacher_forwarded: int
    trained: int
    teacher_cached: int = 0
    teacher_filled: int = 0
    scored_size: Size | None = None
    trained_size: Size | None = None


def pure_rows(method: Method, batch_size: int, images: int | None = None) -> int:
    """How many rows of a batch of `images` (None: N) stored answers serve: unmixed ones, all where answers are mixed.

    >>> from unixkd.method.unix import random, unix
    >>> pure_rows(random(), 64), pure_rows(unix(), 64)
    (48, 0)
    """
    k = num_kept(method.keep, batch_size, batch_size if images is None else images)
    return k if method.mixes_answers else num_pure(method.curve, k, batch_size)


def sees_clean_images(method: Method) -> bool:
    """Whether the student's train-mode forwards include images that are neither mixed nor shrunk.

    >>> from unixkd.method.unix import kd, unix, unix_random
    >>> [sees_clean_images(method) for method in (kd(), unix(), unix_random(), unix(scorer=None))]
    [True, True, True, False]
    """
    scoring = method.scoring
    scored = method.scorer is not None and scoring.mode == "train" and scoring.size == 1
    return scored or (method.curve is None and method.size == 1)


@dataclass(frozen=True)
class Ramp:
    """From a method's own values at a run's start to these at its end; they stay within an epoch.

    Args:
        keep: share k/N at the end, in (0, 1]; None: it stays
        mix_from: b as a share of the batch at the end; None: it stays
        steepness: w at the end; None: it stays
        shape: linear | cosine
        full_last: in this last share of the run every image is kept, whole, pure and unscored, in [0, 1]
        size: share of the image's side at the end, in (0, 1]; None: it stays
    """

    keep: float | None = None
    mix_from: float | None = None
    steepness: float | None = None
    shape: Literal["linear", "cosine"] = "linear"
    full_last: float = 0.0
    size: float | None = None

    def __post_init__(self) -> None:
        check_share("full_last", self.full_last, "the run")
        if self.keep is not None:
            check_share("keep_end", self.keep, "the batch", zero=False)
        if self.size is not None:
            check_share("size_end", self.size, "the image's side", zero=False)
        if self.shape not in ("linear", "cosine"):
            raise unknown_name("ramp", self.shape, ("linear", "cosine"))

    @property
    def within_batch(self) -> bool:
        """Whether it changes whom of a batch is kept and how these are mixed."""
        return (self.keep, self.mix_from, self.steepness, self.full_last) != (None, None, None, 0.0)

    def applied(self, method: Method, progress: float) -> Method:
        """The method with the values of this point of a run, in [0, 1)."""
        if is_last(progress, self.full_last):
            return Method(method.name, teacher=method.teacher)  # plain training on everything
        fraction = 1 - cosine(1.0, 0.0, progress) if self.shape == "cosine" else progress
        keep = method.keep if self.keep is None else method.keep + fraction * (self.keep - method.keep)
        size = method.size if self.size is None else method.size + fraction * (self.size - method.size)
        return replace(method, keep=keep, size=size, curve=self.curve(method, fraction), ramp=None)

    def curve(self, method: Method, fraction: float) -> Curve | None:
        """The mixing curve at this fraction of its change, in [0, 1]."""
        changed = {}
        for name, end in (("mix_from", self.mix_from), ("steepness", self.steepness)):
            if end is None:
                continue
            start = getattr(method.curve, name, None)
            if start is None:
                raise UserError(f"method {method.name}: its mixing curve has no {name} that could change")
            changed[name] = start + fraction * (end - start)
        return replace(method.curve, **changed) if changed else method.curve  # type: ignore[type-var]


def cosine(start: float, end: float, progress: float) -> float:
    """From start to end along half a cosine, progress in [0, 1].

    >>> cosine(1.0, 0.0, 0.5)
    0.5
    """
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
