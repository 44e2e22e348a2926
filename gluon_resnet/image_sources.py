# SPDX-License-Identifier: Apache-2.0
"""What people name when they mean images: files, folders, patterns, URLs, arrays."""

from __future__ import annotations

import glob
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from gluon_resnet.errors import InputError
from gluon_resnet.image_files import image_files
from gluon_resnet.preprocess import IMAGE_SUFFIXES, ImageSource
from gluon_resnet.weights.download import TIMEOUT, is_offline

MAX_BYTES = 1 << 28
"""Of one image from a URL or from standard input."""
MAX_SECONDS = 60.0
"""For one image from a URL."""

TAKEN = (
    "image files, folders of them, quoted patterns such as 'photos/**/*.jpg', http(s) "
    "URLs, and - for one image on standard input"
)


class NamedImage(NamedTuple):
    """An image that has not been read yet."""

    name: str
    """The path or URL as it was given; `image N` for what has no name."""
    load: Callable[[str], Any]
    """Gives for the name what `preprocess` takes. Raises InputError."""


def named_images(images: ImageSource | Iterable[ImageSource]) -> list[NamedImage]:
    """Return every image that is meant by `images`, one thing or many, in order.

    A folder stands for the image files below it (`image_files`), a text with `*`, `?`
    or `[` that is no file for the files that match it as a shell pattern, `**` for
    folders at any depth; http:// and https:// for what a server answers; `-` for
    standard input. Whatever else `preprocess` takes is one image.
    What stands for no image is one that cannot be opened.
    """
    found: list[NamedImage] = []
    for image in [images] if _is_one(images) else images:  # type: ignore[union-attr]
        if isinstance(image, NamedImage):
            found.append(image)
        elif isinstance(image, (str, os.PathLike)):
            found += _named(os.fspath(image))
        else:
            found.append(NamedImage(f"image {len(found)}", _giving(image)))
    return found


def _is_one(images: object) -> bool:
    """Tell an image from an iterable of images."""
    is_named = isinstance(images, (str, bytes, bytearray, os.PathLike, NamedImage))
    # A picture of Pillow's, or a file.
    is_other = hasattr(images, "convert") or hasattr(images, "read")
    return is_named or is_other or getattr(images, "ndim", 4) < 4


def _giving(image: object) -> Callable[[str], Any]:
    return lambda name: image


def _named(name: str) -> Iterator[NamedImage]:
    if name == "-":
        yield NamedImage(name, _read_standard_input)
    elif name.lower().startswith(("http://", "https://")):
        yield NamedImage(name, _download)
    elif os.path.isdir(name):  # noqa: PTH112 (no Path: it would change the name)
        yield from _in_folder(name)
    elif glob.has_magic(name) and not os.path.lexists(name):
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 (the same)
        yield from [one for match in matches for one in _named(match)] or [
            NamedImage(name, _refuse_pattern)
        ]
    else:
        yield NamedImage(name, Path)


def _in_folder(name: str) -> Iterator[NamedImage]:
    path = None
    try:
        for path in image_files(Path(name)):
            yield NamedImage(str(path), Path)
    except InputError as error:
        yield NamedImage(name, _refusing(str(error)))
    else:
        if path is None:
            yield NamedImage(name, _refuse_folder)


def _refuse_folder(name: str) -> NoReturn:
    raise InputError(
        f"{name}: a folder without images; give one that holds files ending in "
        f"{', '.join(IMAGE_SUFFIXES)}"
    )


def _refuse_pattern(name: str) -> NoReturn:
    raise InputError(f"{name}: no file matches; give {TAKEN}")


def _refusing(message: str) -> Callable[[str], NoReturn]:
    def refuse(name: str) -> NoReturn:
        raise InputError(message)

    return refuse


def _read_standard_input(name: str) -> bytes:
    content = sys.stdin.buffer.read(MAX_BYTES + 1)
    if not content:
        raise InputError("-: standard input is empty; pipe one image into it")
    if len(content) > MAX_BYTES:
        raise InputError(f"-: more than {MAX_BYTES >> 20} MiB; give one image")
    return content


def _download(url: str) -> bytes:
    import requests

    if is_offline():
        raise InputError(
            f"{url}: GLUON_RESNET_OFFLINE forbids to download it; unset that, or give "
            "a file"
        )
    try:
        with requests.get(url, stream=True, timeout=TIMEOUT) as response:
            if not response.ok:
                raise InputError(
                    f"{url}: HTTP {response.status_code} {response.reason}; give the "
                    "URL of an image"
                )
            return _received(url, response)
    except requests.Timeout:
        raise InputError(
            f"{url}: no answer in time; try again or give a file"
        ) from None
    except requests.RequestException as error:
        raise InputError(f"{url}: {_root(error)}; give the URL of an image") from None


def _received(url: str, response: Any) -> bytes:
    """Read the body within the limits of size and time."""
    deadline = time.monotonic() + MAX_SECONDS
    content = bytearray()
    for piece in response.iter_content(1 << 16):
        content += piece
        if len(content) > MAX_BYTES:
            raise InputError(f"{url}: more than {MAX_BYTES >> 20} MiB; give an image")
        if time.monotonic() > deadline:
            raise InputError(f"{url}: takes more than {MAX_SECONDS:g} s; give a file")
    return bytes(content)


def _root(error: BaseException) -> str:
    """Return what the system said first, without the names of the layers above it."""
    while error.__context__ is not None:
        error = error.__context__
    return getattr(error, "strerror", None) or str(error)
