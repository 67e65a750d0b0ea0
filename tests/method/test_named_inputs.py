"""Inputs of more than one tensor: named tensors, and text mixed in each network's own embeddings."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unixkd
from unixkd.errors import UserError
from unixkd.method.batch import Batch, Draws
from unixkd.method.draws import make_draws
from unixkd.method.method import StepCounts
from unixkd.method.named_inputs import NamedInputs, as_inputs, blend, concat
from unixkd.method.network import Network
from unixkd.method.step import distill_step
from unixkd.method.unix import hard, infobatch, kd, mixup, random, unix
from unixkd.teacher.store import AnswerStore
from unixkd.training.engine import MicroBatches

WORDS, WIDTH, CLASSES = 20, 6, 3


class Bag(nn.Module):
    """The mean of the embeddings of a text's tokens, then a linear layer: linear in the embeddings."""

    def __init__(self, seed: int = 0, width: int = WIDTH) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(WORDS, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        mask = attention_mask[..., None].float()
        pooled = (self.embedding(input_ids) * mask).sum(1) / mask.sum(1)
        return SimpleNamespace(logits=self.head(pooled))


class Plain(nn.Module):
    """The same answers as a network, as a mapping."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(**inputs).logits}


def texts(n: int, length: int = 5, seed: int = 0) -> dict[str, Tensor]:
    """Texts of 1 to `length` tokens, padded with token 0."""
    torch.manual_seed(seed)
    lengths = torch.randint(1, length + 1, (n,))
    lengths[0] = length
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {"input_ids": torch.randint(1, WORDS, (n, length)) * mask, "attention_mask": mask}


def run(module: nn.Module, inputs: Tensor | NamedInputs) -> Tensor:
    return Network(module)(inputs).logits


def test_labels_are_taken_out_of_a_mapping():
    named, labels = as_inputs({"labels": torch.tensor([1, 2]), "pixel_values": torch.zeros(2, 3, 4, 4)})
    assert isinstance(named, NamedInputs)
    assert labels.tolist() == [1, 2]
    assert list(named.tensors) == ["pixel_values"]
    with pytest.raises(UserError, match="'name' is no tensor, but list"):
        as_inputs({"pixel_values": torch.zeros(2, 3, 4, 4), "name": ["a", "b"]})
    with pytest.raises(UserError, match="different numbers of samples"):
        as_inputs({"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(UserError, match="no inputs"):
        as_inputs({"labels": torch.zeros(2)})


def test_named_pixels_train_as_the_same_pixels_in_a_tensor():
    student, teacher = (unixkd.create_model("resnet8", 10) for _ in range(2))
    wrapped = [copy.deepcopy(net) for net in (student, teacher)]
    for net in wrapped:
        own = net.forward
        net.forward = lambda pixel_values, own=own: SimpleNamespace(logits=own(pixel_values))
    pixels, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
    objective = [unixkd.Term("kd", unixkd.KD()), unixkd.Term("ce", unixkd.CrossEntropy())]
    plain = unixkd.Distiller(student, teacher, unix(), objective)
    named = unixkd.Distiller(wrapped[0], wrapped[1], unix(), objective)
    a = plain.step(pixels, labels)
    b = named.step({"pixel_values": pixels, "labels": labels})
    assert torch.equal(a.loss, b.loss)
    assert torch.equal(a.mixed.images, b.mixed.images.tensors["pixel_values"])
    assert plain.ledger.relative_to_kd() == named.ledger.relative_to_kd()


def test_the_text_with_the_larger_share_gives_length_and_tokens():
    batch = NamedInputs(
        {
            "input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]),
            "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        }
    )
    other = batch[torch.tensor([1, 0])]
    mixed = blend(batch, other, torch.tensor([0.25, 0.75]))
    assert mixed.tensors["input_ids"].tolist() == [[1, 2, 3], [1, 2, 3]]
    assert mixed.tensors["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert mixed.tensors["input_ids.partner"].tolist() == [[4, 5, 0], [4, 5, 0]]
    assert mixed.tensors["input_ids.share"].tolist() == [[0.25, 0.25, 0.0], [0.25, 0.25, 0.0]]


def test_embeddings_are_mixed_as_by_hand():
    model = Bag()
    batch, m = NamedInputs(texts(4)), torch.tensor([0.0, 0.3, 0.6, 1.0])
    partner = torch.tensor([1, 2, 3, 0])
    got = run(model, blend(batch, batch[partner], m))
    ids, mask = batch.tensors["input_ids"], batch.tensors["attention_mask"]
    for row in range(4):
        own, other = (row, int(partner[row])) if m[row] < 0.5 else (int(partner[row]), row)
        share = float(min(m[row], 1 - m[row]))
        length, both = int(mask[own].sum()), int((mask[own] * mask[other]).sum())
        rows = [
            (1 - share) * model.embedding.weight[ids[own, t]] + share * model.embedding.weight[ids[other, t]]
            if t < both
            else model.embedding.weight[ids[own, t]]
            for t in range(length)
        ]
        expected = model.head(torch.stack(rows).mean(0))
        torch.testing.assert_close(got[row], expected)


def test_without_weight_a_text_is_itself_to_the_bit_and_with_all_of_it_its_partner():
    model, batch = Bag(), NamedInputs(texts(6))
    other = batch[torch.arange(5, -1, -1)]
    assert torch.equal(run(model, blend(batch, other, torch.zeros(6))), run(model, batch))
    assert torch.equal(run(model, blend(batch, other, torch.ones(6))), run(model, other))


@pytest.mark.parametrize("seed", range(5))
def test_mixing_is_symmetric_and_blind_to_padding(seed):
    model, batch = Bag(), NamedInputs(texts(8, seed=seed))
    torch.manual_seed(seed)
    other, m = batch[torch.randperm(8)], torch.rand(8)
    mixed = run(model, blend(batch, other, m))
    torch.testing.assert_close(mixed, run(model, blend(other, batch, 1 - m)))
    padded = [NamedInputs({n: F.pad(t, (0, 3)) for n, t in b.tensors.items()}) for b in (batch, other)]
    torch.testing.assert_close(mixed, run(model, blend(*padded, m)))


def test_gradients_reach_the_embeddings_of_both_texts():
    model = Bag()
    batch = NamedInputs({"input_ids": torch.tensor([[1], [2]]), "attention_mask": torch.ones(2, 1)})
    run(model, blend(batch, batch[torch.tensor([1, 0])], torch.tensor([0.25, 0.25]))[:1]).sum().backward()
    gradient = model.embedding.weight.grad.norm(dim=1)
    torch.testing.assert_close(gradient[1], 3 * gradient[2])
    assert gradient[3:].eq(0).all()


def test_a_teacher_may_have_its_own_tokens():
    student, teacher = Bag(1), Bag(2, width=9)
    own, its = texts(8), {f"teacher_{n}": t for n, t in texts(8, length=7, seed=3).items()}
    result = unixkd.Distiller(student, teacher, mixup()).step({**own, **its})
    position, partner, m = result.mixed.position, result.mixed.partner, result.mixed.weight
    its_own = NamedInputs({n.removeprefix("teacher_"): t for n, t in its.items()})
    expected = [
        run(net, blend(batch[position], batch[partner], m))
        for net, batch in ((student, NamedInputs(own)), (teacher, its_own))
    ]
    torch.testing.assert_close(result.outputs.logits, expected[0])
    t = expected[1].detach()
    loss = 16 * F.kl_div(F.log_softmax(expected[0] / 4, 1), F.softmax(t / 4, 1), reduction="batchmean")
    torch.testing.assert_close(result.loss, loss)


def test_the_ledger_counts_each_batch_at_its_own_length():
    student, teacher = (transformer(width) for width in (8, 16))
    distiller = unixkd.Distiller(student, teacher, unix(), batch_size=8)
    flops = []
    for seed, length in enumerate((4, 9, 4)):
        distiller.step(texts(8, length, seed)).loss.backward()
        flops.append([by_hand(width, length) for width in (8, 16)])
    for name, backward in (("backward_1x", 1), ("backward_2x", 2)):
        spent = sum(8 * s + 6 * t + 6 * (1 + backward) * s for s, t in flops)
        whole = sum(8 * (t + (1 + backward) * s) for s, t in flops)
        assert distiller.ledger.relative_to_kd()[name] == pytest.approx(spent / whole)
    assert "24 samples seen: 24 scored, 18 asked of the teacher, 18 trained" in str(distiller.ledger)
    again = unixkd.Distiller(student, teacher, unix(), batch_size=8)
    again.step(texts(8, 4))
    again.ledger.load_state_dict(distiller.ledger.state_dict())
    assert again.ledger.relative_to_kd() == distiller.ledger.relative_to_kd()


def transformer(width: int) -> nn.Module:
    """A small BERT, from its configuration."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(width)
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=width, num_hidden_layers=2, num_attention_heads=2, intermediate_size=2 * width,
        max_position_embeddings=16, num_labels=CLASSES,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def by_hand(width: int, length: int) -> int:
    """Forward FLOPs of that BERT on one text: projections, attention, feed-forward; pooler and head on one token."""
    layer = 4 * length * width**2 + 2 * length**2 * width + 2 * length * width * 2 * width
    return 2 * (2 * layer + width**2 + width * CLASSES)


@pytest.mark.parametrize("method", [kd(), random(), hard(), unix(), mixup()], ids=lambda method: method.name)
def test_a_transformer_takes_every_method_of_the_batch(method):
    student, teacher = transformer(8), transformer(16)
    distiller = unixkd.Distiller(student, teacher, method, batch_size=8)
    student.train()
    result = distiller.step(texts(8) | {"labels": torch.zeros(8, dtype=torch.long)})
    result.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
    assert len(result.mixed) == (8 if method.keep == 1 else 6)
    assert student.training
    assert not teacher.training


def test_position_numbers_of_a_model_that_counts_tokens_are_those_of_the_longer_share():
    """RoBERTa numbers positions by its tokens, which it could not do from embeddings alone."""
    transformers = pytest.importorskip("transformers")
    config = transformers.RobertaConfig(
        vocab_size=WORDS, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16, num_labels=CLASSES, pad_token_id=0,
    )  # fmt: skip
    model = transformers.RobertaForSequenceClassification(config).eval()
    batch = NamedInputs(texts(4))
    torch.testing.assert_close(
        run(model, blend(batch, batch[[1, 2, 3, 0]], torch.zeros(4))), run(model, batch)
    )


def test_training_in_parts_gives_the_gradient_of_all_rows():
    whole, parts = (Bag(1), Bag(1))
    batch, draws = Batch(NamedInputs(texts(8))), make_draws(8, seed=0, step=0)
    unixkd.Distiller(whole, Bag(2), unix()).run(batch, draws).loss.backward()
    own = unixkd.Distiller(parts, Bag(2), unix())
    learn = MicroBatches(3, Tensor.backward)
    distill_step(own.student, own.teacher, batch, draws, own.method, own.objective, 8, learn)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_stored_answers_to_texts_are_not_asked_again(tmp_path: Path):
    store = AnswerStore.open(tmp_path / "answers", {"teacher": "bag"}, images=8, views=1, classes=CLASSES)
    distiller = unixkd.Distiller(Bag(1), Bag(2), kd(), store=store)
    index, view = torch.arange(8), torch.zeros(8, dtype=torch.long)
    first, second = (distiller.step(texts(8), index=index, view=view) for _ in range(2))
    assert (first.counts.teacher_forwarded, second.counts.teacher_forwarded) == (8, 0)
    assert torch.equal(first.loss, second.loss)
    store.close()


def test_networks_may_give_a_mapping_and_parts_of_a_batch_lie_behind_one_another():
    batch = NamedInputs(texts(6))
    torch.testing.assert_close(run(Plain(Bag()), batch), run(Bag(), batch))
    pure, mixed = batch[:2], blend(batch, batch[[1, 2, 3, 4, 5, 0]], torch.full((6,), 0.4))[2:]
    together = run(Bag(), concat([pure, mixed]))
    torch.testing.assert_close(together, torch.cat([run(Bag(), pure), run(Bag(), mixed)]))


class Twice(Bag):
    """Looks its tokens up again."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        self.embedding(input_ids)
        return super().forward(input_ids, attention_mask)


class Two(Bag):
    """Has a second embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(9, WIDTH)


@pytest.mark.parametrize(
    ("module", "said"),
    [(Twice(), "looked its tokens up 2 times"), (Two(), "has 2 embeddings: give it a method")],
)
def test_a_network_whose_embeddings_cannot_be_mixed_is_named(module, said):
    named = NamedInputs(texts(4))
    run(module, named)  # pure texts need none
    with pytest.raises(UserError, match=said):
        run(module, blend(named, named, torch.full((4,), 0.3)))


def test_what_cannot_be_mixed_or_read_is_named():
    counts = NamedInputs({"words": torch.ones(4, 3, dtype=torch.long)})
    with pytest.raises(
        UserError, match="nothing in words can be mixed: tokens are mixed where they are called input_ids"
    ):
        blend(counts, counts, torch.rand(4))
    with pytest.raises(UserError, match=r"inputs of torch.int64 cannot be mixed"):
        blend(torch.ones(4, 3).long(), torch.ones(4, 3).long(), torch.rand(4))
    with pytest.raises(UserError, match="Identity gives logits of shape"):
        run(nn.Identity(), torch.rand(4, 3, 2))
    with pytest.raises(UserError, match=r"only images can be made smaller \(size 0.5\)"):
        unixkd.Distiller(Bag(1), Bag(2), unixkd.Method("small", size=0.5)).step(texts(4))
    with pytest.raises(UserError, match="chooses each epoch's images before they are loaded"):
        unixkd.Distiller(Bag(1), Bag(2), infobatch()).step(texts(4))
    with pytest.raises(UserError, match="the batch is empty"):
        unixkd.Distiller(Bag(1), Bag(2)).step({"input_ids": torch.zeros(0, 3)})


def test_vectors_are_inputs_too():
    student, teacher = nn.Linear(7, 3), nn.Linear(7, 3)
    distiller = unixkd.Distiller(student, teacher, unix())
    result = distiller.step(torch.rand(8, 7))
    draws: Draws = make_draws(8, seed=0, step=0)
    assert result.mixed.images.shape == (6, 7)
    assert result.counts == StepCounts(8, 8, 6, 6)
    torch.testing.assert_close(result.mixed.weight, draws.lam[:6] * unix().curve(torch.arange(6), 8))
    assert distiller.ledger.relative_to_kd()["backward_1x"] == pytest.approx(0.75 + 1 / 3)


def test_a_saved_ledger_of_texts_goes_on_with_texts_of_another_length():
    student, teacher = Bag(1), Bag(2)
    whole = unixkd.Distiller(student, teacher)
    first, second = unixkd.Distiller(student, teacher), unixkd.Distiller(student, teacher)
    for distiller in (whole, first):
        distiller.step(texts(4, length=5))
    second.load_state_dict(first.state_dict())
    assert str(second.ledger) == str(first.ledger)
    for distiller in (whole, second):
        distiller.step(texts(4, length=7))
    assert second.ledger == whole.ledger
    assert str(second.ledger) == str(whole.ledger)
