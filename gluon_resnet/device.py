# SPDX-License-Identifier: Apache-2.0
"""Devices as commands name them."""

import argparse

import mxnet as mx


def device(name: str) -> mx.Context:
    """Parse "cpu", "gpu" or "gpu(1)", for `add_argument(type=device)`.

    Whether the device is there is not looked at.
    """
    kind, _, index = name.rstrip(")").partition("(")
    if kind not in ("cpu", "gpu") or not (index or "0").isdigit():
        raise argparse.ArgumentTypeError(
            f"{name!r} is no device; use cpu, gpu(0), gpu(1), ..."
        )
    return mx.Context(kind, int(index or 0))
