# SPDX-License-Identifier: Apache-2.0
"""A graph of MXNet's operators as an ONNX model, node by node.

Forms that have changed since opset 7 are written as the opset asked for has them:
https://github.com/onnx/onnx/blob/main/docs/Changelog.md
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional, Protocol, Union

import numpy as np
import onnx
from onnx import helper, numpy_helper

from gluon_resnet.errors import InputError
from gluon_resnet.graph import VARIABLE, Graph, Node, Value
from gluon_resnet.models.traced import IMAGES

OPSETS = range(7, 22)
"""From the ONNX Model Zoo's to the newest that requirements-export.txt can run."""
_FIRST_WITHOUT_LISTED_ARRAYS = 9
"""Opset: before it (IR version 3) initializers are inputs of the graph, too."""

Dims = Sequence[Union[int, str]]
"""Lengths, and names for lengths that are free."""


class Names(Protocol):
    """How a file names what is in it."""

    def array(self, name: str) -> str:
        """Return what an array of the graph is called."""

    def node(self, node: Node) -> str:
        """Return what an operator, and its output, is called."""


def onnx_model(
    graph: Graph,
    arrays: Mapping[str, np.ndarray],
    *,
    opset: int,
    images: Dims,
    outputs: Mapping[str, Dims],
    names: Names,
) -> onnx.ModelProto:
    """Return `graph` as an ONNX model, the same bytes for the same input.

    graph: from `data`, images, to the outputs, in their order.
    arrays: float32, by the names of the graph's variables.
    images, outputs: dimensions; where one is not a number, it is free.
    Raises InputError for an opset outside `OPSETS`.
    """
    check_opset(opset)
    writer = _Writer(graph, arrays, opset, list(outputs), names)
    for node in graph.nodes:
        writer.write(node)
    inputs = [_value_info(IMAGES, images)]
    if opset < _FIRST_WITHOUT_LISTED_ARRAYS:
        inputs += [
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            for tensor in writer.initializers
        ]
    return helper.make_model(
        helper.make_graph(
            writer.nodes,
            "gluon_resnet",
            inputs,
            [_value_info(name, dims) for name, dims in outputs.items()],
            writer.initializers,
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=ir_version(opset),
        producer_name="gluon_resnet",
    )


def check_opset(opset: int) -> None:
    """Raise InputError unless `opset` is one of `OPSETS`."""
    if opset not in OPSETS:
        raise InputError(
            f"opset {opset} is not supported; choose from {OPSETS[0]} (the ONNX Model "
            f"Zoo's) to {OPSETS[-1]}"
        )


def ir_version(opset: int) -> int:
    """Return the oldest version of the format that has `opset`: most can read it."""
    return helper.find_min_ir_version_for([helper.make_opsetid("", opset)])


def _value_info(name: str, dims: Dims) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims)


class _Writer:
    """The nodes and the initializers written so far."""

    def __init__(
        self,
        graph: Graph,
        arrays: Mapping[str, np.ndarray],
        opset: int,
        outputs: Sequence[str],
        names: Names,
    ):
        self.arrays, self.opset, self.names = arrays, opset, names
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.values = dict(zip(graph.end.inputs, outputs))
        """What values are called; those of the outputs are decided from the start."""

    def write(self, node: Node) -> None:
        """Write a node; those that it takes values from are written."""
        if node.op == VARIABLE:
            self._write_variable(node)
            return
        writer = _OPERATORS.get(node.op)
        if writer is None:
            raise InputError(
                f"the operator {node.op} of {node.name} has no form in ONNX here; "
                "export a net with BatchNorm and without further operators"
            )
        writer(self, node)

    def add(
        self,
        op: str,
        node: Node,
        inputs: Optional[Sequence[str]] = None,
        outputs: Optional[Sequence[str]] = None,
        name: Optional[str] = None,
        **attributes: Any,
    ) -> None:
        """Add an operator of ONNX; what is not told of it is as of `node`."""
        inputs = self.inputs(node) if inputs is None else inputs
        outputs = [self.output(node)] if outputs is None else outputs
        name = self.names.node(node) if name is None else name
        self.nodes.append(helper.make_node(op, inputs, outputs, name, **attributes))

    def inputs(self, node: Node) -> list[str]:
        """Return what the inputs of a node are called."""
        return [self.values[value] for value in node.inputs]

    def output(self, node: Node, number: int = 0) -> str:
        """Return what an output of a node is called."""
        name = self.names.node(node) + (f"_{number}" if number else "")
        return self.values.setdefault(Value(node, number), name)

    def constant(self, name: str, values: Sequence[int]) -> str:
        """Add a list of whole numbers and return what it is called."""
        return self.initializer(name, np.array(values, np.int64))

    def initializer(self, name: str, array: np.ndarray) -> str:
        """Add an array and return what it is called."""
        array = np.ascontiguousarray(array)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def _write_variable(self, node: Node) -> None:
        name = IMAGES if node.name == IMAGES else self.names.array(node.name)
        self.values[Value(node)] = name
        if node.name != IMAGES:
            self.initializer(name, self.arrays[node.name])


def _convolution(writer: _Writer, node: Node) -> None:
    attributes = node.attributes
    pad = attributes.get("pad", (0, 0))
    writer.add(
        "Conv",
        node,
        dilations=attributes.get("dilate") or (1, 1),
        group=attributes.get("num_group", 1),
        kernel_shape=attributes["kernel"],
        pads=(*pad, *pad),
        strides=attributes.get("stride") or (1, 1),
    )


def _batch_norm(writer: _Writer, node: Node) -> None:
    """Write ones for a gamma that MXNet does not look at."""
    if node.attributes.get("fix_gamma", True):
        gamma = writer.values[node.inputs[1]]
        for tensor in writer.initializers:
            if tensor.name == gamma:
                ones = np.ones(tensor.dims, np.float32)
                tensor.CopyFrom(numpy_helper.from_array(ones, gamma))
    writer.add(
        "BatchNormalization",
        node,
        epsilon=node.attributes["eps"],
        momentum=0.9,  # of training alone
    )


def _pooling(writer: _Writer, node: Node) -> None:
    attributes = node.attributes
    is_average = attributes.get("pool_type", "max") == "avg"
    if attributes.get("global_pool"):
        writer.add("GlobalAveragePool" if is_average else "GlobalMaxPool", node)
        return
    pad = attributes.get("pad") or (0, 0)
    written = {
        "kernel_shape": attributes["kernel"],
        "strides": attributes.get("stride") or (1, 1),
    }
    if attributes.get("pooling_convention", "valid") == "full":
        # It rounds sizes up. ceil_mode says that from opset 10 on, and runtimes differ
        # in what they divide by; for windows side by side this padding is the same.
        if written["kernel_shape"] != written["strides"] or any(pad):
            raise InputError(f"the pooling {node.name} has no form in ONNX here")
        written["auto_pad"] = "SAME_UPPER"
    else:
        written["pads"] = (*pad, *pad)
    if is_average:
        written["count_include_pad"] = int(attributes.get("count_include_pad", True))
    writer.add("AveragePool" if is_average else "MaxPool", node, **written)


def _fully_connected(writer: _Writer, node: Node) -> None:
    """Write a dense layer, and before it the flattening that MXNet's does itself."""
    inputs = writer.inputs(node)
    if node.attributes.get("flatten", True) and node.input().op != "Flatten":
        flat = f"{writer.names.node(node)}_input"
        writer.add("Flatten", node, inputs[:1], [flat], flat, axis=1)
        inputs[0] = flat
    if node.attributes.get("no_bias"):
        zeros = np.zeros(node.attributes["num_hidden"], np.float32)
        inputs.append(writer.initializer(f"{inputs[1]}_no_bias", zeros))
    writer.add("Gemm", node, inputs, alpha=1.0, beta=1.0, transA=0, transB=1)


def _activation(writer: _Writer, node: Node) -> None:
    act_type = node.attributes.get("act_type", node.op)
    writer.add({"relu": "Relu", "sigmoid": "Sigmoid"}[act_type], node)


def _softmax(writer: _Writer, node: Node) -> None:
    """Before opset 13 it is one over all axes from `axis` on: the last alone is safe.

    What has two axes has only the last to take.
    """
    axis = node.attributes.get("axis", -1)
    if writer.opset >= 13 or axis in (1, -1):
        writer.add("Softmax", node, axis=1 if axis == -1 else axis)
        return
    order = [0, 1, 2, 3]
    order[axis], order[3] = 3, axis
    (source,), name = writer.inputs(node), writer.names.node(node)
    moved, weighted = f"{name}_moved", f"{name}_last"
    writer.add("Transpose", node, [source], [moved], moved, perm=order)
    writer.add("Softmax", node, [moved], [weighted], weighted, axis=3)
    writer.add("Transpose", node, [weighted], perm=order)


def _split(writer: _Writer, node: Node) -> None:
    count = node.attributes["num_outputs"]
    outputs = [writer.output(node, number) for number in range(count)]
    attributes = {"axis": node.attributes.get("axis", 1)}
    if writer.opset >= 18:
        attributes["num_outputs"] = count
    writer.add("Split", node, outputs=outputs, **attributes)


def _reshape(writer: _Writer, node: Node) -> None:
    """Both know 0 for a length that stays and -1 for what is left."""
    shape = writer.constant(
        f"{writer.names.node(node)}_shape", node.attributes["shape"]
    )
    writer.add("Reshape", node, [*writer.inputs(node), shape])


def _flatten(writer: _Writer, node: Node) -> None:
    writer.add("Flatten", node, axis=1)


def _as(op: str) -> Callable[[_Writer, Node], None]:
    return lambda writer, node: writer.add(op, node)


_OPERATORS: Mapping[str, Callable[[_Writer, Node], None]] = {
    "Activation": _activation,
    "BatchNorm": _batch_norm,
    "Convolution": _convolution,
    "Flatten": _flatten,
    "FullyConnected": _fully_connected,
    "Pooling": _pooling,
    "Reshape": _reshape,
    "SliceChannel": _split,
    "broadcast_mul": _as("Mul"),
    "elemwise_add": _as("Add"),
    "elemwise_mul": _as("Mul"),
    "elemwise_sub": _as("Sub"),
    "sigmoid": _activation,
    "softmax": _softmax,
}
