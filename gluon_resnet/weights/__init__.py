# SPDX-License-Identifier: Apache-2.0
"""Weights: published checkpoints, downloads, and files of any layout into a net."""

from gluon_resnet.weights.download import fetch
from gluon_resnet.weights.formats import read_tensors
from gluon_resnet.weights.load import LoadReport, classes_of, load_weights
from gluon_resnet.weights.published import (
    DEFAULT_WEIGHTS,
    Checkpoint,
    checkpoint,
    list_weights,
)
from gluon_resnet.weights.save import save_weights

__all__ = [
    "DEFAULT_WEIGHTS",
    "Checkpoint",
    "LoadReport",
    "checkpoint",
    "classes_of",
    "fetch",
    "list_weights",
    "load_weights",
    "read_tensors",
    "save_weights",
]
