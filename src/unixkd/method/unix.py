"""UNIX, its controls and its relatives: each is a `Method`, composed of a scorer, a curve and a share to keep.

`unix` is the method of the paper and `kd` its baseline; without the controls a result is rightly disbelieved.
Source of UNIX: Xu, Liu, Loy, arXiv 2012.09413.
"""

from __future__ import annotations

from typing import Literal

from unixkd.method.epoch_choice import InfoBatch, RandomChoice, StaleChoice
from unixkd.method.method import Method, Scoring
from unixkd.method.mixing import SigmoidCurve, full_curve
from unixkd.method.scoring import Scorer, TrueLoss, entropy


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
