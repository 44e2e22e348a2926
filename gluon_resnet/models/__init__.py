# SPDX-License-Identifier: Apache-2.0
"""All networks: `list_models` names them, `models.resnet` builds one."""

from gluon_resnet.models.catalog import CATALOG, ModelSpec, list_models, model_spec
from gluon_resnet.models.complexity import Complexity, complexity
from gluon_resnet.models.features import extract_feat, last_map
from gluon_resnet.models.regularisers import set_drop_block

__all__ = [
    "CATALOG",
    "Complexity",
    "ModelSpec",
    "complexity",
    "extract_feat",
    "last_map",
    "list_models",
    "model_spec",
    "set_drop_block",
]
