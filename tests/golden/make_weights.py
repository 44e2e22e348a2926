# SPDX-License-Identifier: Apache-2.0
"""Write weights.json: digests of timm's state_dicts, and files that torch wrote.

A digest stands for all keys, shapes and dtypes of a network. The files hold a few small
tensors of each kind, whose values tests/test_weights.py knows, in base64.
In the environment that the docstring of make_timm.py describes:

    python tests/golden/make_weights.py
"""

import base64
import hashlib
import io
import json
from pathlib import Path

import cpu_torchvision  # noqa: F401
import torch
import torchvision
from make_timm import cifar_nets, imagenet_nets


def main() -> None:
    """Write a digest for each of our models, and both forms of a torch file."""
    nets = dict([*imagenet_nets(), *cifar_nets()])
    for name, net in nets.items():
        theirs = name.replace("_v1b", "")
        if theirs in torchvision.models.list_models():
            torchvision_net = torchvision.models.get_model(theirs)
            assert digest(torchvision_net) == digest(net), (
                f"{theirs}: timm's keys differ"
            )
    golden = {
        "state_dicts": {name: digest(net) for name, net in nets.items()},
        "torch_files": {"zip": file_bytes(True), "legacy": file_bytes(False)},
    }
    path = Path(__file__).with_name("weights.json")
    path.write_text(json.dumps(golden, indent=1) + "\n")


def file_bytes(is_zip: bool) -> str:
    """Return in base64 what torch writes in its newer or older form."""
    file = io.BytesIO()
    torch.save(content(), file, _use_new_zipfile_serialization=is_zip)
    return base64.b64encode(file.getvalue()).decode()


def digest(net: torch.nn.Module) -> str:
    """Return the SHA-256 of the sorted lines `key (sides) dtype` of a state_dict."""
    lines = sorted(
        f"{key} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}\n"
        for key, value in net.state_dict().items()
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def content() -> dict:
    """Return 0, 1, ... 11 as (3, 4) in each dtype, strided, sliced and shared."""
    count = torch.arange(12.0).reshape(3, 4)
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    return {
        "state_dict": {
            **net.state_dict(),
            "float32": count,
            "shared": count,
            "transposed": count.t(),
            "sliced": count[1:, ::2],
            "parameter": torch.nn.Parameter(count.clone()),
            "scalar": torch.tensor(7.0),
            **{
                str(dtype).removeprefix("torch."): count.to(dtype)
                for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64)
            },
        },
        "meta": {
            "epoch": 3,
            "CLASSES": ["cat", "dog"],
            "lr": 0.1,
            "shape": count.shape,
        },
    }


if __name__ == "__main__":
    main()
