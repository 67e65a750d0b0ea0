"""Distil a ResNet into a ViT with transformers' Trainer: `python examples/transformers_images.py`."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_digits
from transformers import (
    EvalPrediction,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

import unixkd
from unixkd.integrations.transformers import DistillationTrainer


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": (prediction.predictions.argmax(1) == prediction.label_ids).mean()}


def settings(epochs: int) -> TrainingArguments:
    return TrainingArguments(
        "digits", num_train_epochs=epochs, per_device_train_batch_size=64, learning_rate=3e-3,
        logging_strategy="epoch", save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip


set_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
data: list[dict[str, Any]] = [
    {"pixel_values": image, "labels": label}
    for image, label in zip(images, digits.target.tolist(), strict=True)
]

resnet = ResNetConfig(
    num_channels=1, embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic", num_labels=10
)
teacher = ResNetForImageClassification(resnet)
Trainer(teacher, settings(4), train_dataset=data[:1400]).train()

vit = ViTConfig(
    image_size=8, patch_size=4, num_channels=1, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=128, num_labels=10,
)  # fmt: skip
trainer = DistillationTrainer(
    ViTForImageClassification(vit), settings(10), train_dataset=data[:1400], eval_dataset=data[1400:],
    compute_metrics=accuracy, teacher=teacher, method=unixkd.unix(),
)  # fmt: skip
trainer.train()
print(f"student {trainer.evaluate()['eval_accuracy']:.1%}")
print(trainer.ledger)
