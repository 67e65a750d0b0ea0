"""How many classes a configured network's own weights have, for data that does not say."""

from __future__ import annotations

from pathlib import Path

from unixkd.config import ModelConfig
from unixkd.errors import UserError
from unixkd.models import published
from unixkd.models.folder import is_run_folder, read_card
from unixkd.models.foreign import as_weights
from unixkd.models.registry import create_model
from unixkd.models.weights import read_weights


def own_num_classes(config: ModelConfig, in_channels: int) -> int:
    """Width of the classifier in the weights of a run folder, of a file, or as published.

    Raises:
        UserError: the network has no weights, or the file's are of another architecture
    """
    if is_run_folder(config.name):
        return read_card(Path(config.name)).num_classes
    config = as_weights(config)
    if config.pretrained:
        wanted = published.expectations(config.name)
        if wanted is None:
            raise UserError(f"'{config.name}' has no published weights to download")
        return wanted.num_classes
    if config.weights is None:
        raise UserError(
            f"'{config.name}': the data has no classes and the network no weights to tell them by"
        )
    state = read_weights(config.weights)
    two, three = (create_model(config.name, classes, in_channels).state_dict() for classes in (2, 3))
    head = [name for name in two if two[name].shape != three[name].shape]  # what depends on the class count
    if not head or head[0] not in state:
        raise UserError(f"'{config.weights}' holds weights of another architecture than {config.name}")
    return int(state[head[0]].shape[0])
