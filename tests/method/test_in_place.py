"""A network that works in place: nobody else sees it, and every figure is what it is out of place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from slow import images_of
from unixkd.distiller import Distiller
from unixkd.method.batch import Batch
from unixkd.method.network import FeatureTap, Network
from unixkd.method.unix import hard, kd, mixup, random, remix, selective_backprop, unix, unix_random
from unixkd.teacher.store import AnswerStore
from unixkd.training.predictions import predict


class OutOfPlace(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3 * 64, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm((images - 0.5) / 0.25).flatten(1))


class InPlace(OutOfPlace):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(images.sub_(0.5).div_(0.25)).flatten(1))


METHODS = [kd, unix, unix_random, random, hard, mixup, selective_backprop]
LABELS = torch.arange(8) % 5


def steps(student: Callable[[int], nn.Module], teacher: Callable[[int], nn.Module], make: Callable) -> list:
    net = student(1)
    distiller, seen = Distiller(net, teacher(2), make()), []
    for number in range(2):
        images = images_of(8, seed=number)
        result = distiller.step(images, LABELS)
        result.loss.backward()
        assert torch.equal(images, images_of(8, seed=number))
        seen += [
            result.loss.item(),
            result.mixed.images,
            net.head.weight.grad.clone(),
            net.norm.running_mean.clone(),
        ]
    return seen


@pytest.mark.parametrize("make", METHODS)
def test_a_network_in_place_gives_the_steps_that_it_gives_out_of_place(make):
    expected = steps(OutOfPlace, OutOfPlace, make)
    for student, teacher in ((InPlace, OutOfPlace), (OutOfPlace, InPlace), (InPlace, InPlace)):
        torch.testing.assert_close(steps(student, teacher, make), expected, rtol=0, atol=0)


class Small(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.l, self.in_place = nn.Linear(48, 5), in_place

    def forward(self, x: Tensor) -> Tensor:
        return self.l((x.sub_(0.5).div_(0.25) if self.in_place else (x - 0.5) / 0.25).flatten(1))


@pytest.mark.parametrize(("make", "expected"), [(kd, 0.2887), (unix, 0.1713)])
@pytest.mark.parametrize("in_place", [(False, False), (True, False), (False, True)])
def test_losses_that_are_known(make, expected, in_place):
    torch.manual_seed(0)
    images = torch.rand(8, 3, 4, 4)
    student, teacher = map(Small, in_place)
    assert Distiller(student, teacher, make()).step(images).loss.item() == pytest.approx(expected, abs=5e-5)


class Named(nn.Module):
    def __init__(self, seed: int, in_place: bool) -> None:
        super().__init__()
        self.net = (InPlace if in_place else OutOfPlace)(seed)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(pixel_values)}


def test_named_tensors_are_not_altered_either():
    losses = []
    for in_place in (False, True):
        batch = {"pixel_values": images_of(8)}
        losses.append(Distiller(Named(1, in_place), Named(2, in_place), unix()).step(batch).loss.item())
        assert torch.equal(batch["pixel_values"], images_of(8))
    assert losses[0] == losses[1]


def test_stored_answers_and_predictions_are_those_of_the_images(tmp_path):
    store = AnswerStore.open(
        tmp_path / "answers", {"who": "a"}, images=8, views=1, classes=5, precision="fp32"
    )
    images, index, view = images_of(8), torch.arange(8), torch.zeros(8, dtype=torch.int64)
    Distiller(InPlace(1), InPlace(2), remix(), store=store).step(images, index=index, view=view)
    with torch.no_grad():
        expected = OutOfPlace(2).eval()(images)
    torch.testing.assert_close(store.read(index, view)[0], expected)
    predictions = predict(InPlace(2), [Batch(images)] * 2)
    assert predictions.classes.tolist() == 2 * expected.argmax(1).tolist()
    assert torch.equal(images, images_of(8))


def test_a_layer_is_read_before_the_next_one_works_on_it_in_place():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5), nn.ReLU(inplace=True))
    features = Network(net, ("1",))(images_of(8)).features["1"]
    assert (features < 0).any()
    assert torch.equal(features, net[1](images_of(8).flatten(1)))
    with FeatureTap(net, ("1",)) as tap:
        net(images_of(8))
    assert torch.equal(tap.take()["1"], features)
