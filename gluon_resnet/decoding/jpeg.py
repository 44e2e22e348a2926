# SPDX-License-Identifier: Apache-2.0
"""JPEG files that Pillow gives up though all their pixels are there.

Those without their end marker (cameras that lose power, downloads of one packet too
few) and arithmetic-coded ones of more than 64 KiB, which libjpeg reads only in one
piece. Markers are those of ITU-T T.81, table B.1.
"""

import random
import re
from io import BytesIO

import numpy as np
from PIL import Image

_START_OF_SCAN, _END = 0xDA, 0xD9
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_ARITHMETIC = {0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
# Not stuffed (0xFF00) and no restart, which stand among a scan's data.
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
_END_MARKER = b"\xff\xd9"


def decode_whole(data: bytes) -> Image.Image:
    """Decode a JPEG file in one piece, and without its end marker if that is missing.

    That all pixels are there shows in two ways. Its scans tell each coefficient of each
    component to the last bit. And whatever stands behind its data, the pixels are the
    same: a decoder that misses bits takes them from there.

    Raises OSError where pixels are missing, and where that cannot be told: of
    arithmetic coding any beginning is a whole image.
    """
    ended, arithmetic, all_scans = _structure(data)
    if ended:
        return _decode(data)
    if arithmetic:
        raise OSError("it is arithmetic-coded and lacks its end marker")
    if not all_scans:
        raise OSError("it ends before its last scan")
    data = data.rstrip(b"\xff")
    image, *others = (_decode(data + ending + _END_MARKER) for ending in _endings())
    pixels = np.asarray(image)
    if any((np.asarray(other) != pixels).any() for other in others):
        raise OSError("it ends before its last pixels")
    return image


def _decode(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data), formats=("JPEG",))
    image.decodermaxblock = len(data)
    image.load()
    return image


def _endings() -> list[bytes]:
    """Return what may stand behind the data: zeros (libjpeg's own), bits, other bits.

    Restart markers are among the bits: where the data ends before one, libjpeg looks
    for no bits but for it. It leaves a part out before a marker that is one or two
    ahead, so that the two begin to count at different ones.
    """
    rng = random.Random(0)
    bits, other_bits = [], []
    for number in range(8):
        part = bytes(rng.randrange(1, 0xFF) for _ in range(64))
        bits += [part, bytes((0xFF, 0xD0 + number))]
        other_bits += [
            bytes(0xFF - byte for byte in part),
            bytes((0xFF, 0xD0 + (number + 4) % 8)),
        ]
    return [b"", b"".join(bits), b"".join(other_bits)]


def _structure(data: bytes) -> tuple[bool, bool, bool]:
    """Whether a file has its end marker, arithmetic coding, and all scans.

    A scan tells the coefficients from one to another of some components, and these up
    to a bit; in a progressive file many scans tell one coefficient.
    """
    ended = arithmetic = progressive = False
    unknown_bits: dict[int, list[int]] = {}
    position = 2
    while match := _MARKER.search(data, position):
        marker = match[1][0]
        if marker == _END:
            ended = True
            break
        start = match.end() + 2
        position = match.end() + int.from_bytes(data[match.end() : start], "big")
        segment = data[start:position]
        if marker in _FRAMES:
            arithmetic, progressive = marker in _ARITHMETIC, marker in _PROGRESSIVE
            unknown_bits = {component: [16] * 64 for component in segment[6::3]}
        elif marker == _START_OF_SCAN and len(segment) >= 6:
            first, last, bits = segment[-3:] if progressive else (0, 63, 0)
            for component in unknown_bits.keys() & segment[1:-3:2]:
                for index in range(first, min(last, 63) + 1):
                    unknown_bits[component][index] = bits & 0xF
    all_scans = not any(map(any, unknown_bits.values()))
    return ended, arithmetic, all_scans
