# SPDX-License-Identifier: Apache-2.0
"""`save_weights`: a network's parameters into a file that others read."""

from pathlib import Path
from typing import Union

from mxnet.gluon import HybridBlock

from gluon_resnet.errors import InputError
from gluon_resnet.files import replacing
from gluon_resnet.weights import layouts


def save_weights(net: HybridBlock, path: Union[str, Path]) -> Path:
    """Write the parameters of `net` to `path` and return it.

    The suffix chooses the format: `.params` has this package's own names, as
    `net.save_parameters` writes it; `.safetensors` those of torchvision and timm, whose
    networks load it strictly, or where these have no such network our own.
    The folder is made if need be; a file of the name is replaced when the new one is
    complete. Raises InputError for another suffix.
    """
    path = Path(path)
    check_suffix(path)
    with replacing(path) as part:
        _write(net, part)
    return path


def check_suffix(path: Path) -> None:
    """Raise InputError unless `save_weights` can write a file of this name."""
    if path.suffix not in (".params", ".safetensors"):
        raise InputError(
            f"cannot write weights as {path.name}; end the name in .params or "
            ".safetensors"
        )


def _write(net: HybridBlock, path: Path) -> None:
    if path.suffix == ".params":
        net.save_parameters(str(path))
        return
    from safetensors.numpy import save

    parameters = net._collect_params_with_prefix()
    names = list(parameters)
    keys = layouts.torchvision(net.spec, names) or layouts.own(net.spec, names)
    tensors = {
        keys[name]: parameter._reduce().astype("float32").asnumpy()
        for name, parameter in parameters.items()
    }
    # "pt" tells readers that the names are those of PyTorch. Not the library's
    # save_file: it makes files that only their owner may read.
    path.write_bytes(save(tensors, metadata={"format": "pt"}))
