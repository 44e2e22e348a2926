# SPDX-License-Identifier: Apache-2.0
"""The graph that networks train as in mixed precision."""

import mxnet as mx
import numpy as np
import pytest

from gluon_resnet import create_model
from gluon_resnet.training.mixed_precision import compute_in


def low_outputs(net, dtype="bfloat16"):
    """Names of what `net` computes in `dtype`, casts excepted."""
    symbol = compute_in(net(mx.sym.var("data")), dtype)
    assert all(each == np.float32 for each in symbol.infer_type(data=np.float32)[0])
    internals = symbol.get_internals()
    parameters = {name: np.float32 for name in net.collect_params()}
    _, types, _ = internals.infer_type(data=np.float32, **parameters)
    return [
        name
        for name, each in zip(internals.list_outputs(), types)
        if each != np.float32 and not name.endswith(f"_{dtype}_output")
    ]


def test_only_matrix_products_and_what_is_between_are_low():
    net = create_model("resnest14d", dropout=0.1, drop_path=0.1, drop_block=0.1)
    low = low_outputs(net)
    assert any("batchnorm" in name for name in low)
    assert not any("softmax" in name or "dropout" in name for name in low)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_layer_of_the_image_is_float32_in_bfloat16_alone(dtype):
    net = create_model("cifar_resnet20_v1")
    low = low_outputs(net, dtype)
    for layer in (net.stem.conv1, net.stem.bn1):
        assert (f"{layer.name}_fwd_output" in low) == (dtype == "float16")


def test_sums_are_low_where_one_side_is():
    drops = create_model("resnest14d", drop_path=0.1)
    for net in (create_model("cifar_resnet20_v1"), drops):
        names = net(mx.sym.var("data")).get_internals().list_outputs()
        sums = {name for name in names if "residual" in name and "plus" in name}
        assert sums
        assert sums <= set(low_outputs(net))
