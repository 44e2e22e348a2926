# SPDX-License-Identifier: Apache-2.0
"""Stochastic depth and DropBlock: layers that do nothing outside training.

Both decide with an operator that knows the mode of the graph, not with
`autograd.is_training()`: a hybridized block is traced once, and what Python decides
while it is traced stays decided in both modes.
"""

from types import ModuleType

import mxnet as mx
from mxnet.gluon import Block, HybridBlock, nn

from gluon_resnet.errors import InputError
from gluon_resnet.models.layers import Tensor

IDENTITY = "__identity_in_inference__"
"""Marks the operator of a graph that gives its first input outside training."""


def stochastic_depth(probability: float) -> nn.Dropout:
    """Drop whole samples of a residual branch, scale the kept ones by 1 / keep.

    Huang et al., "Deep Networks with Stochastic Depth", arXiv:1603.09382.
    """
    return nn.Dropout(probability, axes=(1, 2, 3))


class DropBlock(HybridBlock):
    """Zero 3x3 squares of (N, C, H, W) maps and rescale what is left.

    As the Gluon ResNeSt was trained: one mask of shape (1, C, H, W) shared by the
    batch, seeds at the rate p * HW / (9 (H - 2) (W - 2)), rescaled by size / kept.
    Ghiasi et al., "DropBlock", arXiv:1810.12890; gluon-cv `nn/dropblock.py`.
    """

    BLOCK = 3

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def hybrid_forward(self, F: ModuleType, x: Tensor) -> Tensor:
        """Return x with squares dropped in training, x itself otherwise."""
        one = F.slice_axis(x, axis=0, begin=0, end=1)  # (1, C, H, W)
        shape = F.cast(F.shape_array(one), "float32")
        height, width = (
            F.slice_axis(shape, axis=0, begin=i, end=i + 1) for i in (2, 3)
        )
        margin = self.BLOCK - 1
        rate = (self.probability / self.BLOCK**2) * (height * width)
        rate = F.reshape(rate / ((height - margin) * (width - margin)), (1, 1, 1, 1))
        seeds = F.broadcast_lesser(F.random.uniform_like(one), rate)
        # Dropout turns a 1 into 0 or 2 in training and leaves it in inference.
        training = F.Dropout(F.ones((1, 1, 1, 1)), p=0.5) != 1
        seeds = F.broadcast_mul(seeds, training)
        size, pad = (self.BLOCK, self.BLOCK), (self.BLOCK // 2, self.BLOCK // 2)
        kept = 1 - F.Pooling(seeds, kernel=size, pad=pad, pool_type="max")
        scale = F.broadcast_div(kept, F.mean(kept, axis=(1, 2, 3), keepdims=True))
        with mx.AttrScope(**{IDENTITY: "True"}):
            return F.broadcast_mul(x, scale)


def set_drop_block(net: HybridBlock, probability: float) -> None:
    """Change the probability of every DropBlock in `net`, hybridized or not.

    A training raises it from epoch to epoch: `training.recipe.drop_block_at`.
    Raises InputError where the probability is outside [0, 1).
    """
    if not 0 <= probability < 1:
        raise InputError(
            f"DropBlock probability is {probability}; it must be in [0, 1)"
        )

    def update(block: Block) -> None:
        if isinstance(block, DropBlock):
            block.probability = probability
        if isinstance(block, HybridBlock):
            block._clear_cached_op()  # the probability is a constant of the graph

    net.apply(update)
