"""Exports for photographs: what they state, resizing inside, predict.py without unixkd."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from running import call, make_teacher
from unixkd.data.images import fit, read_photo, to_array
from unixkd.export import FORMATS, export_script, export_student, preparation_of, random_sample
from unixkd.export.formats import trace
from unixkd.export.photo_input import add_photo_input, open_photo_input
from unixkd.export.preparation import PHOTO_STEPS, PIXEL_STEPS, Preparation
from unixkd.export.script import ScriptAgreement, check, run_without_unixkd, script_text, scripted
from unixkd.export.verify import check_batches, positions
from unixkd.models import ModelCard, PixelModel, create_model, load_model, save_model
from unixkd.models.folder import read_card

KINDS = (
    "plain",
    "exif",
    "grey",
    "cmyk",
    "palette",
    "see-through",
    "alpha",
    "deep",
    "large",
    "large-png",
    "exact",
    "tall",
)


def picture(height: int, width: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Smooth blobs of colour with noise: what photographs are to a resizing filter."""
    coarse = random.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int64)
    return np.clip(smooth + random.integers(-25, 26, smooth.shape), 0, 255).astype(np.uint8)


def draw(path: Path, kind: str, random: np.random.Generator, size: int = 72) -> Path:
    """A picture of a kind that image files come in."""
    scale = 16 if kind.startswith("large") else 2
    height, width = (int(side) for side in random.integers(size, size * 2, 2) * scale // 2)
    if kind in ("exact", "tall"):
        height, width = (size, size) if kind == "exact" else (7 * size, size)
    image, options = Image.fromarray(picture(height, width, random)), {}
    if kind in ("exif", "large"):
        options["exif"] = Image.Exif()
        options["exif"][274] = int(random.choice([2, 3, 5, 6, 8]))
    elif kind == "grey":
        image = image.convert("L")
    elif kind == "cmyk":
        image = image.convert("CMYK")
    elif kind in ("palette", "see-through"):
        image = image.quantize(32)
        options |= {"transparency": bytes([0, 128, 255])} if kind == "see-through" else {}
    elif kind == "alpha":
        image.putalpha(image.convert("L"))
    elif kind == "deep":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 251)
    jpeg = kind in ("plain", "exif", "grey", "cmyk", "large")
    path = path.with_suffix(".jpg" if jpeg else ".png")
    image.save(path, **options, **({"quality": 92} if jpeg else {}))
    return path


def student_of(channels: int, size: int, names: tuple[str, ...] | None = ("a", "b", "c")) -> PixelModel:
    """A network with random weights, whose logits differ from image to image."""
    torch.manual_seed(0)
    card = ModelCard("resnet8", 3, channels, (0.4,) * channels, (0.1,) * channels, size, names)
    return PixelModel(create_model("resnet8", 3, channels), card).eval()


def inside(made: Preparation) -> Preparation:
    """The same, resized by the model."""
    return Preparation(**{**made.values(), "inside": PHOTO_STEPS})


# The record


def followed(path: Path, made: Preparation) -> NDArray[np.uint8]:
    """What a record's sentences make of a file, one after the other, by Pillow alone."""
    with Image.open(path) as image:
        if made.least_side:
            image.draft(None, (made.least_side,) * 2)
        image.load()
        turn = image.getexif().get(274)
    moves = {2: (0,), 3: (3,), 5: (5,), 6: (4,), 8: (2,)}  # of Image.Transpose
    for move in moves.get(turn, ()):
        image = image.transpose(Image.Transpose(move))
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) / 256).astype(np.uint8))
    image = image.convert("RGBA").convert(made.mode) if image.mode != "CMYK" else image.convert(made.mode)
    if made.least_side and (factor := min(image.size) // made.least_side) > 1:
        image = image.reduce(factor)
    if image.size != (made.size, made.size):
        scale = made.shorter_side / min(image.size)
        sides = [round(side * scale) for side in image.size]
        image = image.resize(sides, Image.Resampling[made.filter.upper()])
    left, top = ((side - made.size) // 2 for side in image.size)
    return to_array(image.crop((left, top, left + made.size, top + made.size)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scaled", [True, False])
def test_who_follows_the_record_gets_the_pixels_of_predict(kind, scaled, tmp_path):
    made = preparation_of(student_of(3, 72).card, 72, scaled)
    path = draw(tmp_path / "x", kind, np.random.default_rng(1))
    image = read_photo(path, "x", 3, made.least_side).image
    assert np.array_equal(followed(path, made), fit(image, 72))


def test_the_record_in_words_says_which_steps_are_left():
    made = preparation_of(student_of(3, 224).card, 224)
    sentences = made.sentences()
    assert [line.endswith(": done inside") for line in sentences] == [False] * 5 + [True]
    assert "shorter side to 256 pixels, bilinear with antialiasing" in sentences[2]
    assert "336" in sentences[1]
    assert [line.endswith(": done inside") for line in inside(made).sentences()] == [False] * 2 + [True] * 4
    whole = preparation_of(student_of(1, 8).card, 8, scaled=False)
    assert (whole.mode, whole.least_side, whole.box_means, len(whole.sentences())) == ("L", None, True, 5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def exported(trained) -> Path:
    """All formats, the ONNX ones with the resizing inside."""
    assert call("export", trained, "--formats", "safetensors,torch,onnx,int8", "--resize") == 0
    return trained / "export"


@pytest.mark.slow
def test_one_record_stands_in_every_file(exported):
    import onnx

    card = json.loads((exported / "config.json").read_text())
    made = preparation_of(read_card(exported), 8)
    wanted = json.loads(json.dumps(made.values()))
    assert card["preparation"] == wanted
    assert wanted["inside"] == list(PIXEL_STEPS)
    files = {"preparation.json": "", "card.json": "", "class_names.json": ""}
    torch.export.load(exported / "model.pt2", extra_files=files)
    assert json.loads(files["preparation.json"]) == wanted
    assert json.loads(files["class_names.json"]) == card["class_names"]
    for name in ("model.onnx", "model.int8.onnx"):
        said = {entry.key: entry.value for entry in onnx.load(exported / name).metadata_props}
        assert json.loads(said["preparation"]) == wanted | {"inside": list(PHOTO_STEPS)}
    text = (exported / "README.md").read_text()
    assert [line for line in inside(made).sentences() if line not in text] == []


@pytest.mark.slow
def test_a_card_without_the_record_is_read(exported, tmp_path):
    save_model(load_model(exported), tmp_path)
    assert "preparation" not in json.loads((tmp_path / "config.json").read_text())
    assert read_card(tmp_path) == read_card(exported)


def test_predict_on_an_export_decodes_as_the_run_did(trained, tmp_path):
    from unixkd.cli.train import decoding_of

    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("export", ".lock"))
    config = tmp_path / "run" / "run.yaml"
    config.write_text(config.read_text().replace("decoding: auto", "decoding: full"))
    (tmp_path / "run" / "checksums.json").unlink()
    assert decoding_of(tmp_path / "run") == "full"
    assert call("export", tmp_path / "run", "--formats", "safetensors", "--out", tmp_path / "out") == 0
    assert decoding_of(tmp_path / "out") == "full"
    assert decoding_of(trained / "export") == decoding_of(tmp_path) == "scaled"


# Any number of images


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "onnx", "int8"])
def test_a_batch_has_any_number_of_images(name, exported):
    check_batches(FORMATS[name].open(exported), [torch.rand(3, 1, 8, 8)])  # of 1, 7, 64
    assert FORMATS[name].open(exported)(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_no_number_is_fixed_in_the_graph():
    pixels = trace(student_of(3, 8), 8).graph_signature.user_inputs[0]
    node = next(node for node in trace(student_of(3, 8), 8).graph.nodes if node.name == pixels)
    assert not isinstance(node.meta["val"].shape[0], int)
    assert tuple(node.meta["val"].shape[1:]) == (3, 8, 8)


def test_a_file_that_takes_only_some_numbers_is_found():
    fixed = lambda pixels: pixels[:2].flatten(1)  # noqa: E731
    with pytest.raises(RuntimeError, match="2 answers to a batch of 7 images"):
        check_batches(fixed, [torch.rand(1, 1, 2, 2), torch.rand(2, 1, 2, 2)])


# Resizing inside


def front(tmp_path: Path, channels: int, size: int):
    """The nodes that resize, in front of a model that does nothing."""
    import onnx
    from onnx import TensorProto, helper

    shape = ["batch", channels, size, size]
    given, answer = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("pixels", "logits"))
    graph = helper.make_graph([helper.make_node("Identity", ["pixels"], ["logits"])], "g", [given], [answer])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m"
    )
    add_photo_input(tmp_path / "m", inside(preparation_of(student_of(channels, size).card, size)))
    onnx.checker.check_model(str(tmp_path / "m"))
    return open_photo_input(tmp_path / "m")


SIZES = [
    (72, 72),
    (333, 500),
    (500, 333),
    (73, 72),
    (72, 73),
    (40, 55),
    (216, 216),
    (300, 301),
    (1, 5),
    (900, 1203),
]


@pytest.mark.parametrize(("channels", "size"), [(3, 72), (1, 72), (3, 32), (1, 8), (3, 224)])
def test_onnx_resizes_as_pillow_does(channels, size, tmp_path):
    """A pixel may be one of 256 steps away; images of the size, and the means of boxes, are exact."""
    prepare, random = front(tmp_path, channels, size), np.random.default_rng(0)
    for height, width in [*SIZES, (size, size), (2 * size, 2 * size), (2 * size, 3 * size)]:
        photo = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
        wanted = fit(Image.fromarray(photo.squeeze(-1) if channels == 1 else photo), size).astype(np.int64)
        made = (prepare(torch.from_numpy(photo)[None])[0] * 255).round().numpy().transpose(1, 2, 0)
        off = np.abs(made - wanted)
        assert off.max() <= (
            0 if height == width and (height == size or (size <= 64 and height % size == 0)) else 1
        )
        assert (off > 0).mean() < 0.03, (height, width)


@pytest.mark.slow
def test_several_photos_of_one_shape_are_a_batch(exported):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == (
        "photo",
        "tensor(uint8)",
        ["batch", "height", "width", 1],
    )
    photos = np.random.default_rng(0).integers(0, 256, (5, 21, 30, 1), dtype=np.uint8)
    together = session.run(None, {"photo": photos})[0]
    alone_ = np.concatenate([session.run(None, {"photo": photo[None]})[0] for photo in photos])
    np.testing.assert_allclose(together, alone_, atol=1e-4)
    with torch.no_grad():
        pixels = np.stack([fit(Image.fromarray(photo[..., 0]), 8) for photo in photos])
        student = load_model(exported)(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    np.testing.assert_allclose(
        torch.softmax(torch.from_numpy(together), 1), torch.softmax(student, 1), atol=0.05
    )


def test_resizing_needs_a_format_of_onnx(capsys):
    assert call("export", "run", "--resize") == 2
    assert "--resize belongs to the formats onnx and int8" in capsys.readouterr().err


# predict.py


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Class folders of 60 test pictures of all kinds, and a few to train on."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 30)):
        for label in ("ants", "bees"):
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                draw(folder / split / label / f"{i:02d}", KINDS[i % len(KINDS)], random)
    return folder


def agreed(folder: Path, out: Path, photos: Path, capsys, *formats: str) -> None:
    """Export a network, and compare predict.py with `unixkd predict` once more, from their output alone."""
    assert (
        call("export", folder, "--out", out, "--data", f"folder:{photos}", "--data.size", 72, *formats) == 0
    )
    line = f"{out / 'predict.py'}: the same class as unixkd predict on 60 of 60 evaluation images"
    assert line in capsys.readouterr().out
    files = sorted((photos / "val").rglob("*.*"))
    assert call("predict", folder, "--json", "--top", 1, *files) == 0
    wanted = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    done = subprocess.run(
        [sys.executable, out / "predict.py", *files], capture_output=True, text=True, check=True, cwd=out
    )
    assert len(wanted) == 60
    assert len({answer["answers"][0]["class"] for answer in wanted}) > 1  # no constant
    for answer, line in zip(wanted, done.stdout.splitlines(), strict=True):
        path, name, probability = line.split("\t")
        assert (path, name) == (answer["image"], answer["answers"][0]["class"])
        assert float(probability) == pytest.approx(answer["answers"][0]["probability"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("words", [("onnx",), ("onnx", "--resize"), ("torch",)], ids=" ".join)
def test_60_of_60_photos_of_all_kinds_agree(words, photos, tmp_path, capsys):
    save_model(student_of(3, 72), tmp_path / "model")
    agreed(tmp_path / "model", tmp_path / "out", photos, capsys, "--formats", *words)


LEFT_OUT = {
    "ImageOps.exif_transpose(file)": "file.copy()",
    "Resampling.BILINEAR": "Resampling.BICUBIC",
    "np.asarray(image) // 256": "np.asarray(image)",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[PixelModel, Path]:
    """A network for photos, and the folder with its ONNX model."""
    student, folder = student_of(3, 72), tmp_path_factory.mktemp("whole")
    made, sample = preparation_of(student.card, 72), random_sample(student.card, 72)
    assert export_student(student, folder, ["onnx"], sample, made)[1] == []
    return student, folder


@pytest.mark.slow
def test_a_step_that_is_left_out_is_found(photos, whole):
    """On two of each kind of picture."""
    student, folder = whole
    made = preparation_of(student.card, 72)
    text, files = (
        script_text(student, made, "onnx"),
        sorted((photos / "val" / "ants").iterdir())[: 2 * len(KINDS)],
    )
    for step in (None, *LEFT_OUT):
        assert step is None or step in text
        (folder / "predict.py").write_text(text.replace(step, LEFT_OUT[step]) if step else text)
        found = check(folder / "predict.py", "onnx", files, student, made)
        assert found.images == len(files)
        assert found.within == (step is None), step


@pytest.mark.slow
def test_the_script_imports_what_it_names_and_no_more(exported):
    text = (exported / "predict.py").read_text()
    imported = {line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imported == {"argparse", "json", "signal", "sys", "pathlib", "numpy", "onnxruntime", "PIL"}
    assert "onnxruntime, numpy and Pillow are needed" in text


def test_a_script_that_needs_unixkd_fails(tmp_path):
    (tmp_path / "predict.py").write_text("import unixkd")
    done = run_without_unixkd(tmp_path / "predict.py", tmp_path / "model.pt2", [])
    assert done.returncode == 1
    assert "import of unixkd halted" in done.stderr


@pytest.mark.slow
def test_a_script_goes_on_past_what_it_refuses(exported, tmp_path):
    random = np.random.default_rng(0)
    files = [draw(tmp_path / kind, kind, random) for kind in ("plain", "deep")]
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(random.random((9, 9), dtype=np.float32)).save(tmp_path / "float.tiff")
    Image.new("L", (100, 10)).save(tmp_path / "long.png")
    odd = [tmp_path / name for name in ("text.png", "float.tiff", "long.png")]
    done = run_without_unixkd(exported / "predict.py", exported / "model.onnx", [files[0], *odd, files[1]])
    assert done.returncode == 1
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [str(file) for file in files]
    assert [line.split(": ")[0] for line in done.stderr.splitlines()] == [str(file) for file in odd]


@pytest.mark.slow
def test_a_script_that_disagrees_is_deleted_and_nothing_else_is(whole, tmp_path, monkeypatch):
    from unixkd.export import script

    student, folder = whole
    shutil.copy(folder / "model.onnx", tmp_path)
    made, sample = preparation_of(student.card, 72), random_sample(student.card, 72)
    right = script.script_text

    def wrong(*words):
        return right(*words).replace("/ 255", "/ 200")

    monkeypatch.setattr(script, "script_text", wrong)
    agreement, told = export_script(student, tmp_path, ["onnx"], sample, made)
    assert agreement is None
    assert told.startswith(
        "predict.py disagrees on model.onnx and was deleted: the same class as unixkd predict on "
    )
    monkeypatch.setattr(script, "script_text", lambda *words: "1 / 0")
    _, told = export_script(student, tmp_path, ["onnx"], sample, made)
    assert told.endswith("was deleted: ZeroDivisionError: division by zero")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_an_agreement_worked_out_by_hand():
    assert ScriptAgreement(60, 0, 60, 1e-3).within
    assert not ScriptAgreement(60, 0, 59, 0.0).within
    assert not ScriptAgreement(60, 0, 60, 1.1e-3).within
    assert not ScriptAgreement(0, 60, 0, 0.0).within
    assert "it refused 2 other images by name" in ScriptAgreement(58, 2, 58, 0.0).describe("photos")


@pytest.mark.slow
def test_odd_class_names_are_compared_too(tmp_path):
    """Tabs, line breaks and bytes that are no UTF-8, as names of folders may have them."""
    student = student_of(1, 8, ("a\tb", "c\n0\t1.0", "\udcff"))
    made, sample = preparation_of(student.card, 8), random_sample(student.card, 8)
    assert export_student(student, tmp_path, ["onnx"], sample, made)[1] == []
    agreement, wrong = export_script(student, tmp_path, ["onnx"], sample, made)
    assert (wrong, agreement.same_class) == (None, 72)


@pytest.mark.slow
def test_classes_without_names_are_numbers(tmp_path):
    student = student_of(1, 8, None)
    made, sample = preparation_of(student.card, 8), random_sample(student.card, 8)
    text = script_text(student, made, "onnx")
    assert "names" not in text
    assert "json" not in text
    compile(text, "predict.py", "exec")
    assert sample.data is None


def test_which_files_a_script_reads():
    assert scripted(["safetensors"]) == []
    assert scripted(["safetensors", "torch"]) == ["torch"]
    assert scripted(["torch", "int8"]) == ["int8"]
    assert scripted(["int8", "torch", "onnx"]) == ["onnx", "int8"]


def test_a_predict_py_of_ones_own_stays(trained, tmp_path, capsys):
    (tmp_path / "predict.py").write_text("import unixkd\nmine")
    words = ("export", trained, "--out", tmp_path, "--overwrite", "--formats")
    assert call(*words, "torch") == 1
    assert "holds predict.py, which no export wrote" in capsys.readouterr().err
    assert call(*words, "safetensors") == 0
    assert call(*words, "safetensors") == 0
    assert (tmp_path / "predict.py").read_text() == "import unixkd\nmine"


def test_positions_are_spread():
    assert positions(2000, 2000) == list(range(2000))
    assert positions(5000, 2) == [0, 2500]
