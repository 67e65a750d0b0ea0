"""Small networks and data for the adapters' tests, in the two forms that they come in."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from unixkd.distiller import Distiller

CLASSES, WORDS, LENGTH = 3, 30, 6


def net(seed: int, width: int = 4) -> nn.Sequential:
    """Images [N, 1, 8, 8] to logits, with BatchNorm and without dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, CLASSES)
    )


def vit(seed: int, width: int = 8) -> ViTForImageClassification:
    """pixel_values [N, 1, 8, 8] to an object with logits."""
    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=width, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=width, num_labels=CLASSES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return ViTForImageClassification(config)


def bert(seed: int, width: int = 8) -> BertForSequenceClassification:
    """input_ids, attention_mask [N, LENGTH] to an object with logits."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=WORDS, max_position_embeddings=LENGTH, hidden_size=width, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=width, num_labels=CLASSES,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def images(count: int = 16) -> tuple[Tensor, Tensor]:
    """Images and labels."""
    generator = torch.Generator().manual_seed(7)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % CLASSES


def texts(count: int = 16) -> dict[str, Tensor]:
    """Padded texts with labels, as a tokenizer leaves them."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(2, LENGTH + 1, (count, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).long()
    ids = torch.randint(1, WORDS, (count, LENGTH), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(count) % CLASSES}


def named(count: int = 16) -> dict[str, Tensor]:
    """The images as a batch of transformers."""
    pixels, labels = images(count)
    return {"pixel_values": pixels, "labels": labels}


def rows(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """A data set of the samples of a batch."""
    return [dict(zip(batch, each, strict=True)) for each in zip(*batch.values(), strict=True)]


def trained_by_hand(
    student: nn.Module,
    teacher: nn.Module,
    batches: list[tuple[Any, ...]],
    rate: float,
    together: int = 1,
    **options: Any,
) -> tuple[nn.Module, Distiller]:
    """A copy of the student after SGD on the mean gradient of each `together` batches, and its distiller.

    Args:
        student: as it is before
        teacher: its teacher
        batches: arguments of `Distiller.step`, for each batch
        rate: of learning
        together: batches whose gradients are averaged
        **options: of the `Distiller`
    """
    student = copy.deepcopy(student).train()
    distiller = Distiller(student, teacher, **options)
    weights = list(student.parameters())
    for start in range(0, len(batches), together):
        losses = [distiller.step(*batch).loss for batch in batches[start : start + together]]
        gradients = torch.autograd.grad(torch.stack(losses).mean(), weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= rate * gradient
    return student, distiller


def assert_same(a: nn.Module, b: nn.Module) -> None:
    """Their weights and buffers are the same, but for the last bits."""
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, msg=lambda text, name=name: f"{name}: {text}")


def as_lists(model: nn.Module) -> dict[str, list]:
    """Its weights, to be sent to another process."""
    return {name: weight.tolist() for name, weight in model.named_parameters()}
