# SPDX-License-Identifier: Apache-2.0
"""What "mixed" is on each device."""

import mxnet as mx
import pytest

from gluon_resnet import _before_mxnet
from gluon_resnet.errors import InputError
from gluon_resnet.training import precision as module
from gluon_resnet.training.precision import reason, resolved

CPU, GPU = [mx.cpu(0), mx.cpu(1)], [mx.gpu(0), mx.gpu(1)]


@pytest.mark.parametrize(
    ("contexts", "flags", "computes", "expected"),
    [
        (GPU, set(), False, "fp16"),
        (CPU, {"avx512_bf16"}, True, "bf16"),
        (CPU, {"amx_bf16"}, True, "bf16"),
        (CPU, {"avx512bw"}, True, "fp32"),  # computes it, but slowly
        (CPU, {"avx512_bf16"}, False, "fp32"),  # as with DNNL_MAX_CPU_ISA=AVX2
        (CPU, set(), False, "fp32"),
    ],
)
def test_mixed_is_what_the_device_has(monkeypatch, contexts, flags, computes, expected):
    monkeypatch.setattr(module, "cpu_flags", lambda: flags)
    monkeypatch.setattr(module, "_computes_bf16", lambda: computes)
    assert resolved("mixed", contexts) == expected


@pytest.mark.parametrize(
    ("precision", "contexts", "message"),
    [
        (
            "fp16",
            CPU,
            "precision fp16 trains on a GPU, and cpu(0) is none: choose mixed, ",
        ),
        (
            "bf16",
            GPU,
            "precision bf16 trains on a CPU, and gpu(0) is none: choose mixed, ",
        ),
        ("bf16", CPU, "precision is bf16 and this processor has no AVX-512: choose "),
    ],
)
def test_precision_by_name_is_never_replaced(monkeypatch, precision, contexts, message):
    monkeypatch.setattr(module, "_computes_bf16", lambda: False)
    with pytest.raises(InputError) as error:
        resolved(precision, contexts)
    assert str(error.value).startswith(message)


def test_fp32_is_fp32_everywhere():
    assert resolved("fp32", CPU) == resolved("fp32", GPU) == "fp32"


def test_what_was_chosen_is_told_with_its_reason():
    assert reason("mixed", "bf16") == f"bf16 by MXNet's oneDNN 2.4; {_before_mxnet.AMX}"
    assert reason("mixed", "fp16") == "fp16 with loss scaling"
    assert reason("mixed", "fp32") == (
        "fp32: the processor has no amx_bf16 or avx512_bf16"
    )
    assert reason("fp32", "fp32") == "fp32"
