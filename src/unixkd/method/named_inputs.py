"""Inputs that are more than one tensor: named tensors, which a network gets as keyword arguments; text among them.

Images are numbers and mixed as they are. Tokens cannot be mixed; their embeddings can, and each network has its own, so
rows of text carry what is to be mixed into them until a network looks its tokens up. That is our extension: the paper
has images only. Mixing of word embeddings: Guo, Mao, Zhang, arXiv 1905.08941.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from unixkd.errors import UserError

TOKENS, MASK, TEACHERS = "input_ids", "attention_mask", "teacher_"
"""Names that mean something: tokens, which of them are text and no padding, the prefix of a teacher's own inputs."""

Rows: TypeAlias = Tensor | slice


@dataclass(frozen=True)
class MixedTokens:
    """What is mixed into the embeddings of some rows' tokens.

    Args:
        tokens: the other text's `[k, L]`
        share: the other text's share at each position, in [0, 1/2] `[k, L]`
    """

    tokens: Tensor
    share: Tensor

    def __getitem__(self, rows: Rows) -> MixedTokens:
        return MixedTokens(self.tokens[rows], self.share[rows])


@dataclass(frozen=True)
class NamedInputs:
    """Named tensors of N samples; behaves as a batch of rows where the step asks no more of it.

    Args:
        tensors: each `[N, ...]`; those whose name begins with `teacher_` are the teacher's own
        woven: what a network mixes into the embeddings of its tokens, by the tokens' name

    Raises:
        UserError: no tensors, or of different numbers of samples

    >>> words, mask = torch.tensor([[5, 6], [7, 0]]), torch.tensor([[1, 1], [1, 0]])
    >>> batch = NamedInputs({"input_ids": words, "attention_mask": mask})
    >>> len(batch), batch[torch.tensor([1])].tensors["input_ids"].tolist()
    (2, [[7, 0]])
    """

    tensors: Mapping[str, Tensor]
    woven: Mapping[str, MixedTokens] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {name: len(tensor) for name, tensor in self.tensors.items()}
        if not lengths:
            raise UserError("the batch holds no inputs")
        if len(set(lengths.values())) > 1:
            raise UserError(f"the tensors of a batch have different numbers of samples: {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: Rows) -> NamedInputs:
        return NamedInputs(
            {name: tensor[rows] for name, tensor in self.tensors.items()},
            {name: woven[rows] for name, woven in self.woven.items()},
        )

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
        return NamedInputs(
            {name: t.to(device, non_blocking=non_blocking) for name, t in self.tensors.items()}
        )

    def of(self, prefix: str) -> NamedInputs:
        """A network's own inputs, without their prefix; those of all where it has none of its own.

        >>> both = NamedInputs({"input_ids": torch.zeros(1, 2), "teacher_input_ids": torch.zeros(1, 3)})
        >>> both.of("teacher_").tensors["input_ids"].shape, both.of("").tensors.keys()
        (torch.Size([1, 3]), dict_keys(['input_ids']))
        """
        own = {n.removeprefix(prefix): t for n, t in self.tensors.items() if prefix and n.startswith(prefix)}
        if own:
            return NamedInputs(
                own, {n.removeprefix(prefix): w for n, w in self.woven.items() if n.startswith(prefix)}
            )
        common = {name: tensor for name, tensor in self.tensors.items() if not name.startswith(TEACHERS)}
        return NamedInputs(common, {name: woven for name, woven in self.woven.items() if name in common})


Inputs: TypeAlias = Tensor | NamedInputs


def as_inputs(inputs: Tensor | Mapping[str, Tensor]) -> tuple[Inputs, Tensor | None]:
    """What a loader gives, as the step takes it, and the labels that lie in it.

    Raises:
        UserError: something in it is no tensor

    >>> as_inputs({"pixel_values": torch.zeros(2, 3, 4, 4), "labels": torch.tensor([0, 1])})[1]
    tensor([0, 1])
    """
    if isinstance(inputs, Tensor):
        return inputs, None
    tensors = dict(inputs)
    labels = [tensors.pop(name, None) for name in ("labels", "label")]
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise UserError(f"the batch's '{name}' is no tensor, but {type(value).__name__}: leave it out")
    return NamedInputs(tensors), next((found for found in labels if found is not None), None)


def concat(parts: Sequence[Inputs]) -> Inputs:
    """The rows of all parts, one after the other."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    named = [part for part in parts if isinstance(part, NamedInputs)]
    tensors = {name: torch.cat([part.tensors[name] for part in named]) for name in first.tensors}
    return NamedInputs(tensors, _concat_woven(named))


def _concat_woven(parts: Sequence[NamedInputs]) -> dict[str, MixedTokens]:
    """Parts of which nothing is woven have shares of 0."""
    names = {name for part in parts for name in part.woven}
    whole = {
        name: [
            part.woven.get(name)
            or MixedTokens(t := part.tensors[name], torch.zeros_like(t, dtype=part.dtype))
            for part in parts
        ]
        for name in names
    }
    return {
        name: MixedTokens(torch.cat([w.tokens for w in each]), torch.cat([w.share for w in each]))
        for name, each in whole.items()
    }


def blend(own: Inputs, partner: Inputs, weight: Tensor) -> Inputs:
    """(1 − m) · own + m · partner, row by row; exactly `own` where m is 0.

    Of named tensors, those of numbers (pixels) are mixed as they are. What counts or names (masks, token types) is that
    of the sample with the larger share. Tokens are too: the text with the larger share gives the length, and the other
    is mixed into its embeddings where both have a token.

    Args:
        own: N samples
        partner: each one's partner
        weight: m of each row, in [0, 1] `[N]`

    Raises:
        UserError: nothing in the samples can be mixed
    """
    if isinstance(own, Tensor) and isinstance(partner, Tensor):
        if not own.is_floating_point():
            raise UserError(
                f"inputs of {own.dtype} cannot be mixed: give pixels in [0, 1], and tokens by name (input_ids=…)"
            )
        m = _column(weight, own)
        return (1 - m) * own + m * partner
    assert isinstance(own, NamedInputs)
    assert isinstance(partner, NamedInputs)
    tensors = {
        name: _blend(name, tensor, partner.tensors[name], weight) for name, tensor in own.tensors.items()
    }
    woven = {n: _weave(n, own, partner, weight) for n in own.tensors if n.removeprefix(TEACHERS) == TOKENS}
    if not woven and not any(tensor.is_floating_point() for tensor in tensors.values()):
        raise UserError(
            f"nothing in {', '.join(tensors)} can be mixed: tokens are mixed where they are called {TOKENS}"
        )
    return NamedInputs(tensors, woven)


def _blend(name: str, own: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    if own.is_floating_point() and not name.endswith("mask"):
        m = _column(weight, own)
        return (1 - m) * own + m * partner
    return torch.where(_column(weight, own) < 0.5, own, partner)


def _weave(name: str, own: NamedInputs, partner: NamedInputs, weight: Tensor) -> MixedTokens:
    """The text with the smaller share, and its share where both texts have a token."""
    mask = name.removesuffix(TOKENS) + MASK
    tokens, others = own.tensors[name], partner.tensors[name]
    less = torch.where(_column(weight, tokens) < 0.5, others, tokens)
    share = torch.minimum(weight, 1 - weight)[:, None].expand(tokens.shape)
    if mask in own.tensors:
        share = share * (own.tensors[mask] * partner.tensors[mask]).to(share.dtype)
    return MixedTokens(less, share)


def _column(weight: Tensor, like: Tensor) -> Tensor:
    """Weights of rows, in the shape that multiplies the rows of a tensor."""
    return weight.view(-1, *[1] * (like.ndim - 1))
