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
    """Plain knowledge distillation: every image is answered by the teacher and trained on."""
    return Method("kd")


def unix(
    keep: float = 0.75,
    mix_from: float = 0.5,
    steepness: float = 10.0,
    scorer: Scorer | None = entropy,
    scoring_mode: Literal["train", "eval"] = "train",
) -> Method:
    """Keeps the images of each batch that the student is least sure of and mixes some of the rest in: the paper's UNIX.

    Entropy, k = 48 and b = 32 of 64, w = 10.

    >>> method = unix()
    >>> method.keep, method.curve
    (0.75, SigmoidCurve(mix_from=0.5, steepness=10.0))
    """
    return Method("unix", keep, scorer, SigmoidCurve(mix_from, steepness), Scoring(scoring_mode))


def unix_random(keep: float = 0.75, mix_from: float = 0.5, steepness: float = 10.0) -> Method:
    """UNIX with ranks drawn at random: the control for what uncertainty adds.

    As in the reference the student scores the images all the same, so that BatchNorm sees and a step costs what it does
    under `unix`. Without that forward it is `unix(scorer=None)`.

    >>> method = unix_random()
    >>> method.scoring == unix().scoring, method.sampling
    (True, 0.0)
    """
    curve = SigmoidCurve(mix_from, steepness)
    return Method("unix-random", keep, entropy, curve, sampling=0.0)  # 0: scores weigh nothing in the draw


def random(keep: float = 0.75) -> Method:
    """Keeps random images of each batch, unmixed: the control for training on less."""
    return Method("random", keep)


def hard(keep: float = 0.75, scorer: Scorer | None = entropy) -> Method:
    """Keeps the images of each batch that the student is least sure of, unmixed."""
    return Method("hard", keep, scorer)


def mixup() -> Method:
    """Knowledge distillation on mixed images, nothing dropped (Beyer et al., arXiv 2106.05237)."""
    return Method("mixup", curve=full_curve)


def remix() -> Method:
    """Mixes all images, and the stored answers to them instead of asking the teacher about mixes."""
    return Method("remix", curve=full_curve, mixes_answers=True)


def selective_backprop(keep: float = 0.75, beta: float = 1.0) -> Method:
    """Draws images of each batch, likelier the larger their loss, unmixed (Jiang et al., arXiv 1910.00762)."""
    return Method("selective-backprop", keep, TrueLoss(), sampling=beta)


def random_epoch(keep: float = 0.75) -> Method:
    """Visits random images in each epoch: the control for the choice of an epoch's images."""
    return Method("random-epoch", choice=RandomChoice(keep))


def stale(keep: float = 0.75, random_share: float = 0.15) -> Method:
    """Visits the images that the student was least sure of when it last saw them."""
    return Method("stale", choice=StaleChoice(keep, random_share))


def infobatch(prune: float = 0.5) -> Method:
    """Leaves out some images of small loss, weighs the others of them up (Qin et al., arXiv 2303.04947)."""
    return Method("infobatch", choice=InfoBatch(prune))


def student_alone() -> Method:
    """The student trained on the labels without a teacher."""
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
"""Every method by its name, in the order in which they are shown; help, plan, compare and report read it from here."""
