# SPDX-License-Identifier: Apache-2.0
"""The inference graph of a network: BatchNorm folded into the convolution before it.

In inference a BatchNorm multiplies and shifts each channel by constants, and so may the
convolution's weight and bias do in its place (arXiv:1712.05877, section 3.2).
"""

import json
from collections.abc import Mapping

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

Arrays = dict[str, np.ndarray]


def folded(net: HybridBlock) -> tuple[mx.sym.Symbol, Arrays]:
    """Return the graph of `net` with the BatchNorms after convolutions folded.

    The symbol maps the variable `data`, images (N, C, H, W), to what `net` answers. The
    arrays of its arguments and auxiliary states are float32 copies; `net` itself stays
    as it is. Names are those of `net`'s parameters; a convolution that had no bias gets
    one, NAME_bias beside its NAME_weight.
    """
    graph = json.loads(net(mx.sym.var("data")).tojson())
    nodes = graph["nodes"]
    parameters = net.collect_params()
    ctx = next(iter(parameters.values())).list_ctx()[0]
    changed = {}  # the arrays that differ from the net's

    def value(node: int) -> np.ndarray:
        name = nodes[node]["name"]
        if name in changed:
            return changed[name]
        return parameters[name].data(ctx).asnumpy()

    uses = np.zeros(len(nodes), int)
    for source, *_ in (*graph["heads"], *(i for n in nodes for i in n["inputs"])):
        uses[source] += 1
    replaced = {}
    for index, node in enumerate(nodes):
        node["inputs"] = [[replaced.get(i[0], i[0]), *i[1:]] for i in node["inputs"]]
        source = node["inputs"][0][0] if node["inputs"] else index
        if node["op"] != "BatchNorm":
            continue
        conv = nodes[source]
        if conv["op"] != "Convolution" or uses[source] > 1:
            continue
        _, *norm = (i[0] for i in node["inputs"])
        factor, shift = factor_and_shift(node["attrs"], *map(value, norm))
        weight = conv["inputs"][1][0]
        changed[nodes[weight]["name"]] = value(weight) * factor[:, None, None, None]
        if conv["attrs"]["no_bias"] == "True":
            # The norm's beta has its shape, and is otherwise no longer needed.
            _, beta, *_ = norm
            conv["attrs"]["no_bias"] = "False"
            conv["inputs"].append([beta, 0, 0])
            nodes[beta]["name"] = nodes[weight]["name"].replace("_weight", "_bias")
        else:
            shift += value(conv["inputs"][2][0]) * factor
        changed[nodes[conv["inputs"][2][0]]["name"]] = shift
        replaced[index] = source
    graph["heads"] = [[replaced.get(h[0], h[0]), *h[1:]] for h in graph["heads"]]
    symbol = mx.sym.load_json(json.dumps(graph))
    names = set(symbol.list_inputs()) - {"data"}
    unchanged = {n: parameters[n].data(ctx).asnumpy() for n in names - set(changed)}
    return symbol, unchanged | changed


def factor_and_shift(
    attrs: Mapping[str, str],
    gamma: np.ndarray,
    beta: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return what a BatchNorm of inference multiplies each channel by, and adds."""
    factor = 1 / np.sqrt(variance + float(attrs["eps"]))
    if attrs["fix_gamma"] != "True":
        factor *= gamma
    return factor, beta - mean * factor
