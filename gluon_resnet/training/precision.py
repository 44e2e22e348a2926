# SPDX-License-Identifier: Apache-2.0
"""What a device computes in where a recipe says "mixed"."""

from collections.abc import Sequence

import mxnet as mx
from mxnet.contrib.amp.amp import bfloat16

from gluon_resnet import _before_mxnet
from gluon_resnet.cpu import cpu_flags
from gluon_resnet.errors import InputError

# Instructions that multiply bf16. AVX-512 alone converts to fp32 first, which is slow.
_FAST_BF16 = {"avx512_bf16", "amx_bf16"}


def resolved(precision: str, contexts: Sequence[mx.Context]) -> str:
    """Return "fp32", "bf16" or "fp16" for what a recipe asks for.

    "mixed" is fp16 on GPUs, bf16 on a CPU with instructions for it, else fp32. Raises
    InputError where a device cannot compute in the precision that is asked for by name.
    """
    kinds = {context.device_type for context in contexts}
    if precision == "mixed":
        if kinds == {"gpu"}:
            return "fp16"
        fast = kinds == {"cpu"} and _FAST_BF16 & cpu_flags() and _computes_bf16()
        return "bf16" if fast else "fp32"
    wanted = {"bf16": "cpu", "fp16": "gpu"}.get(precision)
    for context in contexts:
        if wanted and context.device_type != wanted:
            raise InputError(
                f"precision {precision} trains on a {wanted.upper()}, and {context} is "
                "none: choose mixed, which is what a device has, or fp32"
            )
    if precision == "bf16" and not _computes_bf16():
        raise InputError(
            "precision is bf16 and this processor has no AVX-512: choose fp32"
        )
    return precision


def reason(asked: str, precision: str) -> str:
    """Say in a few words how a resolved precision is computed, and why it was taken."""
    if precision == "bf16":
        return f"bf16 by MXNet's oneDNN 2.4; {_before_mxnet.AMX}"
    if precision == "fp16":
        return "fp16 with loss scaling"
    if asked == "mixed":
        return f"fp32: the processor has no {' or '.join(sorted(_FAST_BF16))}"
    return "fp32"


def _computes_bf16() -> bool:
    try:
        ones = mx.nd.amp_cast(mx.nd.ones((1, 16, 1, 1)), dtype=bfloat16)
        mx.nd.Convolution(
            ones, ones, kernel=(1, 1), num_filter=1, no_bias=True
        ).wait_to_read()
    except mx.MXNetError:
        return False
    return True
