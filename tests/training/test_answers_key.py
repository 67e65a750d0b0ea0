"""The key of stored answers: it changes with whatever changes an answer, and with nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from unixkd.models import ModelCard, PixelModel, create_model
from unixkd.training.answers import store_key
from unixkd.training.fingerprint import network_fingerprint, preprocessing_fingerprint

CARD = ModelCard("small", 4, 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def key(net: nn.Module | None = None, card: ModelCard = CARD, **changes: str) -> dict[str, str]:
    parts = {"data_fingerprint": "d" * 64, "views": "all 9 views", "precision": "fp32", **changes}
    return store_key(PixelModel(net or small(), card), **parts)


def set_stride(net: nn.Module) -> None:
    net[0].stride = (1, 1)


def set_eps(net: nn.Module) -> None:
    net[1].eps = 1e-3


def set_slope(net: nn.Module) -> None:
    net[2].negative_slope = 0.2


def other_activation(net: nn.Module) -> None:
    net[2] = nn.ELU(0.1)


def nudge(net: nn.Module) -> None:
    with torch.no_grad():
        net[5].weight[3, 7].nextafter_(torch.tensor(9.0))


def swap(net: nn.Module) -> None:
    with torch.no_grad():
        net[5].weight.copy_(net[5].weight.flip(0))


def see_a_batch(net: nn.Module) -> None:
    net.train()(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)))


def halve(net: nn.Module) -> None:
    net.half()


CHANGES = [set_stride, set_eps, set_slope, other_activation, nudge, swap, see_a_batch, halve]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_network_changes_its_fingerprint(change: Callable[[nn.Module], None]):
    net = small()
    change(net)
    assert network_fingerprint(net) != network_fingerprint(small())
    differs = {part for part in key() if key()[part] != key(net)[part]}
    assert differs == {"teacher weights"}


def test_a_buffer_that_no_state_dict_holds_counts():
    net, other = small(), small()
    net.register_buffer("table", torch.zeros(2), persistent=False)
    other.register_buffer("table", torch.ones(2), persistent=False)
    assert network_fingerprint(net) != network_fingerprint(other)


def test_names_count():
    layer = nn.Linear(2, 2)
    assert network_fingerprint(nn.ModuleDict({"a": layer})) != network_fingerprint(
        nn.ModuleDict({"b": layer})
    )


@pytest.mark.parametrize("name", ["wrn_16_1", "resnet8x4", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"])
def test_what_changes_no_answer_changes_no_fingerprint(name):
    net = create_model(name, 10, 3)
    before = network_fingerprint(net)
    assert network_fingerprint(copy.deepcopy(net)) == before
    assert network_fingerprint(copy.deepcopy(net).to(memory_format=torch.channels_last)) == before
    net.eval().requires_grad_(False)
    net(torch.rand(2, 3, 32, 32))
    assert network_fingerprint(net) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.bool, torch.uint8])
def test_tensors_of_any_type(dtype):
    def holder(*values: int) -> nn.Module:
        module = nn.Module()
        module.register_buffer("values", torch.tensor(values).to(dtype))
        module.register_buffer("one", torch.tensor(1).to(dtype))
        module.register_buffer("none", torch.empty(0, 3, dtype=dtype))
        return module

    assert network_fingerprint(holder(1, 0)) == network_fingerprint(holder(1, 0))
    assert network_fingerprint(holder(1, 0)) != network_fingerprint(holder(0, 1))


def test_the_same_bytes_in_another_shape_differ():
    square, line = nn.Module(), nn.Module()
    square.register_buffer("values", torch.arange(4.0).view(2, 2))
    line.register_buffer("values", torch.arange(4.0))
    assert network_fingerprint(square) != network_fingerprint(line)


@pytest.mark.parametrize(
    "change",
    [{"mean": (0.5, 0.5, 0.4)}, {"std": (0.25, 0.25, 0.2)}, {"size": 224}],
    ids=lambda c: next(iter(c)),
)
def test_another_preprocessing(change):
    card = replace(CARD, **change)
    assert preprocessing_fingerprint(card) != preprocessing_fingerprint(CARD)
    assert {part for part in key() if key()[part] != key(card=card)[part]} == {"teacher preprocessing"}


def test_a_name_is_no_preprocessing():
    assert preprocessing_fingerprint(replace(CARD, name="other", class_names=tuple("abcd"))) == (
        preprocessing_fingerprint(CARD)
    )
    numpys = replace(CARD, mean=tuple(map(np.float64, CARD.mean)))
    assert preprocessing_fingerprint(numpys) == preprocessing_fingerprint(CARD)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"data_fingerprint": "e" * 64}, "data"),
        ({"views": "first 4 of 9 views, view seed 0"}, "kind of views"),
        ({"precision": "bf16"}, "teacher precision"),
    ],
)
def test_each_part_stands_for_itself(change, part):
    assert {name for name in key() if key()[name] != key(**change)[name]} == {part}


def test_the_same_makes_the_same_key():
    assert key() == key(small())
