# SPDX-License-Identifier: Apache-2.0
"""Weights: published checkpoints, downloads, and files of any layout into a net."""

from gluon_resnet import lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
