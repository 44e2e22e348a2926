# SPDX-License-Identifier: Apache-2.0
"""The fastest form of a network for inference, in fp32 or bf16, on the CPU.

BatchNorms are folded, then oneDNN's operators take ReLU and sum along with each
convolution. (int8 networks are made by `quantize` and come fused from their file.)
"""

import json
import logging
import os
from collections.abc import Callable

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from gluon_resnet import _before_mxnet
from gluon_resnet.errors import InputError
from gluon_resnet.fold import Arrays, folded

log = logging.getLogger(__name__)

Forward = Callable[[mx.nd.NDArray], mx.nd.NDArray]

PRECISIONS = ("fp32", "bf16", "int8")

# How MXNet writes the type, for which NumPy has no name.
BFLOAT16 = np.dtype([("bfloat16", np.uint16)])
_BFLOAT16_NUMBER = "12"

# What computes in bfloat16; everything else stays in float32: attention, whose
# operators MXNet has no fast bfloat16 kernels for, and the classifier, which is cheap.
_BF16_OPERATORS = {
    "BatchNorm",
    "Convolution",
    "Pooling",
    "_contrib_BatchNormWithReLU",
    "elemwise_add",
}


def check_precision(precision: str, ctx: mx.Context) -> None:
    """Raise InputError unless this machine can run `precision` on `ctx`."""
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}; use {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return
    if ctx.device_type != "cpu":
        raise InputError(
            f"precision {precision} runs on cpu, not on {ctx}; use cpu or fp32"
        )
    if precision == "bf16" and not _computes_bf16():
        raise InputError(
            "precision bf16 needs a processor with AVX-512, and oneDNN, which "
            "DNNL_MAX_CPU_ISA and MXNET_MKLDNN_ENABLED restrict; use fp32"
        )


def inference_form(net: HybridBlock, *, precision: str = "fp32") -> Forward:
    """Return a function that maps images to logits as `net` does, only faster.

    It takes and gives float32 on `net`'s first device, images (N, C, H, W) of any N, H
    and W; a call with other sizes than the one before costs a new plan of the memory.
    The values are copies: `net` may be trained on without changing the form.

    precision: "fp32", equal to `net` but for rounding, or "bf16", whose predictions
    agree with fp32's for at least 999 images of 1,000 (tests/test_inference.py).
    On a GPU and where oneDNN is switched off the form is `net` itself, hybridized.
    Raises InputError for a precision that this machine cannot run.
    """
    ctx = next(iter(net.collect_params().values())).list_ctx()[0]
    check_precision(precision, ctx)
    if ctx.device_type != "cpu" or not _has_onednn():
        log.info("%s on %s: plain operators, nothing fused", precision, ctx)
        net.hybridize(static_alloc=True, static_shape=True)
        return net
    log.info("%s on %s: fused oneDNN operators; %s", precision, ctx, _before_mxnet.AMX)
    symbol, arguments, auxiliary = folded(net)
    if precision == "bf16":
        symbol, arguments = _in_bf16(symbol, arguments)
    # Nothing is fused where shapes are unknown; which ones they are does not matter.
    first_weight = next(value for value in arguments.values() if value.ndim == 4)
    shape = (1, first_weight.shape[1], net.spec.size, net.spec.size)
    symbol = symbol.optimize_for(
        "MKLDNN", arguments, auxiliary, ctx, shape_dict={"data": shape}
    )
    arrays = {**arguments, **auxiliary}
    names = symbol.list_inputs()
    data = names.index("data")
    flags = {
        "data_indices": [data],
        "param_indices": [i for i in range(len(names)) if i != data],
        "static_alloc": True,
        "static_shape": True,
    }
    operator = mx.nd.CachedOp(symbol, list(flags.items()))
    before = [arrays[name] for name in names[:data]]
    after = [arrays[name] for name in names[data + 1 :]]
    return lambda images: operator(*before, images, *after)


def _has_onednn() -> bool:
    is_on = os.environ.get("MXNET_MKLDNN_ENABLED", "1") != "0"
    return is_on and mx.runtime.Features().is_enabled("MKLDNN")


def _computes_bf16() -> bool:
    """Try a convolution: what oneDNN may use is more than the processor's to say."""
    if not _has_onednn():
        return False
    if "avx512_bf16" not in _before_mxnet.cpu_flags():
        log.info("bf16: the processor has no avx512_bf16, expect less speed than fp32")
    ones = mx.nd.ones((16, 16, 1, 1)).astype(BFLOAT16)
    try:
        mx.nd.Convolution(
            ones, ones, kernel=(1, 1), num_filter=16, no_bias=True
        ).wait_to_read()
    except mx.MXNetError:
        return False
    return True


def _in_bf16(symbol: mx.sym.Symbol, arguments: Arrays) -> tuple[mx.sym.Symbol, Arrays]:
    """Return the graph with casts where the type changes, and its arguments.

    The first convolution stays in float32: an even background is rounded the same way
    in every pixel, which does not average out. It and the classifier cost most of the
    changed predictions and least of the time.
    """
    graph = json.loads(symbol.tojson())
    nodes = graph["nodes"]
    arguments = dict(arguments)
    types = ["float32"] * len(nodes)
    casts = {}
    is_behind_first = False

    def cast(entry: list, dtype: str) -> list:
        source, output = entry[:2]
        if types[source] == dtype:
            return entry
        key = (source, output)
        if key not in casts:
            casts[key] = len(nodes)
            types.append(dtype)
            nodes.append(
                {
                    "op": "amp_cast",
                    "name": f"{nodes[source]['name']}_cast{output}",
                    "attrs": {"dtype": dtype},
                    "inputs": [entry],
                }
            )
        return [casts[key], 0, 0]

    for index, node in enumerate(list(nodes)):
        if node["op"] == "null":
            continue
        if node["op"] == "Activation":  # fused with what it follows
            types[index] = types[node["inputs"][0][0]]
        elif is_behind_first and node["op"] in _BF16_OPERATORS:
            types[index] = "bfloat16"
        is_behind_first |= node["op"] == "Convolution"
        for i, entry in enumerate(node["inputs"]):
            source = nodes[entry[0]]
            name = source["name"]
            if source["op"] != "null" or name == "data":
                node["inputs"][i] = cast(entry, types[index])
            elif node["op"] == "Convolution" and types[index] == "bfloat16":
                source.setdefault("attrs", {})["__dtype__"] = _BFLOAT16_NUMBER
                arguments[name] = _bfloat16(arguments[name])
    graph["heads"] = [cast(head, "float32") for head in graph["heads"]]
    return mx.sym.load_json(json.dumps(graph)), arguments


def _bfloat16(values: mx.nd.NDArray) -> mx.nd.NDArray:
    """Round to the nearest; MXNet's cast cuts off, which makes all weights smaller."""
    bits = values.asnumpy().view(np.uint32) + np.uint32(0x8000)
    nearest = (bits & np.uint32(0xFFFF0000)).view(np.float32)
    return mx.nd.array(nearest, ctx=values.context).astype(BFLOAT16)
