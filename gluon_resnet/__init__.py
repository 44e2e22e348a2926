# SPDX-License-Identifier: Apache-2.0
"""ResNet v1, v1b/c/d/s, v2, Wide ResNet and ResNeSt in Apache MXNet Gluon."""

import importlib

from gluon_resnet import _before_mxnet  # noqa: F401  (must come before mxnet)

# Now, not on first use: each function has the name of its module, and importing the
# module later would put it in the function's place.
from gluon_resnet.postprocess import load_class_names, postprocess
from gluon_resnet.preprocess import (
    Protocol,
    preprocess,
    preprocess_batch,
    read_image,
    ten_crop,
)

__version__ = "0.1.0"

# Loaded on first use: `import mxnet` takes seconds, and a process that only decodes
# images or prints help never needs it.
_LAZY = {
    "classifier": ("Classifier", "inference_model", "init_model"),
    "create": ("create_model",),
    "inference.form": ("inference_form",),
    "models": (
        "complexity",
        "extract_feat",
        "list_models",
        "model_spec",
        "set_drop_block",
    ),
    "weights": ("LoadReport", "list_weights", "load_weights", "save_weights"),
}
_HOMES = {name: module for module, names in _LAZY.items() for name in names}

__all__ = [
    "Protocol",
    "load_class_names",
    "postprocess",
    "preprocess",
    "preprocess_batch",
    "read_image",
    "ten_crop",
    *_HOMES,
]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
