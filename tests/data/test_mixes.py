"""Fixed mixes of two images: what they are made of, the same in memory and from disk, and stored answers to them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from running import DATA, IMAGES, call, distilled, everything, make_teacher, metrics, model_bytes, summary
from unixkd.config import AnswersConfig, DataConfig, LossConfig, MethodConfig, RunConfig
from unixkd.data.disk import DiskSplit
from unixkd.data.load import load_data
from unixkd.data.mixes import fixed_mixes
from unixkd.data.source import Encoded
from unixkd.data.split import MemorySplit, unmixed
from unixkd.data.views import apply_views, to_pixels
from unixkd.errors import UserError
from unixkd.method.batch import Batch, Outputs
from unixkd.method.losses import CrossEntropy
from unixkd.method.mixing import pure
from unixkd.training.run import run

EPOCHS, MIXES = 4, 2


def memory(mixes: int | None = 3, n: int = 12, *, labels: bool = True) -> MemorySplit:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 5, 5, 1), dtype=torch.uint8, generator=generator)
    return MemorySplit(pixels, torch.arange(n) if labels else None, 1, True, mixes=mixes)


def shown(
    split: MemorySplit | DiskSplit, epoch: int, order: torch.Tensor
) -> dict[int, dict[str, torch.Tensor]]:
    """What an epoch shows, image by image."""
    found = {}
    for batch in split.train_batches(epoch, order, 4):
        for row, i in enumerate(batch.index.tolist()):
            columns = {
                name: getattr(batch, name)
                for name in ("images", "labels", "view", "mixed_labels", "mix_weight")
            }
            found[i] = {name: column[row] for name, column in columns.items()}
    return found


@given(st.integers(0, 2**31), st.integers(1, 1000), st.one_of(st.none(), st.integers(1, 200)))
def test_a_mix_is_a_function_of_seed_index_and_number_alone(seed, images, views):
    index, number = torch.tensor([0, images - 1, 0]), torch.tensor([5, 5, 5])
    mix = fixed_mixes(seed, index, number, images, views)
    alone = fixed_mixes(seed, index[:1], number[:1], images, views)
    for name in ("view", "partner", "partner_view", "weight"):
        values = getattr(mix, name)
        assert values[0] == values[2] == getattr(alone, name)[0]
    assert bool(((mix.weight >= 0) & (mix.weight < 1)).all())
    assert bool(((mix.partner >= 0) & (mix.partner < images)).all())
    if views is not None:
        assert bool(
            (
                (mix.view >= 0) & (mix.view < views) & (mix.partner_view >= 0) & (mix.partner_view < views)
            ).all()
        )


def test_partners_views_and_weights_are_spread_evenly_and_independent():
    index = torch.arange(20_000)
    mix = fixed_mixes(0, index, torch.zeros_like(index), images=10, views=9)
    assert (mix.partner.bincount() / 20_000 - 0.1).abs().max() < 0.01
    assert (mix.view.bincount() / 20_000 - 1 / 9).abs().max() < 0.01
    assert (mix.weight.histc(10, 0, 1) / 20_000 - 0.1).abs().max() < 0.01
    columns = torch.stack(
        [mix.view.double(), mix.partner.double(), mix.partner_view.double(), mix.weight.double()]
    )
    assert (torch.corrcoef(columns) - torch.eye(4)).abs().max() < 0.03


def test_a_batch_is_the_mix_by_hand():
    split, index = memory(), torch.tensor([7, 0, 3])
    number = split.epoch_views(2, index)
    batch, mix = split.batch(index, number), fixed_mixes(0, index, number, 12, 18)
    for row in range(3):
        a, b = int(index[row]), int(mix.partner[row])
        own, other = (
            to_pixels(apply_views(split.images[i : i + 1], code[None], 1, True))[0]
            for i, code in ((a, mix.view[row]), (b, mix.partner_view[row]))
        )
        weight = float(mix.weight[row])
        torch.testing.assert_close(batch.images[row], (1 - weight) * own + weight * other)
        assert (int(batch.labels[row]), int(batch.mixed_labels[row])) == (a, b)
        assert float(batch.mix_weight[row]) == weight
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert memory(labels=False).batch(index, number).mixed_labels is None


def test_mixes_take_turns_and_fewer_are_the_first_of_more():
    split, index = memory(3), torch.arange(12)
    epochs = [split.epoch_views(epoch, index) for epoch in range(6)]
    assert torch.stack(epochs[:3]).sort(dim=0).values.tolist() == [[0] * 12, [1] * 12, [2] * 12]
    assert all(torch.equal(a, b) for a, b in zip(epochs, epochs[3:], strict=False))
    assert torch.equal(split.batch(index, epochs[0]).images, memory(8).batch(index, epochs[0]).images)
    assert (split.num_views, split.in_turn, unmixed(split).num_views) == (3, True, 18)
    keys = {memory(n).views_key() for n in (None, 3, 4)}
    assert len(keys | {replace(split, view_seed=1).views_key(), memory(3, n=11).views_key()}) == 5


def test_disk_and_memory_show_the_same_mixes(tmp_path):
    generator = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(generator.integers(256, size=(20, 20, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    files = Encoded.of(sorted(tmp_path.glob("*.png")), np.arange(6), "here")
    pixels = torch.from_numpy(np.stack([np.array(files.read(i)) for i in range(6)]))
    in_memory = MemorySplit(pixels, torch.arange(6), 2, True, 3, mixes=4)
    for workers in (0, 2):
        on_disk = DiskSplit(files, 20, 3, 2, True, 3, workers, mixes=4)
        assert on_disk.views_key() == in_memory.views_key()
        order = torch.tensor([4, 0, 5, 1, 2])
        mine, theirs = shown(on_disk, 1, order), shown(in_memory, 1, order)
        for i in order.tolist():
            torch.testing.assert_close(mine[i]["images"], theirs[i]["images"])
            for name in ("labels", "view", "mixed_labels", "mix_weight"):
                assert torch.equal(mine[i][name], theirs[i][name])


def test_resized_crops_are_mixed_too(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((20, 30, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    split = DiskSplit(Encoded.of(sorted(tmp_path.glob("*.png")), None, "here"), 16, 3, mixes=2)
    batch = next(split.train_batches(0, torch.arange(3), 3))
    mix = fixed_mixes(0, torch.arange(3), batch.view, 3, None)
    for row in range(3):  # every crop of these has one colour
        mixed = (1 - mix.weight[row]) * 40 * row + mix.weight[row] * 40 * mix.partner[row]
        torch.testing.assert_close(255 * batch.images[row].mean(), mixed, atol=0.5, rtol=0)


def test_a_mixed_batch_reads_no_value_back_from_the_device():
    split, index = memory().to("meta"), torch.arange(8, device="meta")
    batch = split.batch(index, split.epoch_views(3, index))
    assert batch.images.device.type == batch.mix_weight.device.type == "meta"


def test_cross_entropy_takes_both_labels_in_the_mix_s_shares():
    split, index = memory(), torch.arange(6)
    batch = split.batch(index, split.epoch_views(0, index))
    mixed, logits = pure(batch, torch.tensor([4, 1])), torch.randn(2, 12)
    wanted = [
        (1 - batch.mix_weight[i]) * F.cross_entropy(row, batch.labels[i])
        + batch.mix_weight[i] * F.cross_entropy(row, batch.mixed_labels[i])
        for i, row in zip((4, 1), logits, strict=True)
    ]
    torch.testing.assert_close(CrossEntropy()(Outputs(logits), None, mixed), torch.stack(wanted).mean())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


def mixing(teacher: Path, store: Path | None, method: str = "kd", **data: object) -> RunConfig:
    """A run on fixed mixes."""
    config = distilled(teacher, method, epochs=EPOCHS, precision="fp32")
    return replace(
        config,
        data=replace(DATA, mixes=MIXES, **data),
        answers=AnswersConfig(None if store is None else str(store), precision="fp32"),
    )


def test_stored_answers_to_mixes_change_nothing_and_are_asked_once(teacher, tmp_path):
    asked = run(mixing(teacher, None), tmp_path / "asked")
    stored = run(mixing(teacher, tmp_path / "answers"), tmp_path / "stored")
    assert stored["accuracy"]["last"] == asked["accuracy"]["last"]
    assert [line["loss"] for line in metrics(tmp_path / "stored")] == pytest.approx(
        [line["loss"] for line in metrics(tmp_path / "asked")], rel=1e-4
    )
    images = stored["cost"]["images"]
    assert asked["cost"]["images"]["teacher_forwarded"] == EPOCHS * IMAGES
    assert images["teacher_forwarded"] == images["teacher_filled"] == MIXES * IMAGES
    assert images["teacher_cached"] == (EPOCHS - MIXES) * IMAGES
    again = run(mixing(teacher, tmp_path / "answers"), tmp_path / "again")["cost"]["images"]
    assert (again["teacher_forwarded"], again["teacher_cached"]) == (0, EPOCHS * IMAGES)


def test_statistics_are_estimated_on_images_as_they_are(teacher, tmp_path, monkeypatch):
    """A student that has seen mixes only gets its BatchNorm statistics from images, and is charged for them."""
    seen: list[int | None] = []
    original = MemorySplit.train_batches

    def noted(self: MemorySplit, *args: object) -> Iterator[Batch]:
        seen.append(self.mixes)
        return original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(MemorySplit, "train_batches", noted)
    assert run(mixing(teacher, None), tmp_path / "run")["cost"]["images"]["refreshed"] == IMAGES
    assert (seen.count(None), seen.count(MIXES)) == (EPOCHS, EPOCHS)


def test_a_plan_of_fixed_mixes_is_what_the_run_costs(teacher, tmp_path):
    done = run(mixing(teacher, tmp_path / "answers"), tmp_path / "run")
    planned = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert planned["relative_to_kd"] == pytest.approx(done["cost"]["relative_to_kd"])


@pytest.mark.parametrize("method", ["random", "hard", "stale", "infobatch", "random-epoch"])
def test_methods_that_choose_do_so_among_mixes(teacher, tmp_path, method):
    images = run(mixing(teacher, tmp_path / "answers", method), tmp_path / "run")["cost"]["images"]
    assert images["teacher_forwarded"] + images["teacher_cached"] == images["trained"] < EPOCHS * IMAGES
    assert images["teacher_forwarded"] <= MIXES * IMAGES


def test_a_run_on_mixes_goes_on_bit_for_bit(teacher, tmp_path):
    config = mixing(teacher, None)
    whole = tmp_path / "whole"
    run(config, whole)
    for path in (whole / "checkpoints").glob(f"*{EPOCHS}"):
        half = tmp_path / "half"
        shutil.copytree(whole, half)
        shutil.rmtree(half / "checkpoints" / path.name)
        (half / "summary.json").unlink()
    run(config, half, mode="resume")
    assert model_bytes(half) == model_bytes(whole)
    assert everything(half)[1] == everything(whole)[1]


@pytest.mark.parametrize("method", ["unix", "unix-random", "mixup", "remix", "selective-backprop"])
def test_methods_that_mix_or_want_one_label_are_refused(teacher, tmp_path, method):
    with pytest.raises(UserError, match=r"data\.mixes"):
        run(mixing(teacher, tmp_path / "answers", method), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (DataConfig("digits", mixes=0), "data.mixes: .* >= 1, got 0"),
        (DataConfig("digits", mixes=2, views=3), "leave data.views out"),
        (DataConfig("stream:nobody/nothing", mixes=2), "leave data.mixes out"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(UserError, match=words):
        load_data(options)


def test_from_the_command_line(teacher, tmp_path):
    words = ("--data.limit", IMAGES, "--data.mixes", 2, "--train.batch_size", 32, "--epochs", 2)
    store = ("--answers.path", tmp_path / "answers")
    out = tmp_path / "run"
    assert not call(
        "distill",
        "--teacher",
        teacher,
        "--student",
        "resnet8",
        "--method",
        "kd",
        *words,
        *store,
        "--out",
        out,
    )
    assert summary(out)["cost"]["images"]["teacher_filled"] == 2 * IMAGES
    assert call("plan", "--teacher", teacher, "--student", "resnet8", "--data.mixes", 2, "--match-kd") == 2


def test_labels_alone_teach_from_mixes(tmp_path):
    config = replace(
        distilled(Path("none"), MethodConfig("student-alone")),
        teacher=None,
        loss=LossConfig(kd=0, ce=1),
        data=replace(DATA, mixes=2),
    )
    assert run(config, tmp_path / "run")["cost"]["images"]["trained"] == 2 * IMAGES
