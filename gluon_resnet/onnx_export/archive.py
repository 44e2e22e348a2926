# SPDX-License-Identifier: Apache-2.0
"""A network in the ONNX Model Zoo's form, and its archive with sample data.

https://github.com/onnx/models/blob/main/validated/vision/classification/resnet
"""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import mxnet as mx
import numpy as np
import onnx
from mxnet.gluon import HybridBlock
from onnx import numpy_helper

from gluon_resnet.errors import InputError
from gluon_resnet.files import replacing
from gluon_resnet.inference.fold import unfolded
from gluon_resnet.models.traced import IMAGES
from gluon_resnet.onnx_export.exported import dims_of
from gluon_resnet.onnx_export.names import ZOO_PREFIXES, ZooNames
from gluon_resnet.onnx_export.writer import onnx_model

OPSET = 7
"""Of the Model Zoo's page; names of files end in it."""
_SETS = 3


def zoo_name(model: str) -> str:
    """Return what the Model Zoo calls a network's file: resnet50-v1-7.

    Raises InputError for a network that is not on its page.
    """
    if model not in ZOO_PREFIXES:
        raise InputError(
            f"{model} is not on the ONNX Model Zoo's page; its networks are "
            f"{', '.join(ZOO_PREFIXES)}"
        )
    return f"{model.replace('_', '-')}-{OPSET}"


def zoo_model(net: HybridBlock) -> onnx.ModelProto:
    """Return a network as the Model Zoo's page has it, save that the batch is free.

    Opset 7, norms kept, images of the net's size, and the Zoo's names. Raises
    InputError for a network that is not on its page.
    """
    zoo_name(net.spec.name)
    graph, arrays = unfolded(net)
    names = ZooNames(net, graph)
    output = names.node(graph.end.inputs[0].node)
    images, dims = dims_of(graph, net, [output], net.spec.size)
    return onnx_model(
        graph, arrays, opset=OPSET, images=images, outputs=dims, names=names
    )


def write_archive(net: HybridBlock, model: Path, destination: Path) -> list[Path]:
    """Write NAME.tar.gz of a file and three sets of images and answers.

    model: the network's file, NAME.onnx in the archive wherever it is. destination: the
    archive's path. Beside it go NAME.tar.gz.sha256 and .md5, as `sha256sum -c` reads
    them. The same network gives the same bytes. Returns the paths written.
    Raises InputError where they cannot be written.
    """
    name = destination.name.removesuffix(".tar.gz")
    with replacing(destination) as part:
        with (
            part.open("wb") as file,
            gzip.GzipFile("", "wb", 6, file, mtime=0) as zipped,
        ):
            with tarfile.open(
                fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT
            ) as tar:
                _add(tar, f"{name}/{name}.onnx", model.read_bytes())
                for sample, data in _samples(net):
                    _add(tar, f"{name}/{sample}", data)
        digests = {
            kind: hashlib.new(kind, part.read_bytes()).hexdigest()
            for kind in ("sha256", "md5")
        }
    written = [destination]
    for kind, digest in digests.items():
        path = destination.with_name(f"{destination.name}.{kind}")
        with replacing(path) as part:
            part.write_text(f"{digest}  {destination.name}\n", encoding="ascii")
        written.append(path)
    return written


def _samples(net: HybridBlock) -> Iterator[tuple[str, bytes]]:
    """Yield drawn images and the network's answers, as tensors of ONNX."""
    side = net.spec.size
    for number in range(_SETS):
        generator = np.random.default_rng(number)
        images = generator.normal(0, 1, (1, 3, side, side)).astype(np.float32)
        answers = net(mx.nd.array(images)).asnumpy()
        for kind, array in (("input", images), ("output", answers)):
            tensor = numpy_helper.from_array(array, IMAGES if kind == "input" else "")
            path = f"test_data_set_{number}/{kind}_0.pb"
            yield path, tensor.SerializeToString(deterministic=True)


def _add(tar: tarfile.TarFile, path: str, data: bytes) -> None:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mtime, entry.mode = len(data), 0, 0o644
    tar.addfile(entry, io.BytesIO(data))
