"""From a `ModelConfig` to a model with its own preprocessing, checked against the data's channels and classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import nn
from torch.nn.parameter import is_lazy

from unixkd.config import ModelConfig
from unixkd.errors import UsageError, UserError
from unixkd.models import huggingface, published
from unixkd.models.card import Expectations, ModelCard, PixelModel
from unixkd.models.folder import CARD_FILE, WEIGHTS_FILE, is_run_folder, make_network, read_card
from unixkd.models.registry import check_name, create_model, model_names
from unixkd.models.repdistiller import as_weights, is_checkpoint, split
from unixkd.models.weights import SUFFIXES, copy_weights, load_weights, read_weights
from unixkd.names import is_code, phase

_log = logging.getLogger("unixkd")

Role = Literal["teacher", "student", "model"]


def build_model(
    config: ModelConfig,
    *,
    num_classes: int,
    in_channels: int,
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str] | None = None,
    role: Role = "model",
    option: str | None = None,
) -> PixelModel:
    """Build the model of a run.

    Normalisation comes from the configuration, else the run folder or the published weights, else the
    data; a weights file for as many classes as the published weights is taken for these. A student may
    have another class count than its weights: its classifier then starts afresh. A teacher or model may
    not, and a teacher must have weights.

    Args:
        config: which network, and where its weights come from
        num_classes: number of classes of the data
        in_channels: channels of the data's images
        mean: per-channel mean of the data
        std: per-channel standard deviation of the data
        class_names: names of the data's classes, in order, or None
        role: what it is for: teacher, student, or a model by itself
        option: what its options are called in messages (default: its role)

    Raises:
        UsageError: for an unknown name
        UserError: for weights that cannot be had or do not fit the data
    """
    config = split(config)
    option = option or role
    _check_source(config, role, option)
    with phase(f"{'building or downloading' if config.pretrained else 'building'} {option} {config.name}"):
        data = (num_classes, in_channels, tuple(mean), tuple(std), None)
        return _built(
            config, ModelCard(config.name, *data, None if class_names is None else tuple(class_names)), role
        )


def _built(config: ModelConfig, data: ModelCard, role: Role) -> PixelModel:
    """The network of a source that is checked, and what the data want of it."""
    num_classes, in_channels = data.num_classes, data.in_channels
    is_folder = _may_be_path(config.name) and is_run_folder(config.name)
    config = config if is_folder else as_weights(config)
    data = replace(data, name=config.name)
    if is_folder:
        net, card = _from_folder(config, data, role)
    elif config.pretrained:
        net, card = _from_published(config.name, data, role)
    else:
        net = create_model(config.name, num_classes, in_channels)
        card = replace(data, size=published.fixed_size(net))
        if config.weights is not None:
            load_weights(net, config.weights, strict_head=role != "student")
            if config.name.startswith(published.PREFIXES):
                card = _with_published_preprocessing(card, own_num_classes(config, in_channels))
    card = replace(
        card,
        mean=card.mean if config.mean is None else tuple(config.mean),
        std=card.std if config.std is None else tuple(config.std),
        transformers=huggingface.content_of(net),
    )
    return PixelModel(net, card, None if config.weights is None else Path(config.weights).name)


def begins_trained(config: ModelConfig) -> bool:
    """Whether a network has weights to begin with: a file's, published ones, or those of a folder."""
    config = split(config)
    in_folder = _may_be_path(config.name) and (is_run_folder(config.name) or is_checkpoint(config.name))
    return config.pretrained or config.weights is not None or in_folder


def _may_be_path(name: str) -> bool:
    """Whether a name may be a folder or file: a family name wins over a folder of that name."""
    return not (name in model_names() or name.startswith(published.PREFIXES) or is_code(name))


def _check_source(config: ModelConfig, role: Role, option: str) -> None:
    """Refuse an unknown name, contradictory sources of weights, and a teacher without any."""
    name = config.name
    if not name:
        raise UsageError(f"name the {option}: --{option}.name")
    may_be_path = _may_be_path(name)
    is_folder = may_be_path and is_run_folder(name)
    has_weights = is_folder or (may_be_path and is_checkpoint(name))
    if not has_weights:
        if may_be_path:
            _check_no_path(name)
        check_name(name)
    if config.pretrained and config.weights is not None:
        raise UserError(f"give --{option}.weights or --{option}.pretrained, not both")
    if config.code is not None and not is_folder:
        raise UserError(f"--{option}.code is for a run folder; '{name}' is none")
    if has_weights and config.weights is not None:
        raise UserError(f"'{name}' has its own weights: drop --{option}.weights")
    is_published = name.startswith(published.PREFIXES)
    if config.pretrained and not is_published:
        raise UserError(f"'{name}' has no published weights to download: drop --{option}.pretrained")
    if role == "teacher" and not (has_weights or config.pretrained or config.weights is not None):
        other = f"--{option}.pretrained true" if is_published else "name a run folder"
        raise UserError(
            f"teacher '{name}' would have random weights: give --{option}.weights FILE or {other}"
        )


def _check_no_path(name: str) -> None:
    """Raise where a name that is no network's means a folder."""
    if Path(name).is_dir():
        raise UserError(
            f"'{name}' is no run folder: it does not hold {WEIGHTS_FILE} and {CARD_FILE}, nor a checkpoint as "
            "RepDistiller and mdistiller name them"
        )
    if name.lower().endswith(SUFFIXES):
        raise UserError(f"there is no weights file '{name}'")
    if "/" in name or "\\" in name:
        raise UserError(f"there is no run folder '{name}'")


def _from_folder(config: ModelConfig, data: ModelCard, role: Role) -> tuple[nn.Module, ModelCard]:
    folder, card = Path(config.name), read_card(config.name)
    _check_fit(str(folder), card, data, role)
    names = data.class_names
    if role != "student":
        _check_class_names(str(folder), card.class_names, names)
        names = names or card.class_names
    net = make_network(folder, card, config.code, data.num_classes)
    load_weights(net, folder / WEIGHTS_FILE, strict_head=role != "student")
    return net, replace(card, name=config.code or card.name, num_classes=data.num_classes, class_names=names)


def _from_published(name: str, data: ModelCard, role: Role) -> tuple[nn.Module, ModelCard]:
    net, source = published.pretrained(name)
    _check_fit(name, source, data, role)
    if role != "student":
        _check_class_names(name, source.class_names, data.class_names, may_be_renamed=True)
        data = replace(data, class_names=data.class_names or source.class_names)
    elif source.num_classes != data.num_classes:
        weights, net = net.state_dict(), create_model(name, data.num_classes, data.in_channels)
        copy_weights(weights, net, source=name, strict_head=False)
    card = _with_published_preprocessing(data, source.num_classes)
    return net, replace(card, size=card.size or published.fixed_size(net))


def _with_published_preprocessing(card: ModelCard, num_classes: int) -> ModelCard:
    """The card with the published weights' preprocessing, if the weights have this number of classes."""
    source = published.expectations(card.name)
    if source is None or num_classes != source.num_classes or card.in_channels != source.in_channels:
        return card
    card = replace(card, size=source.size or card.size)
    if source.mean is None or source.std is None:
        _log.warning(
            "'%s' does not say how its images were normalised: they are as the data's, or as --teacher.mean and "
            "--teacher.std say",
            card.name,
        )
        return card
    return replace(card, mean=source.mean, std=source.std)


def _check_fit(source: str, card: ModelCard | Expectations, data: ModelCard, role: Role) -> None:
    """Raise where a network takes other channels than the data have, or is no student and has other classes."""
    if card.in_channels != data.in_channels:
        raise UserError(
            f"'{source}' was trained on {card.in_channels}-channel images, the data have {data.in_channels} channels"
        )
    if role != "student" and card.num_classes != data.num_classes:
        raise UserError(
            f"{role} '{source}' has {card.num_classes} classes, the data have {data.num_classes}: take one trained "
            "on these classes"
        )


Names = tuple[str, ...] | None


def _check_class_names(source: str, names: Names, data_names: Names, may_be_renamed: bool = False) -> None:
    """Raise where a network knows the classes in another order, or by other names unless they `may_be_renamed`."""
    if names is None or data_names is None or names == data_names:
        return
    pairs = enumerate(zip(names, data_names, strict=True))
    differences = [f"class {i} is '{a}' there, '{b}' in the data" for i, (a, b) in pairs if a != b]
    is_moved = any(name in names and names.index(name) != i for i, name in enumerate(data_names))
    if may_be_renamed and not is_moved:
        words = "'%s' knows the classes by other names (%s): taken to be in this order"
        _log.warning(words, source, differences[0])
        return
    more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
    order = "in another order" if sorted(names) == sorted(data_names) else "by other names"
    raise UserError(
        f"'{source}' knows the classes {order}: {'; '.join(differences[:3])}{more}. "
        "Its logits would mean other classes: use the data it was trained on, or rename the classes"
    )


def class_names_of(config: ModelConfig | None) -> Names:
    """Class names of a run folder's network, in its order; None for any other network, and for none."""
    return read_card(config.name).class_names if config is not None and is_run_folder(config.name) else None


def own_num_classes(config: ModelConfig, in_channels: int) -> int:
    """Width of the classifier in the weights of a run folder, of a file, or as published.

    Raises UserError where the network has no weights, or the file's are of another architecture.
    """
    if is_run_folder(config.name):
        return read_card(config.name).num_classes
    config = as_weights(config)
    if config.pretrained:
        source = published.expectations(config.name)
        if source is None:
            raise UserError(f"'{config.name}' has no published weights to download")
        return source.num_classes
    if config.weights is None:
        raise UserError(
            f"'{config.name}': the data has no classes and the network no weights to tell them by"
        )
    two, three = (create_model(config.name, classes, in_channels).state_dict() for classes in (2, 3))
    state = read_weights(config.weights, two).tensors
    fixed = [name for name in two if not is_lazy(two[name])]
    head = [name for name in fixed if two[name].shape != three[name].shape]  # what depends on the class count
    if not head:
        raise UserError(
            f"'{config.weights}': how many classes it has cannot be read from weights of {config.name}"
        )
    return int(state[head[0]].shape[0])
