"""Image classifiers of transformers, by folder: weights, preprocessing, class names, run folders, hostile cards."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from running import SMALL, call, summary
from unixkd.config import ModelConfig
from unixkd.errors import UsageError, UserError
from unixkd.models import PixelModel, build_model, create_model, load_model, load_student, save_model
from unixkd.models.huggingface import normalisation, side
from unixkd.models.loading import own_num_classes

transformers = pytest.importorskip("transformers")

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)
NAMES = ("cat", "dog", "newt")
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VIT |= {"image_size": 16, "patch_size": 8}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


def saved(
    folder: Path, kind: str = "vit", names: tuple[str, ...] = NAMES, **options: object
) -> torch.nn.Module:
    """A small network and its processor, as `save_pretrained` writes them."""
    config = transformers.AutoConfig.for_model(
        kind,
        **(VIT if kind == "vit" else RESNET),
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        **options,
    )
    config.architectures = []
    net = transformers.AutoModelForImageClassification.from_config(config)
    net.save_pretrained(folder)
    processor = transformers.ViTImageProcessor(
        size={"height": 16, "width": 16}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]
    )
    processor.save_pretrained(folder)
    return net.eval()


def build(
    folder: Path | str,
    role: str = "teacher",
    names: tuple[str, ...] | None = NAMES,
    classes: int = 3,
    **options: object,
) -> PixelModel:
    channels = options.pop("channels", 3)
    return build_model(
        ModelConfig(f"transformers:{folder}", **options),
        num_classes=classes,
        in_channels=channels,
        mean=MEAN[:channels],
        std=STD[:channels],
        class_names=names,
        role=role,
    )


@pytest.fixture
def vit(tmp_path):
    saved(tmp_path / "vit")
    return tmp_path / "vit"


# Weights and preprocessing


def test_pretrained_brings_weights_preprocessing_and_class_names(vit):
    own = transformers.AutoModelForImageClassification.from_pretrained(vit).eval()
    processor = transformers.ViTImageProcessor.from_pretrained(vit)
    model = build(vit, names=None, pretrained=True).eval()
    assert (model.card.size, model.card.class_names) == (16, NAMES)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = own(**processor(Image.fromarray(image), return_tensors="pt")).logits
        torch.testing.assert_close(model(pixels), expected, rtol=1e-4, atol=1e-5)
        assert model(torch.rand(2, 3, 32, 32)).shape == (2, 3)  # resized to 16


def test_a_student_gets_random_weights_of_the_configuration_or_a_fresh_classifier(vit, caplog):
    torch.manual_seed(0)
    fresh = build(vit, "student", names=None, classes=7)
    torch.manual_seed(0)
    again = build(vit, "student", names=None, classes=7)
    own = transformers.AutoModelForImageClassification.from_pretrained(vit)
    key = "vit.embeddings.patch_embeddings.projection.weight"
    for name, value in fresh.net.state_dict().items():
        assert torch.equal(value, again.net.state_dict()[name])
    assert not torch.equal(fresh.net.state_dict()[key], own.state_dict()[key])
    assert (fresh.card.mean, fresh.card.size, fresh.card.num_classes) == (MEAN, 16, 7)
    started = build(vit, "student", names=None, classes=7, pretrained=True)
    assert torch.equal(started.net.state_dict()[key], own.state_dict()[key])
    assert started.card.mean == (0.1, 0.2, 0.3)
    assert "starts afresh with 7" in caplog.text
    assert create_model(f"transformers:{vit}", 5, 1)(torch.rand(1, 1, 16, 16)).logits.shape == (1, 5)


def test_a_convolutional_network_takes_images_as_they_come(tmp_path):
    saved(tmp_path, "resnet")
    model = build(tmp_path, "student")
    assert model.card.size is None
    assert model(torch.rand(2, 3, 24, 24)).shape == (2, 3)


def test_without_preprocessor_config_the_data_s_normalisation_is_taken_and_said(vit, caplog):
    (vit / "preprocessor_config.json").unlink()
    card = build(vit, pretrained=True).card
    assert (card.mean, card.size) == (MEAN, 16)
    assert "does not say how its images were normalised" in caplog.text


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ViTImageProcessor", {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}),
        ("ViTImageProcessor", {"do_normalize": False}),
        ("ViTImageProcessor", {"do_rescale": False, "image_mean": [100.0] * 3, "image_std": [50.0] * 3}),
        ("EfficientNetImageProcessor", {"size": {"height": 16, "width": 16}}),
        ("EfficientNetImageProcessor", {"rescale_offset": True, "rescale_factor": 1 / 127.5}),
        ("EfficientNetImageProcessor", {"include_top": False}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 16}}),
    ],
)
def test_settings_of_a_processor_do_what_it_does_itself(kind, options):
    processor = getattr(transformers, kind)(**options, do_resize=False, do_center_crop=False)
    mean, std = normalisation(json.loads(processor.to_json_string()), 3)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    ours = (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    theirs = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-4)


def test_sizes_of_a_processor():
    assert side({"size": {"height": 32, "width": 32}}) == 32
    assert side({"size": {"shortest_edge": 224}, "crop_pct": 0.875}) == 224
    assert side({"size": 224, "do_resize": False}) is None
    assert side({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}) == 256
    with pytest.raises(UserError, match="not square"):
        side({"size": {"height": 32, "width": 16}})
    with pytest.raises(UserError, match="swaps red and blue"):
        normalisation({"do_flip_channel_order": True}, 3)


# What does not fit


def test_another_class_count_or_order_is_an_error_and_other_names_a_warning(vit, caplog):
    with pytest.raises(UserError, match=r"teacher 'transformers:.*vit' has 3 classes, the data have 4"):
        build(vit, names=None, classes=4, pretrained=True)
    with pytest.raises(
        UserError, match="classes in another order: class 0 is 'cat' there, 'dog' in the data"
    ):
        build(vit, names=("dog", "cat", "newt"), pretrained=True)
    assert not caplog.records
    assert build(vit, names=("n01", "n02", "n03"), pretrained=True).card.class_names == ("n01", "n02", "n03")
    assert "by other names (class 0 is 'cat' there, 'n01' in the data)" in caplog.text
    with pytest.raises(
        UserError, match=r"would have random weights: give --teacher.weights FILE or --teacher.pre"
    ):
        build(vit)
    with pytest.raises(UserError, match="trained on 3-channel images, the data have 1"):
        build(vit, "student", channels=1, pretrained=True)


def test_default_labels_are_no_class_names(tmp_path):
    saved(tmp_path, names=("LABEL_0", "LABEL_1", "LABEL_2"))
    assert build(tmp_path, names=("dog", "cat", "newt"), pretrained=True).card.class_names == (
        "dog",
        "cat",
        "newt",
    )
    assert own_num_classes(ModelConfig(f"transformers:{tmp_path}", pretrained=True), 3) == 3


def test_a_network_without_its_classifier_is_no_teacher(vit):
    transformers.ViTModel(transformers.ViTConfig(**VIT)).save_pretrained(vit)
    with pytest.raises(
        UserError, match=r"has no weights of 'classifier\.bias': it is no trained image classifier"
    ):
        build(vit, names=None, classes=2, pretrained=True)


def test_a_missing_folder_and_a_damaged_one(tmp_path, capsys):
    for path in (tmp_path / "gone", "./gone", "no/such/folder", ""):
        with pytest.raises(UsageError, match="there is no folder"):
            build(path, "student")
    assert call("train", "--model", "transformers:./gone") == 2
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"^'transformers:.*valid JSON"):
        build(tmp_path, "student")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="'bert' is no kind of image classifier"):
        build(tmp_path, "student")


def test_a_failed_download_is_a_line_and_no_missing_file(vit, monkeypatch):
    def offline(*_args, **_options):
        raise OSError("We couldn't connect to the Hub\nCheck your internet connection")

    monkeypatch.setattr(
        "transformers.image_processing_base.ImageProcessingMixin.get_image_processor_dict", offline
    )
    with pytest.raises(UserError, match=r"^'transformers:.*vit': We couldn't connect to the Hub$"):
        build(vit, pretrained=True)
    monkeypatch.setattr("transformers.PreTrainedConfig.get_config_dict", offline)
    with pytest.raises(
        UserError, match=r"^'transformers:some/where': We couldn't connect to the Hub; .*transformers:FOLDER$"
    ):
        build("some/where", "student")


# Run folders


def test_a_run_folder_does_without_the_folder_it_came_from(vit, tmp_path):
    model = build(vit, pretrained=True).eval()
    save_model(model, tmp_path / "run")
    for path in vit.iterdir():
        path.unlink()
    loaded = load_student(tmp_path / "run")
    assert loaded.card == model.card
    pixels = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded(pixels), model(pixels))
    teacher = build_model(
        ModelConfig(str(tmp_path / "run")), num_classes=3, in_channels=3, mean=MEAN, std=STD, role="teacher"
    )
    torch.testing.assert_close(teacher.eval()(pixels), model(pixels))


@pytest.fixture
def run(vit, tmp_path):
    save_model(build(vit, pretrained=True), tmp_path / "run")
    return tmp_path / "run"


def change(folder: Path, **changes: object) -> None:
    card = json.loads((folder / "config.json").read_text())
    card["transformers"] |= changes
    (folder / "config.json").write_text(json.dumps(card))
    (folder / "checksums.json").unlink()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "'bert' is no kind of image classifier"),
        ({"model_type": ["vit"]}, "no kind of image classifier"),
        ({"model_type": "timm_wrapper", "architecture": "hf-hub:x/y"}, "no kind of image classifier"),
        ({"num_hidden_layers": 10**6}, "'num_hidden_layers' is 1000000, which is no network's"),
        ({"hidden_size": 10**9}, "'hidden_size' is 1000000000"),
        ({"hidden_size": 2**15, "intermediate_size": 2**19}, "more than its weights can hold"),
        ({"hidden_size": "wide"}, "run'.*hidden_size"),
        ({"hidden_size": 24}, "another architecture"),
        ({"image_size": [16, 16], "patch_size": 99}, "does not take 3-channel images|run'"),
        ({"a": {"a": {"a": {"a": {"a": {"a": {}}}}}}}, "nested too deeply"),
    ],
)
def test_a_hostile_card_is_refused(run, changes, message):
    change(run, **changes)
    with pytest.raises(UserError, match=message):
        load_model(run)


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoModelForImageClassification": "evil.Net", "AutoConfig": "evil.Config"}},
        {"_attn_implementation": "evil/kernel", "attn_implementation": "evil/kernel"},
        {"quantization_config": {"quant_method": "evil"}, "dtype": "evil", "return_dict": False},
        {"_name_or_path": "evil/elsewhere", "custom_pipelines": {"x": {"impl": "evil.P"}}},
    ],
)
def test_what_a_card_says_about_code_is_passed_over(run, changes):
    before = load_model(run)
    (run / "evil.py").write_text(
        f"open({str(run / 'executed')!r}, 'w').close()\nclass Net: ...\nclass Config: ...\n"
    )
    change(run, **changes)
    after = load_model(run)
    pixels = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(after(pixels), before(pixels))
    assert not (run / "executed").exists()


def test_a_folder_of_transformers_runs_no_code_either(vit):
    config = json.loads((vit / "config.json").read_text())
    config["auto_map"] = {"AutoModelForImageClassification": "evil.Net", "AutoConfig": "evil.Config"}
    (vit / "config.json").write_text(json.dumps(config))
    (vit / "evil.py").write_text(
        f"open({str(vit / 'executed')!r}, 'w').close()\nclass Net: ...\nclass Config: ...\n"
    )
    assert type(build(vit, pretrained=True).net) is transformers.ViTForImageClassification
    assert not (vit / "executed").exists()


@pytest.mark.parametrize(
    ("name", "content"), [("transformers:x/y", None), ("resnet8", {"model_type": "vit"}), ("a.py:Net", {})]
)
def test_a_card_whose_name_and_configuration_contradict(run, name, content):
    card = json.loads((run / "config.json").read_text()) | {"name": name, "transformers": content}
    (run / "config.json").write_text(json.dumps(card))
    with pytest.raises(
        UserError, match=r"config\.json': a network of transformers needs 'transformers', others"
    ):
        load_model(run)


def test_transformers_missing_names_the_extra(run, vit, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for what in (lambda: load_model(run), lambda: create_model(f"transformers:{vit}")):
        with pytest.raises(UserError, match=r"pip install 'unixkd\[transformers\]'"):
            what()


# On the command line


def test_a_distillation_with_both_from_transformers(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    digits = tuple(str(digit) for digit in range(10))
    saved(Path("vit"), names=digits, num_channels=1)
    saved(Path("resnet"), "resnet", names=digits)
    Path("vit/preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.3], "image_std": [0.3], "size": 16})
    )
    pair = (
        "--teacher",
        "transformers:./vit",
        "--teacher.pretrained",
        "true",
        "--student",
        "transformers:./resnet",
    )
    with caplog.at_level(logging.WARNING):
        assert call("distill", *pair, *SMALL, "--out", "run") == 0, capsys.readouterr().err
    assert summary(Path("run"))["cost"]["flops"]["teacher"] > 0
    assert call("evaluate", "run", "--rounds", 0) == 0
    assert load_student("run")(torch.rand(2, 1, 8, 8)).shape == (2, 10)
