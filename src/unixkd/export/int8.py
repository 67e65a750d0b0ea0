"""An ONNX model with weights of 8 bits, and what that costs in accuracy.

A network whose weights lie mostly in convolutions is quantised statically: weights and activations, each scale found on
training images. In others, such as transformers, only the weights of matrix products are fixed, and the activations'
scales are found for each input: their ranges differ too much between inputs for one fixed scale.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unixkd.export.photo_input import PIXELS
from unixkd.export.verify import Classifier, Sample
from unixkd.names import percent

if TYPE_CHECKING:
    from onnx import ModelProto

INT8_FILE = "model.int8.onnx"
WORTH_A_WARNING = 0.01
"""A loss of accuracy above 1 point is warned of."""
_PRODUCTS = ("MatMul", "Gemm")


@dataclass(frozen=True)
class Accuracy:
    """Shares of labelled images that the trained student and an exported one get right."""

    images: int
    trained: float
    exported: float

    @property
    def loses(self) -> bool:
        """Whether the loss is worth a warning."""
        return self.trained - self.exported > WORTH_A_WARNING

    def describe(self, origin: str) -> str:
        """The accuracy in words.

        >>> Accuracy(200, 0.95, 0.945).describe("images of digits")
        'accuracy 94.50 % (in fp32 95.00 %) on 200 labelled images of digits'
        """
        shares = f"accuracy {percent(self.exported)} (in fp32 {percent(self.trained)})"
        return f"{shares} on {self.images:,} labelled {origin}"


def measure(trained: Classifier, exported: Classifier, sample: Sample, size: int) -> Accuracy | None:
    """The accuracy of both on up to 2,000 labelled evaluation images, None where there are none."""
    images, right = 0, [0, 0]
    for pixels, labels in sample.labelled(size):
        images += len(labels)
        with torch.no_grad():
            for i, network in enumerate((trained, exported)):
                right[i] += int((network(pixels).argmax(1) == labels).sum())
    return Accuracy(images, right[0] / images, right[1] / images) if images else None


def quantise(source: Path, target: Path, calibration: Iterable[Tensor], facts: Mapping[str, str]) -> None:
    """Write an fp32 ONNX model with weights of 8 bits.

    Args:
        source: the fp32 model, whose input is `pixels`
        target: the file to write
        calibration: pixels in [0, 1] `[N, C, H, W]`, for a network of convolutions
        facts: metadata of the file
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = source.with_name("ready.onnx")
    large = source.with_name(f"{source.name}.data").exists()
    with _quiet():
        quant_pre_process(source, ready, skip_symbolic_shape=True, save_as_external_data=large)
        given: dict[str, Any] = {
            "per_channel": True,
            "weight_type": QuantType.QInt8,
            "reduce_range": True,  # 7 bits: processors without VNNI cut off sums of products of 8
            "use_external_data_format": large,
        }
        static = is_convolutional(onnx.load(ready))
        if static:
            quantize_static(ready, target, _Reader(calibration), activation_type=QuantType.QInt8, **given)
        else:
            quantize_dynamic(ready, target, op_types_to_quantize=list(_PRODUCTS), **given)
    model = onnx.load(target, load_external_data=False)
    how = "static, of weights and activations" if static else "dynamic, of matrix products"
    onnx.helper.set_model_props(model, {**facts, "quantisation": how})
    onnx.save(model, target)


def is_convolutional(model: ModelProto) -> bool:
    """Whether more of a model's weights lie in convolutions than in matrix products."""
    from math import prod

    sizes = {tensor.name: prod(tensor.dims) for tensor in model.graph.initializer}
    weights = Counter[str]()
    for node in model.graph.node:
        weights[node.op_type] += sum(sizes.get(name, 0) for name in node.input)
    return weights["Conv"] > sum(weights[kind] for kind in _PRODUCTS)


class _Reader:
    """Hands calibration images to ONNX Runtime, which asks for one batch after the other."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        pixels = next(self._batches, None)
        return None if pixels is None else {PIXELS: pixels.numpy()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that ONNX Runtime's quantisation logs."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
