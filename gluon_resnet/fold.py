# SPDX-License-Identifier: Apache-2.0
"""The inference graph of a network: BatchNorm folded into the convolution before it.

In inference a BatchNorm multiplies and shifts each channel by constants, and so may the
convolution's weight and bias do in its place (arXiv:1712.05877, section 3.2).
"""

import json

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

Arrays = dict[str, mx.nd.NDArray]


def folded(net: HybridBlock) -> tuple[mx.sym.Symbol, Arrays, Arrays]:
    """Return the graph of `net` with the BatchNorms after convolutions folded.

    The symbol maps the variable `data`, images (N, C, H, W), to what `net` answers. The
    arguments and auxiliary states are float32 copies in `net`'s first context; `net`
    itself stays as it is. Names are those of `net`'s parameters; a convolution that had
    no bias gets one, NAME_bias beside its NAME_weight.
    """
    graph = json.loads(net(mx.sym.var("data")).tojson())
    nodes = graph["nodes"]
    parameters = net.collect_params()
    ctx = next(iter(parameters.values())).list_ctx()[0]
    changed = {}  # the arrays that differ from the net's

    def value(node: int) -> np.ndarray:
        name = nodes[node]["name"]
        return (
            changed[name] if name in changed else parameters[name].data(ctx).asnumpy()
        )

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
        _, gamma, beta, mean, variance = (i[0] for i in node["inputs"])
        scale = 1 / np.sqrt(value(variance) + float(node["attrs"]["eps"]))
        if node["attrs"]["fix_gamma"] != "True":
            scale *= value(gamma)
        shift = value(beta) - value(mean) * scale
        weight = conv["inputs"][1][0]
        changed[nodes[weight]["name"]] = value(weight) * scale[:, None, None, None]
        if conv["attrs"]["no_bias"] == "True":
            # The norm's beta has its shape, and is otherwise no longer needed.
            conv["attrs"]["no_bias"] = "False"
            conv["inputs"].append([beta, 0, 0])
            nodes[beta]["name"] = nodes[weight]["name"].replace("_weight", "_bias")
        else:
            shift += value(conv["inputs"][2][0]) * scale
        changed[nodes[conv["inputs"][2][0]]["name"]] = shift
        replaced[index] = source
    graph["heads"] = [[replaced.get(h[0], h[0]), *h[1:]] for h in graph["heads"]]
    symbol = mx.sym.load_json(json.dumps(graph))

    def arrays(names: list[str]) -> Arrays:
        return {
            name: mx.nd.array(changed[name], ctx=ctx)
            if name in changed
            else parameters[name].data(ctx).copy()
            for name in names
        }

    arguments = [name for name in symbol.list_arguments() if name != "data"]
    return symbol, arrays(arguments), arrays(symbol.list_auxiliary_states())
