"""The form in which the frozen teacher is asked: as it is, with BatchNorm folded, or folded and compiled.

The teacher itself stays what it was: a form is a copy, and fingerprints are of the original weights.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from operator import truediv
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from unixkd.config import TeacherForm
from unixkd.errors import first_line
from unixkd.method.network import Network, logits_of, set_eval
from unixkd.models.card import PixelModel
from unixkd.planning.timing import interleaved

FORMS: tuple[TeacherForm, ...] = ("eager", "folded", "compiled")
"""Each includes what the one before it does."""
LEAST_WORK = 600.0
"""Seconds of the teacher's work in a run below which nothing is tried: to compile takes up to a minute."""
SLOWEST = 5e9
"""FLOPs a second that every processor reaches: what would be short even so is not timed."""
ROUNDS = 5
GAIN = 1.02
"""A form is chosen where it is faster by more than this factor."""
TOLERANCE, FLOOR = 1.5, 1e-3
"""A form's logits may be so many times as far from fp32's as the eager ones are, or as far as this share of them."""
LEAST_ROWS = 16
"""Smaller batches are filled up: torch compiles its convolutions anew for fewer."""
CHECKED = 63
"""Images to compare logits on; an odd number, as an epoch's last batch may have."""


class RefusedError(Exception):
    """A form cannot be made of this teacher, or not here; the message says why."""


class CompiledNet(nn.Module):
    """A network behind torch.compile, which is set up once for all sizes of a batch.

    Args:
        net: in eval mode, its weights never to change again: they are converted and packed once
        layout: memory format that images are brought into
    """

    def __init__(self, net: nn.Module, layout: torch.memory_format) -> None:
        super().__init__()
        self.net, self.layout = net, layout
        net.compile(options={"freezing": True})

    @torch.no_grad()  # only so are the weights taken as constants
    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """The network's logits."""
        rows = len(images)
        shape = (max(rows, LEAST_ROWS), *images.shape[1:])
        # A new tensor always: strides are compared too, and those of an axis of length 1 differ from caller to caller.
        inputs = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=self.layout)
        inputs[:rows], inputs[rows:] = images, 0.0
        torch._dynamo.mark_dynamic(inputs, 0)
        return logits_of(self.net(inputs), self.net)[:rows]


class Uses(TorchFunctionMode):
    """Inside, how often tensors go into something that gives a tensor is counted, by their id."""

    def __init__(self) -> None:
        super().__init__()
        self.number: Counter[int] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(out)):
            self.number.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return out


def fold(net: nn.Module, forward: Callable[[], object]) -> int:
    """Fold each BatchNorm that alone reads a convolution's output into the convolution, in place; how many there are.

    Which ones do is seen in a forward; a network may do otherwise in another one, so compare its logits afterwards.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2)).eval()
    >>> fold(net, lambda: net(torch.ones(1, 1, 2, 2)))
    1
    >>> [type(layer).__name__ for layer in net]
    ['Conv2d', 'Identity', 'BatchNorm2d']
    """
    calls: Counter[nn.Module] = Counter()
    uses = Uses()
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensors too: ids of what is freed come again
    pairs: list[tuple[int, nn.BatchNorm2d]] = []

    def watch(module: nn.Module, inputs: tuple[object, ...], output: Tensor) -> None:
        calls[module] += 1
        if isinstance(module, nn.Conv2d):
            outputs[id(output)] = (module, output)
            uses.number[id(output)] = 0  # what had this id before was another tensor
        elif isinstance(module, nn.BatchNorm2d) and inputs and id(inputs[0]) in outputs:
            pairs.append((id(inputs[0]), module))

    names = {module: name for name, module in net.named_modules()}
    plain = [m for m in names if type(m) in (nn.Conv2d, nn.BatchNorm2d)]  # a subclass may do something else
    with torch.no_grad(), uses, ExitStack() as hooks:
        for module in plain:
            hooks.enter_context(module.register_forward_hook(watch))
        forward()
    alone = [(outputs[place][0], norm) for place, norm in pairs if uses.number[place] == 1]
    found = [(c, n) for c, n in alone if calls[c] == calls[n] == 1 and n.running_mean is not None]
    for conv, norm in found:
        net.set_submodule(names[conv], fuse_conv_bn_eval(conv, norm))
        net.set_submodule(names[norm], nn.Identity())
    return len(found)


@dataclass
class TeacherForms:
    """A teacher's forms, each made once.

    Args:
        teacher: on its device, in its memory layout
        dtype: precision of its forward by autocast
        layout: memory format of its images
        batch: gives the batch that forms are set up and timed with; the same in every process of a run, also after
            it is resumed, as kernels are chosen by it
        note: shown why a form cannot be had
    """

    teacher: PixelModel
    dtype: torch.dtype | None
    layout: torch.memory_format
    batch: Callable[[], Float[Tensor, "n c h w"]]
    note: Callable[[str], None]
    made: dict[str, PixelModel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        set_eval(self.teacher.requires_grad_(False))  # in train mode a forward would change its statistics
        self.made["eager"] = self.teacher

    @cached_property
    def images(self) -> Float[Tensor, "n c h w"]:
        return self.batch()

    def get(self, form: TeacherForm) -> TeacherForm:
        """Make the teacher in a form, or in the next simpler one that can be had; which it is, and why is noted."""
        for simpler in reversed(FORMS[: FORMS.index(form) + 1]):
            try:
                self.make(simpler)
                return simpler
            except RefusedError as why:
                if simpler == form:
                    self.note(f"the teacher cannot be {form} here: {why}")
        raise AssertionError("eager is always there")

    def make(self, form: str) -> PixelModel:
        """The teacher in a form; raises `RefusedError` where it cannot be had, or gives other logits."""
        if form not in self.made:
            try:
                model = self.folded() if form == "folded" else self.compiled()
                self.check(model)
            except RefusedError:
                raise
            except Exception as error:  # of a network, of its compiler, or for want of memory
                raise RefusedError(first_line(error)) from error
            self.made[form] = model
        return self.made[form]

    def folded(self) -> PixelModel:
        """A copy with BatchNorm folded."""
        model = copy.deepcopy(self.teacher)
        if not fold(model.net, lambda: model(self.images[:2])):
            raise RefusedError("no BatchNorm follows a convolution in it")
        set_eval(model)
        return model.to(memory_format=self.layout)

    def compiled(self) -> PixelModel:
        """A copy that is folded where it can be, and compiled."""
        try:
            simpler = self.make("folded")
        except RefusedError:
            simpler = self.teacher
        model = copy.deepcopy(simpler)
        model.net = CompiledNet(model.net, self.layout)
        self.ask(model)
        return model

    @torch.no_grad()
    def ask(self, model: PixelModel) -> Tensor:
        return Network(model, dtype=self.dtype)(self.images).logits

    @torch.no_grad()
    def check(self, model: PixelModel) -> None:
        """Raise `RefusedError` where logits are further from full precision's than rounding explains."""
        full, eager, ours = (
            Network(each, dtype=dtype)(self.images[:CHECKED]).logits.float()
            for each, dtype in ((self.teacher, None), (self.teacher, self.dtype), (model, self.dtype))
        )
        allowed = torch.maximum(TOLERANCE * (eager - full).norm(), FLOOR * full.norm())
        distance = (ours - full).norm()
        if not distance.isfinite():
            raise RefusedError("logits on the first images are not finite")
        if distance > allowed:
            raise RefusedError(f"its logits would differ by {distance / full.norm():.1%} of their size")

    def choose(self, rows: float, pixels: int) -> TeacherForm:
        """The form that takes the least time for so many images of so many pixels, set-up included; it is noted."""
        weights = sum(parameter.numel() for parameter in self.teacher.parameters())
        pixels = max(pixels, (self.teacher.card.size or 0) ** 2)
        if 2 * weights * pixels * rows < LEAST_WORK * SLOWEST:  # a weight meets each pixel at most once
            return "eager"
        self.ask(self.teacher)
        work = rows / len(self.images) * self.seconds(partial(self.ask, self.teacher))
        if work < LEAST_WORK:
            return "eager"
        setup = self.seconds(partial(self.get, "compiled"))
        calls = {form: partial(self.ask, model) for form, model in self.made.items()}
        seconds = interleaved(calls, ROUNDS, self.images.device)
        eager = seconds["eager"]
        share = {form: statistics.median(map(truediv, each, eager)) for form, each in seconds.items()}
        form = best_form(share, work, setup)
        shares = ", ".join(f"{name} {share[name]:.0%}" for name in FORMS[1:] if name in share)
        if shares:
            self.note(
                f"teacher {form}: of its eager forward's time here it takes {shares}; set up in {setup:.0f} s, "
                f"for about {work / 60:.0f} minutes of eager forwards"
            )
        return form

    def seconds(self, call: Callable[[], object]) -> float:
        """What a call takes, on a CPU."""
        started = time.perf_counter()
        call()
        return time.perf_counter() - started


def best_form(share: dict[str, float], work: float, setup: float) -> TeacherForm:
    """The form to take.

    Args:
        share: time of each form that can be had, of the eager forward's
        work: seconds of the run's eager forwards
        setup: seconds to compile

    >>> best_form({"eager": 1.0, "folded": 0.9, "compiled": 0.8}, work=1000.0, setup=60.0)
    'compiled'
    >>> best_form({"eager": 1.0, "folded": 0.9, "compiled": 0.8}, work=500.0, setup=60.0)
    'folded'
    """
    form: TeacherForm = "folded" if share.get("folded", 1.0) * GAIN < 1 else "eager"
    if "compiled" in share and (share[form] - share["compiled"]) * work > setup:
        form = "compiled"
    return form
