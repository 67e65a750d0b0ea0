"""The moving average of the weights has torch's numbers, and makes them on the device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from slow import TinyNet
from unixkd.training.average import MovingAverage


def moved(net: nn.Module, step: int) -> nn.Module:
    """Other weights, statistics and counts, as after a step."""
    torch.manual_seed(step)
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else torch.tensor(step))
    return net


def network() -> nn.Module:
    net = nn.Sequential(TinyNet(seed=0), nn.Linear(5, 5).to(torch.bfloat16))
    net.register_buffer("known", torch.tensor(False))
    return net


def numbers(average: AveragedModel) -> dict[str, Tensor]:
    state = average.state_dict()
    return {name: value.clone() for name, value in state.items() if value.is_floating_point()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.98, 1.0])
def test_it_has_the_numbers_of_torch(decay):
    net = network()
    mine = MovingAverage(net, decay)
    theirs = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    for step in range(1, 6):
        moved(net, step)
        mine.update_parameters(net)
        theirs.update_parameters(net)
        assert_equal(numbers(mine), numbers(theirs))
        assert mine.n_averaged == theirs.n_averaged == step


def test_it_goes_on_from_what_torchs_average_has_saved():
    """Checkpoints of before hold that."""
    net = network()
    before = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for step in (1, 2):
        before.update_parameters(moved(net, step))
    now = MovingAverage(network(), 0.9)
    now.load_state_dict(before.state_dict())
    for average in (before, now):
        average.update_parameters(moved(net, 3))
    assert_equal(numbers(now), numbers(before))


def test_whole_numbers_are_copied():
    net = network()
    average = MovingAverage(net, 0.9)
    for step in (5, 10):
        average.update_parameters(moved(net, step))
    counts = {name: b.item() for name, b in average.module.named_buffers() if not b.is_floating_point()}
    assert counts == {
        "known": True,
        "0.stem.1.num_batches_tracked": 10,
        "0.body.1.num_batches_tracked": 10,
    }


def test_a_wrapped_network_and_one_that_has_found_a_buffer_since():
    net = network()
    average = MovingAverage(net, 0.5)
    net[0].register_buffer("cache", torch.ones(3))
    wrapped = nn.DataParallel(moved(net, 1))
    average.update_parameters(wrapped)
    for name, value in average.module.named_parameters():
        assert torch.equal(value, net.get_parameter(name)), name
