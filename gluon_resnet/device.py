# SPDX-License-Identifier: Apache-2.0
"""Devices as people name them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Union

from gluon_resnet.errors import InputError

if TYPE_CHECKING:
    import mxnet as mx

Device = Union[str, "mx.Context", None]
"""A name as in `device`, MXNet's own, or None for the CPU."""

_NAME = re.compile(r"(cpu|gpu)(?:\((\d{1,3})\))?")


def device(name: Device) -> mx.Context:
    """Return the device that "cpu", "gpu" or "gpu(1)" names; None is the CPU.

    What is MXNet's own already is returned as it is. Raises InputError for another name
    and for a GPU that is not there.
    """
    import mxnet as mx

    if name is None:
        return mx.cpu()
    if not isinstance(name, mx.Context):
        kind, index = _parsed(name)
        name = mx.Context(kind, index)
    count = mx.context.num_gpus() if name.device_type == "gpu" else 0
    if name.device_type == "gpu" and name.device_id >= count:
        raise InputError(
            f"{name} is not there: MXNet sees {count} GPUs; use cpu, or install "
            "requirements-cu112.txt on a machine with one"
        )
    return name


def device_name(name: str) -> str:
    """Return a name that `device` understands, for `add_argument(type=device_name)`.

    It is not looked whether the device is there, which takes MXNet. Raises InputError
    for another name.
    """
    _parsed(name)
    return name


def _parsed(name: str) -> tuple[str, int]:
    match: re.Match | None = None
    if isinstance(name, str):
        match = _NAME.fullmatch(name.strip().lower())
    if match is None:
        raise InputError(f"{name!r} is no device; use cpu, gpu(0), gpu(1), ...")
    return match[1], int(match[2] or 0)
