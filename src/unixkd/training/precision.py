"""Which precision a network runs in here: 16 bits where a short probe of the network itself says that they pay."""

from __future__ import annotations

import contextlib
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
from unixkd.training.cuda_graph import Recorder, recorded
from unixkd.training.distributed.sharding import is_sharded_role
from unixkd.training.stored_views import earlier_views
from unixkd.training.threads import choose_threads, known_threads

DTYPES: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What `Network` wants to hear, by the name the command line knows."""
ROUNDS, LIMIT = 3, 1.0  # seconds, within which all rounds but the first end
GAIN = 1.05
"""16 bits are chosen where they are faster by more than this factor: at par, full precision is the better bargain."""
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
        settled[name], lower = "fp32", candidate(device)
        if training and lower == "fp16" and is_sharded_role(config, "student"):
            continue  # there is no gradient scale for its shards
        if module is not None and lower is not None:
            settled[name], speedup = choose_precision(module, images, device, training=training)
            if speedup is not None:
                who = "teacher" if not training else "model" if teacher is None else "student"
                note(f"{who} in {settled[name]}: {lower} takes {1 / speedup:.0%} of fp32's time here")
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


def candidate(device: torch.device) -> str | None:
    """The 16-bit precision that may be faster than fp32 on a device; None: neither.

    GPUs before compute capability 8.0 (V100, T4, RTX 20) have units for fp16 alone. CPUs rather have them for bf16.
    """
    if has_native_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else None


def choose_precision(
    module: nn.Module,
    images: Callable[[], Float[Tensor, "n c h w"]],
    device: torch.device,
    *,
    training: bool,
    record: Recorder | None = None,
) -> tuple[str, float | None]:
    """The faster precision, and how many times faster 16 bits were than fp32 on these images where that was probed.

    On a GPU with bf16 units it is bf16. Older ones may have fast units for fp16 or none, so that is probed: in
    captured passes, as eager ones of small networks wait for launches and not for arithmetic.

    Args:
        module: the network
        images: gives a batch to probe with
        device: where it runs
        training: probed forward and backward, else forward
        record: how a pass is captured on a GPU (default: in a CUDA graph)
    """
    lower = candidate(device)
    if lower is None:
        return "fp32", None
    if device.type == "cuda" and lower == "bf16":
        return "bf16", None
    speedup = probe(module, images(), lower, training=training, record=record)
    return lower if speedup > GAIN else "fp32", speedup


@phase("timing 16 bits against fp32")
def probe(
    module: nn.Module,
    images: Float[Tensor, "n c h w"],
    lower: str = "bf16",
    *,
    training: bool,
    record: Recorder | None = None,
) -> float:
    """How many times faster a forward (and backward) is in 16 bits.

    On a CPU in one thread by CPU time: whatever else runs. On a GPU, or with `record`, captured passes are timed.
    """
    clone = copy.deepcopy(module).train(training)
    calls: dict[str, Callable[[], None]] = {
        name: partial(one_pass, Network(clone, dtype=DTYPES[name]), images, training)
        for name in ("fp32", lower)
    }
    clock = time.process_time
    if images.device.type == "cuda" or record is not None:
        calls = {name: captured(call, images.device, record) for name, call in calls.items()}
        clock = time.perf_counter
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = interleaved(calls, ROUNDS, images.device, limit=LIMIT, least=1, clock=clock)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(fp32 / less for fp32, less in zip(seconds["fp32"], seconds[lower], strict=True))


def captured(call: Callable[[], None], device: torch.device, record: Recorder | None) -> Callable[[], None]:
    """What repeats a call as a captured step would; the call itself where it cannot be captured."""
    with contextlib.suppress(RuntimeError):
        return recorded(call, device, record)
    return call


def one_pass(network: Network, images: Float[Tensor, "n c h w"], training: bool) -> None:
    """One forward, and backward."""
    with torch.set_grad_enabled(training):
        logits = network(images).logits
        if training:
            logits.float().logsumexp(1).sum().backward()
