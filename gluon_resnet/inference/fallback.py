# SPDX-License-Identifier: Apache-2.0
"""The form of a network where oneDNN's kernels do not run it: by MXNet's operators."""

import threading
from typing import Union

import mxnet as mx
from mxnet import autograd
from mxnet.gluon import SymbolBlock

from gluon_resnet.errors import InputError
from gluon_resnet.graph import Graph
from gluon_resnet.inference.fold import Arrays
from gluon_resnet.models.traced import IMAGES


class MXNetForm:
    """A function from images to logits, or to maps, by MXNet's operators, hybridized.

    Several threads may call it; one at a time computes.
    """

    def __init__(self, graph: Graph, arrays: Arrays, ctx: mx.Context):
        """graph, arrays: of `folded` or `inference_graph`, copied to `ctx`."""
        self._net = SymbolBlock(graph.symbol(), mx.sym.var(IMAGES, dtype="float32"))
        parameters = self._net.collect_params()
        parameters.setattr("grad_req", "null")
        values = {name: mx.nd.array(array) for name, array in arrays.items()}
        parameters.load_dict(values, ctx=ctx)
        self._ctx = ctx
        self._net.hybridize(static_alloc=True, static_shape=True)
        self._lock = threading.Lock()

    def __call__(
        self, images: mx.nd.NDArray
    ) -> Union[mx.nd.NDArray, list[mx.nd.NDArray]]:
        """Return what the network gives for images (N, C, H, W), in float32.

        Raises InputError for images of a shape that the network does not take, and for
        those on another device.
        """
        ctx = images.context
        if ctx != self._ctx:
            raise InputError(f"images on {ctx}; give images on {self._ctx}")
        if not len(images):  # which MXNet takes for an unknown number
            one = self(mx.nd.zeros((1, *images.shape[1:]), ctx=ctx))
            several = one if isinstance(one, list) else [one]
            none = [mx.nd.empty((0, *each.shape[1:]), ctx=ctx) for each in several]
            return none if isinstance(one, list) else none[0]
        with self._lock, autograd.pause():
            try:
                return self._net(images.astype("float32", copy=False))
            except mx.MXNetError as error:
                raise InputError(
                    f"images of shape {images.shape} do not fit this network; give "
                    "(N, C, H, W) with its number of channels and some pixels more"
                ) from error
