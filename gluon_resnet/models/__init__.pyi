# SPDX-License-Identifier: Apache-2.0
from .catalog import CATALOG as CATALOG
from .catalog import ModelSpec as ModelSpec
from .catalog import list_models as list_models
from .catalog import model_spec as model_spec
from .complexity import Complexity as Complexity
from .complexity import complexity as complexity
from .features import extract_feat as extract_feat
from .features import last_map as last_map
from .regularisers import set_drop_block as set_drop_block
