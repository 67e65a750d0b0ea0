"""`export`: what is written says what the student says, and what does not is deleted."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from running import TEST_IMAGES, alone, call, distilled, make_teacher, model_bytes, summary
from unixkd import export, load_student
from unixkd.cli import main
from unixkd.config import DataConfig, MethodConfig, flatten, read_yaml
from unixkd.data import load_data
from unixkd.errors import UserError
from unixkd.export import (
    FORMATS,
    Publication,
    Sample,
    compare,
    export_student,
    random_sample,
    real_sample,
    write_model_card,
)
from unixkd.export.formats import TORCH_FILE, Format, write_torch
from unixkd.export.model_card import read_facts
from unixkd.export.preparation import Preparation, preparation_of
from unixkd.export.verify import in_batches
from unixkd.models import ModelCard, PixelModel, create_model, save_model
from unixkd.models.folder import EXPORTED
from unixkd.names import percent
from unixkd.training.run import run
from unixkd.training.run_folder import RunFolder

ALL = "safetensors,torch,onnx"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A distilled student that has seen something."""
    folder = tmp_path_factory.mktemp("runs")
    config = distilled(make_teacher(folder / "teacher"), MethodConfig("unix", keep=0.5), epochs=3)
    run(config, folder / "student")
    return folder / "student"


@pytest.fixture(scope="module")
def exported(trained) -> Path:
    """An export of all formats, in the run's own folder."""
    assert call("export", trained, "--formats", ALL, "--licence", "mit") == 0
    return trained / "export"


@pytest.fixture
def plain(trained, tmp_path) -> Path:
    """A copy of the run without an export."""
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("export", ".lock"))
    return tmp_path / "run"


def small(size: int | None = 8, names: tuple[str, ...] | None = None, name: str = "resnet8") -> PixelModel:
    """A student with random weights and strong preprocessing."""
    torch.manual_seed(0)
    card = ModelCard(name, 3, 1, (0.3,), (0.2,), size, names)
    return PixelModel(create_model(name, 3, 1), card).eval()


def made_for(student: PixelModel, size: int = 8) -> Preparation:
    return preparation_of(student.card, size)


def pixels(count: int, side: int = 8) -> torch.Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(count))


PAIR = {"README.md", "config.json", "model.safetensors", "checksums.json"}
"""What the format `safetensors` leaves."""


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# The formats


def test_the_safetensors_pair_is_the_runs_own(trained, exported):
    assert model_bytes(exported) == model_bytes(trained)
    card = json.loads((exported / "config.json").read_text())
    assert card.pop("preparation")["size"] == card["size"]
    assert card == json.loads((trained / "config.json").read_text())
    assert torch.equal(load_student(exported)(pixels(3)), load_student(trained)(pixels(3)))


@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_any_number_of_images_gets_the_students_logits(name, trained, exported):
    student, given = load_student(trained), FORMATS[name].open(exported)
    for count in (1, 2, 3, 33):
        with torch.no_grad():
            wanted = student(pixels(count))
        torch.testing.assert_close(given(pixels(count)), wanted, rtol=1e-4, atol=1e-4)
    assert wanted.std() > 0.1  # no constant


def test_an_onnx_model_names_its_ends_and_its_classes(exported, trained):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    (given,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("pixels", ["batch", 1, 8, 8])
    assert (answer.name, answer.shape) == ("logits", ["batch", 10])
    said = session.get_modelmeta().custom_metadata_map
    card = json.loads((trained / "config.json").read_text())
    assert json.loads(said["class_names"]) == card["class_names"] == [str(i) for i in range(10)]
    assert json.loads(said["card"]) == {key: value for key, value in card.items() if key != "schema"}


@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_no_path_of_this_machine_is_in_a_file(name, exported):
    file = exported / {"torch": "model.pt2", "onnx": "model.onnx"}[name]
    assert str(Path(export.__file__).parents[1]).encode() not in file.read_bytes()


@pytest.mark.parametrize("size", [12, 5])
def test_images_of_another_size_are_resized_inside(size, tmp_path):
    """By antialiased interpolation, down and up; the network itself wants 8 pixels."""
    student = small()
    made, failed = export_student(
        student, tmp_path, ["torch", "onnx"], random_sample(student.card, size), made_for(student, size)
    )
    assert (len(made), failed) == (2, [])
    answers = FORMATS["onnx"].open(tmp_path)(pixels(2, size))
    torch.testing.assert_close(answers, student(pixels(2, size)).detach(), rtol=1e-4, atol=1e-4)


def test_weights_too_large_for_one_onnx_file_lie_beside_it(tmp_path, monkeypatch):
    """As they are beyond 2 GB; here the limit is put at nothing."""
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 0)
    student = small()
    (made,), failed = export_student(
        student, tmp_path, ["onnx"], random_sample(student.card, 8), made_for(student)
    )
    assert (failed, [file.name for file in made.files]) == ([], ["model.onnx", "model.onnx.data"])
    assert made.size > 4 * sum(value.numel() for value in student.net.parameters())
    assert {file.name for file in made.files} < set(EXPORTED)
    torch.testing.assert_close(FORMATS["onnx"].open(tmp_path)(pixels(2)), student(pixels(2)).detach())


def test_the_size_of_a_model_that_takes_any_has_to_be_given(plain, capsys):
    card = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(card | {"size": None}))
    (plain / "checksums.json").unlink()
    assert call("export", plain) == 1
    assert "give --size" in capsys.readouterr().err
    assert call("export", plain, "--formats", "torch", "--size", 12) == 0
    assert FORMATS["torch"].open(plain / "export")(pixels(2, 12)).shape == (2, 10)


# What is printed, and the folder


def test_every_artefact_gets_a_line(plain, capsys):
    assert call("export", plain) == 0
    out = plain / "export"
    pair = [out / name for name in ("checksums.json", "config.json", "model.safetensors")]
    size = sum(path.stat().st_size for path in pair)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{' '.join(map(str, pair))}: {size / 1e6:.2f} MB, "
        "largest difference of the logits 0, the same class on 72 of 72 evaluation images of digits",
        f"{out / 'model.pt2'}: {(out / 'model.pt2').stat().st_size / 1e6:.2f} MB, "
        "largest difference of the logits 0, the same class on 72 of 72 evaluation images of digits",
        lines[-2],
        str(out / "README.md"),
    ]
    assert re.fullmatch(
        f"{re.escape(str(out / 'predict.py'))}: the same class as unixkd predict on 72 of 72 "
        "evaluation images of digits, "
        r"largest difference of a probability \d(\.\d)?e-\d\d",
        lines[-2],
    )
    assert names_in(out) == PAIR | {"model.pt2", "predict.py"}


def test_an_export_that_is_there_is_not_overwritten_unless_told(exported, trained, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    assert call("export", trained) == 1
    assert "already holds README.md: give --overwrite or another --out" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    (copy / "mine.txt").write_text("stays")
    (copy / f".export.{'0f' * 16}.tmp").mkdir()  # of a killed one
    assert call("export", trained, "--out", copy, "--formats", "safetensors", "--overwrite") == 0
    assert names_in(copy) == PAIR | {"mine.txt"}


def test_files_that_no_export_wrote_are_not_overwritten(plain, tmp_path, capsys):
    mine = {"checksums.json": '{"a": "x"}', "README.md": "mine", "model.onnx": "mine"}
    (out := tmp_path / "out").mkdir()
    for name, text in mine.items():
        (out / name).write_text(text)
    assert call("export", plain, "--out", out, "--formats", "safetensors", "--overwrite") == 1
    assert "which no export wrote" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in out.iterdir()} == mine


def test_a_run_is_never_written_into(plain, trained, capsys):
    for out in (plain, trained):
        assert call("export", plain, "--out", out, "--overwrite") == 1
        assert "holds a run" in capsys.readouterr().err
    assert model_bytes(plain) == model_bytes(trained)


def test_a_run_that_is_made_anew_loses_the_export_of_its_old_student(plain):
    (plain / "export").mkdir()
    for name in (*EXPORTED, "mine.txt"):
        (plain / "export" / name).write_text("library_name: unixkd, Written by `unixkd export`")
    folder = RunFolder(plain)
    folder.open(alone(), "overwrite")
    folder.close()
    assert names_in(plain / "export") == {"mine.txt"}


def test_a_folder_that_cannot_be_written_to(plain, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert call("export", plain, "--out", tmp_path / "file" / "export") == 1
    assert f"cannot write to {tmp_path / 'file' / 'export'}" in capsys.readouterr().err


def test_what_is_no_run_folder(tmp_path, capsys):
    assert call("export", tmp_path) == 1
    assert "is no run folder" in capsys.readouterr().err
    assert not (tmp_path / "export").exists()


def test_a_format_that_there_is_not(capsys):
    assert call("export", "run", "--formats", "safetensors,onx") == 2
    assert "onnx" in capsys.readouterr().err
    assert call("export", "run", "--formats", "[]") == 2
    assert "no format" in capsys.readouterr().err


def test_a_missing_extra_is_named_before_anything_is_written(plain, monkeypatch, capsys):
    from unixkd.export import formats

    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxscript" else object())
    assert call("export", plain, "--formats", ALL) == 1
    assert "pip install 'unixkd[onnx]'" in capsys.readouterr().err
    assert not (plain / "export").exists()


# An exported student that disagrees


def changed(student: PixelModel, preparation: Preparation, folder: Path, sample: Sample) -> None:
    """Write a student whose first logit is 0.5 too large."""
    wrong = load_weights_of(student)
    with torch.no_grad():
        wrong.net.fc.bias[0] += 0.5
    write_torch(wrong, preparation, folder, sample)


def load_weights_of(student: PixelModel) -> PixelModel:
    copy = PixelModel(create_model(student.card.name, student.card.num_classes, 1), student.card).eval()
    copy.net.load_state_dict(student.net.state_dict())
    return copy


def broken(student: PixelModel, preparation: Preparation, folder: Path, sample: Sample) -> None:
    (folder / TORCH_FILE).write_bytes(b"half a file")


def failing(student: PixelModel, preparation: Preparation, folder: Path, sample: Sample) -> None:
    (folder / TORCH_FILE).write_bytes(b"half a file")
    raise RuntimeError("cannot trace\nthis")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            changed,
            "torch disagrees with the trained student and was deleted: largest difference of the logits 0.5, ",
        ),
        (broken, "torch could not be exported: "),
        (failing, "torch could not be exported: RuntimeError: cannot trace this"),
    ],
)
def test_an_artefact_that_fails_is_deleted_and_nothing_else_is(write, message, plain, monkeypatch, capsys):
    monkeypatch.setitem(FORMATS, "torch", Format(write, FORMATS["torch"].open))
    monkeypatch.setattr("huggingface_hub.HfApi", None)  # nothing is uploaded
    assert call("export", plain, "--formats", "torch,safetensors", "--push_to_hub", "me/x") == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"unixkd: error: {message}")
    assert captured.err.count("\n") == 1
    out = plain / "export"
    assert names_in(out) == PAIR
    assert model_bytes(out) == model_bytes(plain)
    assert "model.pt2" not in (out / "README.md").read_text()


def test_where_everything_fails_nothing_is_left(plain, monkeypatch, capsys):
    for name in ("torch", "safetensors"):
        monkeypatch.setitem(FORMATS, name, Format(failing, FORMATS[name].open))
    assert call("export", plain) == 1
    assert capsys.readouterr().err.count("cannot trace this") == 2
    assert names_in(plain / "export") == set()


def logits(*rows: list[float]):
    return lambda batch: torch.tensor(rows)[: len(batch)]


def test_how_far_two_students_agree_worked_out_by_hand():
    """Allowed: 1e-4 + 1e-4 · 100 for the first image, 1e-4 + 1e-4 · 1 for the second."""
    batches = [torch.zeros(2, 1, 1, 1)]
    trained_ = logits([100.0, 0.0], [1.0, 0.0])
    agreement = compare(trained_, logits([100.0, 0.01], [1.0, 0.0]), batches)
    assert (agreement.images, agreement.same_class, agreement.within) == (2, 2, True)
    assert agreement.largest == pytest.approx(0.01)
    agreement = compare(trained_, logits([100.0, 0.0], [0.0, 0.01]), batches)
    assert (agreement.same_class, agreement.within, agreement.largest) == (1, False, 1.0)
    assert not compare(trained_, logits([100.0, 0.0], [1.0, 0.01]), batches).within
    assert not compare(trained_, logits([100.0, float("nan")], [1.0, 0.0]), batches).within
    assert np.isnan(compare(trained_, logits([float("nan"), 0.0], [1.0, 0.0]), batches).largest)


def test_a_student_that_is_not_finite_agrees_with_nothing():
    ill = logits([float("inf"), 0.0])
    assert not compare(ill, ill, [torch.zeros(1, 1, 1, 1)]).within


def test_logits_of_another_shape_are_an_error():
    with pytest.raises(RuntimeError, match=r"\(1, 3\) instead of \(1, 2\)"):
        compare(logits([0.0, 0.0]), logits([0.0, 0.0, 0.0]), [torch.zeros(1, 1, 1, 1)])


# The images


def test_real_images_are_spread_over_those_that_are_evaluated():
    sample = real_sample(DataConfig("digits"), small().card, 8)
    assert [len(batch) for batch in sample.batches] == [1, 7, 64]
    wanted = next(load_data(DataConfig("digits")).test.eval_batches(TEST_IMAGES)).images
    given = torch.cat(sample.batches)
    assert torch.equal(given, wanted[[i * TEST_IMAGES // 72 for i in range(72)]])
    assert sample.origin == "evaluation images of digits"


def test_real_images_are_resized_and_few_are_enough(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("L", (8, 8), 60 * i).save(tmp_path / name / f"{i}.png")
    sample = real_sample(DataConfig(f"folder:{tmp_path}"), small().card, 16)
    assert [tuple(batch.shape) for batch in sample.batches] == [(1, 1, 16, 16), (3, 1, 16, 16)]
    assert sample.origin == f"training images of folder:{tmp_path}"
    assert [batch.mean().item() for batch in sample.batches] == pytest.approx(
        [0, 80 / 3 * 1.5 / 255], abs=1e-5
    )


def test_one_image_is_one_batch():
    assert [len(batch) for batch in in_batches(pixels(1))] == [1]


def test_data_of_other_channels_are_refused(plain, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "0.png")
    assert call("export", plain, "--data", f"folder:{tmp_path / 'a'}") == 1
    assert "1-channel" in capsys.readouterr().err


def test_where_the_runs_data_are_gone_random_pixels_are_said_to_be_such(plain, capsys):
    config = plain / "run.yaml"
    config.write_text(config.read_text().replace("name: digits", "name: folder:/nowhere"))
    (plain / "checksums.json").unlink()
    assert call("export", plain, "--formats", "safetensors") == 0
    text = capsys.readouterr().out
    assert text.startswith("WARNING: the run's data cannot be read (")
    assert "/nowhere" in text.splitlines()[0]
    assert "on 72 of 72 random pixels" in text
    assert (
        "compared with the trained student on random pixels" in (plain / "export" / "README.md").read_text()
    )
    assert call("export", plain, "--data", "digits", "--formats", "safetensors", "--overwrite") == 0
    assert "evaluation images of digits" in capsys.readouterr().out


def test_data_that_are_named_have_to_be_there(plain, capsys):
    assert call("export", plain, "--data", "folder:/nowhere") == 1
    assert "/nowhere" in capsys.readouterr().err
    assert call("export", plain, "--data.holdout", "2") == 1
    assert "data.holdout" in capsys.readouterr().err
    assert not (plain / "export").exists()


# The model card


def test_the_model_card_holds_the_figures_of_the_summary(trained, exported):
    text, result = (exported / "README.md").read_text(), summary(trained)
    shares = [*result["accuracy"].values(), result["agreement"], result["calibration_error"]]
    assert len(shares) == 5
    section = text.partition("## Accuracy")[2].partition("##")[0]
    assert re.findall(r"\| ([\d.]+ %) \|", section) == [percent(share) for share in shares]
    assert "On the test images of `digits`; one run, seed 0." in section
    section = text.partition("## Cost")[2].partition("##")[0]
    relative = result["cost"]["relative_to_kd"]
    assert (
        f"{100 * relative['backward_1x']:.1f} % of plain KD's training FLOPs for 3 epochs of 100 images"
        in section
    )
    assert f"{100 * relative['backward_2x']:.1f} % counting it as 2" in section
    assert f"`resnet8`, {result['parameters']:,} parameters, 10 classes of `digits`" in text
    assert "distilled from a `resnet14` by the method `unix`" in text
    assert "- weights: mit\n- data: not stated" in text


def test_the_hub_library_reads_the_card(trained, exported):
    from huggingface_hub import ModelCard as HubCard

    data = HubCard.load(exported / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "unixkd", "image-classification")
    assert data.tags == ["unixkd", "knowledge-distillation"]
    (result,) = data.eval_results
    assert (result.metric_type, result.dataset_name) == ("accuracy", "digits")
    assert result.metric_value == summary(trained)["accuracy"]["last"]


def test_the_code_on_the_card_runs(exported, monkeypatch):
    monkeypatch.chdir(exported.parent)
    blocks = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        names: dict[str, Any] = {"pixels": pixels(2)}
        exec(block, names)
        assert tuple(names["logits"].shape) == (2, 10)


def test_the_command_on_the_card_makes_the_run_again(trained, exported):
    import shlex

    command = re.search(r"```sh\n(unixkd .*)\n```", (exported / "README.md").read_text())[1]
    program, name, *words = shlex.split(command)
    assert (program, name) == ("unixkd", "distill")
    options, saved = main.parse(name, words), read_yaml(trained / "run.yaml")
    assert str(trained.parent) not in (exported / "README.md").read_text()
    saved["teacher"]["name"] = Path(
        saved["teacher"]["name"]
    ).name  # where it lies here is nobody else's business
    for group in ("student", "teacher", "method", "loss", "data", "answers", "train"):
        assert flatten(vars(options[group])) == flatten(saved[group])
    assert "--method.keep 0.5" in command
    assert "--train.lr" not in command


def test_a_model_without_a_run_gets_a_card_without_figures(tmp_path):
    save_model(small(names=("cat", "dog", "[x]")), tmp_path / "model")
    assert call("export", tmp_path / "model", "--formats", "safetensors", "--data", "digits") == 0
    text = (tmp_path / "model" / "export" / "README.md").read_text()
    assert "%" not in text
    assert "None" not in text
    assert "model-index" not in text
    assert "license:" not in text
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        *("# resnet8", "## Use", "## Images", "## Files", "## Licence")
    ]
    assert r"cat, dog, \[x\]" in text


def test_a_run_on_labels_says_so(tmp_path):
    run(alone(epochs=1), tmp_path / "run")
    facts = read_facts(tmp_path / "run")
    assert facts.teacher is None
    assert facts.command.startswith(
        "unixkd train --model resnet8 --data digits --data.limit 100 --train.epochs 1 "
    )
    assert facts.number("cost.relative_to_kd.backward_1x") is None
    assert call("export", tmp_path / "run", "--formats", "safetensors") == 0
    text = (tmp_path / "run" / "export" / "README.md").read_text()
    assert "# resnet8\n" in text
    assert "10 classes of `digits`. It was trained on labels by unixkd.\n" in text


def write_run(folder: Path, data: dict[str, Any], result: str = "{}") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump({"data": data}))
    (folder / "summary.json").write_text(result)
    return folder


def test_data_are_named_without_their_paths(tmp_path):
    facts = read_facts(write_run(tmp_path, {"name": "folder:/home/me/photos"}))
    assert (facts.data, facts.hub_data, facts.split) == ("photos", None, "the test images")
    assert read_facts(write_run(tmp_path, {"name": "wds:/home/me/shards"})).data == "shards"
    facts = read_facts(write_run(tmp_path, {"name": "hub:me/flowers", "holdout": 0.125}))
    assert (facts.data, facts.hub_data) == ("me/flowers", "me/flowers")
    assert facts.split == "12.5 % of the training images, held out from training"
    facts = read_facts(write_run(tmp_path, {"name": "digits", "holdout": 0.5, "evaluate_on": "test"}))
    assert (facts.data, facts.split) == ("digits", "the test images")


@pytest.mark.parametrize("text", ["{", "[1]", '"a"'])
def test_a_damaged_summary_is_named(text, tmp_path):
    with pytest.raises(UserError, match=r"summary\.json"):
        read_facts(write_run(tmp_path, {}, text))


def test_names_on_the_card_are_neither_markup_nor_control_characters(tmp_path):
    """In text, in code (of Python too), in the YAML above; a fence is longer than the backticks of its name."""
    name = "a`|\n---\n# x <b>\x1b[31m\udcff"
    facts = read_facts(write_run(tmp_path, {"name": f"hub:{name}"}, '{"accuracy": {"last": 0.5}}'))
    out = tmp_path / '"q` x'
    out.mkdir()
    student = small(names=(name, "_b_", "wrn_16_2"))
    text = write_model_card(
        out, student, facts, [], Publication(), f"images of {name}", made_for(student)
    ).read_text()
    assert text.replace("\n", "").isprintable()
    escaped = r"a`|\n---\n# x <b>\x1b[31m\udcff"
    assert f"3 classes of `` {escaped} ``." in text
    in_text = r"a\`\|\n---\n\# x \<b\>\x1b\[31m\udcff"
    assert f"one of its 3 classes, whatever it is shown: {in_text}, \\_b\\_, wrn_16_2." in text
    assert f"compared with the trained student on images of {in_text}, in fp32" in text
    front = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == name
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        *("# resnet8", "## Accuracy", "## Use", "## Images", "## Files", "## Training", "## Licence")
    ]


@pytest.mark.parametrize("value", ['"many"', "null", "true", "NaN", "[1]"])
def test_what_is_no_number_is_left_out(value, tmp_path):
    facts = read_facts(write_run(tmp_path, {}, f'{{"accuracy": {{"last": {value}}}}}'))
    assert facts.number("accuracy.last") is None
    student = small()
    text = write_model_card(
        tmp_path, student, facts, [], Publication(), "nothing", made_for(student)
    ).read_text()
    assert "metrics" not in text
    assert "## Accuracy" not in text


# The Hub


class FakeHub:
    """Remembers what it was asked; raises what it is told to."""

    calls: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    error: Exception | None = None

    def __init__(self, **options: Any) -> None:
        type(self).calls = []

    def create_repo(self, name: str, **options: Any) -> None:
        self.calls.append(("create_repo", {"name": name, **options}))

    def upload_folder(self, **options: Any) -> Any:
        self.calls.append(("upload_folder", options))
        if self.error is not None:
            raise self.error
        return type("Commit", (), {"commit_url": "https://hub/commit"})


def test_a_dry_run_lists_the_files_and_asks_nobody(plain, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", None)
    (plain / "export").mkdir()
    (plain / "export" / "secret.txt").write_text("mine")
    words = ("--formats", "safetensors", "--push_to_hub", "me/student", "--dry_run")
    assert call("export", plain, *words) == 0
    sizes = {path.name: path.stat().st_size for path in (plain / "export").iterdir()}
    assert capsys.readouterr().out.splitlines()[2:] == [
        "dry run: would upload to me/student, a model repository (public if it has to be made):",
        *(f"  {name}  {sizes[name]:,} bytes" for name in EXPORTED if name in PAIR),
    ]
    assert call("export", plain, *words, "--private", "--overwrite") == 0
    assert "(private if it has to be made)" in capsys.readouterr().out
    assert 'snapshot_download("me/student")' in (plain / "export" / "README.md").read_text()


def test_the_verified_files_are_uploaded_in_one_commit(plain, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    words = ("--formats", "safetensors", "--push_to_hub", "me/student", "--private")
    assert call("export", plain, *words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "https://hub/commit"
    (first, made), (second, sent) = FakeHub.calls
    assert (first, made) == ("create_repo", {"name": "me/student", "private": True, "exist_ok": True})
    assert (second, sent["repo_id"], sent["folder_path"]) == ("upload_folder", "me/student", plain / "export")
    assert set(sent["allow_patterns"]) == PAIR


def hub_errors() -> list[Exception]:
    import httpx
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

    return [
        *(httpx.ConnectError("no network"), LocalTokenNotFoundError("no\ntoken"), ConnectionError("offline")),
        HFValidationError("no such licence"),
    ]


@pytest.mark.parametrize("error", hub_errors(), ids=lambda error: type(error).__name__)
def test_a_failed_upload_keeps_the_files_and_says_so(error, plain, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "error", error)
    assert call("export", plain, "--formats", "safetensors", "--push_to_hub", "me/student") == 1
    told = capsys.readouterr().err
    assert told.startswith(f"unixkd: error: me/student was not uploaded: {' '.join(str(error).split())}; ")
    assert f"the export stays in {plain / 'export'}" in told
    assert names_in(plain / "export") == PAIR


@pytest.mark.parametrize("name", ["student", "a/b/c", "me/", "/x", "me/a b", "-/x", "me/é"])
def test_what_is_no_repository_is_a_usage_error(name, capsys):
    assert call("export", "run", f"--push_to_hub={name}") == 2
    assert "takes OWNER/NAME" in capsys.readouterr().err


def test_options_of_an_upload_need_one(capsys):
    for word in ("--dry_run", "--private"):
        assert call("export", "run", word) == 2
        assert "--push_to_hub" in capsys.readouterr().err


def test_an_upload_needs_its_extra_and_a_dry_run_does_not(plain, monkeypatch, capsys):
    monkeypatch.setattr("unixkd.export.hub.find_spec", lambda name: None)
    words = ("--formats", "safetensors", "--push_to_hub", "me/x")
    assert call("export", plain, *words) == 1
    assert "pip install 'unixkd[hub]'" in capsys.readouterr().err
    assert not (plain / "export").exists()
    assert call("export", plain, *words, "--dry_run") == 0


# Every network


KINDS = ("wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV2", "ResNet18")
PUBLISHED = ("torchvision:mobilenet_v3_small", "timm:vit_tiny_patch16_224")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*KINDS, *PUBLISHED])
def test_every_kind_of_network_can_be_exported(name, tmp_path):
    """Images of 32 pixels, which a vision transformer resizes to its 224."""
    torch.manual_seed(0)
    card = ModelCard(name, 10, 3, (0.5,) * 3, (0.25,) * 3, 224 if "224" in name else 32)
    student = PixelModel(create_model(name, 10, 3), card).eval()
    sample = random_sample(card, 32)
    formats = ["safetensors", "torch", "onnx"]
    made, failed = export_student(student, tmp_path, formats, sample, made_for(student, 32))
    assert (len(made), failed) == (3, [])
