"""A GPU's rules without a GPU: fake tensors that say they lie on "cuda", and a watcher of every operation on them.

The watcher raises `BrokenRuleError` where

- the host waits for the device: `.item()`, `bool(tensor)`, `nonzero`, a mask as index, a size that depends on values;
- something is copied between host and device: `.cpu()`, `.to()`, a list as index, `torch.tensor(…, device=…)`;
- a host tensor is used with device ones, also one of a single number, which a CUDA graph would freeze.

What fake tensors cannot do is in `STUBS` and `NO_KERNEL`; what the product does on purpose, between steps, is in
`ALLOWED`. Not seen on fake tensors: the backward, which meta tensors have (`meta`), and what the optimiser computes.
Of that a watcher on a CPU (`real_cpu`) sees `.item()` and its like, which are the same operations, but no copies. Not
seen at all: streams, random numbers of the host (which the capture itself refuses), and where CUDA waits inside of one
operation.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.utils._foreach_utils
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

import unixkd.distiller
from unixkd.method import measure, mixing, step
from unixkd.training import cuda_graph, stepper

aten = torch.ops.aten
WAITS = "the host waits for the device"
COPIES = "something is copied between host and device"
MIXES = "a host tensor is used with device tensors"


class BrokenRuleError(AssertionError):
    """A rule of a GPU's step is broken; no RuntimeError, after which a captured step would be tried eagerly."""


@dataclass(frozen=True)
class Place:
    """A function of the product that breaks a rule on purpose.

    Args:
        file: end of its path
        function: its name; functions that it calls are not meant
        rule: the rule
        why: reason
    """

    file: str
    function: str
    rule: str
    why: str


ALLOWED = (
    Place("unixkd/data/split.py", "train_batches", COPIES, "the order of an eager epoch, once an epoch"),
    Place("unixkd/method/batch.py", "to", COPIES, "a batch that was made on the host"),
    Place("unixkd/training/stepper.py", "inputs", COPIES, "the weights of a choice's images, once an epoch"),
    Place("unixkd/training/stepper.py", "capture", COPIES, "the order of a captured epoch, once an epoch"),
    Place("unixkd/training/cuda_graph.py", "tables_of_epoch", COPIES, "the learning rates, once an epoch"),
    Place("unixkd/training/epoch_stats.py", "losses", WAITS, "the epoch's sums, read at its end"),
    Place(
        "unixkd/training/epoch_stats.py", "counted", WAITS, "the steps that fp16 lost, read at an epoch's end"
    ),
)
"""All of them between steps; a step has none."""
ALLOWED_ON_CPU = (
    Place("unixkd/method/losses.py", "per_row", WAITS, "torch's one_hot looks at labels on a CPU only"),
    Place("unixkd/method/mixing.py", "num_pure", WAITS, "a number of rows, worked out once, on the host"),
)
"""In a step, as long as it is on a CPU."""


class Watcher(TorchDispatchMode):
    """Inside, every operation is looked at.

    Args:
        device: where the step runs; on a CPU only waiting can be seen
        allowed: places that may break a rule
    """

    def __init__(self, device: torch.device, allowed: tuple[Place, ...] = ()) -> None:
        super().__init__()
        self.device, self.allowed = device, allowed
        self.operations: set[str] = set()
        """Names of all that were seen, without their overloads."""
        self.used: set[Place] = set()
        """Places that have broken a rule."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return func(*args)
        self.operations.add(func.overloadpacket.__name__)
        kwargs = kwargs or {}
        filled = fills(func, args)
        given = tensors_in((args[:2] if filled else args, *kwargs.values()))
        before = {place_of(tensor) for tensor in given}
        without_values = any(isinstance(tensor, FakeTensor) or tensor.is_meta for tensor in given)
        if self.device.type in before and not filled and waits(func, args):
            self.check(WAITS, func)
            if without_values:
                return 0.0  # a place that may read a value gets this one
        if len(before) > 1:
            copies = func.overloadpacket in (aten._to_copy, aten.copy_, aten.index)
            self.check(COPIES if copies else MIXES, func)
        elif before and (asked := kwargs.get("device")) and {torch.device(asked).type} != before:
            self.check(COPIES, func)
        missing = without_values and func.overloadpacket in NO_KERNEL
        return None if missing else func(*args, **kwargs)

    def check(self, rule: str, func: Any) -> None:
        """Raise, but in a place that may break this rule."""
        stack = [frame for frame in frames() if not frame[1].startswith("<")]
        file, function, line = next((f for f in stack if "/unixkd/" in f[0]), ("", "", 0))
        for place in self.allowed:
            if rule == place.rule and function == place.function and file.endswith(place.file):
                self.used.add(place)
                return
        raise BrokenRuleError(f"{rule}: {func} in {function}, {file}:{line}")


def fills(func: Any, args: Any) -> bool:
    """Whether it is `x[mask] = number`: torch fills where the mask says, with a number that lies on the host.

    torch 2.14 calls it so, 2.15 calls `masked_fill_`.
    """
    if func.overloadpacket not in (aten.index_put, aten.index_put_) or any(args[3:4]):
        return False
    masks, value = tensors_in((args[1],)), args[2]
    return value.numel() == 1 and place_of(value) == "cpu" and all(mask.dtype == torch.bool for mask in masks)


def waits(func: Any, args: Any) -> bool:
    """Whether an operation gives the host something that depends on its tensors' values."""
    if func.overloadpacket in (
        aten.index,
        aten.index_put,
        aten.index_put_,
    ):  # a mask is looked through for its rows
        return any(tensor.dtype in (torch.bool, torch.uint8) for tensor in tensors_in((args[1],)))
    if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
        return True
    return func is aten._linalg_check_errors.default


def tensors_in(values: Any) -> list[Tensor]:
    """The tensors in lists and tuples of an operation's arguments."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_in(value)
    return found


def place_of(tensor: Tensor) -> str:
    """The kind of device that a tensor, fake or not, is on."""
    device: torch.device = getattr(tensor, "fake_device", None) or tensor.device
    return device.type


def frames() -> Iterator[tuple[str, str, int]]:
    """File, function and line of all who have called, innermost first, but this file's."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename != __file__:
            yield frame.f_code.co_filename, frame.f_code.co_name, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]


# What fake tensors, or a machine without a driver, cannot do


NO_KERNEL = (
    aten._fused_sgd_,
    aten._fused_adamw_,
    aten._amp_foreach_non_finite_check_and_unscale_,
    aten._amp_update_scale_,
)
"""Work in place and have no kernel without values: where their arguments lie is looked at, nothing is computed."""


def backward_without_driver(loss: Tensor) -> None:
    """Give each weight that the loss was computed from a gradient, or add one."""
    assert place_of(loss) == "cuda"
    assert loss.grad_fn is not None
    todo, seen = [loss.grad_fn], set()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        todo += [before for before, _ in node.next_functions if before is not None]
        if (weight := getattr(node, "variable", None)) is not None:
            with torch.no_grad():
                weight.grad = torch.ones_like(weight) if weight.grad is None else weight.grad + 1


def known_on_host(count: Callable[..., int]) -> Callable[..., int]:
    """The same on real tensors: a number of rows that the host works out beforehand, from no tensor of the device."""

    def real(*args: Any) -> int:
        with unset_fake_temporarily():
            return count(*args)

    return real


def all_chosen(self: stepper.Stepper, number: int, order: Tensor) -> tuple[Tensor, Tensor | None]:
    """All images, with weights as InfoBatch gives them."""
    chooses = self.engine.distiller.method.choice is not None
    return order, torch.ones(len(self.split)) if chooses else None


def answers_on_device(self: stepper.Stepper, number: int, order: Tensor) -> Any:
    """Stored answers as `fetch` leaves them, none of which is missing."""
    if not self.fill_ahead:
        return None
    classes: int = self.engine.student.head.out_features  # type: ignore[assignment]
    return SimpleNamespace(logits=torch.rand(len(order), classes, device=self.device))


def copied(self: Tensor, memo: dict[int, Any]) -> Tensor:
    """A deep copy of a tensor of a network."""
    copy = torch.empty_like(self.detach())
    memo[id(self)] = copy = nn.Parameter(copy) if isinstance(self, nn.Parameter) else copy
    return copy


@dataclass(frozen=True)
class Stub:
    """What stands in for something that cannot be run here, and why."""

    owner: Any
    name: str
    stand_in: Any
    why: str


FIRST_BATCH = (
    Stub(unixkd.distiller, "check_range", lambda *_: None, "the labels are read back"),
    Stub(measure, "forward_flops", lambda *_: 1, "a network is run, and its buffers are compared"),
)
"""What an own loop does in the first batch of each size, and looks at values for."""
KINDS = [Tensor, nn.Parameter, FakeTensor]
STUBS = (
    Stub(
        Tensor, "backward", backward_without_driver, "autograd has a thread for the device, from its driver"
    ),
    Stub(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False, "autocast would do nothing"),
    Stub(torch.cuda, "is_bf16_supported", lambda: True, "autocast asks the driver"),
    Stub(stepper, "synchronize", lambda device: None, "after a capture; there is no stream"),
    Stub(mixing, "num_pure", known_on_host(mixing.num_pure), "looks at values, which fakes do not have"),
    Stub(stepper.Stepper, "choose", all_chosen, "looks at values on the host, before an epoch's steps"),
    Stub(FakeTensor, "__deepcopy__", copied, "torch copies the memory, which a fake tensor does not have"),
    Stub(torch.utils._foreach_utils, "_foreach_supported_types", KINDS, "what runs on many tensors at once"),
    Stub(sys.modules[Optimizer.__module__], "_foreach_supported_types", KINDS, "the same in optimisers"),
    *FIRST_BATCH,
)
"""On fake tensors."""
STUBS_EVERYWHERE = (
    Stub(
        cuda_graph,
        "refuses_changes",
        lambda body, device: body,
        "runs under a profiler; test_capture_check.py",
    ),
    Stub(stepper.Stepper, "fetch", answers_on_device, "reads files, before an epoch's steps"),
)
STUBS_ON_META = (
    Stub(torch, "autocast", lambda *_, **__: contextlib.nullcontext(), "there is none"),
    Stub(
        sys.modules[Optimizer.__module__],
        "_get_fused_kernels_supported_devices",
        lambda: ["meta"],
        "as a GPU's",
    ),
)
STUBS_ON_CPU = (Stub(step, "check_finite", lambda scores: None, "looks at the scores on a CPU only"),)


def with_rate_on_device(optimizer: Optimizer, device: torch.device) -> Optimizer:
    """The same with its learning rate as `build_optimizer` makes it for a GPU: torch asks whether one is negative."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], device=device)
        group |= {"capturable": True} if "capturable" in group else {}
    return optimizer


@contextlib.contextmanager
def fake_cuda() -> Iterator[torch.device]:
    """Inside, all tensors that are made are fake, and the device that is given out can be computed on."""
    with stubbed(STUBS + STUBS_EVERYWHERE), FakeTensorMode():
        yield torch.device("cuda")


@contextlib.contextmanager
def meta() -> Iterator[torch.device]:
    """Inside, a step on meta tensors, which have no values either, but a backward, and no precision but float32."""
    with stubbed(STUBS_ON_META + STUBS_EVERYWHERE):
        yield torch.device("meta")


@contextlib.contextmanager
def real_cpu() -> Iterator[torch.device]:
    """Inside, a step on a CPU does what one on a GPU does."""
    with stubbed(STUBS_ON_CPU + STUBS_EVERYWHERE):
        yield torch.device("cpu")


@contextlib.contextmanager
def stubbed(stubs: tuple[Stub, ...]) -> Iterator[None]:
    """Inside, the stubs stand in for what they name."""
    with contextlib.ExitStack() as stack:
        for stub in stubs:
            stack.enter_context(mock.patch.object(stub.owner, stub.name, stub.stand_in))
        yield
