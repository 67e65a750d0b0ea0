"""load_data's options, and batches from memory and from disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from unixkd.config import DataConfig
from unixkd.data import disk as data_disk
from unixkd.data import epoch_order, identity_view, load_data, view_codes, views
from unixkd.errors import UsageError, UserError

pytest.importorskip("sklearn")


@pytest.fixture
def photos(tmp_path):
    """Six noise images of several sizes in two classes."""
    rng = np.random.default_rng(0)
    for i in range(6):
        folder = tmp_path / "photos" / ("cat" if i < 3 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40 + 3 * i, 50 - 2 * i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


def stack(batches):
    batches = list(batches)
    return (
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.view for batch in batches]),
        torch.cat([batch.index for batch in batches]),
    )


def test_the_test_set_can_be_evaluated_on_without_training_on_what_is_held_out():
    held, test = (load_data(DataConfig(holdout=0.25, evaluate_on=what)) for what in ("auto", "test"))
    assert torch.equal(test.train.images, held.train.images)
    assert torch.equal(test.test.images, load_data(DataConfig()).test.images)
    assert not torch.equal(held.test.images, test.test.images)


def test_there_must_be_a_test_set_to_evaluate_on(photos):
    with pytest.raises(UserError, match="has no test set: leave"):
        load_data(DataConfig(f"folder:{photos}", size=16, holdout=0.3, evaluate_on="test"))


def test_holdout_replaces_the_test_set_and_limit_takes_from_the_rest():
    whole = load_data(DataConfig())
    held = load_data(DataConfig(holdout=0.25))
    assert len(held.train) + len(held.test) == len(whole.train)
    assert torch.bincount(held.test.labels).tolist() == [
        round(0.25 * n) for n in torch.bincount(whole.train.labels).tolist()
    ]
    limited = load_data(DataConfig(holdout=0.25, limit=100))
    assert torch.equal(limited.test.images, held.test.images)
    counts = torch.bincount(limited.train.labels)
    assert int(counts.sum()) == 100
    assert int(counts.max() - counts.min()) <= 1
    assert len({held.fingerprint, limited.fingerprint, whole.fingerprint}) == 3


def test_labels_off_hides_only_the_training_labels():
    with_labels, without = load_data(DataConfig(limit=50)), load_data(DataConfig(limit=50, labels=False))
    assert without.train.labels is None
    assert torch.equal(without.test.labels, with_labels.test.labels)
    assert torch.equal(without.train.images, with_labels.train.images)
    assert without.num_classes == 10
    assert next(without.train.train_batches(0, torch.arange(5), 4)).labels is None


def test_size_scales_the_default_padding_and_an_explicit_one_is_kept():
    assert load_data(DataConfig(size=16)).train.num_views == 25
    assert load_data(DataConfig(size=16, crop_padding=1)).train.num_views == 9
    assert load_data(DataConfig(crop_padding=1, flip=True)).train.num_views == 18


def test_memory_batches_follow_order_and_views():
    data = load_data(DataConfig(limit=70, flip=True, view_seed=5))
    order = epoch_order(70, seed=0, epoch=3)
    batches = list(data.train.train_batches(3, order, 32))
    assert [len(batch) for batch in batches] == [32, 32, 6]
    images, view, index = stack(batches)
    assert torch.equal(index, order)
    assert torch.equal(view, view_codes(5, 3, order, 18))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), data.train.labels[order])
    assert images.dtype == torch.float32
    assert batches[0].images.is_contiguous(memory_format=torch.channels_last)
    plain = torch.cat([batch.images for batch in data.train.eval_batches(50)])
    assert torch.equal(plain[:, 0], data.train.images[..., 0] / 255)
    same = view == identity_view(1)
    assert same.any()
    assert torch.equal(images[same], plain[index[same]])
    assert np.array_equal(data.train.image(4)[..., 0] / np.float32(255), plain[4, 0].numpy())


def test_disk_batches_do_not_depend_on_workers_or_order(photos):
    config = DataConfig(f"folder:{photos}", size=24, in_memory=False, workers=0)
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    split = load_data(config).train
    images, view, index = stack(split.train_batches(2, order, 4))
    other = load_data(DataConfig(**{**vars(config), "workers": 2})).train
    for got, expected in zip(stack(other.train_batches(2, order, 4)), (images, view, index), strict=True):
        assert torch.equal(got, expected)
    sorted_images, sorted_view, _ = stack(split.train_batches(2, torch.arange(6), 3))
    assert torch.equal(sorted_images[order], images)
    assert torch.equal(sorted_view[order], view)
    next_epoch, _, _ = stack(split.train_batches(3, order, 4))
    assert not (next_epoch == images).flatten(1).all(1).any()
    assert images.shape == (6, 3, 24, 24)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_disk_batches_cross_to_the_device_as_bytes(photos, monkeypatch):
    crossed = []

    def to_pixels(images):
        crossed.append((images.dtype, images.device.type))
        return data_disk.to_pixels_before(images)

    monkeypatch.setattr(data_disk, "to_pixels_before", views.to_pixels, raising=False)
    monkeypatch.setattr(data_disk, "to_pixels", to_pixels)
    split = load_data(DataConfig(f"folder:{photos}", size=24, in_memory=False, workers=0)).train.to("meta")
    for batch in (*split.train_batches(0, torch.arange(6), 4), *split.eval_batches(4)):
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        known = [t for t in (batch.images, batch.labels, batch.index, batch.view) if t is not None]
        assert {t.device.type for t in known} == {"meta"}
    assert crossed == [(torch.uint8, "meta")] * 4


def test_disk_batches_leave_the_global_random_state_alone(photos):
    split = load_data(DataConfig(f"folder:{photos}", size=24, in_memory=False, workers=0)).train
    before = torch.get_rng_state()
    list(split.train_batches(0, torch.arange(6), 2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [24, 80])
def test_disk_and_memory_agree_in_evaluation_and_with_a_padding_in_training(photos, size):
    options = {"name": f"folder:{photos}", "size": size, "crop_padding": 3, "workers": 0}
    memory = load_data(DataConfig(**options, in_memory=True)).train
    disk = load_data(DataConfig(**options, in_memory=False)).train
    assert disk.num_views == memory.num_views == 98
    for name in ("images", "labels", "index"):
        pairs = zip(memory.eval_batches(4), disk.eval_batches(4), strict=True)
        assert all(torch.equal(getattr(a, name), getattr(b, name)) for a, b in pairs)
    order = epoch_order(6, 0, 1)
    pairs = zip(stack(memory.train_batches(1, order, 4)), stack(disk.train_batches(1, order, 4)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert np.array_equal(memory.image(2), disk.image(2))


@pytest.mark.parametrize("workers", [0, 2])
def test_image_that_breaks_later_is_named_through_workers(photos, workers):
    split = load_data(DataConfig(f"folder:{photos}", size=24, in_memory=False, workers=workers)).train
    broken = photos / "dog" / "4.png"
    broken.write_bytes(broken.read_bytes()[:200])
    for batches in (split.eval_batches(2), split.train_batches(0, torch.arange(6), 2)):
        with pytest.raises(UserError) as caught:
            list(batches)
        assert str(caught.value).startswith(f"{broken}: cannot be read")
        assert "\n" not in str(caught.value)


def test_fingerprint_of_files_changes_with_names_and_sizes(photos):
    config = DataConfig(f"folder:{photos}", size=24, in_memory=False, workers=0)
    first = load_data(config).fingerprint
    assert load_data(config).fingerprint == first
    (photos / "cat" / "0.png").rename(photos / "cat" / "00.png")
    assert load_data(config).fingerprint != first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar", "unknown data 'cifar'; did you mean 'cifar10' or 'cifar100'"),
        ("foldr:/a", "unknown data 'foldr'; did you mean 'folder:PATH'"),
        ("folder:", "lacks what comes after the colon"),
    ],
)
def test_unknown_names_offer_the_nearest(name, message):
    with pytest.raises(UserError, match=message):
        load_data(DataConfig(name))


def test_a_bare_path_is_told_its_prefix(photos):
    with pytest.raises(UsageError, match="did you mean 'folder:/"):
        load_data(DataConfig(str(photos)))


@pytest.mark.parametrize(
    ("option", "value"),
    [("holdout", 1.0), ("holdout", -0.1), ("size", 0), ("crop_padding", -1), ("workers", -1), ("limit", 0)],
)
def test_numbers_out_of_range_name_the_option(option, value):
    with pytest.raises(UserError, match=rf"data\.{option}.*{value}"):
        load_data(DataConfig(**{option: value}))


def test_data_that_is_always_in_memory_cannot_stay_on_disk():
    with pytest.raises(UserError, match="digits is always in memory"):
        load_data(DataConfig(in_memory=False))
