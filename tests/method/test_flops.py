"""Forward FLOPs against values worked out by hand, of networks that cannot be copied, and where there is no telling."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
import torchvision
from torch import Tensor, nn

from slow import TinyNet
from unixkd.errors import UserError
from unixkd.method.flops import forward_flops, sample_flops, structure

PIXELS = 3 * 4 * 4


def test_forward_flops_by_hand():
    """2 × multiply-adds: a 3×3 convolution from 3 to 4 channels on 8×8, then 4·8 → 8 channels on 4×4."""
    convolutions = 2 * 27 * 4 * 64 + 2 * 36 * 8 * 16
    assert forward_flops(TinyNet(), (3, 8, 8)) == convolutions + 2 * 8 * 5


def test_measuring_leaves_the_model_alone():
    model = TinyNet().train()
    model.body.eval()
    flags = {name: m.training for name, m in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    forward_flops(model, (3, 8, 8))
    assert {name: m.training for name, m in model.named_modules()} == flags
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_precision_never_discounts_flops():
    assert forward_flops(TinyNet().bfloat16(), (3, 8, 8)) == forward_flops(TinyNet(), (3, 8, 8))


def test_attention_is_counted_where_torch_would_fuse_it():
    """torch's fast path of a transformer's layers is one kernel that the counter does not know."""
    net = torchvision.models.VisionTransformer(8, 4, 1, 2, 16, 32, num_classes=5)
    length, width, hidden = 5, 16, 32
    layer = 4 * length * width**2 + 2 * length**2 * width + 2 * length * width * hidden
    assert forward_flops(net, (3, 8, 8)) == 2 * (layer + 4 * 3 * 16 * width + width * 5)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_compiled_network_costs_what_it_costs_as_written():
    """A compiler's kernels are none that the counter knows."""

    def fuse(graph: object, inputs: object) -> object:
        raise AssertionError("the compiled network ran")

    compiled = torch.compile(TinyNet(), backend=fuse)
    assert forward_flops(compiled, (3, 8, 8)) == forward_flops(TinyNet(), (3, 8, 8))
    assert sample_flops(compiled, lambda: compiled(torch.zeros(1, 3, 8, 8))) == forward_flops(
        TinyNet(), (3, 8, 8)
    )


class Keeps(nn.Module):
    """Keeps its features, with their graph, as users do for losses of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.features = nn.Linear(PIXELS, 16), nn.Linear(16, 5), None

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.body(x.flatten(1)).relu()
        return self.head(self.features)


class Locked(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(PIXELS, 16), nn.Linear(16, 5))
        self.lock = threading.Lock()


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        normed = torch.nn.utils.weight_norm(nn.Linear(PIXELS, 16))
    return nn.Sequential(nn.Flatten(), normed, nn.Linear(16, 5))


@pytest.mark.parametrize("make", [Keeps, Locked, old_weight_norm])
def test_a_network_that_cannot_be_copied_is_counted(make):
    network = make()
    network(torch.rand(2, 3, 4, 4)).sum().backward()
    assert forward_flops(network, (3, 4, 4)) == 2 * (PIXELS * 16 + 16 * 5)


def test_what_a_forward_changes_in_buffers_is_put_back():
    class Counts(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            self.low[0] = x.min()
            self.high = x.max()
            return super().forward(x.flatten(1))

    network = Counts(PIXELS, 5)
    network.register_buffer("seen", torch.tensor(3))
    network.register_buffer("low", torch.tensor([float("nan"), 1.0]))
    network.register_buffer("high", torch.tensor(9.0))
    forward_flops(network, (3, 4, 4))
    assert network.seen == 3
    assert network.low[0].isnan()
    assert network.high == 9


def test_a_network_without_memory_is_counted():
    """As the skeleton of one whose weights are shared out among processes."""
    network = TinyNet().to("meta")
    assert forward_flops(network, (3, 8, 8)) == forward_flops(TinyNet(), (3, 8, 8))


def quantised(network: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.ao, which is to go; such networks stay
        return torch.ao.quantization.quantize_dynamic(network.eval(), {nn.Linear}, dtype=torch.qint8)


class Elsewhere(nn.Module):
    """Answers from elsewhere: another runtime, a service."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 5)


@torch.library.custom_op("unixkd_test::fused", mutates_args=())
def fused(x: Tensor) -> Tensor:
    return x.clone()


class Fused(nn.Sequential):
    """Has a kernel that torch does not know among layers that it knows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(fused(x))


UNCOUNTED = {
    "quantised": lambda: quantised(nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 5))),
    "in part": lambda: quantised(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(PIXELS, 5))),
    "elsewhere": Elsewhere,
    "another library": lambda: Fused(nn.Flatten(), nn.Linear(PIXELS, 5)),
}


@pytest.mark.parametrize("name", UNCOUNTED)
def test_what_cannot_be_counted_is_not_known_rather_than_0(name):
    assert forward_flops(UNCOUNTED[name](), (3, 4, 4)) is None


def test_recurrent_layers_and_vector_products_are_counted():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.gru = nn.LSTM(4, 6), nn.GRU(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            rows = x[0]  # 3 steps of a batch of 4 with 4 features
            self.lstm(rows), self.gru(rows)
            return torch.mv(rows[0], rows[0, 0]) + torch.dot(rows[0, 0], rows[0, 1])

    gates = 2 * 3 * 4 * (4 + 3) * 6 * (4 + 6)
    assert forward_flops(Net(), (3, 4, 4)) == gates + 2 * 4 * 4 + 2 * 4
    assert torch.backends.mkldnn.enabled


def test_programs_are_counted_as_the_network_that_they_were_made_of():
    network = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    image, right = torch.zeros(1, 3, 4, 4), 2 * (PIXELS * 8 + 8 * 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is to go; such networks stay
        scripts = [torch.jit.script(network), torch.jit.trace(network, image)]
        scripts.append(torch.jit.freeze(scripts[0]))
    for program in (*scripts, torch.export.export(network, (image,)).module()):
        assert forward_flops(program, (3, 4, 4)) == right


def test_a_program_for_batches_of_one_size_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 5)).eval()
    program = torch.export.export(network, (torch.zeros(8, 3, 4, 4),)).module()
    with pytest.raises(UserError, match="a program for inputs of one shape"):
        forward_flops(program, (3, 4, 4))


def test_a_network_that_grows_has_another_structure():
    network = nn.Sequential(nn.Linear(2, 3))
    before = structure(network)
    network.append(nn.ReLU())
    assert structure(network) != before
    deeper = structure(network)
    network[0].weight = nn.Parameter(torch.zeros(4, 2))
    assert structure(network) != deeper
