"""Nodes in front of an ONNX model by which it takes decoded photographs: resizing, centre crop, scaling to [0, 1].

They do what `data.images.fit` does, on 8 bits as Pillow does it. ONNX Runtime's resizing with antialiasing and without
what lies outside (`exclude_outside`) is Pillow's but for its rounding: about 1 pixel in 1,000 is one of 256 steps away.
Before that, `exclude_outside` left out, pixels at the edges were up to 13 steps away.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from unixkd.export.preparation import Preparation

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

PHOTO, PIXELS = "photo", "pixels"
"""Names of an ONNX model's input: decoded photographs, or pixels."""


class Nodes:
    """Nodes of an ONNX graph, each with one output, and the constants they need."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, value: object, dtype: type = np.int64) -> str:
        """The name of a constant."""
        name = f"{self.name}_constant_{len(self.constants)}"
        self.constants[name] = np.array(value, dtype)
        return name

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        """The name of a node's output."""
        from onnx import helper

        output = output or f"{self.name}_{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def side(self, image: str, axis: int) -> str:
        """A side `[1]`, int64, of images `[N, C, H, W]`."""
        return self.add("Shape", image, start=axis, end=axis + 1)

    def initializers(self) -> list[TensorProto]:
        """The constants as ONNX has them."""
        from onnx import numpy_helper

        return [numpy_helper.from_array(value, name) for name, value in self.constants.items()]

    def branch(self, output: str) -> GraphProto:
        """The nodes as a branch of an `If`, whose result is images `[N, C, H, W]`, uint8."""
        from onnx import TensorProto, helper

        result = helper.make_tensor_value_info(output, TensorProto.UINT8, None)
        return helper.make_graph(self.nodes, self.name, [], [result], self.initializers())


def add_photo_input(path: Path, preparation: Preparation) -> None:
    """Change a model that takes `pixels` `[N, C, size, size]` to one that takes `photo` `[N, H, W, C]`, uint8."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(path, load_external_data=False)
    size, made = preparation.size, Nodes("prepare")
    image = made.add("Transpose", PHOTO, perm=[0, 3, 1, 2])
    height, width = made.side(image, 2), made.side(image, 3)
    square = made.add("Equal", height, width)
    if preparation.box_means:
        rest = made.add("Mod", height, made.constant([size]))
        asis = made.add("And", square, made.add("Equal", rest, made.constant([0])))
    else:
        asis = made.add("And", square, made.add("Equal", height, made.constant([size])))
    eight = made.add(
        "If",
        made.add("Squeeze", asis),
        then_branch=_box_means(image, size) if preparation.box_means else _unchanged(image),
        else_branch=_resized(image, (height, width), preparation),
    )
    scaled = made.add("Cast", eight, to=TensorProto.FLOAT)
    made.add("Div", scaled, made.constant(preparation.scale, np.float32), output=PIXELS)
    graph = model.graph
    kept = [given for given in graph.input if given.name != PIXELS]
    shape = ["batch", "height", "width", preparation.channels]
    del graph.input[:]
    graph.input.extend([helper.make_tensor_value_info(PHOTO, TensorProto.UINT8, shape), *kept])
    nodes = [*made.nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(made.initializers())
    _check_opset(model)
    onnx.save(model, path)


def _check_opset(model: ModelProto) -> None:
    version = next(opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx"))
    if version < 18:
        raise RuntimeError(
            f"the model is of ONNX operator set {version}; resizing with antialiasing needs 18"
        )


def _unchanged(image: str) -> GraphProto:
    """Images that have the size already."""
    made = Nodes("unchanged")
    return made.branch(made.add("Identity", image))


def _box_means(image: str, size: int) -> GraphProto:
    """Square images `[N, C, S, S]` shrunk by a whole factor: means of boxes, halves rounded up, in whole numbers."""
    from onnx import TensorProto

    made = Nodes("box_means")
    factor = made.add("Div", made.side(image, 2), made.constant([size]))
    sides = [made.side(image, 0), made.side(image, 1), made.constant([size]), factor]
    boxes = made.add("Reshape", image, made.add("Concat", *sides, *sides[2:], axis=0))
    total = made.add(
        "ReduceSum",
        made.add("Cast", boxes, to=TensorProto.INT64),
        made.constant([3, 5]),
        keepdims=0,
    )
    count = made.add("Mul", factor, factor)
    half = made.add("Div", count, made.constant([2]))
    mean = made.add("Div", made.add("Add", total, half), count)
    return made.branch(made.add("Cast", mean, to=TensorProto.UINT8))


def _resized(image: str, sides: tuple[str, str], preparation: Preparation) -> GraphProto:
    """Images `[N, C, H, W]` with their shorter side resized, and of them the square in the middle."""
    from onnx import TensorProto

    made = Nodes("resized")
    size, two = made.constant([preparation.size]), made.constant([2])
    real = [made.add("Cast", side, to=TensorProto.DOUBLE) for side in sides]  # as Python counts
    scale = made.add("Div", made.constant([preparation.shorter_side], np.float64), made.add("Min", *real))
    wanted = [
        made.add(
            "Max",
            made.add("Cast", made.add("Round", made.add("Mul", side, scale)), to=TensorProto.INT64),
            size,
        )
        for side in real
    ]
    sizes = made.add("Concat", made.side(image, 0), made.side(image, 1), *wanted, axis=0)
    resized = made.add(
        "Resize",
        *(image, "", "", sizes),
        mode="linear",
        antialias=1,
        exclude_outside=1,
        coordinate_transformation_mode="half_pixel",
    )
    first = [made.add("Div", made.add("Sub", side, size), two) for side in wanted]
    last = [made.add("Add", side, size) for side in first]
    starts, ends = (made.add("Concat", *corner, axis=0) for corner in (first, last))
    return made.branch(made.add("Slice", resized, starts, ends, made.constant([2, 3])))


def open_photo_input(path: Path) -> Callable[[Tensor], Tensor]:
    """The nodes of `add_photo_input` alone: photos `[N, H, W, C]`, uint8, to pixels in [0, 1] `[N, C, size, size]`."""
    import onnx
    import onnxruntime

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    nodes = list(graph.node)
    last = next(i for i, node in enumerate(nodes) if PIXELS in node.output)
    needed = {name for node in nodes[: last + 1] for name in node.input}
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    result = onnx.helper.make_tensor_value_info(PIXELS, onnx.TensorProto.FLOAT, None)
    alone = onnx.helper.make_graph(nodes[: last + 1], "prepare", list(graph.input), [result], constants)
    made = onnx.helper.make_model(alone, opset_imports=model.opset_import, ir_version=model.ir_version)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda photos: torch.from_numpy(session.run([PIXELS], {PHOTO: photos.numpy()})[0])
