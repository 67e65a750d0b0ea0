"""Smaller images for the student: which sizes, what they cost, and that nobody else sees them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from running import IMAGES, distilled, make_teacher
from slow import TinyNet, images_of
from unixkd.config import MethodConfig, ModelConfig
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.method.flops import flops_by_size, forward_flops
from unixkd.method.ledger import Ledger
from unixkd.method.method import Method, Ramp
from unixkd.method.resizing import shrink, shrunk_side, shrunk_size
from unixkd.method.unix import kd, stale
from unixkd.models import create_model
from unixkd.planning.expected import expected_cost
from unixkd.training.run import run


@given(side=st.integers(4, 256), share=st.floats(0.01, 1))
def test_a_side_is_a_multiple_of_its_unit_and_near_its_share(side, share):
    found, unit = shrunk_side(side, share), max(2, side // 8)
    assert unit <= found <= side
    assert found % unit == 0 or found == side
    assert abs(found - share * side) <= unit  # half a unit, but at least a unit and at most the side


@given(side=st.integers(4, 512))
def test_the_whole_side_stays_whatever_it_is(side):
    """28 pixels are no multiple of 3, nor 100 of 12: without a size below 1 no image is made smaller."""
    assert shrunk_side(side, 1.0) == side
    assert shrunk_size((side, side), 1.0) is None


def test_sizes_by_hand():
    assert [shrunk_size((16, 16), share) for share in (0.5, 0.6, 0.9, 0.95)] == [
        (8, 8),
        (10, 10),
        (14, 14),
        None,
    ]
    assert shrunk_size((32, 64), 0.5) == (16, 32)


def test_where_the_share_rounds_to_all_the_images_are_the_same_object():
    images = images_of(2)
    assert shrink(images, 1.0) is images
    assert shrink(images, 0.95) is images
    assert shrink(torch.full((1, 3, 8, 8), 0.25), 0.5).unique().tolist() == [0.25]


class Seen(nn.Module):
    """A network that remembers the sizes it was shown."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.net, self.sizes = TinyNet(seed=seed), list[tuple[int, ...]]()

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(tuple(images.shape))
        return self.net(images)


def test_the_student_trains_on_small_images_the_teacher_sees_whole_ones():
    student, teacher = Seen(1), Seen(2)
    distiller = Distiller(student, teacher, replace(kd(), size=0.5))
    distiller.measure((3, 8, 8))
    student.sizes.clear(), teacher.sizes.clear()
    distiller.step(images_of(6)).loss.backward()
    assert student.sizes[0] == (6, 3, 4, 4)
    assert teacher.sizes == [(6, 3, 8, 8)]
    assert distiller.ledger.flops()["student_forward"] == 6 * forward_flops(student.net, (3, 4, 4))


def test_a_size_is_measured_once():
    calls = []

    class Counted(TinyNet):
        def forward(self, images: Tensor) -> Tensor:
            calls.append(images.shape[-1])
            return super().forward(images)

    at = flops_by_size(Counted(seed=1), 3)
    assert at((4, 4)) == at((4, 4)) < at((8, 8))
    assert calls == [4, 8]


def test_a_ramp_of_the_size_also_where_epochs_are_chosen():
    method = Method("own", size=0.5, ramp=Ramp(size=1.0))
    assert [method.at(p).size for p in (0.0, 0.5, 0.75)] == [0.5, 0.75, 0.875]
    chosen = replace(stale(), size=0.5, ramp=Ramp(size=1.0))
    assert chosen.at(0.5).choice == stale().choice
    with pytest.raises(UserError, match="a ramp within the batch does not apply"):
        replace(stale(), ramp=Ramp(size=1.0, keep=0.5))
    assert Method("own", size=0.5, ramp=Ramp(full_last=0.25)).at(0.8).size == 1.0


def test_the_expected_cost_by_hand():
    """The teacher 3; a student of 1 that costs a quarter at half the side: two epochs of 3 + 3/4, two of 3 + 3."""
    ledger = Ledger(4, 12, image_size=(8, 8), student_at={(4, 4): 1}.__getitem__)
    method = Method("own", size=0.5, ramp=Ramp(full_last=0.5))
    assert expected_cost(method, ledger, [64], 4)["backward_2x"] == pytest.approx((2 * 3.75 + 2 * 6) / 24)


def test_a_run_charges_each_epoch_by_its_size(tmp_path):
    teacher = make_teacher(tmp_path / "teacher")
    config = distilled(teacher, MethodConfig("kd", size=0.5, size_end=1.0), epochs=4)
    result = run(config, tmp_path / "run")
    plain = run(distilled(teacher, "kd", epochs=4), tmp_path / "kd")
    flops = flops_by_size(create_model("resnet8", num_classes=10, in_channels=1), 1)
    sides = [(4, 4), (4, 4), (6, 6), (8, 8)]  # shares 0.5, 0.625, 0.75, 0.875 of 8, to even numbers
    assert result["cost"]["flops"]["student_forward"] == IMAGES * sum(map(flops, sides))
    assert result["cost"]["flops"]["teacher"] == plain["cost"]["flops"]["teacher"]
    assert result["cost"]["relative_to_kd"]["backward_2x"] < 1
    assert plain["cost"]["relative_to_kd"]["backward_2x"] == 1


def test_a_student_that_wants_images_of_one_size_is_refused_before_training(tmp_path):
    teacher = make_teacher(tmp_path / "teacher")
    config = distilled(teacher, MethodConfig("kd", size=0.5), epochs=1)
    config = replace(config, student=ModelConfig(str(teacher)))
    with pytest.raises(UserError, match="resizes all images to 8 pixels"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
