"""A method as a value: who is scored, how many rows are kept, how they are mixed.

`kd` and `unix` are the method of the paper and its baseline; the others are the controls without
which a result is rightly disbelieved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unixkd.errors import UserError
from unixkd.mixing import Curve, SigmoidCurve, full_curve, num_kept, num_pure
from unixkd.ramp import Ramp
from unixkd.resizing import Size, check_share, shrunk_size
from unixkd.scoring import Scorer, TrueLoss, entropy
from unixkd.scoring_pass import AS_PUBLISHED, Scoring
from unixkd.selection import EpochChoice, InfoBatch, RandomChoice, StaleChoice


@dataclass(frozen=True)
class Method:
    """What one step does with a batch of N images.

    Args:
        name: shown in reports
        keep: share k/N of the configured batch that is kept, in (0, 1]
        scorer: logits `[N, C]` -> uncertainty `[N]`, at a student forward on N images; None: random ranking
        curve: how strongly each rank is mixed; None: pure images
        scoring: how and when the student is asked for scores
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
    scoring: Scoring = AS_PUBLISHED
    per_sample_lambda: bool = False
    teacher: bool = True
    sampling: float | None = None
    choice: EpochChoice | None = None
    ramp: Ramp | None = None
    size: float = 1.0
    mixes_answers: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise UserError(f"method {self.name}: keep (k/N) must lie in (0, 1], got {self.keep:g}")
        check_share(f"method {self.name}: size", self.size)
        if self.scoring != AS_PUBLISHED and self.scorer is None:
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
        return self.choice is not None or self.scoring.every > 1

    def mean_share(self, epochs: int) -> float:
        """Share of the images that an epoch of a run is expected to visit, its mean over the epochs.

        >>> stale(keep=0.75).mean_share(10)
        0.75
        """
        if self.choice is None:
            return 1.0
        return sum(self.choice.share(epoch / epochs) for epoch in range(epochs)) / epochs

    def counts(self, images: int, batch_size: int, size: Size | None = None) -> StepCounts:
        """What one step on `images` images costs without stored answers, before it is run.

        Args:
            images: of the batch
            batch_size: the configured N
            size: height and width of the images; None: nothing is shrunk

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
    """How many rows of a batch are answered by stored answers: images as they are, or whose answers are mixed.

    Args:
        method: the method
        batch_size: the configured N
        images: of the batch; None: it is full

    >>> pure_rows(random(), 64), pure_rows(unix(), 64)
    (48, 0)
    """
    k = num_kept(method.keep, batch_size, batch_size if images is None else images)
    return k if method.mixes_answers else num_pure(method.curve, k, batch_size)


def kd() -> Method:
    """Plain knowledge distillation: every image, pure."""
    return Method("kd")


def unix(
    keep: float = 0.75,
    mix_from: float = 0.5,
    steepness: float = 10.0,
    scorer: Scorer | None = entropy,
    scoring_mode: Literal["train", "eval"] = "train",
) -> Method:
    """UNIX as published: entropy, k = 48 and b = 32 of 64, w = 10.

    >>> method = unix()
    >>> method.keep, method.curve
    (0.75, SigmoidCurve(mix_from=0.5, steepness=10.0))
    """
    return Method("unix", keep, scorer, SigmoidCurve(mix_from, steepness), Scoring(scoring_mode))


def unix_random(keep: float = 0.75, mix_from: float = 0.5, steepness: float = 10.0) -> Method:
    """The paper's control: random ranking, the same mixing. What remains is what uncertainty adds."""
    return Method("unix-random", keep, None, SigmoidCurve(mix_from, steepness))


def random(keep: float = 0.75) -> Method:
    """A random k of each batch, pure: what doing less gives."""
    return Method("random", keep)


def hard(keep: float = 0.75, scorer: Scorer | None = entropy) -> Method:
    """The most uncertain k of each batch, pure: uncertainty without mixing."""
    return Method("hard", keep, scorer)


def mixup() -> Method:
    """All N images, all mixed: mixing without selection (Beyer et al., arXiv 2106.05237)."""
    return Method("mixup", curve=full_curve)


def remix() -> Method:
    """All N images, all mixed, and the teacher's stored answers to both mixed alike: it is asked about no mix."""
    return Method("remix", curve=full_curve, mixes_answers=True)


def selective_backprop(keep: float = 0.75, beta: float = 1.0) -> Method:
    """Draw k of each batch, likelier the larger their loss (Jiang et al., arXiv 1910.00762)."""
    return Method("selective-backprop", keep, TrueLoss(), sampling=beta)


def random_epoch(keep: float = 0.75) -> Method:
    """A random share of the images, fresh each epoch, chosen before they are decoded: the control of `stale`."""
    return Method("random-epoch", choice=RandomChoice(keep))


def stale(keep: float = 0.75, random_share: float = 0.15) -> Method:
    """The images that the student was least certain of when it last saw them: uncertainty that costs nothing."""
    return Method("stale", choice=StaleChoice(keep, random_share))


def infobatch(prune: float = 0.5) -> Method:
    """Drop some of the easy images each epoch, weight up the rest of them (Qin et al., arXiv 2303.04947)."""
    return Method("infobatch", choice=InfoBatch(prune))


def student_alone() -> Method:
    """No teacher: cross-entropy on every image."""
    return Method("student-alone", teacher=False)


METHODS = {
    "kd": kd,
    "unix": unix,
    "unix-random": unix_random,
    "random": random,
    "hard": hard,
    "mixup": mixup,
    "remix": remix,
    "selective-backprop": selective_backprop,
    "random-epoch": random_epoch,
    "stale": stale,
    "infobatch": infobatch,
    "student-alone": student_alone,
}
"""Every method by the name the command line knows."""
