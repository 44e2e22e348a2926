# SPDX-License-Identifier: Apache-2.0
"""A protocol's resize, crop and normalisation as operators in front of a network."""

from collections.abc import Callable, Sequence
from typing import Any, Optional

import cv2
import numpy as np
import onnx
from onnx import helper, numpy_helper

from gluon_resnet.errors import InputError
from gluon_resnet.models.traced import IMAGES
from gluon_resnet.onnx_export.writer import OPSETS
from gluon_resnet.preprocess import Protocol, preprocess, resize_side

IMAGE = "image"
"""The input: the uint8 pixels (H, W, 3) of one image, RGB, upright."""
FIRST_OPSET = 18
"""The first whose Resize can antialias."""
FARTHEST = 2
"""Of 255: how far a pixel may be from `preprocess`'s, which rounds on the way."""
_CUBIC = {"cv2": -0.75, "mmcv": -0.75, "pil": -0.5, "onnx_zoo": -0.5}
_PREFIX = "pixels"
_PHOTOGRAPHS = ((480, 640), (333, 250), (97, 301), (224, 224), (60, 50))


def check_pixels(opset: int, channels: int) -> None:
    """Raise InputError where `with_pixels` has no form."""
    if opset < FIRST_OPSET:
        raise InputError(
            f"opset {opset} has no Resize that antialiases; pixels in the graph need "
            f"{FIRST_OPSET} to {OPSETS[-1]}"
        )
    if channels != 3:
        raise InputError(
            f"the network takes {channels} channels, and pixels in the graph are RGB; "
            "prepare the images outside"
        )


def with_pixels(model: onnx.ModelProto, protocol: Protocol) -> onnx.ModelProto:
    """Return a model of images that prepares one image itself, as `protocol` says.

    model: from `data`, images (N, 3, H, W), as `onnx_model` gives it. The result takes
    `image`, uint8 (H, W, 3), and answers with a batch of one.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph, steps = result.graph, pixel_steps(protocol)
    del graph.input[:], graph.node[:], graph.initializer[:]
    graph.input.append(
        helper.make_tensor_value_info(IMAGE, onnx.TensorProto.UINT8, ("H", "W", 3))
    )
    graph.node.extend([*steps.nodes, *model.graph.node])
    graph.initializer.extend([*steps.initializers, *model.graph.initializer])
    for output in graph.output:
        dims = output.type.tensor_type.shape.dim
        dims[0].dim_value = 1
        if len(dims) == 4:
            for dim, name in zip(dims[2:], "HW"):
                if dim.dim_param:
                    dim.dim_param = f"{output.name}_{name}"
    return result


def pixels_alone(protocol: Protocol, opset: int) -> onnx.ModelProto:
    """Return the preparation as a model of its own, to compare with `preprocess`."""
    steps, size = pixel_steps(protocol), protocol.size
    element = onnx.TensorProto
    image = helper.make_tensor_value_info(IMAGE, element.UINT8, ("H", "W", 3))
    data = helper.make_tensor_value_info(IMAGES, element.FLOAT, (1, 3, size, size))
    graph = helper.make_graph(steps.nodes, _PREFIX, [image], [data], steps.initializers)
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=helper.find_min_ir_version_for([helper.make_opsetid("", opset)]),
    )


def distance(
    prepare: Callable[[np.ndarray], np.ndarray], protocol: Protocol
) -> tuple[float, float]:
    """Return how far the pixels of a `runner` are from `preprocess`'s.

    The largest and the mean distance, of 255, on drawn photographs of several sizes.
    Raises InputError where the largest is more than `FARTHEST`.
    """
    generator, distances = np.random.default_rng(0), []
    deviation = np.array(protocol.std, np.float64)[:, None, None] * 255.0
    for height, width in _PHOTOGRAPHS:
        image = _drawn_photograph(generator, height, width)
        difference = prepare(image)[0] - preprocess(image, protocol)
        distances.append(np.abs(difference) * deviation)
    largest = max(float(each.max()) for each in distances)
    if not largest < FARTHEST + 0.5:  # what was normalised is whole but for rounding
        raise InputError(
            f"the pixels of the graph are {largest:.0f} of 255 from preprocess's, more "
            f"than {FARTHEST}: this ONNX Runtime resizes otherwise; prepare the images "
            "outside"
        )
    return largest, float(np.mean([each.mean() for each in distances]))


def _drawn_photograph(
    generator: np.random.Generator, height: int, width: int
) -> np.ndarray:
    """Draw smooth colours with some noise, uint8 (height, width, 3)."""
    coarse = generator.normal(0, 1, (height // 8 + 2, width // 8 + 2, 3))
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = generator.normal(0, 8, (height, width, 3))
    return np.clip(128 + np.multiply(50, smooth) + noise, 0, 255).astype(np.uint8)


class _Steps:
    """Operators one after the other, each with one output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        output: Optional[str] = None,
        **attributes: Any,
    ) -> str:
        """Add an operator; returns what its output is called."""
        output = output or f"{_PREFIX}_{len(self.nodes)}_{op.lower()}"
        name = f"{_PREFIX}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name, **attributes))
        return output

    def constant(self, value: Any, dtype: type = np.int64) -> str:
        """Add a constant; returns what it is called."""
        name = f"{_PREFIX}_constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name


def pixel_steps(protocol: Protocol) -> _Steps:
    """Return the operators from `image` to `data`, (1, 3, size, size)."""
    steps = _Steps()
    add, constant = steps.add, steps.constant
    planes = add("Transpose", [IMAGE], perm=(2, 0, 1))
    planes = add("Unsqueeze", [planes, constant([0])])
    sides = _resized_sides(steps, protocol)
    planes = _resized(steps, planes, sides, protocol)
    start = _crop_start(steps, sides, protocol)
    end = add("Add", [start, constant([protocol.size] * 2)])
    planes = add("Slice", [planes, start, end, constant([2, 3])])
    # Operation by operation as in `preprocess`.
    planes = add("Div", [planes, constant(255, np.float32)])
    for op, values in (("Sub", protocol.mean), ("Div", protocol.std)):
        parameter = constant(np.reshape(values, (1, 3, 1, 1)), np.float32)
        planes = add(op, [planes, parameter], IMAGES if op == "Div" else None)
    return steps


def _resized_sides(steps: _Steps, protocol: Protocol) -> str:
    """Return height and width before the crop, int64 (2,)."""
    add, constant = steps.add, steps.constant
    side = constant([resize_side(protocol)])
    if protocol.resize == "warp":
        return add("Concat", [side, side], axis=0)
    sides = add("Slice", [add("Shape", [IMAGE]), constant([0]), constant([2])])
    short = add("ReduceMin", [sides], keepdims=1)
    long = add("ReduceMax", [sides], keepdims=1)
    if protocol.library == "onnx_zoo":  # the script's product, rounded twice
        double = onnx.TensorProto.DOUBLE
        short_side, short_, long_ = (
            add("Cast", [value], to=double) for value in (side, short, long)
        )
        exact = add("Mul", [add("Div", [short_side, short_]), long_])
        long_side = add("Cast", [add("Round", [exact])], to=onnx.TensorProto.INT64)
    else:
        long_side = add("Div", [add("Mul", [side, long]), short])
    is_long = add("Greater", [sides, short])
    return add("Where", [is_long, long_side, side])


def _resized(steps: _Steps, planes: str, sides: str, protocol: Protocol) -> str:
    """Resize to whole numbers from 0 to 255, as float32 (1, 3, H, W).

    Pillow resizes along rows first, and rounds, then along columns. OpenCV's bilinear
    sum is rounded in quarters on the way, downwards: less than a half is added here.
    """
    add, constant = steps.add, steps.constant
    is_pillow = protocol.library in ("pil", "onnx_zoo")
    is_quartered = not is_pillow and protocol.interpolation == "bilinear"
    half = constant(0.5 - is_quartered / 8, np.float32)
    limits = [constant(value, np.float32) for value in (0, 255)]
    planes = add("Cast", [planes], to=onnx.TensorProto.FLOAT)
    targets = [sides]
    if is_pillow:
        shape = add("Shape", [IMAGE])
        height = add("Slice", [shape, constant([0]), constant([1])])
        width = add("Slice", [sides, constant([1]), constant([2])])
        targets = [add("Concat", [height, width], axis=0), sides]
    for target in targets:
        # Without `axes`, which ONNX Runtime loses where it moves a Transpose past.
        lengths = add("Concat", [constant([1, 3]), target], axis=0)
        planes = add(
            "Resize",
            [planes, "", "", lengths],
            antialias=int(is_pillow),
            coordinate_transformation_mode="half_pixel",
            cubic_coeff_a=_CUBIC[protocol.library],
            mode={"bilinear": "linear", "bicubic": "cubic"}[protocol.interpolation],
        )
        planes = add("Floor", [add("Add", [planes, half])])
        planes = add("Clip", [planes, *limits])
    return planes


def _crop_start(steps: _Steps, sides: str, protocol: Protocol) -> str:
    """Return top and left of the centre crop, int64 (2,)."""
    add, constant = steps.add, steps.constant
    if protocol.library == "onnx_zoo":
        half = constant([protocol.size // 2])
        return add("Sub", [add("Div", [sides, constant([2])]), half])
    margin = add("Sub", [sides, constant([protocol.size])])
    if protocol.library == "cv2":
        return add("Div", [margin, constant([2])])
    double, whole = onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64
    margin = add("Cast", [margin], to=double)
    exact = add("Mul", [margin, constant([0.5], np.float64)])
    return add("Cast", [add("Round", [exact])], to=whole)
