"""The CIFAR model family; loading from timm, torchvision, weights files and run folders; features."""

from __future__ import annotations

from unixkd.method.network import FeatureTap, default_layers, resolve_layer, unwrap
from unixkd.models.card import ModelCard, PixelModel
from unixkd.models.folder import load_model, load_student, save_model
from unixkd.models.loading import build_model
from unixkd.models.registry import create_model, model_names
from unixkd.models.weights import load_weights

__all__ = [
    "FeatureTap",
    "ModelCard",
    "PixelModel",
    "build_model",
    "create_model",
    "default_layers",
    "load_model",
    "load_student",
    "load_weights",
    "model_names",
    "resolve_layer",
    "save_model",
    "unwrap",
]
