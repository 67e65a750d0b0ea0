"""Distil BERT with transformers' Trainer: which package of Python's library is a piece of source from?"""

from __future__ import annotations

import random
import re
import zlib
from pathlib import Path

from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

from unixkd.integrations.transformers import DistillationTrainer

PACKAGES, WORDS, LENGTH = ("asyncio", "email", "unittest", "xml"), 2000, 24


def pieces(package: str) -> list[str]:
    """What stands between two empty lines."""
    sources = [
        file.read_text("utf-8") for file in sorted((Path(random.__file__).parent / package).rglob("*.py"))
    ]
    return [piece for source in sources for piece in source.split("\n\n") if len(piece) > 80]


def row(text: str, label: int) -> dict[str, object]:
    """Words by their hash, the first LENGTH of them, padded with 0."""
    ids = [1 + zlib.crc32(word.encode()) % (WORDS - 1) for word in re.findall(r"\w+", text)][:LENGTH]
    padding = [0] * (LENGTH - len(ids))
    return {"input_ids": ids + padding, "attention_mask": [1] * len(ids) + padding, "labels": label}


def bert(width: int, layers: int) -> BertForSequenceClassification:
    return BertForSequenceClassification(BertConfig(
        vocab_size=WORDS, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=2 * width, max_position_embeddings=LENGTH, num_labels=len(PACKAGES),
    ))  # fmt: skip


def settings(epochs: int) -> TrainingArguments:
    return TrainingArguments(
        "packages", num_train_epochs=epochs, per_device_train_batch_size=64, learning_rate=2e-3,
        logging_strategy="epoch", save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip


set_seed(0)
rows = [row(text, label) for label, package in enumerate(PACKAGES) for text in pieces(package)]
random.shuffle(rows)
training, test = rows[:3000], rows[3000:3300]

teacher = bert(width=64, layers=2)
Trainer(teacher, settings(3), train_dataset=training).train()
student = bert(width=32, layers=1)
trainer = DistillationTrainer(student, settings(4), train_dataset=training, teacher=teacher)  # by UNIX
trainer.train()

right = trainer.predict(test).predictions.argmax(1) == [each["labels"] for each in test]
print(f"student {right.mean():.1%}, chance {1 / len(PACKAGES):.0%}")
print(trainer.ledger)
