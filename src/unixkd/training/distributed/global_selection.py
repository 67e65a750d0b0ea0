"""Selection from the rows of all processes: ranked together, and each process trains on as many of the kept ones.

A kept row stays with the process that loaded it as long as that one has room. Only what is over moves, to processes
that have too few: a few rows of a hundred, where an even split by rank would move nearly all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import accumulate

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from unixkd.data.sampling import even_parts
from unixkd.method.batch import Batch, Held
from unixkd.method.mixing import num_kept
from unixkd.method.scoring import rank_by
from unixkd.training.distributed.world import World


@dataclass(frozen=True)
class GlobalSelection:
    """One step's rows of all processes, as each of them has them one after the other.

    Args:
        world: the processes
        rows: how many there are together, shared out as evenly as it goes
        batch_size: the configured N of all processes together
    """

    world: World
    rows: int
    batch_size: int

    def hold(
        self,
        batch: Batch,
        scores: Float[Tensor, " n"] | None,
        noise: Float[Tensor, " n"],
        keep: float,
        sampling: float | None = None,
    ) -> Held:
        """Rank the rows of all processes, keep the first k, and take over those that this process is to train on.

        The ranking is read back from the device. Every process has to call it.

        Args:
            batch: this process's rows
            scores: of them, higher = kept first; None: rows are ranked by noise
            noise: of them
            keep: k/N
            sampling: as in `Method`
        """
        if scores is None or sampling is not None:
            noise = self.gather(noise)
        ranking = rank_by(None if scores is None else self.gather(scores), noise, sampling)
        kept = ranking[: num_kept(keep, self.batch_size, self.rows)].cpu()
        me, size = self.world.rank, self.world.size
        starts = torch.tensor([0, *accumulate(even_parts(self.rows, size))])
        owner = torch.bucketize(kept, starts[1:], right=True)
        holder = holders(owner, even_parts(len(kept), size))
        place, mine, moves = kept - starts[owner], owner == me, holder != owner
        sent, given = (mine & moves).nonzero().flatten(), ((holder == me) & moves).nonzero().flatten()
        sent, given = sent[holder[sent].argsort(stable=True)], given[owner[given].argsort(stable=True)]
        place[given] = len(batch) + torch.arange(len(given))
        device = batch.images.device
        if moves.any():
            counts = (
                torch.bincount(holder[sent], minlength=size),
                torch.bincount(owner[given], minlength=size),
            )
            batch = extended(batch, place[sent].to(device), counts[0].tolist(), counts[1].tolist())
        ranks = (holder == me).nonzero().flatten()
        position, ranks, own = (t.to(device) for t in (place[ranks], ranks, (kept - starts[me])[mine]))
        return Held(batch, position, ranks, own, self.batch_size)

    def gather(self, values: Float[Tensor, " n"]) -> Float[Tensor, " all"]:
        """What every process has of its rows, one process after the other; padded on the way, as gloo wants it."""
        sizes = even_parts(self.rows, self.world.size)
        padded = torch.nn.functional.pad(values, (0, max(sizes) - len(values)))
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def weight(self, keep: float) -> float:
        """What this process's mean loss is multiplied by, so that each kept row of the step counts for as much."""
        kept = num_kept(keep, self.batch_size, self.rows)
        return even_parts(kept, self.world.size)[self.world.rank] * self.world.size / kept


def holders(owner: Int[Tensor, " k"], room: list[int]) -> Int[Tensor, " k"]:
    """Who trains on each kept row: who has it, as long as there is room; what is over goes to the first with too few.

    Args:
        owner: the process that has each row, most uncertain first `[k]`
        room: of each process, k together

    >>> holders(torch.tensor([1, 1, 0, 1]), [2, 2]).tolist()
    [1, 1, 0, 0]
    """
    of_each = torch.nn.functional.one_hot(owner, len(room))
    stays = of_each.cumsum(0).gather(1, owner[:, None]).flatten() <= torch.tensor(room)[owner]
    free = torch.tensor(room) - of_each[stays].sum(0)
    holder = owner.clone()
    holder[~stays] = torch.arange(len(room)).repeat_interleave(free)
    return holder


def extended(batch: Batch, sent: Int[Tensor, " s"], send: list[int], receive: list[int]) -> Batch:
    """The batch with the rows that other processes give, and all that is known of them, after its own.

    Args:
        batch: this process's rows
        sent: those that others are given, by receiver
        send: how many each process is given
        receive: how many each process gives
    """

    def traded(rows: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "m ..."]:
        new = rows.new_empty(sum(receive), *rows.shape[1:])
        dist.all_to_all_single(new, rows[sent].contiguous(), receive, send)
        if not len(new):
            return rows
        return torch.cat([rows, torch.empty_like(rows[: len(new)]).copy_(new)])  # in the layout of its own

    assert isinstance(batch.images, Tensor)
    columns = (getattr(batch, field.name) for field in fields(batch))
    return Batch(*(None if column is None else traded(column) for column in columns))  # type: ignore[arg-type]
