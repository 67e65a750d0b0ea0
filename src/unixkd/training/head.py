"""The classifier, fitted before training to features of the training images that are computed once.

Pretrained weights are good where they are; a new classifier of random weights would spoil them in the first steps
(Kumar et al., "Fine-tuning can distort pretrained features", arXiv 2202.10054).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from unixkd.data.sources.stream import StreamSplit
from unixkd.data.split import unmixed
from unixkd.errors import UserError
from unixkd.method.batch import Batch
from unixkd.method.network import Network, evaluating, unwrap
from unixkd.names import plural
from unixkd.training.distributed.sharding import is_sharded_role
from unixkd.training.precision import DTYPES
from unixkd.training.state import Run

MOST = 10_000
"""Images at most whose features are computed, spread evenly over all."""
STRENGTH = 0.01
"""C of scikit-learn's LogisticRegression on standardised features; a small one keeps the weights small, from which
training goes on."""
ROUNDS = 200
"""Steps at most of its solver."""


class Fitted(NamedTuple):
    """A classifier's weights `[classes, features]` and biases `[classes]`, and how many images they were fitted to."""

    weight: Tensor
    bias: Tensor
    images: int


def fit_head(run: Run) -> None:
    """Fit the student's last layer as configured, and charge the forwards; a line says what was done, or why not.

    Every process has to call it; one computes.
    """
    if not run.config.train.fit_head:
        return
    why = _why_not(run)
    layer = None if why else last_layer(run.resolved.student, run)
    if layer is None:
        why = why or "no linear layer with a bias gives its logits"
        run.note(f"the classifier is not fitted before training: {why}", shared=True)
        return
    fitted = run.world.once(lambda: _fitted(run, layer))
    with torch.no_grad():
        layer.weight.copy_(fitted.weight)
        layer.bias.copy_(fitted.bias)
    if run.world.leads:
        run.ledger.charge_scoring(fitted.images)
    run.note(
        f"the classifier is fitted to features of {plural(fitted.images, 'training image')}", shared=True
    )


def images_to_fit(run: Run) -> int:
    """The images whose features `fit_head` computes; 0 where it fits nothing."""
    if not run.config.train.fit_head or _why_not(run) or last_layer(run.resolved.student, run) is None:
        return 0
    images, (size, every) = len(run.resolved.data.train), _every(run)
    return sum(min(size, images - start) for start in range(0, images, size * every))


def _every(run: Run) -> tuple[int, int]:
    """Images of a batch whose features are computed, and how many batches on the next one is."""
    every, size = math.ceil(len(run.resolved.data.train) / MOST), run.config.train.eval_batch_size
    return size if every == 1 else max(1, size // every), every


def _why_not(run: Run) -> str | None:
    split = run.resolved.data.train
    if isinstance(split, StreamSplit):
        return "the images are a stream"
    if is_sharded_role(run.config.train, "student"):
        return "the student is sharded over processes"
    if not split.labelled or len({label for label in split.labels.tolist() if label >= 0}) < 2:  # type: ignore[union-attr]
        return "the images have no labels of two classes"
    return None


def last_layer(network: nn.Module, run: Run) -> nn.Linear | None:
    """The linear layer whose output the logits are, found by a forward of one image; None where there is none."""
    found: list[tuple[nn.Linear, Tensor]] = []
    layers = [layer for layer in unwrap(network).modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_hook(lambda m, _, out: found.append((m, out))) for layer in layers]
    generator = torch.Generator().manual_seed(0)  # its own: the run's draws stay as they are
    pixels = torch.rand(1, *run.resolved.data.image_shape, generator=generator).to(run.device)
    try:
        with torch.no_grad(), evaluating(network), torch.compiler.set_stance("force_eager"):
            logits = Network(network).logits(pixels)
    finally:
        for handle in handles:
            handle.remove()
    for layer, out in reversed(found):
        if layer.bias is not None and out.shape == logits.shape and torch.equal(out, logits):
            return layer
    return None


def _fitted(run: Run, layer: nn.Linear) -> Fitted:
    size, every = _every(run)
    batches = unmixed(run.resolved.data.train).eval_batches(size, every=every)
    features, labels = features_of(
        Network(run.resolved.student, dtype=DTYPES[run.config.train.precision]), layer, batches
    )
    if not features.isfinite().all():
        raise UserError(
            "the network's features of the training images are not finite: are its weights, mean, std and precision "
            "right?"
        )
    known = labels >= 0
    weight, bias = logistic_regression(features[known].numpy(), labels[known].numpy(), layer.out_features)
    return Fitted(torch.from_numpy(weight), torch.from_numpy(bias), len(labels))


def features_of(
    network: Network, layer: nn.Linear, batches: Iterable[Batch]
) -> tuple[Float[Tensor, "n features"], Int[Tensor, " n"]]:
    """What a network's layer is given for each image, and the images' labels, on the CPU."""
    features: list[Tensor] = []
    labels: list[Tensor] = []
    device = layer.weight.device
    handle = layer.register_forward_pre_hook(lambda _, given: features.append(given[0].float().cpu()))
    try:
        with torch.no_grad(), evaluating(network.module), torch.compiler.set_stance("force_eager"):
            for batch in batches:
                assert batch.labels is not None
                network(batch.images.to(device))
                labels.append(batch.labels.cpu())
    finally:
        handle.remove()
    return torch.cat(features), torch.cat(labels)


def logistic_regression(
    features: NDArray[np.float32], labels: NDArray[np.int64], classes: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights `[classes, features]` and biases `[classes]` by L2-regularised multinomial logistic regression.

    A class without an image never is the answer: its weights are 0 and its bias is lower than all others by more than
    their logits on these features differ.

    Args:
        features: `[n, features]`; they are standardised for the fit
        labels: `[n]`, of two classes at least
        classes: how many there are

    >>> import numpy as np
    >>> x = np.array([[-1.0], [-2.0], [1.0], [2.0]], dtype=np.float32)
    >>> weight, bias = logistic_regression(x, np.array([0, 0, 1, 1]), classes=2)
    >>> (x @ weight.T + bias).argmax(axis=1).tolist()
    [0, 0, 1, 1]
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    scale[scale == 0] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # training goes on from there
        solved = LogisticRegression(C=STRENGTH, max_iter=ROUNDS).fit((features - mean) / scale, labels)
    rows, biases = solved.coef_, solved.intercept_
    if len(solved.classes_) == 2:  # of two classes scikit-learn has the difference
        rows, biases = np.concatenate([-rows, rows]) / 2, np.concatenate([-biases, biases]) / 2
    rows = rows / scale
    biases = biases - rows @ mean
    weight, bias = np.zeros((classes, features.shape[1])), np.zeros(classes)
    weight[solved.classes_], bias[solved.classes_] = rows, biases
    missing = np.setdiff1d(np.arange(classes), solved.classes_)
    if len(missing):
        bias[missing] = (features @ rows.T + biases).min() - 1
    return weight.astype(np.float32), bias.astype(np.float32)
