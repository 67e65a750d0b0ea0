"""An estimate for many GPUs: images, FLOPs and hours, from one step's seconds and the time to send its gradients."""

from __future__ import annotations

from dataclasses import dataclass

from unixkd.data.sampling import PER_PROCESS, Place, check_kept
from unixkd.errors import UserError
from unixkd.method.ledger import CONVENTIONS, Ledger
from unixkd.method.method import Method
from unixkd.planning.expected import Workload, distinct_answers, expected_cost, expected_images, kd_flops

WITHIN, BETWEEN = 20e9, 1.25e9
"""Bytes per second by default: PCIe 4 × 16 within a node, Ethernet of 10 Gbit/s between nodes."""


@dataclass(frozen=True)
class ClusterPlan(Workload):
    """Training on several processes.

    Args:
        processes: one for each GPU
        gradients: bytes that a step sums up over all processes
        bandwidth: bytes per second, each way, of the slowest link between two processes

    Raises:
        UserError: the batch cannot be split evenly among the processes
    """

    processes: int = 1
    gradients: int = 0
    bandwidth: float = WITHIN

    def __post_init__(self) -> None:
        processes = self.processes
        if processes > 1 and (self.batch_size % processes or self.rows < PER_PROCESS):
            raise UserError(
                f"batches of {self.batch_size:,} images cannot be split evenly among {processes:,} processes: give a "
                f"--batch_size that is a multiple of {processes:,} and at least {PER_PROCESS * processes:,}"
            )

    @property
    def rows(self) -> int:
        """Images of a batch that each process has."""
        return self.batch_size // self.processes

    @property
    def sending(self) -> float:
        """Seconds of an all-reduce of the gradients in a ring: 2 (P − 1) / P of their bytes pass each process.

        Source: Thakur, Rabenseifner & Gropp, Optimization of Collective Communication Operations in MPICH, 2005.

        >>> ClusterPlan(1000, 8, processes=4, gradients=2_000, bandwidth=1e3).sending
        3.0
        """
        return 2 * (self.processes - 1) / self.processes * self.gradients / self.bandwidth


@dataclass(frozen=True)
class ClusterEstimate:
    """What one method's run will take.

    Args:
        method: the method
        images: through each forward, by their name in `StepCounts`
        flops: of training, by convention name
        steps: number of full batches
        step: seconds of one, with its gradients sent after the backward; None: nothing was timed
    """

    method: Method
    images: dict[str, float]
    flops: dict[str, float]
    steps: float
    step: float | None

    @property
    def hours(self) -> float | None:
        """Of the run; evaluation, loading and waiting for the slowest process are left out."""
        return None if self.step is None else self.steps * self.step / 3600


def asked_share(plan: ClusterPlan, views: int) -> float:
    """Share of plain KD's teacher forwards that is left where answers to V views of each image are stored.

    >>> asked_share(ClusterPlan(1000, 10, epochs=90, runs=3), views=9)  # 9 epochs of the three runs' 270
    0.03333333333333333
    """
    return distinct_answers([1.0] * plan.epochs, views, plan.runs, in_turn=True) / plan.epochs / plan.runs


def estimate(
    method: Method,
    plan: ClusterPlan,
    ledger: Ledger,
    *,
    compute: float | None = None,
    rate: float | None = None,
    asked: float = 1.0,
) -> ClusterEstimate:
    """One method's run.

    Args:
        method: which may change from epoch to epoch
        plan: what is planned
        ledger: an empty one with both networks' forward FLOPs
        compute: measured seconds of a process's step without sending
        rate: FLOPs per second that a process reaches, a backward counted as 2 forwards, where nothing is measured
        asked: share of the teacher's forwards that stored answers leave

    Raises:
        UserError: a process would train on less than two images
    """
    check_kept(method.keep, plan.batch_size, Place(size=plan.processes))
    shown, scale = plan.images * plan.epochs, plan.images / plan.rows
    images = {name: n * scale for name, n in expected_images(method, [plan.rows], plan.epochs).items()}
    answered = (1 - asked) * images["teacher_forwarded"] / shown
    cost = expected_cost(method, ledger, [plan.rows], plan.epochs, answered=answered)
    flops = {name: cost[name] * shown * kd_flops(ledger, back) for name, back in CONVENTIONS.items()}
    images["teacher_forwarded"] *= asked
    steps = method.mean_share(plan.epochs) * shown / plan.batch_size
    if rate is not None:
        compute = flops["backward_2x"] / (steps * plan.processes) / rate
    step = None if compute is None else compute + plan.sending
    return ClusterEstimate(method, images, flops, steps, step)
