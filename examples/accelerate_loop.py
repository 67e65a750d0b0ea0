"""Distil in a plain loop under accelerate: `accelerate launch examples/accelerate_loop.py`, or with python alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import unixkd

torch.manual_seed(0)
accelerator = Accelerator(gradient_accumulation_steps=2)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
training = DataLoader(TensorDataset(images[:1400], labels[:1400]), batch_size=32, shuffle=True)
test = DataLoader(TensorDataset(images[1400:], labels[1400:]), batch_size=256)

teacher = unixkd.create_model("resnet14", num_classes=10, in_channels=1)
optimizer = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
network, optimizer, training, test = accelerator.prepare(teacher, optimizer, training, test)
for _ in range(3):
    for x, y in training:
        accelerator.backward(F.cross_entropy(network(x), y))
        optimizer.step()
        optimizer.zero_grad()
teacher = accelerator.unwrap_model(network)  # a frozen network needs no wrapper

student = unixkd.create_model("resnet8", num_classes=10, in_channels=1)
optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
student, optimizer = accelerator.prepare(student, optimizer)
distiller = unixkd.Distiller(
    student, teacher, unixkd.unix(), batch_size=32, rank=accelerator.process_index
)  # of what prepare gave, not before it
accelerator.register_for_checkpointing(distiller)  # save_state and load_state then carry draws and ledger
for _ in range(4):
    student.train()
    for x, y in training:
        with accelerator.accumulate(student):
            result = distiller.step(x, y)
            accelerator.backward(result.loss)
            optimizer.step()
            optimizer.zero_grad()

student.eval()
with torch.no_grad():
    answers = [accelerator.gather_for_metrics((student(x).argmax(1) == y).float()) for x, y in test]
accelerator.print(f"student {torch.cat(answers).mean():.1%}")
accelerator.print(distiller.ledger)
accelerator.end_training()
