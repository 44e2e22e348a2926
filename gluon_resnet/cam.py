# SPDX-License-Identifier: Apache-2.0
"""Class activation maps: where in the image the evidence for a class lies.

Zhou et al., "Learning Deep Features for Discriminative Localization",
arXiv:1512.04150: exact for nets that end in pooling and one linear layer, as all here.
"""

import hashlib
import os
from pathlib import Path

import cv2
import numpy as np

from gluon_resnet.files import replacing
from gluon_resnet.preprocess import Protocol, pixels_of

_LONGEST_NAME = 100  # bytes; some file systems take no more than 143


def class_activation(maps: np.ndarray, class_weights: np.ndarray) -> np.ndarray:
    """Return the class's evidence at each place, (H, W).

    maps: (C, H, W), what the pooling sees. class_weights: (C,), the class's row of the
    classifier. The mean over places plus the class's bias is its logit.
    """
    return np.tensordot(class_weights, maps, axes=1)


def overlay_path(folder: Path, image: str) -> Path:
    """Return where in `folder` the picture for an image belongs, given its path or URL.

    The image's own name, as far as it is not too long, and digits of a SHA-256 of its
    whole path: no two images share a picture, and an image gets the same one each time.
    """
    name = Path(image).stem.lstrip(".-") or "image"
    short = os.fsencode(name)[:_LONGEST_NAME].decode(errors="ignore")
    digest = hashlib.sha256(os.fsencode(os.path.abspath(image)))  # noqa: PTH100 (bytes)
    return folder / f"{short}-{digest.hexdigest()[:12]}.png"


def save_overlay(
    path: Path, image: np.ndarray, activation: np.ndarray, protocol: Protocol
) -> None:
    """Write a PNG of the prepared image under its evidence, from blue to red.

    image: float32 (3, H, W) as `preprocess` gives it by `protocol`.
    activation: (h, w), scaled to its own range; negative evidence counts as none.
    Raises InputError where `path` cannot be written.
    """
    pixels = pixels_of(image, protocol)
    heat = np.maximum(activation, 0).astype(np.float32)
    heat = cv2.resize(heat / max(heat.max(), 1e-12), image.shape[:0:-1])
    colours = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_JET)
    blended = 0.5 * pixels[..., ::-1] + 0.5 * colours  # OpenCV writes BGR
    with replacing(path) as part:
        part.write_bytes(cv2.imencode(".png", blended)[1].tobytes())
