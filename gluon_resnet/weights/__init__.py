# SPDX-License-Identifier: Apache-2.0
"""Weights from files."""

from gluon_resnet.weights.load import LoadReport, load_weights

__all__ = ["LoadReport", "load_weights"]
