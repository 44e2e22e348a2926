# SPDX-License-Identifier: Apache-2.0
"""The average of parameters and running statistics against timm's ModelEmaV2."""

import json
from pathlib import Path

import mxnet as mx
import numpy as np

from gluon_resnet.training.ema import update_average

GOLDEN = json.loads(
    Path(__file__).with_name("golden").joinpath("training.json").read_text()
)["ema"]
REGENERATE = "regenerate with tests/golden/make_training.py"
# Four sums in float32 of values near 1, against float64.
ROUNDING = 1e-6


def test_averages_match_timm():
    # A fresh BN of torch: what timm's average starts from.
    start = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}
    average = {name: mx.nd.full(3, value) for name, value in start.items()}
    for values, expected in zip(GOLDEN["values"], GOLDEN["averages"]):
        arrays = {name: mx.nd.array(each) for name, each in values.items()}
        update_average(average, arrays, decay=GOLDEN["decay"])
        for name, mean in average.items():
            np.testing.assert_allclose(
                mean.asnumpy(),
                expected[name],
                atol=ROUNDING,
                rtol=0,
                err_msg=REGENERATE,
            )
