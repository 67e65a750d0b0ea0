"""Distil with Lightning: `python examples/lightning_digits.py`, some seconds, nothing is downloaded."""

from __future__ import annotations

from functools import partial

import lightning as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import unixkd
from unixkd.integrations.lightning import DistillationModule, LedgerCallback


class Supervised(L.LightningModule):
    """How the teacher learns."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


L.seed_everything(0, verbose=False)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
data = TensorDataset(images, torch.tensor(digits.target))
training = DataLoader(torch.utils.data.Subset(data, range(1400)), batch_size=64, shuffle=True)
test = DataLoader(torch.utils.data.Subset(data, range(1400, 1797)), batch_size=256)
quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}

teacher = unixkd.create_model("resnet14", num_classes=10, in_channels=1)
L.Trainer(max_epochs=3, **quiet).fit(Supervised(teacher), training)

student = unixkd.create_model("resnet8", num_classes=10, in_channels=1)
module = DistillationModule(
    student, teacher, unixkd.unix(), optimizer=partial(torch.optim.AdamW, lr=3e-3), batch_size=64
)
trainer = L.Trainer(max_epochs=4, callbacks=[LedgerCallback()], **quiet)
trainer.fit(module, training)
(scores,) = trainer.validate(module, test, verbose=False)
print(f"student {scores['val_accuracy']:.1%}")
