"""Data passed between the stages of a step: Batch, Draws, MixedBatch, Outputs, Answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from unixkd.method.named_inputs import NamedInputs, concat


@dataclass(frozen=True)
class Batch:
    """N images as they come from the data.

    Args:
        images: pixels in [0, 1], `[N, C, H, W]` (an own loop may pass normalised images, or named tensors)
        labels: class numbers `[N]` (of another kind where no loss but the caller's own reads them), or None
        index: position of each image in its data set `[N]`, or None
        view: number of each image's view (augmentation) `[N]`, or None
        answers: the teacher's stored logits on each image in this view `[N, classes]`, or None
        weight: of each image in every loss `[N]`, or None: 1
        mixed_labels: where the images come mixed, the class of the one mixed in `[N]`, or None
        mix_weight: where the images come mixed, the weight of the one mixed in `[N]`, or None
    """

    images: Shaped[Tensor, "n ..."] | NamedInputs
    labels: Shaped[Tensor, "n ..."] | None = None
    index: Int[Tensor, " n"] | None = None
    view: Int[Tensor, " n"] | None = None
    answers: Float[Tensor, "n classes"] | None = None
    weight: Float[Tensor, " n"] | None = None
    mixed_labels: Int[Tensor, " n"] | None = None
    mix_weight: Float[Tensor, " n"] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def pixels(self) -> Tensor:
        """The images, where they are images `[N, C, H, W]`, as from every data set of `unixkd.data`."""
        assert isinstance(self.images, Tensor)
        return self.images

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device; what is there already is not copied."""
        values = vars(self).values()
        return Batch(*(None if t is None else t.to(device, non_blocking=True) for t in values))  # type: ignore[arg-type]


def join(batches: Sequence[Batch]) -> Batch:
    """One batch of several, which all have the same fields set."""
    columns = ([getattr(batch, field.name) for batch in batches] for field in fields(Batch))
    return Batch(*(None if column[0] is None else concat(column) for column in columns))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Draws:
    """Every random choice of one step, made beforehand so that the step itself is a pure function.

    Args:
        partner: permutation of the batch; position of the mixing partner of each rank `[N]`
        lam: mixing weight λ of each rank, uniform on [0, 1], one value repeated or one each `[N]`
        noise: uniform noise on [0, 1) that ranks the samples where ranking is random `[N]`
    """

    partner: Int[Tensor, " n"]
    lam: Float[Tensor, " n"]
    noise: Float[Tensor, " n"]

    def rows(self, start: int, stop: int) -> Draws:
        """The draws of rows start to stop, where several steps' draws lie one after the other."""
        return Draws(self.partner[start:stop], self.lam[start:stop], self.noise[start:stop])


@dataclass(frozen=True)
class MixedBatch:
    """The k kept rows, mixed; row r is rank r of the batch, most uncertain first.

    Args:
        images: mixed pixels `[k, C, H, W]`, or named tensors of the mixed samples
        label_a: label of the ranked image `[k]`, or None
        label_b: label of its partner `[k]`, or None
        weight: mixing weight m of the other image, 0 = pure, `[k]`
        sample_weight: weight of each row in every loss `[k]`
        position: position in the batch of each ranked image `[k]`
        num_pure: number of leading rows that are unmixed whatever the draws, so that a store may know them
        partner: position in the batch of each row's partner `[k]`, None where no row is mixed
    """

    images: Shaped[Tensor, "k ..."] | NamedInputs
    label_a: Shaped[Tensor, "k ..."] | None
    label_b: Shaped[Tensor, "k ..."] | None
    weight: Float[Tensor, " k"]
    sample_weight: Float[Tensor, " k"]
    position: Int[Tensor, " k"]
    num_pure: int = 0
    partner: Int[Tensor, " k"] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, start: int, stop: int) -> MixedBatch:
        """Rows start to stop."""
        rows: dict[str, Any] = {
            n: v[start:stop] for n, v in vars(self).items() if isinstance(v, Tensor | NamedInputs)
        }
        return replace(self, **rows, num_pure=min(max(self.num_pure - start, 0), stop - start))


@dataclass(frozen=True)
class Outputs:
    """A network's outputs for a batch: logits `[k, classes]` and named feature maps `[k, ...]`."""

    logits: Float[Tensor, "k classes"]
    features: dict[str, Tensor] = field(default_factory=dict)

    def rows(self, start: int, stop: int) -> Outputs:
        """Rows start to stop."""
        return Outputs(self.logits[start:stop], {name: t[start:stop] for name, t in self.features.items()})


@dataclass(frozen=True)
class Answers:
    """The teacher's outputs on the kept rows, and how many images went through it for them.

    Args:
        outputs: logits (and features) of the k rows
        forwarded: images that went through the teacher
        cached: answers that came from the store
        filled: of the forwarded, those whose answers were stored
        finite: which rows the teacher has an answer to (`answered`); None: not looked at `[k]`
    """

    outputs: Outputs
    forwarded: int
    cached: int = 0
    filled: int = 0
    finite: Bool[Tensor, " k"] | None = None

    def marked(self) -> Answers:
        """The same with zeros in rows that are no answer and `finite` set; the device is not synchronised."""
        finite = answered(self.outputs.logits)

        def clean(rows: Tensor) -> Tensor:
            return torch.where(finite.view(-1, *[1] * (rows.dim() - 1)), rows, 0)

        features = {name: clean(rows) for name, rows in self.outputs.features.items()}
        return replace(self, outputs=Outputs(clean(self.outputs.logits), features), finite=finite)


def answered(logits: Float[Tensor, "k classes"]) -> Bool[Tensor, " k"]:
    """Which rows are a distribution: no NaN, no +inf, not all −inf; a class of −inf has probability 0."""
    return logits.amax(dim=1).isfinite()  # a maximum hands on a NaN
