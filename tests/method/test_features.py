"""Catching intermediate outputs: names, wrappers, life time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unixkd.errors import UsageError, UserError
from unixkd.models import (
    FeatureTap,
    ModelCard,
    PixelModel,
    create_model,
    default_layers,
    resolve_layer,
    unwrap,
)

X = torch.linspace(0, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def pixel_model(name: str) -> PixelModel:
    return PixelModel(create_model(name, 10), ModelCard(name, 10, 3, (0.5,) * 3, (0.25,) * 3)).eval()


def test_default_layers_of_a_wrapped_model_are_its_stages():
    model = nn.DataParallel(pixel_model("wrn_16_1"))
    layers = default_layers(model)
    assert layers == tuple(f"module.net.{stage}" for stage in ("conv1", "block1", "block2", "block3"))
    with torch.no_grad(), FeatureTap(model, layers) as tap:
        model.module(X)
    shapes = [tuple(feature.shape) for feature in tap.take().values()]
    assert shapes == [(2, 16, 8, 8), (2, 16, 8, 8), (2, 32, 4, 4), (2, 64, 2, 2)]


def test_default_layers_of_another_network_must_be_named():
    with pytest.raises(
        UserError, match=r"Linear does not say .* --loss.student_layers and --loss.teacher_layers"
    ):
        default_layers(nn.Linear(1, 1))


def test_a_suffix_finds_the_layer_nearest_to_the_root():
    model = nn.DataParallel(pixel_model("wrn_16_1"))
    assert resolve_layer(model, "block1") == "module.net.block1"
    assert resolve_layer(model, "conv1") == "module.net.conv1"  # the blocks have a conv1 too
    assert resolve_layer(model, "block3.layer.1.conv1") == "module.net.block3.layer.1.conv1"
    assert resolve_layer(pixel_model("wrn_16_1"), "net.conv1") == "net.conv1"


def test_an_ambiguous_suffix_is_refused():
    net = nn.ModuleDict({side: nn.ModuleDict({"head": nn.Linear(1, 1)}) for side in ("left", "right")})
    with pytest.raises(UsageError, match=r"'head' is ambiguous: left\.head, right\.head"):
        FeatureTap(net, ["head"])


def test_an_unknown_layer_offers_the_nearest():
    with pytest.raises(UsageError, match="unknown layer 'layr3'; did you mean 'layer3'"):
        FeatureTap(create_model("resnet8"), ["layr3"])


def test_features_carry_the_graph_and_are_those_of_the_last_forward():
    net = create_model("resnet8", 10)
    with FeatureTap(net, ["layer3", "layer1"]) as tap:
        net(X)
        net(X[:1])
    features = tap.take()
    assert list(features) == ["layer3", "layer1"]
    assert features["layer1"].shape == (1, 16, 8, 8)
    features["layer3"].sum().backward()
    assert net.layer1[0].conv1.weight.grad.abs().sum() > 0
    net(X)
    assert not tap.features


def test_hooks_are_gone_after_an_error():
    net = create_model("resnet8", 10)
    with pytest.raises(RuntimeError, match="channels"), FeatureTap(net, ["relu"]):
        net(X[:, :1])
    assert not net.relu._forward_hooks


def test_a_layer_that_does_not_run_or_gives_no_tensor():
    net = nn.ModuleDict({"used": nn.Linear(1, 1), "idle": nn.Linear(1, 1), "lstm": nn.LSTM(1, 1)})
    with FeatureTap(net, ["used", "idle", "lstm"]) as tap:
        net["used"](torch.ones(1, 1))
        with pytest.raises(UserError, match="layer 'idle' did not run"):
            tap.take()
        with pytest.raises(UserError, match="layer 'lstm' gives a tuple, not a tensor"):
            net["lstm"](torch.ones(1, 1, 1))


def test_unwrap_strips_every_wrapper_and_nothing_else():
    model = pixel_model("resnet8")
    assert unwrap(nn.DataParallel(nn.DataParallel(model))) is model
    assert unwrap(model) is model
