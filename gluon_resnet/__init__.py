# SPDX-License-Identifier: Apache-2.0
"""ResNet v1, v1b/c/d/s, v2, Wide ResNet and ResNeSt in Apache MXNet Gluon."""

import importlib

from gluon_resnet import _before_mxnet  # noqa: F401  (must come before mxnet)

__version__ = "0.1.0"

# Loaded on first use: `import mxnet` takes seconds, and a process that only decodes
# images or prints help never needs it.
_HOMES = {
    "complexity": "models",
    "create_model": "models",
    "extract_feat": "models",
    "list_models": "models",
    "model_spec": "models",
    "set_drop_block": "models",
    "LoadReport": "weights",
    "load_weights": "weights",
    "Protocol": "preprocess",
    "preprocess": "preprocess",
    "preprocess_batch": "preprocess",
    "read_image": "preprocess",
    "ten_crop": "preprocess",
    "load_class_names": "postprocess",
    "postprocess": "postprocess",
}
__all__ = [*_HOMES]  # noqa: PLE0604


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
