# SPDX-License-Identifier: Apache-2.0
"""This project and GluonCV's nets: the MXNet sides of inference.py.

Libraries are imported by the sides that use them, for a start costs what it costs.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import inference_side


def ours(precision):
    """This project's inference form."""

    def load(folder, images, threads):
        from gluon_resnet import init_model

        weights = folder / f"weights.{'int8' if precision == 'int8' else 'params'}"
        model = init_model(folder.name, weights, precision=precision)
        images = model.to_device(images)
        return lambda: model.forward(images).asnumpy()

    return load


def gluoncv(folder, images, threads):
    """GluonCV's own network, hybridized."""
    from gluon_resnet import _before_mxnet  # noqa: F401, I001

    import mxnet as mx
    from gluoncv.model_zoo import get_model

    net = get_model(gluoncv_name(folder.name))
    net.load_parameters(str(folder / "gluoncv.params"))
    net.hybridize(static_alloc=True, static_shape=True)
    images = mx.nd.array(images)
    return lambda: net(images).asnumpy()


def gluoncv_name(model):
    """ResNeSts are named without the letter there."""
    return model.rstrip("de") if model.startswith("resnest") else model


SIDES = {
    "ours-fp32": ours("fp32"),
    "ours-bf16": ours("bf16"),
    "ours-int8": ours("int8"),
    "gluoncv": gluoncv,
}

if __name__ == "__main__":
    inference_side.main(SIDES)
