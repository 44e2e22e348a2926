# SPDX-License-Identifier: Apache-2.0
"""Devices as people name them."""

import argparse
from typing import Union

import mxnet as mx

from gluon_resnet.errors import InputError


def device(name: str) -> mx.Context:
    """Parse "cpu", "gpu" or "gpu(1)", for `add_argument(type=device)`.

    "cuda:1" is what PyTorch calls gpu(1). Whether the device is there is not looked at.
    """
    mxnets = name.replace("cuda", "gpu").replace(":", "(")
    kind, _, index = mxnets.rstrip(")").partition("(")
    if kind not in ("cpu", "gpu") or not (index or "0").isdigit():
        raise argparse.ArgumentTypeError(
            f"{name!r} is no device; use cpu, gpu(0), gpu(1), ..."
        )
    return mx.Context(kind, int(index or 0))


def context(ctx: Union[str, mx.Context, None]) -> mx.Context:
    """Return the device that was given, the CPU for None.

    Raises InputError for text that names none, and for a GPU that is not there.
    """
    try:
        found = device(ctx) if isinstance(ctx, str) else ctx or mx.cpu()
    except argparse.ArgumentTypeError as error:
        raise InputError(str(error)) from None
    if found.device_type == "gpu" and found.device_id >= mx.context.num_gpus():
        raise InputError(
            f"{found} is not there: MXNet sees {mx.context.num_gpus()} GPUs; use cpu, "
            "or install requirements-cu112.txt on a machine with one"
        )
    return found
