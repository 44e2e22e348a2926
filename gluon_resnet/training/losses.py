# SPDX-License-Identifier: Apache-2.0
"""Losses of logits (N, C) against soft targets (N, C) in [0, 1]: one value an image.

Label smoothing, mixup and CutMix are in the targets already (augment.py).
"""

import mxnet as mx


def cross_entropy(logits: mx.nd.NDArray, targets: mx.nd.NDArray) -> mx.nd.NDArray:
    """Softmax cross entropy, (N,)."""
    return -(mx.nd.log_softmax(logits) * targets).sum(axis=1)


def binary_cross_entropy(
    logits: mx.nd.NDArray, targets: mx.nd.NDArray
) -> mx.nd.NDArray:
    """Sigmoid cross entropy of each class, summed over the classes, (N,).

    "ResNet strikes back", arXiv:2110.00476, section 3.2. The sum, where timm takes the
    mean, is OpenMMLab's.
    """
    # log(1 + exp(x)) - t x, in a form that cannot overflow.
    tail = mx.nd.Activation(-logits.abs(), act_type="softrelu")
    return (logits.relu() - logits * targets + tail).sum(axis=1)


LOSSES = {"cross_entropy": cross_entropy, "binary": binary_cross_entropy}
