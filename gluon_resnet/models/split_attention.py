# SPDX-License-Identifier: Apache-2.0
"""Split attention, the layer that makes a ResNeSt.

Zhang et al., "ResNeSt: Split-Attention Networks", arXiv:2004.08955, section 3.
"""

from collections.abc import Callable, Iterable
from functools import reduce
from operator import add
from types import ModuleType

from mxnet.gluon import HybridBlock

from gluon_resnet.models.layers import Tensor, conv, relu


class SplitAttention(HybridBlock):
    """3x3 grouped conv, BN, ReLU, then a sum of the radix splits weighted by attention.

    (N, C, H, W) -> (N, C, H, W). The convolution's C * radix channels
    are radix-major: split r holds the channels r * C to (r + 1) * C. The attention
    logits are cardinal-major: (cardinality, radix, C / cardinality). Both orders are
    those of the published weights.

    The splits stay separate tensors. Stacking them and reducing over an axis of
    length `radix`, as the formula reads, costs more than all convolutions together
    in MXNet, and pooling is linear: the pooled sum is the sum of the pooled.
    """

    def __init__(
        self,
        channels: int,
        norm: Callable[..., HybridBlock],
        *,
        radix: int,
        cardinality: int,
    ):
        super().__init__()
        self.radix, self.cardinality = radix, cardinality
        width = max(channels * radix // 4, 32)
        split_channels = channels * radix
        self.conv = conv(channels, split_channels, 3, groups=cardinality * radix)
        self.bn = norm(in_channels=split_channels)
        self.relu = relu()
        self.fc1 = conv(channels, width, 1, groups=cardinality, bias=True)
        self.bn1 = norm(in_channels=width)
        self.relu1 = relu()
        self.fc2 = conv(width, split_channels, 1, groups=cardinality, bias=True)

    def hybrid_forward(self, F: ModuleType, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the attended (N, C, H, W)."""
        x = self.relu(self.bn(self.conv(x)))
        splits = list(F.split(x, self.radix)) if self.radix > 1 else [x]
        pooled = _sum(
            F.Pooling(split, kernel=(1, 1), global_pool=True, pool_type="avg")
            for split in splits
        )
        logits = self.fc2(self.relu1(self.bn1(self.fc1(pooled))))
        weights = self._attention(F, logits)
        return _sum(s * _spread(F, w, s) for s, w in zip(splits, weights))

    def _attention(self, F: ModuleType, logits: Tensor) -> list[Tensor]:
        """Map (N, C * radix, 1, 1) logits to `radix` weights of (N, C, 1, 1)."""
        if self.radix == 1:
            return [F.sigmoid(logits)]
        logits = F.reshape(logits, (0, self.cardinality, self.radix, -1))
        splits = F.split(F.softmax(logits, axis=2), self.radix, axis=2)
        return [F.reshape(split, (0, -1, 1, 1)) for split in splits]


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    """`sum` without its 0 + ..., which is one more pass over the first tensor."""
    return reduce(add, tensors)


def _spread(F: ModuleType, weights: Tensor, like: Tensor) -> Tensor:
    """Repeat weights (N, C, 1, 1) over the pixels of `like`, (N, C, H, W).

    A product with a row of ones, whose gradient is a matrix product, too: that of
    broadcasting takes MXNet a quarter of a training step.
    """
    # Not F.slice, which kills the process (SIGFPE) on oneDNN's blocked layouts.
    image = F.slice_axis(like, axis=0, begin=0, end=1)
    channel = F.slice_axis(image, axis=1, begin=0, end=1)
    ones = F.ones_like(F.reshape(channel, (1, -1)))  # (1, H * W)
    return F.reshape_like(F.dot(F.reshape(weights, (-1, 1)), ones), like)
