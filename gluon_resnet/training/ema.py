# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of a network's values, as timm's `ModelEmaV2`.

It covers all values, running statistics too, has no warm-up, and starts from the
values at the first step.
"""

from collections.abc import Mapping

import mxnet as mx


def update_average(
    average: Mapping[str, mx.nd.NDArray],
    values: Mapping[str, mx.nd.NDArray],
    *,
    decay: float,
) -> None:
    """Set each average to decay * average + (1 - decay) * value, in place."""
    for name, mean in average.items():
        mean *= decay
        mean += (1 - decay) * values[name]
