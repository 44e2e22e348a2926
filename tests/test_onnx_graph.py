# SPDX-License-Identifier: Apache-2.0
"""Weights found by their place in an ONNX graph; ONNX Runtime has the right logits."""

import base64
import dataclasses
import json
import re
import zlib
from pathlib import Path

import mxnet as mx
import numpy as np
import onnx
import onnxruntime
import pytest
from draw import draw_images, draw_tensor, fill_gluon
from onnx import TensorProto, helper, numpy_helper

from gluon_resnet import create_model, init_model, load_weights, model_spec
from gluon_resnet.errors import InputError
from gluon_resnet.models.resnet import resnet
from gluon_resnet.weights import classes_of
from gluon_resnet.weights.load import net_of, read_weights

GRAPHS = json.loads(
    Path(__file__).with_name("golden").joinpath("onnx_graphs.json").read_text()
)
# Both sum in float32 in orders of their own; a wrong layer is far outside.
TOLERANCE = 1e-5
CHANNELS = {
    "resnet18_v1b": (8, 8, 16, 16),
    "resnest14d": (64, 64, 128, 128),
    "resnet18_v1": (8, 8, 16, 16),
    "resnet18_v2": (8, 8, 16, 16),
}


def tiny(name):
    """The row of a small network: one block a stage, as golden/make_onnx_graphs.py."""
    channels = CHANNELS.get(name, (16, 16, 32, 32))
    return dataclasses.replace(model_spec(name), blocks=(1,) * 4, channels=channels)


def graph(key):
    """A golden graph with drawn values."""
    model = onnx.load_from_string(zlib.decompress(base64.b64decode(GRAPHS[key])))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = draw_tensor(tensor.name, tuple(tensor.dims))
            tensor.raw_data = values.tobytes()
    return model


def answer(model, images):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    content = model if isinstance(model, str) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options)
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def assert_answers_alike(net, model, channels=3):
    images = draw_images((2, channels, 64, 64))
    expected = answer(model, images)
    found = net(mx.nd.array(images)).asnumpy()
    assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max()


def saved(model, folder):
    path = folder / "theirs.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("key", GRAPHS)
def test_exported_network_answers_as_onnx_runtime_does(key, tmp_path):
    model = graph(key)
    net, report = net_of(tiny(key.split()[0]), saved(model, tmp_path))
    assert report.loaded == len(list(net.collect_params()))
    with_names = "with-norms" in key
    assert report.layout == ("torchvision" if with_names else "by place")
    assert classes_of(saved(model, tmp_path)) == 3
    assert_answers_alike(net, model)


def test_folded_norms_change_nothing_but_by_the_bias(tmp_path):
    model = graph("resnet18_v1b torchscript 17")
    net, _ = net_of(tiny("resnet18_v1b"), saved(model, tmp_path))
    norm = net.stem.bn1
    epsilon = np.float32(norm._kwargs["eps"])
    assert (norm.running_var.data().asnumpy() + epsilon == 1).all()
    for values, value in ((norm.gamma, 1), (norm.running_mean, 0)):
        assert (values.data().asnumpy() == value).all()
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    (bias,) = (i for i in model.graph.initializer if i.name == first.input[2])
    np.testing.assert_array_equal(
        norm.beta.data().asnumpy(), numpy_helper.to_array(bias)
    )


def test_values_beside_the_file_are_read_too(tmp_path):
    model = graph("resnet18_v1b dynamo 20")
    path = tmp_path / "theirs.onnx"
    onnx.save(
        model, path, save_as_external_data=True, location="w.data", size_threshold=99
    )
    net, _ = net_of(tiny("resnet18_v1b"), path)
    assert_answers_alike(net, str(path))


@pytest.mark.parametrize("key", ["resnet50_v1d dynamo 20", "resnest14d torchscript 9"])
def test_order_and_names_of_nodes_and_values_do_not_matter(key, tmp_path):
    model = graph(key)
    nodes, given = list(model.graph.node), {i.name for i in model.graph.input}
    given |= {i.name for i in model.graph.initializer} | {""}
    generator = np.random.default_rng(0)
    del model.graph.node[:]
    while nodes:  # any order in which sources come first, sums the other way round
        ready = [n for n in nodes if given.issuperset(n.input)]
        node = ready[generator.integers(len(ready))]
        nodes.remove(node)
        given |= set(node.output)
        if node.op_type == "Add":
            node.input[:] = reversed(node.input)
        model.graph.node.append(node)
    for number, tensor in enumerate(model.graph.initializer):
        rename(model, tensor.name, f"v{number * 7919 % 1009}")
    net, report = net_of(tiny(key.split()[0]), saved(model, tmp_path))
    assert report.layout == "by place"
    assert_answers_alike(net, model)


def rename(model, old, new):
    for tensor in model.graph.initializer:
        tensor.name = new if tensor.name == old else tensor.name
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def with_initializers(model, change):
    """Put the nodes that `change(tensor)` gives in the place of an initializer."""
    for tensor in list(model.graph.initializer):
        if nodes := change(tensor):
            model.graph.initializer.remove(tensor)
            for node in reversed(nodes):
                model.graph.node.insert(0, node)
    return model


def as_constants(model):
    return with_initializers(
        model,
        lambda t: [helper.make_node("Constant", [], [t.name], value=t)],
    )


def behind_identity(model):
    names = {t.name for t in model.graph.initializer if "onnx::" in t.name}
    for name in names:
        rename(model, name, f"{name}.shared")
        for node in model.graph.node:
            node.input[:] = [name if i == f"{name}.shared" else i for i in node.input]
        node = helper.make_node("Identity", [f"{name}.shared"], [name])
        model.graph.node.insert(0, node)
    return model


def transposed_classifier(model):
    (gemm,) = (n for n in model.graph.node if n.op_type == "Gemm")
    next(a for a in gemm.attribute if a.name == "transB").i = 0
    for tensor in model.graph.initializer:
        if tensor.name == gemm.input[1]:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor).T, tensor.name)
            )
    return model


def product_and_sum(model):
    transposed_classifier(model)
    (gemm,) = (n for n in model.graph.node if n.op_type == "Gemm")
    place = list(model.graph.node).index(gemm)
    model.graph.node.remove(gemm)
    nodes = (
        helper.make_node("MatMul", gemm.input[:2], ["product"]),
        helper.make_node("Add", [gemm.input[2], "product"], gemm.output),
    )
    for node in reversed(nodes):
        model.graph.node.insert(place, node)
    return model


def with_softmax(model):
    (output,) = model.graph.output
    model.graph.node.append(
        helper.make_node("Softmax", [output.name], ["probabilities"], axis=1)
    )
    return model


def listed_as_inputs(model):
    """As files of early IR versions have their initializers."""
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    return model


@pytest.mark.parametrize(
    "change",
    [
        as_constants,
        behind_identity,
        transposed_classifier,
        product_and_sum,
        with_softmax,
        listed_as_inputs,
    ],
)
def test_graph_may_be_written_in_other_ways(change, tmp_path):
    model = change(graph("resnet18_v1b torchscript 17"))
    path = saved(model, tmp_path)
    net, _ = net_of(tiny("resnet18_v1b"), path)
    assert classes_of(path) == 3
    assert_answers_alike(net, model)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-5, 2e-5])
def test_epsilon_of_the_file_counts(epsilon, tmp_path):
    model = graph("resnet50_v1d torchscript-with-norms 17")
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            next(a for a in node.attribute if a.name == "epsilon").f = epsilon
    for name in ("by name", "by place"):
        if name == "by place":
            rename(model, "conv1.0.weight", "any")
        net, _ = net_of(tiny("resnet50_v1d"), saved(model, tmp_path))
        assert_answers_alike(net, model)


def test_bias_before_a_norm_is_not_lost(tmp_path):
    model = graph("resnet18_v1b torchscript-with-norms 17")
    for node in model.graph.node:
        if node.op_type == "Conv":
            (weight,) = (t for t in model.graph.initializer if t.name == node.input[1])
            name = f"{weight.name}.bias"
            values = draw_tensor(name, tuple(weight.dims[:1]))
            model.graph.initializer.append(numpy_helper.from_array(values, name))
            node.input.append(name)
    rename(model, "conv1.weight", "any")
    net, _ = net_of(tiny("resnet18_v1b"), saved(model, tmp_path))
    assert_answers_alike(net, model)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_channels_are_those_of_the_graph(channels, tmp_path):
    model = graph("resnet18_v1b torchscript 17")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = channels
    kernel = draw_tensor("kernel", (64, channels, 7, 7))
    for tensor in model.graph.initializer:
        if tuple(tensor.dims) == (64, 3, 7, 7):
            tensor.CopyFrom(numpy_helper.from_array(kernel, tensor.name))
    net, _ = net_of(tiny("resnet18_v1b"), saved(model, tmp_path))
    assert_answers_alike(net, model, channels)


@pytest.mark.parametrize("name", ["resnet18_v1", "resnet18_v2"])
def test_graphs_of_mxnets_exporter_are_found_by_place_too(name, tmp_path):
    theirs = resnet(tiny(name), num_classes=3)
    theirs.initialize()
    fill_gluon(theirs)
    theirs.hybridize()
    theirs(mx.nd.array(draw_images((2, 3, 64, 64))))
    theirs.export(str(tmp_path / "net"))
    files = (str(tmp_path / "net-symbol.json"), str(tmp_path / "net-0000.params"))
    shape, path = (2, 3, 64, 64), tmp_path / "theirs.onnx"
    mx.onnx.export_model(*files, [shape], [np.float32], str(path))
    model = onnx.load(path)
    for number, tensor in enumerate(model.graph.initializer):
        rename(model, tensor.name, f"v{number}")
    for value in list(model.graph.input)[1:]:
        model.graph.input.remove(value)
    net, report = net_of(tiny(name), saved(model, tmp_path))
    assert report.layout == "by place"
    assert_answers_alike(net, model)


def refusal(model, folder, name="resnet18_v1b"):
    path = saved(model, folder)
    with pytest.raises(InputError) as caught:
        read_weights(path).named(tiny(name))
    start = f"{path}: "
    assert str(caught.value).startswith(start)
    return str(caught.value)[len(start) :]


def test_graph_of_another_network_is_refused_where_it_differs(tmp_path):
    # Stride on the 1x1 or the 3x3, pooling in the shortcut: the same shapes of weights.
    model = graph("resnet50_v1b torchscript 17")
    assert refusal(model, tmp_path, "resnet50_v1") == (
        "its graph is not that of resnet50_v1: in the place of stage2.0.body.conv1 it "
        "has no such layers; check the model's name"
    )
    model = graph("resnet50_v1c torchscript 17")
    assert "in the place of stage2.0.shortcut.conv" in refusal(
        model, tmp_path, "resnet50_v1d"
    )
    assert "in the place of stem.conv1 " in refusal(model, tmp_path)


def replaced(model, old, new, **attributes):
    node = next(n for n in model.graph.node if n.op_type == old)
    node.op_type, node.domain = new.rpartition(".")[2], new.rpartition(".")[0]
    node.attribute.extend(
        helper.make_attribute(name, value) for name, value in attributes.items()
    )
    return model


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "Relu",
            "LeakyRelu",
            (
                "its graph has the operator LeakyRelu, which this network has not; "
                "check the model's name"
            ),
        ),
        (
            "Relu",
            "HardSwish",
            (
                "its graph has the operator HardSwish, which this network has not; "
                "check the model's name"
            ),
        ),
        (
            "Conv",
            "com.microsoft.FusedConv",
            (
                "its graph has com.microsoft.FusedConv, which is not of ONNX itself; "
                "give the model as it was exported, before ONNX Runtime optimized it, "
                "with functions inlined (onnx.inliner.inline_local_functions)"
            ),
        ),
        (
            "Conv",
            "QLinearConv",
            "it is quantized (QLinearConv); give the float model that it was made from",
        ),
    ],
)
def test_operator_that_the_network_has_not_is_named(old, new, message, tmp_path):
    model = replaced(graph("resnet18_v1b torchscript 17"), old, new)
    assert refusal(model, tmp_path) == message


def test_images_that_the_graph_prepares_itself_are_told(tmp_path):
    model = graph("resnet18_v1b torchscript 17")
    (image,) = model.graph.input
    first = next(n for n in model.graph.node if n.input[0] == image.name)
    first.input[0] = "prepared"
    mean = numpy_helper.from_array(np.full((1, 3, 1, 1), 0.5, np.float32), "mean")
    model.graph.initializer.append(mean)
    node = helper.make_node("Sub", [image.name, "mean"], ["prepared"])
    model.graph.node.insert(0, node)
    for kind in ("Sub", "Add", "Mul", "Div"):
        model.graph.node[0].op_type = kind
        assert refusal(model, tmp_path) == (
            f"its graph computes with a constant in {kind} prepared, which this "
            "network does not; export it without the preparation of images"
        )


def test_file_without_a_graph_says_what_it_lacks(tmp_path):
    model = graph("resnet18_v1b torchscript 17")
    del model.graph.node[:]
    path = saved(model, tmp_path)
    with pytest.raises(InputError) as caught:
        init_model("resnet18_v1b", path)
    assert str(caught.value) == (
        f"{path} has no graph, by which weights are found where BatchNorm is folded "
        "into the convolutions; export the whole model again"
    )


@pytest.mark.slow
def test_whole_resnet18_loads_into_every_entry(tmp_path, caplog):
    """A real one: 20 convolutions, folded by hand as an exporter does."""
    net = create_model("resnet18_v1b", num_classes=5)
    fill_gluon(net)
    values = {
        n: p.data().asnumpy() for n, p in net._collect_params_with_prefix().items()
    }
    nodes, tensors, last = [], [], "image"

    def conv(name, norm, source, **attributes):
        scale = values[f"{norm}.gamma"] / np.sqrt(values[f"{norm}.running_var"] + 1e-5)
        weight = values[f"{name}.weight"] * scale[:, None, None, None]
        bias = values[f"{norm}.beta"] - values[f"{norm}.running_mean"] * scale
        names = [f"onnx::Conv_{len(tensors) + i}" for i in (0, 1)]
        tensors.extend(map(numpy_helper.from_array, (weight, bias), names))
        pad = weight.shape[-1] // 2
        node = helper.make_node(
            "Conv", [source, *names], [name], pads=[pad] * 4, **attributes
        )
        nodes.append(node)
        return name

    def relu(source):
        nodes.append(helper.make_node("Relu", [source], [f"{source}.relu"]))
        return f"{source}.relu"

    last = relu(conv("stem.conv1", "stem.bn1", "image", strides=[2, 2]))
    nodes.append(
        helper.make_node(
            "MaxPool", [last], ["pool"], kernel_shape=[3, 3], strides=[2, 2],
            pads=[1] * 4,
        )
    )  # fmt: skip
    last = "pool"
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            at = f"stage{stage}.{block}"
            stride = [2, 2] if stage > 1 and block == 0 else [1, 1]
            inner = relu(
                conv(f"{at}.body.conv1", f"{at}.body.bn1", last, strides=stride)
            )
            inner = conv(f"{at}.body.conv2", f"{at}.body.bn2", inner)
            if f"{at}.shortcut.conv.weight" in values:
                shortcut = f"{at}.shortcut"
                last = conv(f"{shortcut}.conv", f"{shortcut}.bn", last, strides=stride)
            nodes.append(helper.make_node("Add", [inner, last], [at]))
            last = relu(at)
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["vector"]),
        helper.make_node("Gemm", ["vector", "w", "b"], ["logits"], transB=1),
    ]
    tensors.append(numpy_helper.from_array(values["fc.weight"], "w"))
    tensors.append(numpy_helper.from_array(values["fc.bias"], "b"))
    image, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("image", ["N", 3, "H", "W"]), ("logits", ["N", 5]))
    )
    body = helper.make_graph(nodes, "net", [image], [logits], tensors)
    opset = helper.make_opsetid("", 13)
    path = saved(helper.make_model(body, opset_imports=[opset], ir_version=8), tmp_path)
    images = draw_images((2, 3, 64, 64))
    expected = net(mx.nd.array(images)).asnumpy()
    close = {"atol": 1e-4 * np.abs(expected).max()}
    np.testing.assert_allclose(answer(str(path), images), expected, **close)
    again = create_model("resnet18_v1b", pretrained=path)
    np.testing.assert_allclose(again(mx.nd.array(images)).asnumpy(), expected, **close)
    classifier = init_model("resnet18_v1b", path)
    np.testing.assert_allclose(classifier(images).asnumpy(), expected, **close)
    fresh = create_model("resnet18_v1b", num_classes=5)
    assert load_weights(fresh, path).loaded == 102
    assert re.search("classes have numbers for names$", caplog.messages[-1])
