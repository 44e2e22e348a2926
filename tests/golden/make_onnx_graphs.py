# SPDX-License-Identifier: Apache-2.0
"""Write onnx_graphs.json: graphs as PyTorch's exporters write them, without values.

Each network is small: one block a stage, as `tiny` of tests/test_onnx_graph.py has it.
A graph's key is NETWORK EXPORTER OPSET; its value is the file, compressed, in base64.
In the environment that the docstring of make_timm.py describes, with

    pip install onnx==1.23.2 onnxscript==0.7.2
    python tests/golden/make_onnx_graphs.py
"""

import base64
import io
import json
import zlib
from pathlib import Path

import cpu_torchvision  # noqa: F401
import onnx
import torch
from timm.models.resnest import ResNestBottleneck
from timm.models.resnet import BasicBlock, Bottleneck, ResNet

BLOCKS = {"layers": [1, 1, 1, 1], "num_classes": 3}
DEEP = {"stem_type": "deep", "stem_width": 32}


def main() -> None:
    """Export each network in each way."""
    graphs = {
        f"{name} {way}": graph
        for name, net in nets().items()
        for way, graph in exported(net)
    }
    lines = [f"{json.dumps(name)}: {json.dumps(graphs[name])}" for name in graphs]
    path = Path(__file__).with_name("onnx_graphs.json")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def nets() -> dict[str, torch.nn.Module]:
    """A network of each kind of block, by our name of the family's smallest."""
    basic, bottleneck = (8, 8, 16, 16), (4, 4, 8, 8)
    found = {
        "resnet18_v1b": ResNet(BasicBlock, channels=basic, **BLOCKS),
        "resnet50_v1b": ResNet(Bottleneck, channels=bottleneck, **BLOCKS),
        "resnet50_v1c": ResNet(Bottleneck, channels=bottleneck, **DEEP, **BLOCKS),
        "resnet50_v1d": ResNet(
            Bottleneck, channels=bottleneck, avg_down=True, **DEEP, **BLOCKS
        ),
        "resnest14d": ResNet(
            ResNestBottleneck,
            channels=(16, 16, 32, 32),
            avg_down=True,
            block_args={"radix": 2, "avd": True, "avd_first": False},
            **DEEP,
            **BLOCKS,
        ),
    }
    with_dropout = ResNet(BasicBlock, channels=basic, **BLOCKS)
    with_dropout.fc = torch.nn.Sequential(torch.nn.Dropout(), with_dropout.fc)
    return found | {"resnet18_v1b dropout": with_dropout}


def exported(net: torch.nn.Module):
    """Yield the way and the graph."""
    net.eval()
    for values in net.state_dict().values():  # equal ones would be written once
        if values.is_floating_point():
            values.uniform_(0.5, 1.5)
    for opset in (9, 11, 13, 17, 20):
        yield f"torchscript {opset}", graph_of(net, opset_version=opset, dynamo=False)
    yield (
        "torchscript-with-norms 17",
        graph_of(
            net,
            opset_version=17,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        ),
    )
    yield "dynamo 18", graph_of(net, opset_version=18, dynamo=True)
    yield "dynamo 20", graph_of(net, opset_version=20, dynamo=True)


def graph_of(net: torch.nn.Module, **options) -> str:
    """Export without values, and leave out what no reader needs."""
    file = io.BytesIO()
    images = torch.zeros(2, 3, 64, 64)
    if options["dynamo"]:
        model = torch.onnx.export(net, (images,), **options).model_proto
    else:
        torch.onnx.export(net, (images,), file, **options)
        model = onnx.load_from_string(file.getvalue())
    del (
        model.graph.value_info[:],
        model.metadata_props[:],
        model.graph.metadata_props[:],
    )
    for node in model.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            for field in ("raw_data", "float_data"):
                tensor.ClearField(field)
    return base64.b64encode(zlib.compress(model.SerializeToString(), 9)).decode()


if __name__ == "__main__":
    main()
