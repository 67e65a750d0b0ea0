"""Inputs that are more than one tensor: named tensors, which a network gets as keyword arguments; text among them.

Images are numbers and mixed as they are. Tokens cannot be mixed; their embeddings can, and each network has its own, so
rows of text carry what is to be mixed into them until a network looks its tokens up. That is our extension: the paper
has images only. Mixing of word embeddings: Guo, Mao, Zhang, arXiv 1905.08941.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from unixkd.errors import UserError

TOKENS, MASK, TEACHERS = "input_ids", "attention_mask", "teacher_"
"""Names that mean something: tokens, which of them are text and no padding, the prefix of a teacher's own inputs."""

PARTNER, SHARE = ".partner", ".share"
"""Ends of names that no argument has: tokens of the text mixed in `[k, L]`, its share of each embedding `[k, L]`."""


@dataclass(frozen=True)
class NamedInputs:
    """Named tensors of N samples; behaves as a batch of rows where the step asks no more of it.

    Args:
        tensors: each `[N, ...]`; those whose name begins with `teacher_` are the teacher's own

    Raises:
        UserError: no tensors, or of different numbers of samples

    >>> words, mask = torch.tensor([[5, 6], [7, 0]]), torch.tensor([[1, 1], [1, 0]])
    >>> batch = NamedInputs({"input_ids": words, "attention_mask": mask})
    >>> len(batch), batch[torch.tensor([1])].tensors["input_ids"].tolist()
    (2, [[7, 0]])
    """

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        lengths = {name: len(tensor) for name, tensor in self.tensors.items()}
        if not lengths:
            raise UserError("the batch holds no inputs")
        if len(set(lengths.values())) > 1:
            raise UserError(f"the tensors of a batch have different numbers of samples: {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: Tensor | slice) -> NamedInputs:
        return NamedInputs({name: tensor[rows] for name, tensor in self.tensors.items()})

    @property
    def device(self) -> torch.device:
        """Where the first tensor lies."""
        return next(iter(self.tensors.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """Of mixing weights."""
        return torch.get_default_dtype()

    @property
    def shapes(self) -> tuple[tuple[str, ...], ...]:
        """Names and shapes of one sample: what a forward costs depends on nothing else."""
        return tuple((name, *map(str, tensor.shape[1:])) for name, tensor in sorted(self.tensors.items()))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> NamedInputs:
        """The same samples on a device."""
        return NamedInputs({n: t.to(device, non_blocking=non_blocking) for n, t in self.tensors.items()})

    def clone(self) -> NamedInputs:
        """A copy of every tensor."""
        return NamedInputs({name: tensor.clone() for name, tensor in self.tensors.items()})

    def of(self, prefix: str) -> NamedInputs:
        """A network's own inputs, without their prefix; those of all where it has none of its own.

        >>> both = NamedInputs({"input_ids": torch.zeros(1, 2), "teacher_input_ids": torch.zeros(1, 3)})
        >>> both.of("teacher_").tensors["input_ids"].shape, both.of("").tensors.keys()
        (torch.Size([1, 3]), dict_keys(['input_ids']))
        """
        own = {n.removeprefix(prefix): t for n, t in self.tensors.items() if prefix and n.startswith(prefix)}
        return NamedInputs(own or {n: t for n, t in self.tensors.items() if not n.startswith(TEACHERS)})


Inputs: TypeAlias = Tensor | NamedInputs


def as_inputs(inputs: object) -> tuple[Inputs, Tensor | None]:
    """What a loader gives, as the step takes it, and the labels that lie in it; an error for what is no tensor.

    >>> as_inputs({"pixel_values": torch.zeros(2, 3, 4, 4), "labels": torch.tensor([0, 1])})[1]
    tensor([0, 1])
    """
    if isinstance(inputs, Tensor):
        return inputs, None
    if not isinstance(inputs, Mapping):
        raise UserError(f"the inputs are a {type(inputs).__name__}: give a tensor [N, ...] or named tensors")
    tensors = dict(inputs)
    labels, label = (tensors.pop(name, None) for name in ("labels", "label"))
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise UserError(f"the batch's '{name}' is no tensor, but {type(value).__name__}: leave it out")
    return NamedInputs(tensors), label if labels is None else labels


def concat(batches: Sequence[Inputs]) -> Inputs:
    """The rows of all batches, one after the other."""
    if isinstance(batches[0], Tensor):
        return torch.cat([batch for batch in batches if isinstance(batch, Tensor)])
    named = [batch for batch in batches if isinstance(batch, NamedInputs)]
    names = {name for batch in named for name in batch.tensors}
    return NamedInputs({name: torch.cat([_rows(batch, name) for batch in named]) for name in names})


def _rows(batch: NamedInputs, name: str) -> Tensor:
    """A batch's tensor of that name; texts that are not mixed have their own tokens as partners, and shares of 0."""
    if name in batch.tensors:
        return batch.tensors[name]
    tokens = batch.tensors[name.removesuffix(PARTNER).removesuffix(SHARE)]
    return tokens if name.endswith(PARTNER) else torch.zeros_like(tokens, dtype=batch.dtype)


def blend(samples: Inputs, partners: Inputs, weight: Tensor) -> Inputs:
    """(1 − m) · sample + m · partner, row by row; exactly the sample where m is 0.

    Of named tensors, those of numbers (pixels) are mixed as they are. What counts or names (masks, token types) is that
    of the sample with the larger share. Tokens are too: the text with the larger share gives the length, and the other
    is mixed into its embeddings where both have a token.

    Args:
        samples: N samples
        partners: each one's partner
        weight: m of each row, in [0, 1] `[N]`

    Raises:
        UserError: nothing in the samples can be mixed
    """
    if isinstance(samples, Tensor) and isinstance(partners, Tensor):
        if not samples.is_floating_point():
            raise UserError(
                f"inputs of {samples.dtype} cannot be mixed: give pixels in [0, 1], and tokens by name (input_ids=…)"
            )
        return _blend("", samples, partners, weight)
    assert isinstance(samples, NamedInputs)
    assert isinstance(partners, NamedInputs)
    names = tuple(samples.tensors)
    texts = [name for name in names if name.removeprefix(TEACHERS) == TOKENS]
    tensors = {name: _blend(name, samples.tensors[name], partners.tensors[name], weight) for name in names}
    if not texts and not any(tensor.is_floating_point() for tensor in tensors.values()):
        raise UserError(
            f"nothing in {', '.join(names)} can be mixed: tokens are mixed where they are called {TOKENS}"
        )
    for name in texts:
        mask = name.removesuffix(TOKENS) + MASK
        tokens, partner_tokens = samples.tensors[name], partners.tensors[name]
        share = torch.minimum(weight, 1 - weight)[:, None].expand(tokens.shape)
        if mask in names:
            share = share * (samples.tensors[mask] * partners.tensors[mask]).to(share.dtype)
        tensors[name + PARTNER] = torch.where(_column(weight, tokens) < 0.5, partner_tokens, tokens)
        tensors[name + SHARE] = share
    return NamedInputs(tensors)


def _blend(name: str, samples: Tensor, partners: Tensor, weight: Tensor) -> Tensor:
    m = _column(weight, samples)
    if samples.is_floating_point() and not name.endswith("mask"):
        return (1 - m) * samples + m * partners
    return torch.where(m < 0.5, samples, partners)


def _column(weight: Tensor, like: Tensor) -> Tensor:
    """Weights of rows, in the shape that multiplies the rows of a tensor."""
    return weight.view(-1, *[1] * (like.ndim - 1))
