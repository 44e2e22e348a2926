# SPDX-License-Identifier: Apache-2.0
"""ResNet v1, v1b/c/d/s, v2, Wide ResNet and ResNeSt in Apache MXNet Gluon."""

from gluon_resnet import interrupt

interrupt.guard_start()

from gluon_resnet import _before_mxnet, lazy  # noqa: E402, F401  (before mxnet)

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
