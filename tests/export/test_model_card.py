"""The model card: the figures of the run, code that runs, names that are no markup."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporting import made_for, pixels, small
from running import alone, call, summary
from unixkd.cli import main
from unixkd.config import flatten, read_yaml
from unixkd.errors import UserError
from unixkd.export import (
    Agreement,
    Artefact,
    Publication,
    write_model_card,
)
from unixkd.export.model_card import Facts, read_facts
from unixkd.export.script import ScriptAgreement
from unixkd.models import save_model
from unixkd.names import percent
from unixkd.training.run import run


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


def test_the_card_says_where_the_record_is_and_quotes_its_folder(tmp_path):
    """Without the pair of safetensors there is no config.json."""
    student, out = small(names=tuple(map(str, range(3)))), tmp_path / "my $x"
    out.mkdir()
    ends = {
        ("onnx",): "as `preparation`, in the metadata of each file.",
        ("safetensors",): "in `config.json`.",
        (
            "safetensors",
            "torch",
        ): "in `config.json` and, as `preparation`, in the metadata of the other files.",
    }
    for formats, end in ends.items():
        made = [Artefact(name, (out / name,), Agreement(1, 1, 0.0, within=True)) for name in formats]
        words = (out, student, Facts({}, {}), made, Publication(), "photos")
        script = ScriptAgreement(1, 0, 1, 0.0)
        text = write_model_card(*words, made_for(student), script).read_text()
        assert (
            f"How `unixkd predict` and `predict.py` make the pixels of an image file; the same record is {end}"
            in text
        )
        assert "python 'my $x/predict.py' photo.jpg" in text
    larger = write_model_card(*words, made_for(student, 12), script).read_text()
    assert (
        "for 12 × 12 pixels, as `predict.py` does (`unixkd predict` makes 8 × 8 at once); the same" in larger
    )
    assert "6. resize to 8 × 8 pixels, which the network takes: done inside" in larger


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
