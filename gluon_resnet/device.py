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

_NAME = re.compile(r"(cpu|gpu|cuda)(?:\((\d{1,3})\)|:(\d{1,3}))?")


def device(name: Device) -> mx.Context:
    """Return the device that "cpu", "gpu" or "gpu(1)" names; None is the CPU.

    "cuda:1" is what PyTorch calls gpu(1). What is MXNet's own already is returned as it
    is. Raises InputError for another name and for a GPU that is not there.
    """
    import mxnet as mx

    if name is None:
        return mx.cpu()
    found = name if isinstance(name, mx.Context) else mx.Context(*_parsed(name))
    if found.device_type == "gpu" and found.device_id >= mx.context.num_gpus():
        raise InputError(
            f"{found} is not there: MXNet sees {mx.context.num_gpus()} GPUs; use cpu, "
            "or install requirements-cu112.txt on a machine with one"
        )
    return found


def device_name(name: str) -> str:
    """Return a name that `device` understands, for `add_argument(type=device_name)`.

    It is not looked whether the device is there, which takes MXNet. Raises InputError
    for another name.
    """
    _parsed(name)
    return name


def _parsed(name: object) -> tuple[str, int]:
    match: re.Match | None = None
    if isinstance(name, str):
        match = _NAME.fullmatch(name.strip().lower())
    if match is None:
        raise InputError(f"{name!r} is no device; use cpu, gpu(0), gpu(1), ...")
    kind, *index = match.groups(default="")
    return kind.replace("cuda", "gpu"), int("".join(index) or 0)
