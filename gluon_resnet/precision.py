# SPDX-License-Identifier: Apache-2.0
"""The precisions of inference: what they are called, and where each can run."""

from gluon_resnet.errors import InputError

PRECISIONS = ("fp32", "bf16", "int8")
CALIBRATIONS = ("naive", "entropy")
"""The ways to choose the range of an int8 value; `quantize` describes them."""


def check_device(precision: str, device: str) -> None:
    """Raise InputError unless `precision` is one and runs on `device`.

    device: as MXNet writes it, "cpu(0)" or "gpu(1)". What the machine must have is for
    `inference.form.check_precision` to say.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}; use {', '.join(PRECISIONS)}")
    if precision != "fp32" and device.startswith("gpu"):
        raise InputError(
            f"precision {precision} runs on cpu, not on {device}; use cpu or fp32"
        )


def needs_quantizing(model: str) -> str:
    """Say what is missing where int8 is asked for without an int8 file."""
    return (
        f"precision int8 needs a quantized file of {model}; write one with `python -m "
        f"gluon_resnet.quantize --model {model} --rec IMAGES.rec {model}.int8` and "
        "give it as --weights"
    )
