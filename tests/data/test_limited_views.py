"""Limited views: which an epoch shows, what their numbers mean, and that both kinds of split agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unixkd.config import DataConfig
from unixkd.data import MemorySplit, apply_views, epoch_order, load_data, to_pixels, view_codes
from unixkd.data.disk import DiskSplit
from unixkd.data.source import Encoded
from unixkd.data.views import first_codes
from unixkd.errors import UserError

ALL_VIEWS = 18  # padding 1 and flips


def noise(n=12, labels=True):
    images = torch.randint(
        0, 256, (n, 5, 5, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return images, torch.arange(n) % 3 if labels else None


def memory(views, view_seed=0, n=12, **options):
    return MemorySplit(*noise(n), padding=1, flip=True, view_seed=view_seed, views=views, **options)


@pytest.fixture
def files(tmp_path):
    """Five images of 20 x 20 pixels."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(5):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(paths[-1])
    return Encoded.of(paths, np.arange(5), str(tmp_path))


def shown(split, epoch, order, batch_size=4):
    """What an epoch shows, by image: {index: (view, pixels)}."""
    return {
        int(i): (int(view), image)
        for batch in split.train_batches(epoch, order, batch_size)
        for i, view, image in zip(batch.index, batch.view, batch.images, strict=True)
    }


def same(a, b):
    return a.keys() == b.keys() and all(a[i][0] == b[i][0] and torch.equal(a[i][1], b[i][1]) for i in a)


@given(st.integers(1, ALL_VIEWS - 1), st.integers(0, 50), st.integers(1, 13), st.integers(0, 3))
def test_a_picture_depends_on_view_seed_epoch_and_index_only(views, epoch, batch_size, seed):
    order = epoch_order(12, seed, epoch)
    straight = shown(memory(views, seed), epoch, torch.arange(12))
    assert same(shown(memory(views, seed), epoch, order, batch_size), straight)
    resumed = memory(views, seed)  # has seen other images in other epochs before
    list(resumed.train_batches(epoch + 1, order[:5], 2))
    assert same(shown(resumed, epoch, order, batch_size), straight)


@pytest.mark.parametrize("views", [1, 4, 17])
def test_so_many_epochs_show_each_view_once_and_then_the_same_ones_again(views):
    split, order = memory(views), torch.arange(12)
    assert split.num_views == views
    epochs = [shown(split, epoch, order) for epoch in range(3, 3 + 2 * views)]
    for i in range(12):
        assert sorted(epoch[i][0] for epoch in epochs[:views]) == list(range(views))
        assert len({bytes(epoch[i][1].numpy()) for epoch in epochs[:views]}) == views  # noise: no two alike
    for first, again in zip(epochs, epochs[views:], strict=False):
        assert same(first, again)


def test_a_number_is_a_column_of_the_image_s_own_sequence():
    split, index, view = memory(7, view_seed=4), torch.tensor([3, 3, 11, 0]), torch.tensor([0, 6, 2, 2])
    codes = first_codes(4, torch.arange(12), ALL_VIEWS, 7)[index, view].long()
    batch = split.batch(index, view)
    assert torch.equal(batch.images, to_pixels(apply_views(split.images[index], codes, 1, True)))
    assert torch.equal(batch.labels, split.labels[index])
    assert torch.equal(batch.index, index)
    assert torch.equal(batch.view, view)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("views", [ALL_VIEWS, 1000])
def test_a_limit_that_leaves_all_views_changes_nothing(views):
    limited, free, order = memory(views), memory(None), epoch_order(12, 0, 2)
    assert limited.num_views == free.num_views == ALL_VIEWS
    assert limited.views_key() == free.views_key()
    assert torch.equal(limited.epoch_views(2, order), view_codes(0, 2, order, ALL_VIEWS))
    assert same(shown(limited, 2, order), shown(free, 2, order))


def test_no_images_are_no_batches(files):
    for split in (memory(None), DiskSplit(files, 8, 3)):
        assert list(split.train_batches(0, torch.zeros(0, dtype=torch.int64), 4)) == []


@pytest.mark.parametrize("views", [None, 6])
def test_epoch_views_are_the_numbers_in_the_batches(views):
    split, order = memory(views), epoch_order(12, 1, 9)
    numbers = torch.cat([batch.view for batch in split.train_batches(9, order, 5)])
    assert numbers.dtype == torch.int64
    assert torch.equal(split.epoch_views(9, order), numbers)


@pytest.mark.parametrize("views", [None, 6])
@pytest.mark.parametrize("labels", [True, False])
def test_batches_read_no_value_back_from_the_device(views, labels):
    # a meta tensor has no values: whatever reads one, or needs one to know a shape, raises
    split = MemorySplit(*noise(labels=labels), padding=1, flip=True, views=views).to("meta")
    index = torch.arange(8, device="meta")
    view = split.epoch_views(3, index)
    batch = split.batch(index, view)
    assert view.device.type == batch.images.device.type == "meta"
    assert batch.images.shape == (8, 1, 5, 5)
    assert (batch.labels is not None) == labels


@pytest.mark.parametrize("views", [None, 7])
def test_disk_and_memory_show_the_same_pictures(files, views):
    pixels = torch.from_numpy(np.stack([np.array(files.read(i)) for i in range(5)]))
    in_memory = MemorySplit(pixels, torch.arange(5), 2, True, 3, views)
    on_disk = DiskSplit(files, 20, 3, 2, True, 3, views=views)
    assert on_disk.num_views == in_memory.num_views
    assert on_disk.views_key() == in_memory.views_key()
    for epoch in range(3):
        order = epoch_order(5, 0, epoch)
        assert same(shown(on_disk, epoch, order), shown(in_memory, epoch, order))


def test_resized_crops_can_be_limited_too(files):
    split, order = DiskSplit(files, 16, 3, views=3), torch.tensor([4, 0, 2])
    assert split.num_views == 3
    epochs = [shown(split, epoch, order) for epoch in range(6)]
    for i in order.tolist():
        assert sorted(epoch[i][0] for epoch in epochs[:3]) == [0, 1, 2]
        assert len({bytes(epoch[i][1].numpy()) for epoch in epochs[:3]}) == 3
    assert all(same(first, again) for first, again in zip(epochs, epochs[3:], strict=False))
    assert same(shown(DiskSplit(files, 16, 3, views=3, workers=2), 1, order.flip(0)), epochs[1])
    more = shown(DiskSplit(files, 16, 3, views=4), 1, order)
    for i in order.tolist():  # the first three of four are the three
        number, picture = more[i]
        assert number == 3 or any(
            epoch[i][0] == number and torch.equal(epoch[i][1], picture) for epoch in epochs
        )


def test_keys_say_what_a_number_means(files):
    def key(padding, flip, seed, views):
        return DiskSplit(files, 16, 3, padding, flip, seed, views=views).views_key()

    assert key(4, True, 0, None) == key(4, True, 5, 162) == "crops with padding 4, flips, all 162 views"
    assert key(4, True, 0, 9) == "first 9 of 162 views (crops with padding 4, flips), view seed 0"
    assert key(None, False, 2, 9) == "9 random resized crops, no flips, view seed 2"
    assert key(None, True, 2, None) == key(None, True, 3, None) == "random resized crops, flips, any seed"
    options = [(p, f, s, v) for p in (None, 1, 2) for f in (True, False) for s in (0, 1) for v in (2, 3)]
    assert len({key(*option) for option in options}) == len(options)


def test_configured_views_limit_training_and_leave_the_data_as_it_is():
    pytest.importorskip("sklearn")
    limited, free = load_data(DataConfig(views=4, view_seed=2)), load_data(DataConfig())
    assert limited.train.num_views == 4
    assert limited.train.views_key() == "first 4 of 9 views (crops with padding 1, no flips), view seed 2"
    assert limited.fingerprint == free.fingerprint
    pairs = zip(limited.test.eval_batches(200), free.test.eval_batches(200), strict=True)
    assert all(torch.equal(a.images, b.images) for a, b in pairs)


def test_configured_views_limit_images_on_disk_too(files):
    config = DataConfig(f"folder:{files.origin}", size=16, in_memory=False, workers=0, views=5)
    assert load_data(config).train.views_key() == "5 random resized crops, flips, view seed 0"


@pytest.mark.parametrize("views", [0, -3])
def test_less_than_one_view_is_refused(views):
    with pytest.raises(UserError, match=rf"data\.views: .* >= 1, got {views}"):
        load_data(DataConfig(views=views))
