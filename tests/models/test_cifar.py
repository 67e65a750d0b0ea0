"""The CIFAR family against the oracles: names, shapes, outputs, parameters and MACs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unixkd.errors import UsageError, UserError
from unixkd.models import FeatureTap, create_model, load_weights, model_names

ORACLES = json.loads((Path(__file__).parents[1] / "oracles" / "models.json").read_text())

# PAPER table: parameters, MMACs of convolutions and linear layers at 32 x 32
TABLE = {
    "resnet8": (83_892, 12.51),
    "resnet14": (181_108, 26.66),
    "resnet20": (278_324, 40.82),
    "resnet32": (472_756, 69.13),
    "resnet44": (667_188, 97.44),
    "resnet56": (861_620, 125.75),
    "resnet110": (1_736_564, 253.16),
    "resnet8x4": (1_233_540, 177.07),
    "resnet14x4": (2_783_620, 403.56),
    "resnet32x4": (7_433_860, 1083.04),
    "wrn_16_1": (180_916, 26.66),
    "wrn_16_2": (703_284, 101.12),
    "wrn_40_1": (569_780, 83.29),
    "wrn_40_2": (2_255_156, 327.61),
    "vgg8": (3_965_028, 96.19),
    "vgg11": (9_277_284, 209.44),
    "vgg13": (9_462_180, 284.94),
    "vgg16": (14_774_436, 398.18),
    "vgg19": (20_086_692, 511.43),
    "MobileNetV2": (812_836, 6.52),
    "ShuffleV1": (949_258, 38.69),
    "ShuffleV2": (1_355_528, 44.50),
    "ResNet18": (11_220_132, 555.47),
    "ResNet34": (21_328_292, 1159.45),
    "ResNet50": (23_705_252, 1298.01),
}
# One of each architecture, the smallest.
ARCHITECTURES = (
    "resnet8",
    "wrn_16_1",
    "vgg8",
    "MobileNetV2",
    "ShuffleV1",
    "ShuffleV2",
    "ResNet18",
    "ResNet50",
)


def reproducible_state(parameters: list[tuple[str, list[int]]]) -> dict[str, Tensor]:
    """The oracles' weights: tensor j of the sorted names comes from RandomState(j)."""
    state = {}
    for j, (name, shape) in enumerate(sorted(parameters)):
        value = np.random.RandomState(j).standard_normal(shape)
        if name.endswith("running_mean"):
            value = 0.1 * value
        elif name.endswith("running_var"):
            value = 1 + 0.1 * np.abs(value)
        elif name.endswith("bias"):
            value = 0.1 * value
        elif len(shape) == 1:
            value = 1 + 0.1 * value
        else:
            value = value * np.sqrt(2 / np.prod(shape[1:]))
        state[name] = torch.from_numpy(value.astype(np.float32))
    return state


def images(size: int = 32, channels: int = 3) -> Tensor:
    shape = (2, channels, size, size)
    return torch.from_numpy(np.random.RandomState(12345).standard_normal(shape).astype(np.float32))


def named_shapes(net: nn.Module) -> dict[str, list[int]]:
    state = net.state_dict().items()
    return {name: list(value.shape) for name, value in state if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("name", ORACLES)
def test_names_and_outputs_match_the_oracle(name, tmp_path):
    oracle = ORACLES[name]
    net = create_model(name)
    assert named_shapes(net) == {key: list(shape) for key, shape in oracle["parameters"]}

    file = tmp_path / "ckpt_epoch_240.pth"
    torch.save({"epoch": 240, "model": reproducible_state(oracle["parameters"])}, file)
    load_weights(net, file)

    layers = (*net.stage_layers, net.pooled_layer)
    with torch.no_grad(), FeatureTap(net, layers) as tap:
        logits = net.eval()(images())
    norm = np.array(oracle["eval_logits_norm"])
    np.testing.assert_allclose(logits.norm(dim=1).numpy(), norm, rtol=1e-3)
    difference = logits[:, :8].numpy() - np.array(oracle["eval_logits"])
    assert np.all(np.linalg.norm(difference, axis=1) <= 1e-3 * norm)

    features = tap.take()
    assert [list(features[layer].shape[1:]) for layer in layers] == oracle["stage_shapes"]
    for layer, mean in zip(layers, oracle["stage_means"], strict=True):
        scale = features[layer].abs().mean().item()
        assert features[layer].mean().item() == pytest.approx(mean, abs=1e-3 * scale), layer

    with torch.no_grad():
        logits = net.train()(images())[:, :8].numpy()
    difference = np.linalg.norm(logits - np.array(oracle["train_logits"]))
    assert difference <= 1e-3 * np.linalg.norm(oracle["train_logits"])


def test_the_table_names_every_model():
    assert set(model_names()) == set(TABLE)
    assert set(ORACLES) | {"resnet14x4", "ResNet18", "ResNet34"} == set(TABLE)  # those without an oracle


@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_macs(name):
    parameters, mmacs = TABLE[name]
    with torch.device("meta"):
        net = create_model(name)
        with FlopCounterMode(display=False) as counter:
            net.eval()(torch.empty(1, 3, 32, 32))
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert counter.get_total_flops() / 2e6 == pytest.approx(mmacs, abs=0.0051)


@pytest.mark.parametrize("size", [8, 16, 64])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_sizes_classes_and_channels(name, size):
    net = create_model(name, num_classes=7, in_channels=1)
    with torch.no_grad():
        assert net(images(size, channels=1)).shape == (2, 7)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_gets_a_gradient(name):
    net = create_model(name)
    net(images(8)).sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key


def test_vgg_pools_once_more_at_64_pixels():
    net = create_model("vgg8").eval()
    for size, side in ((32, 4), (63, 7), (64, 4)):
        with torch.no_grad(), FeatureTap(net, ["block4"]) as tap:
            net(images(size))
        assert tap.features["block4"].shape[2:] == (side, side)


def test_vgg_says_that_an_image_is_too_small():
    with pytest.raises(UserError, match="at least 8×8 pixels, got 7"):
        create_model("vgg8")(images(7))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_channels_last_gives_the_same_logits_and_stays(name):
    net = create_model(name).eval()
    with torch.no_grad():
        expected = net(images())
        net = net.to(memory_format=torch.channels_last)
        with FeatureTap(net, net.stage_layers) as tap:
            actual = net(images().to(memory_format=torch.channels_last))
    for layer, feature in tap.take().items():
        assert feature.is_contiguous(memory_format=torch.channels_last), layer
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def he_normal(weight: Tensor) -> float:
    return (2 / (weight.shape[0] * weight[0, 0].numel())) ** 0.5  # fan-out, groups not divided


def torchs_own(weight: Tensor) -> float:
    return (1 / (3 * weight[0].numel())) ** 0.5  # uniform on ±1/sqrt(fan-in)


# The reference's zoo: deviation of convolutions and of the last layer, and whether that has a bias.
INITIAL = {
    "resnet8": (he_normal, torchs_own, True),
    "wrn_16_2": (he_normal, torchs_own, False),
    "vgg8": (he_normal, lambda weight: 0.01, False),
    "MobileNetV2": (he_normal, lambda weight: 0.01, False),
    "ShuffleV1": (torchs_own, torchs_own, True),
    "ShuffleV2": (torchs_own, torchs_own, True),
    "ResNet18": (he_normal, torchs_own, True),
    "ResNet50": (he_normal, torchs_own, True),
}


@pytest.mark.parametrize("name", INITIAL)
def test_initial_weights_are_drawn_as_the_references(name):
    torch.manual_seed(0)
    convolution, classifier, bias = INITIAL[name]
    for key, module in create_model(name).named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all(), key
            assert (module.bias == 0).all(), key
        elif isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(classifier(module.weight), rel=0.05), key
            assert bool(module.bias.any()) == bias, key
        elif isinstance(module, nn.Conv2d):
            assert module.bias is None or not module.bias.any(), key
            if module.weight.numel() > 4_000:
                assert module.weight.std().item() == pytest.approx(convolution(module.weight), rel=0.06), key


@pytest.mark.parametrize("name", ["ResNet18", "ResNet34"])
def test_networks_without_an_oracle_are_torchvisions_with_a_small_stem(name):
    """torchvision's, its stem replaced, with the same weights in the same order gives the same logits."""
    ours, theirs = (
        create_model(name).eval(),
        getattr(torchvision.models, name.lower())(num_classes=100).eval(),
    )
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    renamed = {
        key.replace("downsample", "shortcut").replace("fc.", "linear."): value
        for key, value in theirs.state_dict().items()
    }
    ours.load_state_dict(renamed)
    with torch.no_grad():
        torch.testing.assert_close(ours(images()), theirs(images()))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_hooked_output_is_not_changed_afterwards(name):
    """An in-place activation behind a stage would change what the hook caught."""
    net = create_model(name).eval()
    copies = {}
    for layer in net.stage_layers:
        net.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, output, layer=layer: copies.update({layer: output.clone()})
        )
    with torch.no_grad(), FeatureTap(net, net.stage_layers) as tap:
        net(images())
    for layer, feature in tap.take().items():
        assert torch.equal(feature, copies[layer]), layer


@pytest.mark.parametrize(
    ("name", "near"), [("vgg9", "vgg8"), ("wrn_16_3", "wrn_16_1"), ("ResNet51", "ResNet50")]
)
def test_a_misspelt_name_offers_the_nearest(name, near):
    with pytest.raises(UsageError, match=f"unknown model '{name}'; did you mean .*'{near}'"):
        create_model(name)
