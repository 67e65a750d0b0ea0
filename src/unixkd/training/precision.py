"""Which precision a network runs in here: bf16 where a short probe of the network itself says that it pays."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unixkd.config import RunConfig, TrainConfig, read_yaml
from unixkd.errors import unknown_name
from unixkd.method.network import Network, evaluating
from unixkd.names import local_path, phase
from unixkd.planning.timing import interleaved
from unixkd.teacher.folder import read_key
from unixkd.training.stored_views import earlier_views
from unixkd.training.threads import choose_threads, known_threads

DTYPES: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}
"""What `Network` wants to hear, by the name the command line knows."""
ROUNDS, LIMIT = 3, 1.0  # seconds, within which all rounds but the first end
GAIN = 1.05
"""bf16 is chosen where it is faster by more than this factor: at par, full precision is the better bargain."""
NATIVE = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""What a processor that computes in bf16 says of itself; others emulate it, many times slower."""
TEACHER_PRECISION = "teacher precision"
"""Name of the precision that answers were computed in, in the key of their store."""
DECODING = "decoding of the images"
"""Name in that key of data.decoding where it is not full, which it was before it had a name."""
OPTIONS = ("precision", "teacher_precision")
"""Options of `train` that name a precision."""
DECIDED = (*OPTIONS, "threads", "frozen_teacher")
"""Options of `train` whose "auto" a run decides at its start; its run.yaml holds what was decided."""


def remembered(config: RunConfig, folder: Path | None) -> RunConfig:
    """The configuration with each "auto" as the stored answers, or an earlier run in `folder`, have it.

    Images are decoded at a smaller scale where neither says; digits and CIFAR are at one scale.
    """
    config = earlier_views(config, folder)
    decided: dict[str, Any] = {}
    decoding = "scaled"
    if config.answers.path is not None and (key := read_key(local_path(config.answers.path))):
        decided = {"teacher_precision": key[TEACHER_PRECISION]} if TEACHER_PRECISION in key else {}
        decoding = key.get(DECODING, "full")
    if folder is not None and (folder / "run.yaml").exists():
        saved = read_yaml(folder / "run.yaml")
        decided |= {name: saved["train"][name] for name in DECIDED if name in saved.get("train", {})}
        decoding = saved.get("data", {}).get("decoding", decoding)
    if config.data.decoding == "auto" and ":" in config.data.name:
        config = replace(config, data=replace(config.data, decoding=decoding))  # type: ignore[arg-type]
    return with_auto(config, decided)


def with_auto(config: RunConfig, decided: Mapping[str, Any]) -> RunConfig:
    """The configuration with these decisions, by name, in the place of "auto".

    >>> from unixkd.config import ModelConfig
    >>> config = RunConfig(ModelConfig("vgg8"), train=TrainConfig(teacher_precision="fp32"))
    >>> with_auto(config, {"precision": "bf16", "teacher_precision": "bf16"}).train.precision
    'bf16'
    """
    changes = {name: value for name, value in decided.items() if getattr(config.train, name) == "auto"}
    return replace(config, train=replace(config.train, **changes))


def settle(
    config: TrainConfig,
    student: nn.Module,
    teacher: nn.Module | None,
    images: Callable[[], Float[Tensor, "n c h w"]],
    device: torch.device,
    note: Callable[[str], None],
) -> TrainConfig:
    """The configuration with both networks' precision decided; what a probe found is noted.

    Args:
        student: probed forward and backward
        teacher: probed forward; None: fp32
        images: gives a batch to probe with

    Raises:
        UserError: there is no such precision
    """
    settled = {}
    for name, module, training in (("precision", student, True), ("teacher_precision", teacher, False)):
        wanted = getattr(config, name)
        if wanted not in ("auto", *DTYPES):
            raise unknown_name("precision", wanted, ("auto", *DTYPES))
        if wanted != "auto":
            continue
        settled[name] = "fp32"
        if module is not None:
            settled[name], speedup = choose_precision(module, images, device, training=training)
            if speedup is not None:
                who = "teacher" if not training else "model" if teacher is None else "student"
                note(f"{who} in {settled[name]}: bf16 takes {1 / speedup:.0%} of fp32's time here")
    return replace(config, **settled)  # type: ignore[arg-type]


def settle_threads(
    config: TrainConfig,
    student: nn.Module,
    teacher: nn.Module | None,
    images: Callable[[], Float[Tensor, "n c h w"]],
    device: torch.device,
    note: Callable[[str], None],
    processes: int = 1,
) -> TrainConfig:
    """The configuration with the number of threads decided for what a step computes; what a probe found is noted."""
    threads = known_threads(config.threads, device, processes)
    if threads == "auto":
        learner = Network(copy.deepcopy(student).train(), dtype=DTYPES[config.precision])
        asked = None if teacher is None else Network(teacher, dtype=DTYPES[config.teacher_precision])
        pixels = images()

        def step() -> None:
            one_pass(learner, pixels, True)
            if asked is not None:
                with evaluating(asked.module):
                    one_pass(asked, pixels, False)

        threads = choose_threads(step, note, len(pixels) / config.batch_size)
    return replace(config, threads=threads)


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device computes in bf16 rather than emulating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # torch 2.10 does not tell yet: full precision then.
        known: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(known.get(name, False) for name in NATIVE)
    return False


def choose_precision(
    module: nn.Module,
    images: Callable[[], Float[Tensor, "n c h w"]],
    device: torch.device,
    *,
    training: bool,
) -> tuple[str, float | None]:
    """The faster precision, and how many times faster bf16 was than fp32 on these images where that was probed.

    On a GPU with bf16 units it is bf16: eager steps of small networks wait for launches, not for
    arithmetic, so timing them would say nothing about a captured step.
    """
    if not has_native_bf16(device):
        return "fp32", None
    if device.type == "cuda":
        return "bf16", None
    speedup = probe(module, images(), training=training)
    return "bf16" if speedup > GAIN else "fp32", speedup


@phase("timing bf16 against fp32")
def probe(module: nn.Module, images: Float[Tensor, "n c h w"], *, training: bool) -> float:
    """How many times faster a forward (and backward) is in bf16, in one thread by CPU time: whatever else runs."""
    clone = copy.deepcopy(module).train(training)
    calls = {
        name: partial(one_pass, Network(clone, dtype=dtype), images, training)
        for name, dtype in DTYPES.items()
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = interleaved(calls, ROUNDS, images.device, limit=LIMIT, least=1, clock=time.process_time)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(fp32 / bf16 for fp32, bf16 in zip(seconds["fp32"], seconds["bf16"], strict=True))


def one_pass(network: Network, images: Float[Tensor, "n c h w"], training: bool) -> None:
    """One forward, and backward."""
    with torch.set_grad_enabled(training):
        logits = network(images).logits
        if training:
            logits.float().logsumexp(1).sum().backward()
