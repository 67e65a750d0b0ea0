"""Text: KD, random and UNIX, with its mixing in embedding space, on real sentences; our extension of the paper.

Which of six libraries' documentation is a sentence from (`text_sentences.py`)? A small BERT, trained on the labels, is
distilled into a smaller one that sees none. Texts are padded to the longest of their batch, and the ledger counts each
batch at its length. The result is the accuracy after the last epoch on sentences of files that nobody trained on.

Target: the teacher is better than the student alone, and by the ledger `random` costs exactly 75 % of plain KD.

    python benchmarks/accuracy/text.py           # half an hour on one core
    python benchmarks/accuracy/text.py --quick   # a few batches of everything
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unixkd import CrossEntropy, Distiller, Method, Term
from unixkd.method.unix import kd, mixup, random, student_alone, unix

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish, mean_sd
from text_sentences import LIBRARIES, VOCABULARY, Texts, load

BATCH, EVALUATED = 64, 250
SIZES = {"teacher": (3, 128), "student": (2, 48)}
"""Layers and width."""
METHODS: dict[str, Callable[[], Method]] = {
    "student-alone": student_alone, "kd": kd, "random": random,
    "unix-random": partial(unix, scorer=None), "unix": unix, "mixup": mixup,
}  # fmt: skip


def network(role: str, seed: int) -> nn.Module:
    """A BERT for as many classes as there are libraries, from its configuration."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    layers, width = SIZES[role]
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=4 * width, max_position_embeddings=64, num_labels=len(LIBRARIES),
    )  # fmt: skip
    return BertForSequenceClassification(config)


def batches(texts: Texts, seed: int, epoch: int) -> Iterator[dict[str, Tensor]]:
    """An epoch's shuffled batches; a shorter last one is left out."""
    generator = torch.Generator().manual_seed(1000 * seed + epoch)
    order = torch.randperm(len(texts.tokens), generator=generator).tolist()
    for start in range(0, len(order) - BATCH + 1, BATCH):
        yield texts.batch(order[start : start + BATCH])


@torch.no_grad()
def accuracy(model: nn.Module, texts: Texts) -> float:
    """Share of the texts that the model gets right, in %."""
    model.eval()
    right = 0
    by_length = sorted(range(len(texts.tokens)), key=lambda row: len(texts.tokens[row]))  # little padding
    for start in range(0, len(by_length), EVALUATED):
        batch = texts.batch(by_length[start : start + EVALUATED])
        labels = batch.pop("labels")
        right += int((model(**batch).logits.argmax(1) == labels).sum())
    return 100 * right / len(by_length)


def train(student: nn.Module, distiller: Distiller, texts: Texts, seed: int, epochs: int) -> None:
    """AdamW with a warm-up and a linear decay to 0."""
    steps = epochs * (len(texts.tokens) // BATCH)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-3, steps, pct_start=0.1, anneal_strategy="linear"
    )
    for epoch in range(epochs):
        student.train()
        for batch in batches(texts, seed, epoch):
            distiller.step(batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


def one(name: str, seed: int, teacher: nn.Module, texts: tuple[Texts, Texts], epochs: int) -> dict[str, Any]:
    """One run of a method: accuracy and cost."""
    student, method = network("student", seed), METHODS[name]()
    objective = None if method.teacher else [Term("ce", CrossEntropy())]
    distiller = Distiller(
        student, teacher if method.teacher else None, method, objective, batch_size=BATCH, seed=seed
    )
    train(student, distiller, texts[0], seed, epochs)
    result = {"accuracy": accuracy(student, texts[1]), "cost": distiller.ledger.relative_to_kd()}
    print(f"{name}, seed {seed}: {result['accuracy']:.2f} %  {distiller.ledger}", flush=True)
    return result


def main() -> int:
    """Train, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few batches of everything")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    each, tested, teacher_epochs, epochs, seeds = (
        (40, 20, 1, 1, 1) if options.quick else (1200, 300, 8, 8, options.seeds)
    )
    *texts, versions = load(each, tested)
    teacher = network("teacher", 0)
    train(teacher, Distiller(teacher, method=student_alone(), batch_size=BATCH), texts[0], 0, teacher_epochs)
    best = accuracy(teacher, texts[1])
    print(f"teacher: {best:.2f} %", flush=True)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    for seed in range(seeds):
        for name, results in runs.items():
            results.append(one(name, seed, teacher, (texts[0], texts[1]), epochs))
    plain = [result["accuracy"] for result in runs["kd"]]
    table = {
        name: {
            "accuracy": mean_sd([r["accuracy"] for r in results]),
            "against_kd": mean_sd([r["accuracy"] - kd for r, kd in zip(results, plain, strict=True)]),
            # without a teacher in the ledger, nothing is left to compare the cost with
            "cost": results[0]["cost"] if METHODS[name]().teacher else None,
        }
        for name, results in runs.items()
    }
    alone = table["student-alone"]["accuracy"]["mean"]
    shares = [round(share, 6) for share in table["random"]["cost"].values()]
    return finish(
        "text",
        {"teacher": best, "methods": table, "train": len(texts[0].tokens), "test": len(texts[1].tokens),
         "epochs": epochs, "libraries": versions},
        target="teacher better than the student alone; cost of random 75 %",
        passed=options.quick or (best > alone and shares == [0.75, 0.75]),
        quick=options.quick,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
