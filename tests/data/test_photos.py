"""Large images: decoded at a smaller scale, kept in memory, read ahead; on and off agree."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from unixkd.config import DataConfig
from unixkd.data import images as data_images
from unixkd.data import kept as data_kept
from unixkd.data import load_data, load_images
from unixkd.data.ahead import ahead
from unixkd.data.crops import padded_crop, random_resized_crop
from unixkd.data.images import Photo, detail, fit, read_photo, to_array
from unixkd.data.kept import Kept, Room
from unixkd.data.views import apply_views

ROOT = Path("/work/shared/photos/hymenoptera")


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise of several scales, as photos have."""
    rng = np.random.default_rng(seed)
    total = rng.normal(127, 2, (height, width, 3))
    for cells, strength in ((4, 60), (16, 30), (64, 15)):
        coarse = Image.fromarray(rng.integers(0, 255, (cells, cells, 3), dtype=np.uint8))
        total += (np.asarray(coarse.resize((width, height)), float) - 127) * strength / 127
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


SIZES = ((1100, 800), (700, 1040), (300, 200), (90, 120))  # two large ones and two small ones


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("photos")
    for part in ("train", "val"):
        for i, size in enumerate(SIZES):
            file = place / part / "ab"[i % 2] / f"{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture(*size, seed=i).save(file, quality=92)
    return place


def load(folder, **options):
    return load_data(DataConfig(**{"name": f"folder:{folder}", "size": 96, "workers": 0, **options}))


def pixels(batches):
    return torch.cat([batch.images for batch in batches])


def trained(split, epochs=2):
    return [pixels(split.train_batches(epoch, torch.arange(len(split)), 3)) for epoch in range(epochs)]


def far(a, b):
    """Mean absolute difference in steps of 256."""
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


@pytest.mark.parametrize(("width", "height"), [(300, 200), (90, 120), (40, 400), (400, 40), (224, 224)])
@pytest.mark.parametrize("flip", [True, False])
def test_crops_are_those_of_torchvision(width, height, flip):
    image = picture(width, height)
    steps = v2.Compose([v2.RandomResizedCrop(64, antialias=True), v2.RandomHorizontalFlip(0.5 * flip)])
    for seed in (0, 5, 2**62 + 3, *range(20, 32)):
        torch.manual_seed(seed)
        expected = to_array(steps(image))
        torch.manual_seed(1)
        before = torch.get_rng_state()
        got = random_resized_crop(Photo(image, image.size), 64, flip, seed)
        assert np.array_equal(got, expected)
        assert torch.equal(torch.get_rng_state(), before)


def test_a_padded_crop_is_the_view_of_its_code():
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (1, 6, 6, 3), dtype=np.uint8))
    for code in range(50):
        expected = apply_views(image, torch.tensor([code]), padding=2, flip=True)[0]
        assert np.array_equal(padded_crop(image[0].numpy(), code, padding=2), expected)


@pytest.mark.parametrize(
    ("size", "least", "shrunk"),
    [  # JPEG: 1/2, 1/4, 1/8 while the shorter side keeps `least` pixels; then a whole factor
        ((1030, 820), 400, (515, 410)),
        ((1030, 820), 205, (258, 205)),
        ((1030, 820), 206, (515, 410)),
        ((1032, 816), 34, (43, 34)),  # 1/8 is 129 x 102, of which a third
        ((300, 200), 256, (300, 200)),
    ],
)
def test_a_jpeg_is_decoded_at_the_nearest_scale_that_leaves_enough(size, least, shrunk, tmp_path):
    picture(*size).save(tmp_path / "a.jpg", quality=92)
    whole = read_photo(tmp_path / "a.jpg", "a", 3)
    small = read_photo(tmp_path / "a.jpg", "a", 3, least)
    assert whole.image.size == whole.whole == small.whole == size
    assert small.image.size == shrunk
    assert far(small.image, whole.image.resize(shrunk, Image.Resampling.BOX)) < 1.5


@pytest.mark.parametrize("kind", ["L", "CMYK", "turned", "png", "RGBA", "palette"])
def test_other_kinds_of_large_images_are_what_they_are(kind, tmp_path):
    image, file = picture(900, 640), tmp_path / ("a.jpg" if kind in ("L", "CMYK", "turned") else "a.png")
    exif = Image.Exif()
    if kind == "turned":
        exif[274] = 6
    elif kind == "palette":
        image = image.quantize()
    elif kind != "png":
        image = image.convert(kind)
    image.save(file, quality=92, exif=exif)
    small, whole = (read_photo(file, "a", 3, least) for least in (160, None))
    assert small.whole == whole.whole == ((640, 900) if kind == "turned" else (900, 640))
    assert small.image.mode == whole.image.mode == "RGB"
    assert min(small.image.size) in (160, 213)
    assert far(fit(small.image, 96), fit(whole.image, 96)) < 1
    grey = [fit(read_photo(file, "a", 1, least).image, 96) for least in (160, None)]
    assert far(*grey) < 1


def test_scaled_and_full_decoding_show_nearly_the_same_and_small_images_exactly(folder):
    scaled, full = load(folder), load(folder, decoding="full")
    assert scaled.fingerprint == full.fingerprint
    a, b = (255 * pixels(data.test.eval_batches(4)) for data in (scaled, full))
    same = (a == b).flatten(1).all(1)
    assert same.sum() == 2
    assert (a - b).abs().mean() < 1
    for x, y in zip(trained(scaled.train), trained(full.train), strict=True):
        assert ((x == y).flatten(1).all(1) == same).all()
        assert 255 * (x - y).abs().mean() < 3  # of the same part: another one differs by tens
    assert any("at a smaller scale" in note for note in scaled.notes)
    assert not any("at a smaller scale" in note for note in full.notes)


@pytest.mark.parametrize(
    "options", [{}, {"crop_padding": 3}, {"views": 2}, {"mixes": 2}, {"decoding": "full"}]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_kept_or_not_and_read_ahead_or_not_no_pixel_differs(folder, options, workers):
    on = load(folder, workers=workers, **options)
    off = load(folder, keep=0, **options)
    assert on.train.kept is not None
    assert off.train.kept is None
    for a, b in zip(trained(on.train, 3), trained(off.train, 3), strict=True):
        assert torch.equal(a, b)
    for _ in range(2):
        assert torch.equal(pixels(on.test.eval_batches(3)), pixels(off.test.eval_batches(3)))
    assert any(note.startswith("all 8 images are decoded once and kept") for note in on.notes)


def test_kept_images_are_decoded_once(folder, monkeypatch):
    decoded = []
    plain = data_images._decode
    monkeypatch.setattr(data_images, "_decode", lambda *given: decoded.append(given[1]) or plain(*given))
    data = load(folder)
    decoded.clear()
    trained(data.train, 3)
    assert len(decoded) == len(set(decoded)) == 4
    list(data.test.eval_batches(4))
    list(data.test.eval_batches(4))
    assert len(decoded) == 8


@pytest.mark.parametrize("options", [{"in_memory": False}, {"keep": 0}])
def test_nothing_is_kept_where_that_is_asked_for(folder, options):
    data = load(folder, **options)
    assert data.train.kept is None
    assert not any("kept" in note for note in data.notes)


def test_what_does_not_fit_is_decoded_again_and_said(folder, monkeypatch):
    monkeypatch.setattr(data_kept, "available_memory", lambda: 4_000_000)
    data, whole = load(folder, keep=0.25), load(folder, keep=0)
    assert [torch.equal(a, b) for a, b in zip(trained(data.train), trained(whole.train), strict=True)] == [
        True
    ] * 2
    assert 0 < len(data.train.kept.there) < 4
    assert sum(there[0].nbytes for there in data.train.kept.there.values()) <= 1_000_000
    assert any(
        "of 8 images are decoded once and kept, the others in every epoch" in note for note in data.notes
    )


def test_memory_is_shared_with_whoever_else_takes_it(monkeypatch):
    left = [1000]
    monkeypatch.setattr(data_kept, "available_memory", lambda: left[0])
    monkeypatch.setattr(data_kept, "_STEP", 1)
    rooms, taken = [Room(0.25), Room(0.25)], [0, 0]
    for _ in range(100):
        for i, room in enumerate(rooms):
            if room.take(10):
                taken[i] += 10
                left[0] -= 10
    # each stops at a third of what is left: 200 + 200 of 1000 leave 600
    assert taken == [200, 200]


def test_a_limit_of_the_container_counts(tmp_path, monkeypatch):
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300\n")
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("1300\n")
    monkeypatch.setattr(data_kept, "_CGROUPS", tmp_path)
    assert data_kept.available_memory() == 4000
    (tmp_path / "memory.max").write_text("max\n")
    assert data_kept.available_memory() > 1 << 20


def test_an_image_that_is_kept_has_its_checksum_for_stored_answers(folder):
    split = load(folder, views=2).train
    trained(split)  # as a probe does, before there is a store
    known = np.zeros(4, np.uint32)
    trained(replace(split, known=known))
    assert [split.records.photo_checked(i, 3)[1] for i in range(4)] == known.tolist()


def test_predict_evaluation_and_memory_see_the_same_pixels(folder):
    split = load(folder).test
    files = [split.records.name(i) for i in range(4)]
    loaded, _ = load_images([Path(file) for file in files], 96, 3)
    assert torch.equal(loaded, pixels(split.eval_batches(4)))
    kept = load(folder, in_memory=True).test
    assert torch.equal(loaded, pixels(kept.eval_batches(4)))
    before, _ = load_images([Path(file) for file in files], 96, 3, scaled=False)
    assert torch.equal(before, pixels(load(folder, decoding="full").test.eval_batches(4)))


@pytest.mark.skipif(not ROOT.exists(), reason="these photos are not here")
def test_real_photos_at_a_smaller_scale_differ_little():
    files = sorted(ROOT.rglob("*.jpg"))[::40]
    pairs = [(read_photo(file, "", 3, 64).image, read_photo(file, "", 3).image) for file in files]
    assert all(min(small.size) < min(whole.size) for small, whole in pairs)
    # bilinear and bicubic filtering differ by 2 here
    assert np.mean([far(fit(small, 42), fit(whole, 42)) for small, whole in pairs]) < 4


def test_threads_stay_and_give_items_in_order_and_errors_in_their_place():
    seen = set()

    def make(i):
        seen.add(threading.get_ident())
        if i == 7:
            raise ValueError(i)
        return i

    for _ in range(3):
        got = []
        with pytest.raises(ValueError, match="7"):
            got.extend(ahead(make, range(20), 2))
        assert list(ahead(make, range(6), 2)) == list(range(6))
    assert len(seen) <= 2
    batches = ahead(make, range(6), 2)
    assert next(batches) == 0
    batches.close()  # in the middle: what was begun is dropped
    assert list(ahead(make, range(3), 2)) == [0, 1, 2]


def test_crops_of_a_smaller_scale_are_of_the_same_part():
    image = picture(800, 600)
    small = Photo(image.reduce(4), image.size)
    for seed in range(10):
        whole = random_resized_crop(Photo(image, image.size), 64, True, seed)
        assert far(random_resized_crop(small, 64, True, seed), whole) < 3


def test_detail_is_enough_for_evaluation():
    assert all(detail(size) >= data_images.resize_side(size) for size in range(1, 1000))


def test_kept_grey_images_stay_grey():
    kept, image = Kept(Room(0.5)), picture(20, 10).convert("L")
    for _ in range(2):
        photo, check = kept.get((0, True), lambda: (Photo(image, (20, 10)), 3))
        assert photo.image.mode == "L"
        assert (photo.whole, check) == ((20, 10), 3)
        assert np.array_equal(np.asarray(photo.image), np.asarray(image))
