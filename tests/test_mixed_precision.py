# SPDX-License-Identifier: Apache-2.0
"""The graph that networks train as in mixed precision."""

import mxnet as mx
import numpy as np

from gluon_resnet import create_model
from gluon_resnet.mixed_precision import compute_in


def test_only_matrix_products_and_what_is_between_are_low():
    net = create_model("resnest14d", dropout=0.1, drop_path=0.1, drop_block=0.1)
    symbol = compute_in(net(mx.sym.var("data")), "bfloat16")
    parameters = {name: np.float32 for name in net.collect_params()}
    internals = symbol.get_internals()
    _, types, _ = internals.infer_type(data=np.float32, **parameters)
    assert all(each == np.float32 for each in symbol.infer_type(data=np.float32)[0])
    by_name = dict(zip(internals.list_outputs(), types))
    low = [
        name
        for name, each in by_name.items()
        if each != np.float32 and not name.endswith("_bfloat16_output")
    ]
    assert any("batchnorm" in name for name in low)
    assert not any("softmax" in name or "dropout" in name for name in low)
