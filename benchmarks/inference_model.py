# SPDX-License-Identifier: Apache-2.0
"""The folder of one model of inference.py: drawn weights, images and their logits.

    python benchmarks/inference_model.py FOLDER

The weights behave as trained ones do: convolutions of He et al., BN statistics measured
on images, and residual branches that change their input by little, for otherwise
rounding grows from block to block as it does in no trained network.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

# NumPy lacks a name that MXNet uses; the package adds it when it is imported first.
from gluon_resnet import _before_mxnet  # noqa: F401, I001

import mxnet as mx
import numpy as np
from mxnet import autograd
from mxnet.recordio import IRHeader, MXIndexedRecordIO, pack_img

from gluon_resnet import save_weights
from gluon_resnet.weights.card import Card, write_card
from gluon_resnet.files import replacing
from gluon_resnet.data.loader import validation_batches
from gluon_resnet.models import model_spec
from gluon_resnet.models.resnet import resnet
from gluon_resnet.preprocess import Protocol
from gluon_resnet.data.records import RecordFile
from gluon_resnet.weights import layouts

NUM_IMAGES, NUM_CALIBRATION = 16, 64


def main(folder: Path) -> None:
    """Write what the sides read, and reference.npy last."""
    spec = model_spec(folder.name)
    protocol = Protocol(size=32 if spec.size == 32 else 224, crop_pct=1.0)
    rng = np.random.default_rng(0)
    images = write_images(folder / "images", NUM_IMAGES, rng, protocol)
    write_images(folder / "calibration", NUM_CALIBRATION, rng, protocol)

    mx.random.seed(0)
    # Momentum 0 keeps the statistics of the last batch; last_gamma marks the norm that
    # ends a residual branch by zeros.
    net = resnet(spec, last_gamma=True, norm_options={"momentum": 0.0})
    he_normal = mx.init.Xavier(rnd_type="gaussian", factor_type="in", magnitude=2)
    net.initialize(he_normal)
    parameters = net._collect_params_with_prefix()
    for name, parameter in parameters.items():
        draw(name, parameter, rng)
    with autograd.record():
        logits = net(mx.nd.array(images))
    logits.backward()  # MXNet updates the statistics in the backward pass.
    mx.nd.waitall()

    for suffix in ("params", "safetensors"):
        save_weights(net, folder / f"weights.{suffix}")
    write_card(folder / "weights.params", Card(spec.name, protocol))
    names = list(parameters)
    keys = layouts.gluoncv_attributes(spec, names) or layouts.gluon_features(
        spec, names
    )
    with replacing(folder / "gluoncv.params") as part:
        mx.nd.save(str(part), {keys[n]: p.data() for n, p in parameters.items()})
    with replacing(folder / "reference.npy") as part:
        np.save(part, net(mx.nd.array(images)).asnumpy())


def write_images(
    path: Path, count: int, rng: np.random.Generator, protocol: Protocol
) -> np.ndarray:
    """Draw images into a record file; write them, prepared, as .npy and return them.

    Their power falls with frequency, as a photo's does: sums of noise of all scales.
    """
    side = protocol.size
    images = np.zeros((count, side, side, 3))
    cells = 1
    while cells <= side:
        noise = rng.normal(0, 1, (count, cells, cells, 3))
        size = -(-side // cells)
        larger = noise.repeat(size, axis=1).repeat(size, axis=2)
        images += larger[:, :side, :side]
        cells *= 2
    images = np.clip(128 + 64 * images / images.std(), 0, 255).astype(np.uint8)

    record = path.with_suffix(".rec")
    writer = MXIndexedRecordIO(str(path.with_suffix(".idx")), str(record), "w")
    for key, image in enumerate(images):
        header = IRHeader(0, 0, key, 0)
        writer.write_idx(key, pack_img(header, image, quality=0, img_fmt=".png"))
    writer.close()
    records = RecordFile.open(record, num_classes=1)
    ((prepared, _),) = validation_batches(
        list(records.offsets), records.read, batch_size=count, protocol=protocol
    )
    np.save(path.with_suffix(".npy"), prepared)
    return prepared


def draw(name: str, parameter: mx.gluon.Parameter, rng: np.random.Generator) -> None:
    """Draw BN's scales and shifts and the classifier; convolutions stay."""
    if name.endswith("gamma") and parameter.grad_req != "null":
        is_last = not parameter.data().asnumpy().any()
        low, high = (0.1, 0.4) if is_last else (0.5, 1.5)
        values = rng.uniform(low, high, parameter.shape)
    elif name.endswith("beta") and parameter.grad_req != "null":
        values = rng.normal(0, 0.2, parameter.shape)
    elif name == "fc.weight":
        values = rng.normal(0, parameter.shape[1] ** -0.5, parameter.shape)
    else:
        return
    parameter.set_data(mx.nd.array(values))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
