# SPDX-License-Identifier: Apache-2.0
"""What the symbol beside exported parameters tells of its BN layers.

MXNet exports two files, NAME-symbol.json and NAME-0000.params. The parameters do not
tell the epsilon, nor that a scale is fixed at 1, whatever is stored.
"""

import re
from collections.abc import Mapping, Set
from pathlib import Path
from typing import NamedTuple

import mxnet as mx

from gluon_resnet.errors import InputError
from gluon_resnet.graph import Graph

_EPSILON = 1e-3  # where a symbol does not tell it (src/operator/nn/batch_norm-inl.h)
_NORMS = ("BatchNorm", "BatchNorm_v1", "_contrib_SyncBatchNorm")


class Norms(NamedTuple):
    """What is known of BN layers beside their arrays."""

    epsilons: Mapping[str, float]
    """By the key of the running variance."""
    fixed_gammas: Set[str]
    """Keys of scales that are 1, whatever is stored."""


def norms_of(params: Path) -> Norms:
    """Return what the symbol beside a .params file tells; nothing where there is none.

    Raises InputError where it is no symbol.
    """
    stem = re.fullmatch(r"(.+)-\d{4}\.params", params.name)
    path = params.with_name(f"{stem[1]}-symbol.json") if stem else None
    if path is None or not path.is_file():
        return Norms({}, frozenset())
    try:
        graph = Graph.of(mx.sym.load(str(path)))
    except (mx.MXNetError, ValueError):
        raise InputError(
            f"{path} beside {params.name} is no symbol of MXNet; remove it, or fetch "
            "it again"
        ) from None
    norms = [node for node in graph.nodes if node.op in _NORMS]
    return Norms(
        {n.input(4).name: n.attributes.get("eps", _EPSILON) for n in norms},
        {n.input(1).name for n in norms if n.attributes.get("fix_gamma", True)},
    )
