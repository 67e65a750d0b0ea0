"""Whether a run can be trained as configured: everything that can be found before the first step."""

from __future__ import annotations

import copy

import torch

from unixkd.config import RunConfig, TrainConfig, check_ranges
from unixkd.data.load import Data
from unixkd.errors import UserError, first_line
from unixkd.method.epoch_choice import num_chosen
from unixkd.method.flops import buffers_kept, forward_flops
from unixkd.method.method import Method
from unixkd.method.mixing import num_kept
from unixkd.method.network import evaluating, set_train
from unixkd.method.objective import Objective
from unixkd.method.resizing import shrunk_size
from unixkd.method.scoring import TrueLoss
from unixkd.models.card import PixelModel
from unixkd.models.user_code import located
from unixkd.training.memory import LEAST_ROWS, ran_out


def check_train(config: TrainConfig) -> None:
    """Raise where a training option is out of range or does not go with another one."""
    check_ranges(config, "train")
    if config.micro_batch is not None and config.micro_batch < LEAST_ROWS:
        raise UserError(
            f"train.micro_batch must be at least {LEAST_ROWS}, got {config.micro_batch}: BatchNorm may not be able to "
            "train on one image"
        )
    if config.optimizer == "sgd" and config.nesterov and config.momentum == 0:
        raise UserError("train.nesterov needs a momentum above 0")


def check_synchronised(config: TrainConfig, device: torch.device) -> None:
    """Raise where BatchNorm cannot normalise by the images of all processes."""
    if not config.sync_batchnorm:
        return
    if device.type != "cuda":
        raise UserError(
            f"train.sync_batchnorm needs CUDA: torch's SyncBatchNorm refuses {device.type} tensors; without it each "
            "process normalises by its own images"
        )
    if config.micro_batch is not None:
        raise UserError("train.sync_batchnorm normalises by whole batches: give no train.micro_batch with it")


def check_network(
    network: PixelModel, image_shape: tuple[int, int, int], device: torch.device, *, trained: bool
) -> None:
    """Put a network on its device and raise where it cannot be used on images as the data's, or not be `trained`.

    It is shown two images, from which lazy layers take their shapes.
    """
    name = network.card.name
    for part, parameter in network.net.named_parameters():
        if parameter.dtype.is_floating_point and parameter.dtype != torch.float32:
            raise UserError(
                f"{name} has '{part}' in {parameter.dtype}: make the network in float32; "
                "--train.precision and --train.teacher_precision are what it computes in"
            )
    images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), evaluating(network.to(device)):
            with torch.no_grad():
                logits = network(images)
            if trained:
                with buffers_kept(network):
                    logits = network.train()(images)
            with evaluating(network), torch.no_grad():
                network(images)  # features that it keeps are without a graph again, which could not be copied
    except (Exception, SystemExit) as error:
        if isinstance(error, UserError) or ran_out(error):
            raise
        shape = " × ".join(map(str, image_shape))
        raise UserError(f"{located(name, error)} (on images of {shape}, before training)") from error
    state = network.net.state_dict() if trained else {}
    if odd := next((key for key, value in state.items() if not isinstance(value, torch.Tensor)), None):
        raise UserError(f"{name} has '{odd}' in its state_dict, which is no tensor and cannot be saved")
    if trained and logits.isnan().any():
        raise UserError(f"{name} gives NaN on noise in [0, 1], before training")
    if trained and not logits.requires_grad:
        frozen = not any(parameter.requires_grad for parameter in network.parameters())
        why = "all its parameters are frozen" if frozen else "its logits have no gradient (detach, no_grad)"
        raise UserError(f"{name} cannot be trained: {why}")


def check_small_batches(config: RunConfig, data: Data, method: Method, student: PixelModel) -> None:
    """Raise where a step would train on one image and the student's BatchNorm cannot.

    It can as long as feature maps are larger than 1 × 1, so the student itself is asked, on a copy.
    """
    last = len(data.train) % config.train.batch_size or config.train.batch_size
    if smallest_step(method, len(data.train), config.train) > 1:
        return
    try:
        trained = copy.deepcopy(student)
        set_train(trained, freeze_batchnorm=config.train.freeze_batchnorm)
        trained(torch.zeros(1, *data.image_shape, device=student.mean.device))
    except ValueError as error:
        if isinstance(error, UserError) or "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"a step of each epoch would train on 1 image ({len(data.train)} images in batches of "
            f"{config.train.batch_size}, the last of {last}), which BatchNorm in {student.card.name} cannot: "
            "take another batch size or data.limit, or keep more"
        ) from None


def smallest_step(method: Method, images: int, train: TrainConfig) -> int:
    """Images of the smallest step of a run; of a method that chooses epochs, of its smallest epoch.

    Such an epoch leaves a last batch of one image out.
    """
    points = [epoch / train.epochs for epoch in range(train.epochs)]
    if method.choice is not None:
        return min(num_chosen(method.choice.expected_fraction(point), images) for point in points)
    last = images % train.batch_size or train.batch_size
    return min(num_kept(method.at(point).keep, train.batch_size, last) for point in points)


def check_sizes(config: RunConfig, data: Data, method: Method, student: PixelModel) -> None:
    """Raise where the student cannot be shown images as small as the method makes them."""
    methods = [method.at(epoch / config.train.epochs) for epoch in range(config.train.epochs)]
    share = min(share for now in methods for share in (now.size, now.scoring.size))
    if (smallest := shrunk_size(data.image_shape[1:], share)) is None:
        return
    if student.card.size is not None:
        raise UserError(
            f"{student.card.name} resizes all images to {student.card.size} pixels: smaller ones would save "
            "nothing; leave method.size and scoring_size alone"
        )
    try:
        forward_flops(student, (data.channels, *smallest))
    except RuntimeError as error:
        raise UserError(
            f"{student.card.name} cannot take images of {smallest[0]} pixels, which method.size or scoring_size "
            f"asks for: {first_line(error)}"
        ) from None


def check_data(config: RunConfig, data: Data, method: Method, objective: Objective) -> None:
    """Raise where the images cannot be trained on as configured."""
    batch_size, images = config.train.batch_size, len(data.train)
    for epoch in range(config.train.epochs):
        num_kept(method.at(epoch / config.train.epochs).keep, batch_size, batch_size)
    if images < batch_size:
        raise UserError(f"{data.name} has {images} training images, fewer than a batch of {batch_size}")
    if not data.train.lasting:
        check_stream(config, data.name, method)
    if isinstance(method.scorer, TrueLoss) and not data.train.labelled:
        raise UserError(
            f"the training images of {data.name} have no labels, which scoring by the true loss needs: "
            "give --method.scorer entropy"
        )
    if data.train.mixes is not None:
        check_mixed(config, method)
    needing = [term.name for term in objective if term.loss.needs_labels]
    if needing and not data.train.labelled:
        raise UserError(
            f"the training images of {data.name} have no labels, which the loss {needing[0]} needs"
        )


def check_mixed(config: RunConfig, method: Method) -> None:
    """Raise where a method cannot be shown images that are mixed already."""
    if any(method.at(epoch / config.train.epochs).curve is not None for epoch in range(config.train.epochs)):
        raise UserError(
            f"{method.name} mixes images, and data.mixes has mixed them already: take a method that does not mix, "
            "such as kd, or leave data.mixes out"
        )
    if isinstance(method.scorer, TrueLoss):
        raise UserError(
            f"{method.name} scores images by the loss of one label, and a mix of data.mixes has two: give "
            "--method.scorer entropy"
        )


def check_stream(config: RunConfig, name: str, method: Method) -> None:
    """Raise where a run would have to know an image of a stream again in a later epoch."""
    if method.remembers:
        raise UserError(
            f"{method.name} remembers scores of images from epoch to epoch, and {name} does not give the same ones "
            "again: take another method, or data that fit the disk"
        )
    if config.answers.path is not None:
        raise UserError(
            f"stored answers belong to images that come again, and those of {name} may not: leave answers.path out"
        )
