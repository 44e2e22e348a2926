# SPDX-License-Identifier: Apache-2.0
"""All networks: `list_models` names them, `models.resnet` builds one."""

from gluon_resnet import lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
