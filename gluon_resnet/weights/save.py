# SPDX-License-Identifier: Apache-2.0
"""`save_weights`: a network's parameters into a file that others read."""

import json
import struct
from pathlib import Path
from typing import Optional, Union

from mxnet.gluon import HybridBlock

from gluon_resnet.errors import InputError
from gluon_resnet.files import replacing
from gluon_resnet.weights import layouts
from gluon_resnet.weights.card import CARD_KEY, Card, card_to_text, write_card


def save_weights(
    net: HybridBlock, path: Union[str, Path], *, card: Optional[Card] = None
) -> Path:
    """Write the parameters of `net` to `path` and return it.

    The suffix chooses the format: `.params` has this package's own names, as
    `net.save_parameters` writes it; `.safetensors` those of torchvision and timm, whose
    networks load it strictly, or where these have no such network our own.
    card: how the weights are used (pixels, class names); it goes beside a `.params`
    file as NAME.json and into a `.safetensors` file. Whoever loads weights without one
    is warned that these are guesses.
    The folder is made if need be; a file of the name is replaced when the new one is
    complete. Raises InputError for another suffix.
    """
    path = Path(path)
    check_suffix(path)
    with replacing(path) as part:
        _write(net, part, card)
        if card is not None and path.suffix == ".params":
            write_card(path, card, written=part)
    return path


def check_suffix(path: Path) -> None:
    """Raise InputError unless `save_weights` can write a file of this name."""
    if path.suffix not in (".params", ".safetensors"):
        raise InputError(
            f"cannot write weights as {path.name}; end the name in .params or "
            ".safetensors"
        )


def _write(net: HybridBlock, path: Path, card: Optional[Card]) -> None:
    if path.suffix == ".params":
        net.save_parameters(str(path))
        return
    from safetensors.numpy import save

    parameters = net._collect_params_with_prefix()
    names = list(parameters)
    keys = layouts.torchvision(net.spec, names) or {name: name for name in names}
    tensors = {
        keys[name]: parameter._reduce().astype("float32").asnumpy()
        for name, parameter in parameters.items()
    }
    # "pt" tells readers that the names are those of PyTorch. Not the library's
    # save_file: it makes files that only their owner may read.
    metadata = {"format": "pt"}
    if card is not None:
        metadata[CARD_KEY] = card_to_text(card)
    path.write_bytes(_in_order(save(tensors, metadata=metadata)))


def _in_order(data: bytes) -> bytes:
    """Sort the texts in a .safetensors file, so that equal weights give equal files.

    The library leaves their order to chance.
    """
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return struct.pack("<Q", len(text)) + text + data[8 + length :]
