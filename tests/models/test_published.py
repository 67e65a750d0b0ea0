"""timm and torchvision by name: local weights, published weights (from files, without a network), errors."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from unixkd.config import ModelConfig
from unixkd.errors import UsageError, UserError
from unixkd.models import FeatureTap, PixelModel, build_model, create_model, load_model, save_model

timm = pytest.importorskip("timm")

HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
IMAGENET_MEAN = (0.485, 0.456, 0.406)


def build(name: str, role: str = "student", num_classes: int = 10, **options: object) -> PixelModel:
    config = ModelConfig(name=name, **options)
    return build_model(config, num_classes=num_classes, in_channels=3, **HALF, role=role)


@pytest.fixture
def timm_weights(tmp_path, monkeypatch):
    """timm's own loading of published weights, from a local file instead of the Hub."""

    def publish(name: str) -> nn.Module:
        source = timm.create_model(name)
        torch.save(source.state_dict(), tmp_path / "published.pth")
        overlay = {"file": str(tmp_path / "published.pth")}
        original = timm.create_model

        def create(architecture, pretrained=False, **options):
            return original(
                architecture, pretrained, pretrained_cfg_overlay=overlay if pretrained else None, **options
            )

        monkeypatch.setattr(timm, "create_model", create)
        return source

    return publish


@pytest.fixture
def torchvision_weights(monkeypatch):
    """torchvision's own loading of published weights, without the download."""

    def publish(name: str) -> nn.Module:
        source = create_model(f"torchvision:{name}", 1000)
        monkeypatch.setattr(
            "torchvision.models._api.load_state_dict_from_url", lambda *_, **__: source.state_dict()
        )
        return source

    return publish


@pytest.mark.parametrize(
    ("name", "channels"), [("timm:resnet10t", 1), ("timm:test_vit", 3), ("torchvision:mobilenet_v3_small", 3)]
)
def test_random_weights_by_name(name, channels, tmp_path):
    mean = (0.5,) * channels
    model = build_model(
        ModelConfig(name=name), num_classes=7, in_channels=channels, mean=mean, std=mean, role="student"
    ).eval()
    pixels = torch.rand(2, channels, 32, 32)
    with torch.no_grad():
        expected = model(pixels)
        assert expected.shape == (2, 7)
        save_model(model, tmp_path)
        torch.testing.assert_close(load_model(tmp_path)(pixels), expected)


def test_only_networks_of_fixed_size_resize():
    assert build("timm:resnet10t").card.size is None
    assert build("timm:test_vit").card.size == 160
    assert build("torchvision:squeezenet1_1").card.size is None


@pytest.mark.parametrize("name", ["timm:resnet10t", "timm:test_vit", "torchvision:squeezenet1_1"])
def test_local_weights(name, tmp_path, caplog):
    source = create_model(name, 10)
    file = str(tmp_path / "w.pth")
    torch.save(source.state_dict(), file)
    model = build(name, "teacher", weights=file)
    assert model.card.mean == HALF["mean"]
    for key, value in source.state_dict().items():
        assert torch.equal(model.net.state_dict()[key], value), key
    with pytest.raises(UserError, match="holds weights for 10 classes, 5 are needed"):
        build(name, "teacher", num_classes=5, weights=file)
    assert build(name, "student", num_classes=5, weights=file).card.num_classes == 5
    assert "starts afresh with 5" in caplog.text


def test_pretrained_timm_brings_its_own_preprocessing(timm_weights, caplog):
    source = timm_weights("resnet10t")
    teacher = build("timm:resnet10t", "teacher", num_classes=1000, pretrained=True)
    assert teacher.card.mean == IMAGENET_MEAN
    assert teacher.card.size == 176
    assert torch.equal(teacher.net.fc.weight, source.fc.weight)
    with pytest.raises(UserError, match="teacher 'timm:resnet10t' has 1000 classes, the data have 10"):
        build("timm:resnet10t", "teacher", pretrained=True)
    student = build("timm:resnet10t", pretrained=True, mean=[0.1] * 3)
    assert student.card.mean == (0.1,) * 3
    assert student.net.fc.weight.shape == (10, 512)
    assert torch.equal(student.net.conv1[0].weight, source.conv1[0].weight)
    assert "classifier (fc.weight, fc.bias) starts afresh with 10" in caplog.text


def test_pretrained_torchvision_brings_its_own_preprocessing(torchvision_weights):
    source = torchvision_weights("squeezenet1_1")
    teacher = build("torchvision:squeezenet1_1", "teacher", num_classes=1000, pretrained=True)
    assert teacher.card.mean == IMAGENET_MEAN
    assert teacher.card.size == 224
    assert torch.equal(teacher.net.classifier[1].weight, source.classifier[1].weight)
    student = build("torchvision:squeezenet1_1", pretrained=True)
    assert student.net.classifier[1].weight.shape == (10, 512, 1, 1)
    assert torch.equal(student.net.features[0].weight, source.features[0].weight)
    config = ModelConfig(name="torchvision:squeezenet1_1", pretrained=True)
    with pytest.raises(UserError, match="trained on 3-channel images, the data have 1"):
        build_model(config, num_classes=10, in_channels=1, mean=[0.5], std=[0.5], role="student")


def test_a_failed_download_says_what_to_do(monkeypatch):
    def offline(*_, **__):
        raise OSError("Name or service not known\nRetrying")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    message = "published weights of 'torchvision:squeezenet1_1': Name or service not known .*give a file"
    with pytest.raises(UserError, match=message) as error:
        build("torchvision:squeezenet1_1", pretrained=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("timm:resnet10tt", "timm:resnet10t"),
        ("timm:resnet18.a1_in1", "timm:resnet18.a1_in1k"),
        ("torchvision:squeezenet1_2", "torchvision:squeezenet1_1"),
    ],
)
def test_a_misspelt_name_offers_the_nearest(name, near):
    with pytest.raises(UsageError, match=f"unknown model '{name}'; did you mean .*'{near}'"):
        create_model(name)


def test_torchvision_takes_three_channels():
    with pytest.raises(UserError, match="'torchvision:resnet18' takes 3-channel images, not 1"):
        create_model("torchvision:resnet18", in_channels=1)


def test_timm_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'unixkd\[timm\]'"):
        create_model("timm:resnet10t")


def test_features_of_any_network():
    model = build("timm:resnet10t").eval()
    with torch.no_grad(), FeatureTap(model, ["layer1", "layer4"]) as tap:
        model(torch.rand(1, 3, 32, 32))
    assert tap.features["layer4"].shape == (1, 512, 1, 1)
