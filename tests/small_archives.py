# SPDX-License-Identifier: Apache-2.0
"""Archives and images for the tests of imagenet_prep."""

import io
import tarfile

import cv2
import numpy as np


def tar(members, mode="w"):
    """A tar archive of (name or TarInfo, content) pairs."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for member, content in members:
            if isinstance(member, str):
                member = tarfile.TarInfo(member)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def tgz(members):
    """The same, compressed."""
    return tar(members, "w:gz")


def jpeg(seed, height=24, width=32):
    """A JPEG file of its own for each seed, of eight sizes."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = cv2.resize(noise, (width, height + seed % 8))
    return cv2.imencode(".jpg", image)[1].tobytes()


def member(name, **fields):
    """A member of any kind, with an image in it if it is a file."""
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, b"" if fields else jpeg(1)


EVIL_MEMBERS = [
    (member("../evil.jpg"), "leads out of its folder"),
    (member("a/../../evil.jpg"), "leads out of its folder"),
    (member("/tmp/evil.jpg"), "leads out of its folder"),
    (member("evil.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "neither"),
    (member("evil.jpg", type=tarfile.LNKTYPE, linkname="../x"), "neither"),
    (member("evil.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=3), "neither"),
    (member("evil.jpg", type=tarfile.BLKTYPE), "neither"),
    (member("evil.jpg", type=tarfile.FIFOTYPE), "neither"),
    (member("evil.jpg", type=tarfile.CONTTYPE), "neither"),
    (member("evil.jpg", type=tarfile.GNUTYPE_SPARSE), "neither|damaged"),
]
