"""Two processes of which each holds a part of the weights: what they compute is what DDP, and one process, compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_several
import torch
from test_several import run_without_batchnorm, without_batchnorm
from torch import nn

from running import TEST_IMAGES, alone, distilled, everything, make_teacher, metrics, summary, weights
from several import together
from unixkd.config import AnswersConfig, LossConfig, MethodConfig, RunConfig
from unixkd.data import load_data
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.method.flops import forward_flops
from unixkd.method.ledger import Ledger
from unixkd.method.network import is_sharded
from unixkd.models import create_model, load_student
from unixkd.training.checkpoint import load_checkpoint
from unixkd.training.distributed.sharding import (
    check_sharding,
    gathered,
    load_whole,
    local_shard,
    shard,
    size,
    skeleton,
    units,
)
from unixkd.training.distributed.world import World
from unixkd.training.distributed.world import together as processes
from unixkd.training.predictions import predict
from unixkd.training.run import run

pytestmark = pytest.mark.slow

EVEN, UNEVEN = 100, 105
"""Training images: a last batch of 4, and one of 9, of which one process has five and the other four."""


def with_images(config: RunConfig, limit: int) -> RunConfig:
    return replace(config, data=replace(config.data, limit=limit))


def kd(teacher: Path, **train: Any) -> RunConfig:
    return with_images(distilled(teacher, "kd", clip_norm=1.0, eval_batch_size=150, **train), UNEVEN)


def unix(teacher: Path, **train: Any) -> RunConfig:
    return distilled(teacher, optimizer="adamw", lr=1e-3, **train)


def features(teacher: Path, **train: Any) -> RunConfig:
    return replace(distilled(teacher, "kd", **train), loss=LossConfig(at=1.0, sp=1.0))


def in_parts(teacher: Path, **train: Any) -> RunConfig:
    """In the last step one process needs two parts, the other one."""
    return with_images(distilled(teacher, "kd", micro_batch=4, **train), UNEVEN)


def small_scoring(teacher: Path, **train: Any) -> RunConfig:
    """Scored on smaller images in eval mode: BatchNorm's statistics are estimated anew before each evaluation."""
    return distilled(
        teacher, MethodConfig("unix", scoring_mode="eval", scoring_size=0.5), bn_images=64, **train
    )


PLAIN = {"kd": kd, "in parts": in_parts}
"""Without BatchNorm, so that one process computes the same."""
CONFIGS = PLAIN | {"unix": unix, "features": features, "small scoring": small_scoring}
SHARDED = [("kd", "student"), *((name, "both") for name in CONFIGS)]


def in_each_process(teacher: Path, base: Path) -> tuple[Any, Any]:
    """Each configuration with DDP and sharded; one twice, once stopped three times. What two functions below find."""
    for name, sharding in [*((name, "none") for name in CONFIGS), *SHARDED]:
        train = run_without_batchnorm if name in PLAIN else run
        train(CONFIGS[name](teacher, sharding=sharding), base / name / sharding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            test_several.CONFIGS,
            "stopped",
            lambda teacher, folder: unix(teacher, sharding="both", micro_batch=4),
        )
        patch.setitem(test_several.STOPS, "stopped", (0, 2, 5))
        test_several.whole_and_in_parts(teacher, base, ["stopped"])
    return hold_parts(), step_of_an_own_loop()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


@pytest.fixture(scope="module")
def found(teacher, tmp_path_factory) -> tuple[Path, list[Any]]:
    """All that needs two processes, whose start takes longer than it."""
    base = tmp_path_factory.mktemp("runs")
    return base, together(2, in_each_process, teacher, base)


@pytest.fixture
def runs(found) -> Path:
    return found[0]


def assert_same_weights(one: Path, other: Path, atol: float = 1e-5) -> None:
    expected = weights(other)
    assert weights(one).keys() == expected.keys()
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=atol, msg=name)


@pytest.mark.parametrize(("name", "sharding"), SHARDED)
def test_weights_and_cost_are_those_of_ddp(name, sharding, runs):
    ours, plain = runs / name / sharding, runs / name / "none"
    # AdamW divides a gradient by its own size: one near 0 moves a weight by some of the learning rate either way.
    assert_same_weights(ours, plain, atol=1e-4 if name == "unix" else 1e-5)
    assert summary(ours)["parameters"] == summary(plain)["parameters"]
    for line, expected in zip(metrics(ours), metrics(plain), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert line["accuracy"] == pytest.approx(expected["accuracy"], abs=2 / TEST_IMAGES)
    cost, expected = summary(ours)["cost"], summary(plain)["cost"]
    if name == "small scoring":  # each process estimates BatchNorm's statistics: charged by each
        assert cost["images"].pop("refreshed") == 2 * expected["images"].pop("refreshed") == 128
        assert cost["images"].pop("evaluated") == expected["images"].pop("evaluated") + 64
        assert cost["flops"]["scoring"] == expected["flops"]["scoring"]
        assert cost["images"] == expected["images"]
    else:
        assert cost == expected


@pytest.mark.parametrize("name", PLAIN)
def test_without_batchnorm_the_weights_are_those_of_one_process(name, teacher, runs, tmp_path):
    run_without_batchnorm(PLAIN[name](teacher), tmp_path)
    assert_same_weights(runs / name / "both", tmp_path)


def test_the_files_are_those_of_any_run(teacher, runs):
    """The student loads in one process and answers as it was evaluated; a checkpoint has DDP's names and shapes."""
    test = load_data(alone().data).test
    assert test is not None
    student = load_student(runs / "unix" / "both")
    found = predict(student, test.eval_batches(200)).accuracy
    assert found == pytest.approx(summary(runs / "unix" / "both")["accuracy"]["last"], abs=1e-9)
    ours, plain = (load_checkpoint(runs / "unix" / way / "checkpoints") for way in ("both", "none"))
    assert {name: t.shape for name, t in ours[0].items()} == {name: t.shape for name, t in plain[0].items()}
    assert ours[1].keys() == plain[1].keys()
    for name, tensor in plain[0].items():
        if name.startswith("optimizer."):
            torch.testing.assert_close(ours[0][name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_stopped_by_either_they_go_on_exactly(runs):
    assert everything(runs / "stopped" / "parts" / "run") == everything(runs / "stopped" / "whole" / "run")


def hold_parts() -> tuple[int, int, bool, bool]:
    """What a process holds of a network; whether it answers as before, also once its weights were loaded anew."""
    with processes() as world:
        network = without_batchnorm(create_model("resnet8", 10, 1)).eval()
        if not world.leads:
            nn.init.zeros_(network.fc.weight)  # the leader's weights count
        images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        expected, whole = world.once(lambda: (network(images).detach(), dict(network.state_dict())))
        number = size(network)
        shard(network, world, torch.device("cpu"))
        assert is_sharded(network)
        held = sum(local_shard(p).numel() for p in network.parameters())
        with torch.no_grad():
            as_before = torch.allclose(network(images), expected, atol=1e-5)
            for parameter in network.parameters():
                parameter.zero_()
            load_whole(network, whole)
        back = gathered(network.state_dict(), world)
        assert world.leads or not back
        return number, held, as_before, all(torch.equal(back[name], whole[name]) for name in back)


def test_each_process_holds_its_part(found):
    answers = [each for each, _ in found[1]]
    number = answers[0][0]
    assert sum(held for _, held, _, _ in answers) == number
    assert max(held for _, held, _, _ in answers) < 0.52 * number
    assert all(as_before and whole for _, _, as_before, whole in answers)


def step_of_an_own_loop() -> tuple[float, float, str]:
    """The loss of a step, that of an unsharded one, and what is said without a ledger."""
    with processes() as world:
        networks = [without_batchnorm(create_model(name, 10, 1)) for name in ("resnet8", "resnet14")]
        for network in networks:
            world.take_from_leader([p.detach() for p in network.parameters()])
        images, labels = torch.rand(8, 1, 8, 8), torch.arange(8) % 10
        expected = Distiller(*networks).step(images, labels).loss.item()
        ledger = Ledger.of(*networks, (1, 8, 8))
        shard(networks[0], world, torch.device("cpu"))
        result = Distiller(*networks, ledger=ledger).step(images, labels)
        result.loss.backward()
        assert ledger.images.trained == len(result.mixed)
        with pytest.raises(UserError) as error:
            Distiller(*networks).step(images, labels)
        return result.loss.item(), expected, str(error.value)


def test_in_an_own_loop_the_ledger_comes_first(found):
    for _, (loss, expected, message) in found[1]:
        assert loss == pytest.approx(expected, rel=1e-4)
        assert "ledger=Ledger.of(student, teacher, (C, H, W))" in message


def names_of(network: nn.Module) -> list[str]:
    found = set(units(network))
    return [name for name, module in network.named_modules() if module in found]


def test_units_are_blocks_or_large_layers():
    assert names_of(create_model("resnet14", 10, 3)) == [f"layer{i}.{j}" for i in (1, 2, 3) for j in (0, 1)]
    vgg = create_model("vgg8", 10, 3)  # has no blocks
    sizes = {name: size(module) for name, module in vgg.named_modules() if isinstance(module, nn.Conv2d)}
    assert names_of(vgg) == [name for name, number in sizes.items() if number > size(vgg) / 8]
    assert names_of(vgg)


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 16)
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2))
        )


def test_a_large_stage_is_divided_into_its_blocks_and_a_block_is_not():
    def network(stages: int) -> nn.Sequential:
        return nn.Sequential(*(Stage() for _ in range(stages)))

    assert names_of(network(2)) == ["0.blocks.0", "0.blocks.1", "1.blocks.0", "1.blocks.1"]
    assert names_of(network(9)) == [str(i) for i in range(9)]


def test_what_shares_a_weight_is_no_unit():
    words = nn.Embedding(50, 8)
    head = nn.Linear(8, 50, bias=False)
    network = nn.Sequential(words, nn.Linear(8, 8), head)
    assert units(network) == [words, head]
    head.weight = words.weight
    assert units(network) == [network[1]]  # more than an eighth of the 472 that are left


def test_a_skeleton_costs_what_the_network_costs():
    network = create_model("resnet8", 10, 1)
    bones = skeleton(network)
    assert all(tensor.is_meta for tensor in bones.state_dict().values())
    assert not any(tensor.is_meta for tensor in network.state_dict().values())
    assert forward_flops(bones, (1, 8, 8)) == forward_flops(network, (1, 8, 8))


TWO = World(0, 2)


@pytest.mark.parametrize(
    ("world", "sharding", "change", "message"),
    [
        (World(), "student", {}, "there is one: start with torchrun"),
        (TWO, "student", {"ema_decay": 0.9}, "no moving average"),
        (TWO, "student", {"compile": True}, "leave --train.compile out"),
        (TWO, "both", {"teacher": None}, "there is no teacher, give --train.sharding student"),
        (TWO, "both", {"answers": AnswersConfig("answers")}, "with stored answers"),
        (TWO, "student", {"answers": AnswersConfig("answers")}, None),
        (TWO, "none", {"ema_decay": 0.9}, None),
    ],
)
def test_what_cannot_be_is_refused(world, sharding, change, message):
    config = distilled(Path("teacher"), sharding=sharding)
    of_run = {name: value for name, value in change.items() if name in ("teacher", "answers")}
    of_train = {name: value for name, value in change.items() if name not in of_run}
    config = replace(config, **of_run, train=replace(config.train, **of_train))
    if message is None:
        check_sharding(config, world)
        return
    with pytest.raises(UserError, match=message):
        check_sharding(config, world)


def test_alone_it_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="start with torchrun"):
        run(alone(sharding="student"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
