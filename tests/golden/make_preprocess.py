# SPDX-License-Identifier: Apache-2.0
"""Write preprocess.json: pixels as timm and torchvision prepare them.

Run in an environment with timm, torch and torchvision, from the repository's root:

    python tests/golden/make_preprocess.py PHOTO

PHOTO is Matplotlib's sample grace_hopper.jpg (mpl-data/sample_data in its package).
"""

import hashlib
import json
import sys
from pathlib import Path

import cpu_torchvision  # noqa: F401
import numpy as np
import PIL
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import functional

# Parts of the 600 x 512 photo: top, left, height, width.
WHOLE = (0, 0, 600, 512)
LANDSCAPE = (100, 6, 375, 500)
PORTRAIT = (0, 70, 500, 375)
ODD = (3, 1, 331, 299)
SMALL = (200, 240, 40, 61)
PIXEL = (300, 256, 1, 1)
STRIP = (300, 0, 6, 512)
COLUMN = (0, 256, 600, 5)
CIFAR = (180, 240, 32, 32)

CASES = [
    (parts, {"size": size, "crop_pct": crop_pct, "interpolation": interpolation})
    for size, crop_pct, interpolation, parts in [
        (224, 0.875, "bilinear", (WHOLE, LANDSCAPE, PORTRAIT, ODD, PIXEL, STRIP)),
        (224, 0.875, "bicubic", (WHOLE, LANDSCAPE, PORTRAIT, ODD, COLUMN)),
        (224, 0.95, "bicubic", (WHOLE, LANDSCAPE, PORTRAIT)),
        (224, 0.965, "bilinear", (WHOLE, LANDSCAPE, PORTRAIT)),
        (288, 1.0, "bicubic", (WHOLE, LANDSCAPE, SMALL)),
        (256, 0.875, "bilinear", (WHOLE, LANDSCAPE, PORTRAIT)),
        (320, 0.909, "bicubic", (WHOLE, LANDSCAPE, ODD)),
        (416, 0.928, "bicubic", (WHOLE, PORTRAIT, SMALL)),
    ]
]
CASES += [
    ((WHOLE, LANDSCAPE), {"size": 448, "crop_pct": 448 / 600, "resize": "warp"}),
    ((WHOLE, PIXEL, STRIP), {"size": 224, "resize": "warp"}),
    (
        (CIFAR,),
        {
            "size": 32,
            "crop_pct": 1.0,
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2023, 0.1994, 0.2010),
        },
    ),
]
TEN_CROPS = [(WHOLE, {"size": 224}), (ODD, {"size": 63, "crop_pct": 0.7})]


def fingerprint(values):
    """Return the SHA-256 of float32 values, and 16 of them for whom it tells little."""
    values = np.ascontiguousarray(values, dtype="<f4")
    return {
        "shape": list(values.shape),
        "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
        "samples": values.ravel()[:: values.size // 16][:16].tolist(),
    }


def transform(fields):
    """Build timm's evaluation transform for the fields of a Protocol."""
    fields = {"crop_pct": 0.875, "interpolation": "bilinear", **fields}
    crop_mode = "squash" if fields.pop("resize", "short") == "warp" else "center"
    size = fields.pop("size")
    return create_transform((3, size, size), crop_mode=crop_mode, **fields)


def main(photo_path):
    """Write preprocess.json beside this script."""
    photo = np.asarray(Image.open(photo_path))
    rows = []
    for part, fields, ten in [
        *((part, fields, False) for parts, fields in CASES for part in parts),
        *((part, fields, True) for part, fields in TEN_CROPS),
    ]:
        top, left, height, width = part
        image = Image.fromarray(photo[top : top + height, left : left + width])
        resize, crop, *to_tensor = transform(fields).transforms
        image = resize(image)
        crops = functional.ten_crop(image, crop.size) if ten else [crop(image)]
        for step in to_tensor:
            crops = [step(crop) for crop in crops]
        values = torch.stack(crops) if ten else crops[0]
        rows.append(
            {
                "call": "ten_crop" if ten else "preprocess",
                "part": part,
                "fields": fields,
                **fingerprint(values.numpy()),
            }
        )
    versions = {
        module.__name__: module.__version__
        for module in (PIL, timm, torch, torchvision)
    }
    rows = ",\n".join(json.dumps(row) for row in rows)
    Path(__file__).with_name("preprocess.json").write_text(
        f'{{"versions": {json.dumps(versions)}, "cases": [\n{rows}\n]}}\n'
    )


if __name__ == "__main__":
    main(sys.argv[1])
