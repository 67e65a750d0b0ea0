"""Statistics of an epoch: losses, and which samples a method kept, easy or hard, by bins of their scores.

Everything is summed on the device and read once an epoch, so that no step waits for it. "Hard" means
that the student got the image wrong at that moment, on its own pure forward.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unixkd.method.batch import Batch
from unixkd.method.epoch_choice import RowLoss, Uncertainty
from unixkd.method.method import Method, StepCounts
from unixkd.method.scoring import Scorer, TrueLoss, entropy, least_confidence, margin
from unixkd.method.step import StepResult
from unixkd.run_files import Histogram, Selected
from unixkd.training.distributed.world import World

_NUMBERS = ("seen", "kept", "steps")
MIXED_UNIT = 4096
"""Parts of an image in which mixing weights are summed: whole numbers add up to the same in any order."""


class EpochStats:
    """Sums over the steps of an epoch; the tensors are the same in every epoch, as a CUDA graph wants.

    Args:
        times_kept: how often each training image was kept so far, `[n]`, updated in place
        bins: those of the method's scores; None: no histogram of them
    """

    def __init__(self, times_kept: Tensor, bins: ScoreBins | None = None) -> None:
        self.times_kept, self.bins = times_kept, bins
        self.edges = None if bins is None else bins.edges(times_kept.device)
        self.before = times_kept.clone()
        self.unanswered = torch.zeros_like(times_kept)
        """How often the teacher's answer to each image was not finite, in the whole run `[n]`"""
        self.mixed = torch.zeros_like(times_kept)
        """What each image's rows gave to their partners, which are drawn at random, in parts of an image `[n]`"""
        self.sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=times_kept.device))
        self.start_epoch()

    def of_images(self) -> dict[str, Tensor]:
        """What is counted of each training image over the whole run, by name."""
        return {"times_kept": self.times_kept, "unanswered": self.unanswered, "mixed": self.mixed}

    def start_epoch(self) -> None:
        """Begin again."""
        self.before.copy_(self.times_kept)
        for value in self.sums.values():
            value.zero_()
        self.remembered: tuple[list[int], list[int]] | None = None
        self.seen = self.kept = self.steps = 0

    def count(self, counts: StepCounts) -> None:
        """Count one step's images."""
        self.steps, self.kept, self.seen = self.steps + 1, self.kept + counts.trained, self.seen + counts.seen

    def add(self, batch: Batch, result: StepResult, skipped: Float[Tensor, ""] | None = None) -> None:
        """Add one step's tensors.

        Args:
            batch: the images
            result: what the step made of them
            skipped: in fp16, 1 where the step has changed no weight, else 0; its losses count where they are finite
        """
        losses = {"loss": result.loss.detach(), **{f"part.{name}": v for name, v in result.parts.items()}}
        if skipped is not None:
            lost = skipped.bool() & ~losses["loss"].isfinite()
            losses = {name: value.masked_fill(lost, 0) for name, value in losses.items()}
            self.sums["lost"] += lost
            self.sums["skipped"] += skipped
        for name, value in losses.items():
            self.sums[name] += value
        index = batch.index
        if index is not None:
            kept_index = index[result.mixed.position]
            once = torch.ones_like(kept_index, dtype=self.times_kept.dtype)
            self.times_kept.index_add_(0, kept_index, once)
            if result.mixed.partner is not None:
                to_partner = (MIXED_UNIT * result.mixed.weight).round().to(self.mixed.dtype)
                self.mixed.index_add_(0, kept_index, to_partner)
            if result.answers is not None and result.answers.finite is not None:
                faulty = (~result.answers.finite).to(self.unanswered.dtype)
                self.unanswered.index_add_(0, kept_index, faulty)
        wrong = None
        if result.scoring_logits is not None and batch.labels is not None:
            wrong = result.scoring_logits.argmax(1) != batch.labels
            self._split("hard", wrong, result)
        elif result.mixed.label_a is not None and result.mixed.label_a is result.mixed.label_b:
            kept_wrong = result.outputs.logits.detach().argmax(1) != result.mixed.label_a
            self.sums["hard_kept"] += kept_wrong.sum()
            self.sums["hard_kept.steps"] += 1
        if result.scores is not None:
            faulty = ~result.scores.isfinite()  # a scoring forward in fp16 may overflow
            self._split("faulty", faulty, result)
            self._split("score", result.scores.masked_fill(faulty, 0), result)
            self._count_scores(result.scores, wrong, result)

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """What has to be saved in the middle of an epoch: tensors by name, numbers by name."""
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        return {"times_kept.before": self.before, **self.sums}, numbers

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> None:
        """Go on in the middle of an epoch with what `state` gave."""
        for name, value in tensors.items():
            if name == "times_kept.before":
                self.before.copy_(value)
            else:
                self.sums[name] = value.to(self.times_kept.device)
        for name in _NUMBERS:
            setattr(self, name, numbers[name])

    def finite(self) -> bool:
        """Whether every loss so far was finite: one that was not stays in the sum. Waits for the device."""
        return bool(self.sums["loss"].isfinite())

    def skipped(self) -> int | None:
        """Steps of the epoch that were skipped in fp16; None in another precision."""
        return int(self.sums["skipped"]) if "skipped" in self.sums else None

    def counted(self) -> int:
        """Steps of the epoch whose losses are in the sums."""
        return self.steps - int(self.sums["lost"]) if "lost" in self.sums else self.steps

    def _split(self, name: str, values: Tensor, result: StepResult) -> None:
        kept = values[result.mixed.position].sum(dtype=torch.float32)
        self.sums[f"{name}_kept"] += kept
        self.sums[f"{name}_dropped"] += values.sum(dtype=torch.float32) - kept
        for key in (f"{name}_kept.steps", f"{name}_dropped.steps"):  # a graph's replay adds them too
            self.sums[key] += 1

    def _count_scores(self, scores: Tensor, wrong: Tensor | None, result: StepResult) -> None:
        """Count the images in a table of (seen or kept) × (easy or hard) × bin."""
        if self.edges is None:
            return
        cell = torch.bucketize(scores.to(self.edges.dtype).contiguous(), self.edges, right=True)
        if wrong is not None:
            cell = torch.add(cell, wrong, alpha=NUM_BINS)
        for name, cells in (("histogram.seen", cell), ("histogram.kept", cell[result.mixed.position])):
            if name not in self.sums:
                self.sums[name] = torch.zeros(2 * NUM_BINS, dtype=torch.int64, device=cell.device)
            self.sums[name].index_add_(0, cells, torch.ones_like(cells))

    def choose(self, score: Tensor, order: Tensor) -> None:
        """Count the remembered scores of an epoch's images and of those it leaves out; on the host.

        Args:
            score: what is remembered of each training image, inf: nothing yet `[n]`
            order: the images that are visited `[m]`
        """
        known = score.isfinite()
        if self.bins is None or not known.any():
            return
        visited = torch.zeros(len(score), dtype=torch.bool)
        visited[order] = True
        scale = score[known].mean().clamp_min(1e-12) if self.bins.of_mean else 1.0
        cell = torch.bucketize(score / scale, self.bins.edges(), right=True)
        inside, outside = (
            torch.bincount(cell[which & known], minlength=NUM_BINS).tolist() for which in (visited, ~visited)
        )
        self.remembered = inside, outside

    def share(self, world: World) -> None:
        """Take over what other processes have counted of images, each of which one of them has visited."""
        world.reduce(list(self.of_images().values()), "max")

    def joined(self, world: World) -> EpochStats:
        """The sums over all processes, after `share`; with one process, these statistics themselves."""
        if world.size == 1:
            return self
        total = EpochStats(self.times_kept, self.bins)
        total.before, total.remembered = self.before, self.remembered
        on_the_host = {name: value.cpu() for name, value in self.sums.items()}
        for sums, numbers in world.gather((on_the_host, self.state()[1])):
            for name, value in sums.items():
                total.sums[name] = total.sums[name] + value.to(self.times_kept.device)
            for name, number in numbers.items():
                setattr(total, name, getattr(total, name) + number)
        return total

    def losses(self) -> dict[str, Any]:
        """Mean loss and mean of each part."""
        steps = self.counted()
        parts = {k[5:]: v.item() / steps for k, v in self.sums.items() if k.startswith("part.")}
        return {"loss": self.sums["loss"].item() / steps, "loss_parts": parts}

    def selection(self) -> Selected:
        """Means over the kept and the dropped images; None where nothing was measured or dropped.

        Scores that were not finite are left out.
        """

        def total(key: str) -> float | None:
            return self.sums[key].item() if self._measured(key) else None

        def mean(key: str, count: int) -> float | None:
            return None if (value := total(key)) is None or not count else value / count

        dropped = self.seen - self.kept
        return Selected(
            visited=self.seen / len(self.before),
            kept=self.kept / self.seen,
            distinct=(self.times_kept > self.before).sum().item() / len(self.before),
            score_kept=mean("score_kept", self.kept - int(total("faulty_kept") or 0)),
            hard_kept=mean("hard_kept", self.kept),
            score_dropped=mean("score_dropped", dropped - int(total("faulty_dropped") or 0)),
            hard_dropped=mean("hard_dropped", dropped),
            histogram=self.histogram(),
        )

    def _measured(self, key: str) -> bool:
        """Whether a step of this epoch has added to a sum."""
        steps = f"{key}.steps"
        return steps in self.sums and self.sums[steps].item() > 0

    def histogram(self) -> Histogram | None:
        """How many kept and dropped images lie in each bin of their scores, and how many of those were hard.

        None where nothing was scored and nothing is remembered.
        """
        if self.bins is None or (self.remembered is None and not self._measured("score_kept")):
            return None
        made = partial(Histogram, score=self.bins.name, low=self.bins.low, high=self.bins.high)
        if self.remembered is not None:
            kept, dropped = map(tuple, self.remembered)
            return made(remembered=True, kept=kept, dropped=dropped)
        seen, taken = (self.sums[f"histogram.{name}"].reshape(2, NUM_BINS) for name in ("seen", "kept"))
        left = seen - taken
        labelled = self._measured("hard_dropped")
        return made(
            kept=tuple(taken.sum(0).tolist()),
            dropped=tuple(left.sum(0).tolist()),
            kept_hard=tuple(taken[1].tolist()) if labelled else None,
            dropped_hard=tuple(left[1].tolist()) if labelled else None,
        )


NUM_BINS = 10


@dataclass(frozen=True)
class ScoreBins:
    """`NUM_BINS` bins of equal width; scores beyond the range are counted in the outermost ones.

    Args:
        name: of the score, shown in reports
        of_mean: scores are divided by their mean over the images first

    >>> ScoreBins("entropy", 0.0, 10.0).edges().tolist()
    [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    """

    name: str
    low: float
    high: float
    of_mean: bool = False

    def edges(self, device: torch.device | str = "cpu") -> Float[Tensor, " edges"]:
        """Where one bin ends and the next begins: with `torch.bucketize` even NaN falls into a bin."""
        edges = torch.linspace(self.low, self.high, NUM_BINS + 1, device=device)
        return edges[1:-1].contiguous()


def score_bins(method: Method, num_classes: int) -> ScoreBins | None:
    """Bins for what the method scores, or else for what its choice of epochs remembers; None: neither is known.

    Entropy lies in [0, log C], margin in [−1, 0], least confidence in [0, 1 − 1/C]. A loss has no upper end:
    the true loss is cut off at 2 · log C, twice that of a guess; a KD loss, whose scale depends on the teacher
    and on T, is divided by its mean and cut off at 2, so that what InfoBatch may drop lies below 1.
    """
    scored: Scorer | TrueLoss | None = method.scorer
    num_classes = max(num_classes, 2)
    remembered = None if method.choice is None else method.choice.row_score
    if isinstance(remembered, RowLoss):
        return ScoreBins("loss / mean loss", 0.0, 2.0, of_mean=True)
    if isinstance(remembered, Uncertainty):
        scored = remembered.scorer
    if isinstance(scored, TrueLoss):
        return ScoreBins("true loss", 0.0, 2 * math.log(num_classes))
    if scored is entropy:
        return ScoreBins("entropy", 0.0, math.log(num_classes))
    if scored is margin:
        return ScoreBins("margin", -1.0, 0.0)
    if scored is least_confidence:
        return ScoreBins("least confidence", 0.0, 1 - 1 / num_classes)
    return None
