"""Streams: which images an epoch shows, that a run goes on exactly, and what a stream refuses."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_sources import png, write_parquet

from running import Signal, alone, everything, stop_and_resume, summary
from tape import Tape, with_rate_as_tensor
from unixkd.config import AnswersConfig, DataConfig, MethodConfig, ModelConfig, RunConfig, TrainConfig
from unixkd.data import load_data
from unixkd.data.sampling import split_among_processes
from unixkd.data.sources.stream import StreamSplit
from unixkd.errors import UserError
from unixkd.teacher.teacher import Teacher
from unixkd.training.display import Note, silent
from unixkd.training.distributed.world import World
from unixkd.training.run import fit, run, start
from unixkd.training.run_folder import RunFolder
from unixkd.training.stopping import Stopped

datasets = pytest.importorskip("datasets")

SHARDS = (20, 20, 17)
IMAGES, TEST = sum(SHARDS), 9
NAMES = ["even", "odd"]


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    # What it waits for pyarrow's threads at the end of an epoch (apache/arrow issue 45214); these are done at once.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)
    datasets.disable_progress_bars()


@pytest.fixture
def place(tmp_path) -> Path:
    return write(tmp_path / "set")


def write(folder: Path, names: list[str] | None = NAMES) -> Path:
    """57 training images in three files and 9 test images: image i is all of shade 4 i, odd where i is."""
    first = 0
    for name, count in (*((f"train-{i}", count) for i, count in enumerate(SHARDS)), ("test-0", TEST)):
        shades = [first + i if name != "test-0" else i for i in range(count)]
        images = [png(4 * shade, side=12) for shade in shades]
        write_parquet(folder / f"{name}.parquet", images, [i % 2 for i in shades], names, image="image")
        first += count
    return folder


def config_of(place: Path, **options: object) -> DataConfig:
    return DataConfig(f"stream:{place}", **{"workers": 0, "stream_buffer": 16, **options})  # type: ignore[arg-type]


def load(place: Path, **options: object) -> StreamSplit:
    split = load_data(config_of(place, **options)).train
    assert isinstance(split, StreamSplit)
    return split


def shown(split: StreamSplit, epoch: int, order: torch.Tensor | None = None, size: int = 8) -> list[int]:
    """The numbers of the images of an epoch, in its order; pixels and labels are checked against each other."""
    numbers = []
    order = split.epoch_order(0, epoch) if order is None else order
    for batch in split.train_batches(epoch, order, size):
        shades = (batch.images.flatten(1).mean(1) * 255 / 4).round().long()
        assert batch.labels is not None
        assert torch.equal(batch.labels, shades % 2)
        numbers += shades.tolist()
    return numbers


# which images


def test_an_epoch_is_every_image_once_in_an_order_of_its_own(place):
    split = load(place)
    epochs = [shown(split, epoch) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(IMAGES)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert shown(load(place), 1) == epochs[1]
    assert shown(load(place, split_seed=1), 1) != epochs[1]
    assert shown(load(place, view_seed=1), 1) == epochs[1]


def test_batches_depend_neither_on_workers_nor_on_what_was_read_before(place):
    one, two = load(place), load(place, workers=2)
    order = one.epoch_order(0, 4)
    whole = list(one.train_batches(4, order, 10))
    for a, b in zip(whole, two.train_batches(4, order, 10), strict=True):
        for name in ("images", "labels", "index", "view"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
    rest = list(two.train_batches(4, order[30:], 10))  # as a resumed run asks for them
    assert len(rest) == 3
    for a, b in zip(whole[3:], rest, strict=True):
        for name in ("images", "labels", "index", "view"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_processes_share_the_batches_of_one(place):
    split = load(place)
    whole = shown(split, 0, size=8)
    parts = [
        shown(split, 0, split_among_processes(split.epoch_order(0, 0), 8, World(r, 2)).order, 4)
        for r in range(2)
    ]
    together = [n for i in range(0, 28, 4) for part in parts for n in part[i : i + 4]]
    assert together == whole[:56]  # one image is left over for two processes


def test_an_epoch_may_be_a_part_and_that_is_said(place):
    data = load_data(config_of(place, stream_images=20))
    assert isinstance(data.train, StreamSplit)
    epochs = [shown(data.train, epoch) for epoch in range(12)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert {n for epoch in epochs for n in epoch} == set(
        range(IMAGES)
    )  # other files come first in other epochs
    assert (
        "an epoch is 20 of 57 images, of which some may come again before others have come" in data.notes[0]
    )
    assert "shuffled among 16 at a time" in data.notes[0]
    few = load_data(config_of(place, stream_images=10)).notes[0]
    assert "files hold more than that, and what lies behind their first 10 never comes" in few
    whole = load_data(config_of(place)).notes[0]
    assert "never" not in data.notes[0] + whole
    assert "an epoch is all of its 57 images" in whole
    assert "read from the epoch's beginning" in whole


def test_the_evaluation_set_lies_on_the_disk_and_is_that_of_the_files(place):
    stream = load_data(config_of(place))
    files = load_data(DataConfig(f"parquet:{place}"))
    assert stream.class_names == files.class_names == ("even", "odd")
    assert torch.equal(stream.test.labels, files.test.labels)
    pairs = zip(stream.test.eval_batches(4), files.test.eval_batches(4), strict=True)
    assert all(torch.equal(a.images, b.images) for a, b in pairs)
    assert stream.image_shape == files.image_shape == (3, 12, 12)
    assert stream.train.image(3)[0, 0].tolist() == [12, 12, 12]


@pytest.mark.slow
def test_an_evaluation_set_is_fetched_once_and_again_when_it_has_changed(place, tmp_path):
    code = (
        "import datasets, sys; datasets.config.HF_DATASETS_CACHE = sys.argv[1]\n"
        "from unixkd.config import DataConfig; from unixkd.data import load_data\n"
        "print(load_data(DataConfig(sys.argv[2])).test.labels.tolist())"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "datasets"), f"stream:{place}"]
    other = subprocess.run(words, capture_output=True, text=True, check=True)  # another process, another hash
    assert other.stdout.strip() == "[0, 1, 0, 1, 0, 1, 0, 1, 0]"
    assert load_data(config_of(place)).test.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert len(list((tmp_path / "datasets" / "generator").glob("default-*[0-9a-f]"))) == 1
    write_parquet(place / "test-0.parquet", [png(1, side=12)] * 2, [1, 0], NAMES, image="image")
    assert load_data(config_of(place)).test.labels.tolist() == [1, 0]


def test_without_labels(place):
    split = load(place, labels=False)
    batch = next(split.train_batches(0, split.epoch_order(0, 0), 4))
    assert batch.labels is None
    assert not split.labelled


def test_numbers_as_labels_need_an_evaluation_set_that_knows_the_classes(tmp_path):
    place = write(tmp_path / "set", names=None)
    data = load_data(config_of(place))
    assert (data.num_classes, data.class_names) == (2, None)
    assert sorted(shown(data.train, 0)) == list(range(IMAGES))
    (place / "test-0.parquet").unlink()
    with pytest.raises(UserError, match=r"no class column, .* give data\.labels false"):
        load(place)
    assert not load(place, labels=False).labelled


# a run


def of_stream(place: Path, **options: object) -> RunConfig:
    config = alone(epochs=2, batch_size=16)
    return replace(config, data=config_of(place, **options))


def test_stopped_in_an_epoch_and_resumed_it_is_the_same_run(place, tmp_path):
    """By hand: 57 images are 4 steps; it is stopped in the middle of both epochs."""
    run(of_stream(place), tmp_path / "teacher")
    config = replace(
        of_stream(place),
        teacher=ModelConfig(str(tmp_path / "teacher")),
        method=MethodConfig("unix", keep=0.5),
    )
    run(config, tmp_path / "whole")
    stop_and_resume(config, tmp_path / "parts", 1, 2, 6)
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")
    assert summary(tmp_path / "whole")["cost"]["images"]["scored"] == 2 * IMAGES
    assert not (tmp_path / "whole" / "selection.json").exists()  # no image has a number of its own


def test_captured_steps_on_a_stream_are_the_eager_ones(place, tmp_path):
    """As on a GPU, with a tape for the CUDA graph."""
    weights = []
    for name, record in (("eager", None), ("captured", Tape())):
        trainer = start(of_stream(place), RunFolder(tmp_path / name), "new", silent)
        trainer.stepper.record = record
        with_rate_as_tensor(trainer.engine.optimizer)
        fit(trainer)
        weights.append(trainer.student.state_dict())
        full = len(trainer.stepper.split) // trainer.config.train.batch_size
        assert record is None or record.replays == full * trainer.config.train.epochs
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_what_changes_the_images_refuses_to_resume(place, tmp_path):
    config = of_stream(place)
    with pytest.MonkeyPatch.context() as patch:
        Signal(patch, 1, signal.SIGTERM)
        with pytest.raises(Stopped):
            run(config, tmp_path / "run")
    write_parquet(
        place / "train-0.parquet", [png(0, side=12)] * 20, [i % 2 for i in range(20)], NAMES, image="image"
    )
    with pytest.raises(UserError, match="training data has changed"):
        run(config, tmp_path / "run", mode="resume")


def test_fingerprints_know_what_decides_an_epoch(place):
    options = ({}, {"stream_images": 20}, {"stream_buffer": 17}, {"split_seed": 1}, {"labels": False})
    found = [load_data(config_of(place, **each)).fingerprint for each in (*options, {"workers": 1})]
    assert len(set(found)) == len(options)
    assert found[-1] == found[0]


def test_what_a_stream_does_is_said_before_training(place, tmp_path):
    told: list[object] = []
    run(
        replace(of_stream(place), train=TrainConfig(epochs=1, batch_size=16)),
        tmp_path / "run",
        display=told.append,
    )
    notes = [event.text for event in told if isinstance(event, Note)]
    assert any("an epoch is all of its 57 images" in note for note in notes)


# what is refused


@pytest.mark.parametrize(
    "option", [{"holdout": 0.1}, {"limit": 10}, {"views": 3}, {"mixes": 3}, {"in_memory": True}]
)
def test_options_that_need_all_images_at_once_are_refused(place, option):
    with pytest.raises(UserError, match=rf"leave data\.{next(iter(option))} out"):
        load(place, **option)


@pytest.mark.parametrize(("count", "known"), [(58, 57), (0, 57)])
def test_an_epoch_of_more_images_than_there_are_is_refused(place, count, known):
    with pytest.raises(UserError, match=rf"data\.stream_images is {count}, but stream:.* has {known} images"):
        load(place, stream_images=count)
    with pytest.raises(UserError, match=r"data\.stream_buffer: .* >= 1"):
        load(place, stream_buffer=0)


@pytest.mark.parametrize("position", [10, 70])  # one of those that are looked at before, one that is not
def test_an_unreadable_image_is_an_error_whatever_may_be_left_out(tmp_path, position):
    """There is no other image to take its place."""
    images = [png(1, side=12)] * 80
    images[position] = b"no image"
    write_parquet(tmp_path / "train-0.parquet", images, [0, 1] * 40, NAMES, image="image")

    def first_epoch() -> None:
        split = load(tmp_path, max_faulty=9)
        list(split.train_batches(0, split.epoch_order(0, 0), 10))

    with pytest.raises(UserError, match=r"image \d+( of epoch 1)?: cannot be read as an image"):
        first_epoch()


def test_answers_that_are_not_finite_are_counted_epoch_by_epoch(place, tmp_path, monkeypatch):
    """A place has another image in the next epoch: one of two faulty places in each epoch is no more than one image."""
    run(of_stream(place), tmp_path / "teacher")
    config = replace(
        of_stream(place, max_faulty=1),
        teacher=ModelConfig(str(tmp_path / "teacher")),
        method=MethodConfig("kd"),
    )
    original, asked = Teacher.answer, []

    def answer(teacher, batch, mixed):
        found = original(teacher, batch, mixed)
        epoch = len(asked) // 4
        asked.append(len(batch))
        logits = found.outputs.logits.clone()
        logits[batch.index[mixed.position] == 5 + epoch] = torch.inf
        return replace(found, outputs=replace(found.outputs, logits=logits))

    monkeypatch.setattr(Teacher, "answer", answer)
    run(config, tmp_path / "run")
    assert len(asked) == 8
    assert not (tmp_path / "run" / "left_out.json").exists()  # a place in an epoch is no name
    asked.clear()
    refused = replace(config, data=replace(config.data, max_faulty=0))
    with pytest.raises(UserError, match=r"epoch 1: .* for 1 images \(5\).* --data\.max_faulty \(0\)"):
        run(refused, tmp_path / "refused")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_ends_too_early_says_after_how_many(place, workers):
    split = load(place, workers=workers)
    longer = replace(split, records=replace(split.records, count=80))
    with pytest.raises(UserError, match=r"ended after 57 images of an epoch of 80: give data\.stream_images"):
        list(longer.train_batches(0, torch.arange(80), 8))


@pytest.mark.parametrize("workers", [0, 2])
def test_faulty_examples_are_named(tmp_path, workers):
    def refuse(images, labels, told):
        place = tmp_path / f"{told[:5]}-{workers}"
        write_parquet(place / "train-0.parquet", images, labels, NAMES, image="image")
        split = load(place, workers=workers)
        with pytest.raises(UserError, match=rf"stream:.*: image \d+ of epoch 3.*{told}"):
            list(split.train_batches(2, split.epoch_order(0, 2), 10))

    good = [png(1, side=12)] * 80  # the first 64 are looked at before
    labels = [0, 1] * 40
    refuse([*good[:70], good[0][:50], *good[71:]], labels, "cannot be read as an image")
    refuse([*good[:70], None, *good[71:]], labels, "holds no image bytes")
    refuse(good, [*labels[:70], -1, *labels[71:]], "has label -1, but labels must be integers in 0..1")


def test_only_its_own_order_can_be_asked_for(place):
    split = load(place)
    assert list(split.train_batches(0, torch.zeros(0, dtype=torch.int64), 4)) == []
    for order in (torch.tensor([1, 0]), torch.tensor([2, 2])):
        with pytest.raises(ValueError, match="its own order"):
            list(split.train_batches(0, order, 4))
    with pytest.raises(NotImplementedError):
        split.eval_batches(4)


def test_methods_and_stores_that_know_images_again_are_refused(place, tmp_path):
    run(of_stream(place), tmp_path / "teacher")
    config = replace(of_stream(place), teacher=ModelConfig(str(tmp_path / "teacher")))
    for method in ("stale", "infobatch", "random-epoch"):
        with pytest.raises(UserError, match=rf"{method} remembers scores .* take another method"):
            run(
                replace(
                    config,
                    method=MethodConfig(method, keep=0.5) if method != "infobatch" else MethodConfig(method),
                ),
                tmp_path / "no",
            )
    answers = AnswersConfig(str(tmp_path / "store"))
    with pytest.raises(UserError, match=r"leave answers\.path out"):
        run(replace(config, method=MethodConfig("kd"), answers=answers), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_of_the_hub_the_number_of_images_may_not_be_known(place, monkeypatch):
    """The Hub is played by the files; which images there are it does not say, as of many data sets."""
    original, asked = datasets.load_dataset, []

    def load_dataset(path, **options):
        asked.append((path, options))
        files = {"train": sorted(map(str, place.glob("train-*"))), "test": str(place / "test-0.parquet")}
        return original("parquet", data_files=files, streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(
        "huggingface_hub.HfApi.dataset_info", lambda api, name: SimpleNamespace(sha=f"of {name}")
    )
    hub = DataConfig("stream:owner/set", workers=0, stream_buffer=16)
    with pytest.raises(UserError, match=r"is not known: give data\.stream_images"):
        load_data(hub)
    data = load_data(replace(hub, stream_images=30))
    assert asked[-1] == ("owner/set", {"streaming": True})
    assert len(set(shown(data.train, 0))) == 30
    assert "an epoch is 30 images, of which some may come again" in data.notes[0]
    assert len(data.test) == TEST
    with pytest.raises(UserError, match="ended after 57 images of an epoch of 99"):
        shown(load_data(replace(hub, stream_images=99)).train, 0)


def test_a_hub_that_does_not_answer_is_told(place, monkeypatch):
    def fail(*args, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        UserError, match=r"stream:owner/set: cannot be loaded as a data set \(no route to host\)"
    ):
        load_data(DataConfig("stream:owner/set"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_breaks_off_says_where_and_how_to_go_on(place, workers, monkeypatch):
    split = load(place, workers=workers)

    class Broken:
        def shuffle(self, **how):
            examples = iter(split.records.stream.shuffle(**how))
            yield from (next(examples) for _ in range(20))
            raise RuntimeError("connection reset")

    broken = replace(split, records=replace(split.records, stream=Broken()))
    with pytest.raises(
        UserError, match=r"image 20 of epoch 1: cannot be read on \(connection reset\); --resume goes on"
    ):
        list(broken.train_batches(0, torch.arange(IMAGES), 8))


def test_other_data_have_no_stream_images():
    with pytest.raises(
        UserError, match=r"data\.stream_images is for a stream, and digits is none: give data\.limit"
    ):
        load_data(DataConfig("digits", stream_images=5))


def test_a_stream_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"no \*\.parquet in this folder"):
        load(tmp_path)
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"stream:.*cut\.parquet"):
        load(tmp_path / "cut.parquet")
