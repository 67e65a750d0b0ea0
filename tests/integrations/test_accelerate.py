"""A plain loop under accelerate needs no adapter: these are the promises of `docs/integrations.md`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.utils.data import DataLoader

from several import together
from small import as_lists, assert_same, bert, images, named, net, rows, texts, trained_by_hand, vit
from unixkd.distiller import Distiller

RATE = 0.5


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Every test is a program of its own to accelerate."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def batches(batch: Any, size: int = 4) -> DataLoader:
    data = rows(batch) if isinstance(batch, dict) else list(zip(*batch, strict=True))
    return DataLoader(data, batch_size=size)


def arguments(batch: Any) -> tuple[Any, ...]:
    return (batch,) if isinstance(batch, dict) else tuple(batch)


def trained(
    accelerator: Accelerator, student: nn.Module, teacher: nn.Module, loader: DataLoader
) -> Distiller:
    """The loop of the documentation, an epoch."""
    optimizer = torch.optim.SGD(student.parameters(), RATE)
    student, optimizer, loader = accelerator.prepare(student, optimizer, loader)
    distiller = Distiller(student, teacher, rank=accelerator.process_index)
    student.train()
    for batch in loader:
        with accelerator.accumulate(student):
            accelerator.backward(distiller.step(*arguments(batch)).loss)
            optimizer.step()
            optimizer.zero_grad()
    return distiller


@pytest.mark.parametrize(
    ("make", "batch"), [(net, images()), (vit, named()), (bert, texts())], ids=["images", "vit", "bert"]
)
@pytest.mark.parametrize("accumulated", [1, 2])
def test_training_is_the_distillers_steps(make, batch, accumulated):
    student, teacher = make(1), make(2)
    given = [arguments(each) for each in batches(batch)]
    expected, by_hand = trained_by_hand(student, teacher, given, RATE, together=accumulated)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulated)
    distiller = trained(accelerator, student, teacher, batches(batch))
    assert_same(student, expected)
    assert distiller.ledger == by_hand.ledger


def test_saved_states_go_on_exactly(tmp_path):
    def run(student: nn.Module, saved: Path | None, until: Path | None) -> Distiller:
        """Two steps, after those of a saved state where one is given, saved where it is said."""
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True)
        optimizer = torch.optim.SGD(student.parameters(), RATE, momentum=0.5)
        model, optimizer = accelerator.prepare(student, optimizer)
        distiller = Distiller(model, net(2))
        accelerator.register_for_checkpointing(distiller)
        if saved:
            accelerator.load_state(saved)
        for batch in list(batches(images()))[:2] * (2 if not (saved or until) else 1):
            accelerator.backward(distiller.step(*batch).loss)
            optimizer.step()
            optimizer.zero_grad()
        if until:
            accelerator.save_state(until)
        return distiller

    unbroken, resumed = net(1), net(5)
    whole = run(unbroken, None, None)
    run(net(1), None, tmp_path / "state")
    again = run(resumed, tmp_path / "state", None)
    assert_same(resumed, unbroken)
    assert again.ledger == whole.ledger
    assert again.steps == 4


def test_in_mixed_precision_scoring_and_training_are_the_same_forward():
    """accelerate patches the module itself: the scoring pass through it is in bf16 too, and its answers in float32."""
    student, plain = net(1), net(1)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    kinds: list[torch.dtype] = []
    student[0].register_forward_hook(lambda layer, given, output: kinds.append(output.dtype))
    prepared = accelerator.prepare(student)
    distiller = Distiller(prepared, net(2), teacher_dtype=torch.bfloat16)
    result = distiller.step(*images())
    accelerator.backward(result.loss)
    assert kinds[-2:] == [torch.bfloat16, torch.bfloat16]
    assert result.scoring_logits.dtype == result.outputs.logits.dtype == torch.float32
    assert student[0].weight.grad.abs().sum() > 0  # no casts without gradient were left for training
    assert not torch.equal(result.scoring_logits, net(1)(images()[0]))
    by_hand = Distiller(plain, net(2))
    by_hand.step(*images())
    assert distiller.ledger == by_hand.ledger  # reduced precision is no discount
    # measuring FLOPs did not touch the statistics: they are those of scoring and training alone
    torch.testing.assert_close(student[1].num_batches_tracked, plain[1].num_batches_tracked)


def two_processes() -> tuple[dict[str, list], int, bool]:
    student = net(1)
    distiller = trained(Accelerator(cpu=True), student, net(2), batches(images(), 8))
    return as_lists(student), distiller.ledger.seen, distiller.student.module is not student


@pytest.mark.slow
def test_two_processes_average_the_gradients_of_their_own_draws():
    (first, seen, wrapped), (second, _, _) = together(2, two_processes)
    assert seen == 8
    assert wrapped
    student, teacher = net(1), net(2)
    pixels, labels = images()
    trained = [
        trained_by_hand(student, teacher, [(pixels[part], labels[part])], RATE, rank=rank)[0]
        for rank, part in enumerate((slice(0, 8), slice(8, 16)))
    ]
    for name, weight in student.named_parameters():
        mean = (trained[0].state_dict()[name] + trained[1].state_dict()[name]) / 2
        torch.testing.assert_close(torch.tensor(first[name]), mean)
        assert first[name] == second[name] != weight.tolist()
