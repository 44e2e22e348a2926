# SPDX-License-Identifier: Apache-2.0
"""Write augment.json: what timm's augmentation does to a part of a photo.

Run in an environment with timm, torch, torchvision and resnest 0.0.5 (`pip install
--no-deps resnest`), from the repository's root:

    python tests/golden/make_augment.py PHOTO

PHOTO is Matplotlib's sample grace_hopper.jpg (mpl-data/sample_data in its package).
"""

import json
import random
import sys
from pathlib import Path
from unittest.mock import patch

import cpu_torchvision  # noqa: F401
import numpy as np
import PIL
import timm
import torch
import torchvision
from make_preprocess import fingerprint
from PIL import Image
from resnest.transforms import ERandomCrop
from timm.data import auto_augment, mixup
from timm.data.distributed_sampler import RepeatAugSampler
from torchvision.transforms import functional

# Of the 600 x 512 photo: top, left, height, width.
PART = (180, 200, 120, 90)
FILL = (124, 116, 104)
LEVELS = (3, 9)
# timm's name -> ours, for RandAugment's increasing set and for AutoAugment.
RAND_NAMES = {
    name: name.replace("Increasing", "").replace("Rel", "")
    for name in auto_augment._RAND_INCREASING_TRANSFORMS
}
AUTO_NAMES = {name: name for name in ("Color", "Contrast", "Brightness", "Sharpness")}
# The paper's policy, with the reading of Posterize that ResNeSt has, too.
POLICY = auto_augment.auto_augment_policy_originalr({})
BOXES = [(0, 0, 120, 90), (10, 20, 33, 44), (100, 5, 17, 81)]
# Height, width and the draws of a first aspect and height, where they are given: the
# whole image, too small a box (then drawn ones), and an image that no box fits.
EFFICIENTNET = [
    *((height, width, ()) for height, width in ((375, 500), (500, 375), (97, 64))),
    (90, 90, (1, 90)),
    (90, 90, (1, 28)),
    (200, 10, ()),
]
SHARES = [(12, 10, 0.3, 5, 5), (12, 10, 0.3, 0, 9), (7, 9, 0.05, 3, 8), (7, 9, 1, 0, 0)]


def operation(image, timm_name, level, sign):
    """Do one operation as timm does and return its value and its pixels."""
    with patch("random.random", return_value=0.75 if sign < 0 else 0.25):
        to_value = auto_augment.LEVEL_TO_ARG[timm_name]
        values = to_value(level, {}) if to_value else ()
    image = auto_augment.NAME_TO_OP[timm_name](
        image, *values, fillcolor=FILL, resample=Image.Resampling.BICUBIC
    )
    return float(values[0]) if values else 0.0, np.asarray(image)


def operations(image):
    """Return a row for each operation, level and sign."""
    rows = []
    for kind, names in (("rand", RAND_NAMES), ("auto", AUTO_NAMES)):
        for timm_name, name in names.items():
            for level in LEVELS:
                for sign in (1, -1):
                    value, pixels = operation(image, timm_name, level, sign)
                    row = {"kind": kind, "name": name, "level": level, "sign": sign}
                    rows.append({**row, "value": value, **fingerprint(pixels)})
    return rows


def crops(image):
    """Return resized crops, as in a RandomResizedCrop that has drawn its box."""
    return [
        {
            "box": box,
            "interpolation": name,
            **fingerprint(functional.resized_crop(image, *box, [24, 24], mode)),
        }
        for box in BOXES
        for name, mode in (
            ("bilinear", functional.InterpolationMode.BILINEAR),
            ("bicubic", functional.InterpolationMode.BICUBIC),
        )
    ]


class BoxOnly:
    """An image that remembers which box was cut out of it."""

    def __init__(self, width, height):
        self.size = width, height

    def crop(self, box):
        left, top, right, bottom = (round(edge) for edge in box)
        self.box = [top, left, bottom - top, right - left]
        return self


def efficientnet_boxes():
    """Return ResNeSt's boxes with the draws that led to them."""
    rows = []
    for height, width, given in EFFICIENTNET:
        rng = random.Random(0)
        draws = {"uniform": [], "integers": []}

        def uniform(low, high, given=given, rng=rng, drawn=draws["uniform"]):
            known = len(drawn) < len(given)
            drawn.append(given[len(drawn)] if known else rng.uniform(low, high))
            return drawn[-1]

        def randint(low, high, rng=rng, drawn=draws["integers"]):
            drawn.append(rng.randint(low, high))
            return drawn[-1]

        image = BoxOnly(width, height)
        crop = ERandomCrop(320)
        crop._fallback.resize_method = lambda image: image
        with patch("random.uniform", uniform), patch("random.randint", randint):
            crop(image)
        rows.append({"size": [height, width], "draws": draws, "box": image.box})
    return rows


def cutmix_boxes():
    """Return timm's box and corrected share of drawn shares and centres."""
    rows = []
    for height, width, share, row, column in SHARES:
        with patch("numpy.random.randint", side_effect=(row, column)):
            box, corrected = mixup.cutmix_bbox_and_lam((1, 1, height, width), share)
        rows.append(
            {
                "size": [height, width],
                "share": share,
                "centre": [row, column],
                "box": [int(edge) for edge in box],
                "corrected": float(corrected),
            }
        )
    return rows


def mixed():
    """Return what timm makes of a small batch with given shares."""
    images = np.arange(3 * 2 * 6 * 5, dtype=np.float32).reshape(3, 2, 6, 5)
    labels = [2, 0, 3]
    rows = []
    for cutmix in (False, True):
        mixer = mixup.Mixup(num_classes=4, label_smoothing=0.1)
        with (
            patch.object(mixer, "_params_per_batch", return_value=(0.6, cutmix)),
            patch("numpy.random.randint", side_effect=(1, 3)),
        ):
            batch = torch.tensor(images)
            share = mixer._mix_batch(batch)
        targets = mixup.mixup_target(torch.tensor(labels), 4, share, 0.1)
        rows.append(
            {
                "cutmix": cutmix,
                "share": 0.6,
                "centre": [1, 3],
                "images": batch.tolist(),
                "targets": targets.tolist(),
            }
        )
    return rows


def repeated():
    """Return the order of the repeated-augmentation sampler, without its shuffling."""
    rows = []
    for count, world in ((10, 1), (10, 2), (12, 4)):
        samplers = (
            RepeatAugSampler(range(count), world, rank, shuffle=False, selected_round=0)
            for rank in range(world)
        )
        rows.append({"count": count, "orders": [list(sampler) for sampler in samplers]})
    return rows


def main(photo_path):
    """Write augment.json beside this script."""
    top, left, height, width = PART
    photo = Image.open(photo_path).crop((left, top, left + width, top + height))
    modules = (PIL, timm, torch, torchvision)
    content = {
        "versions": {module.__name__: module.__version__ for module in modules},
        "part": PART,
        "fill": FILL,
        "policy": [[[op.name, op.prob, op.magnitude] for op in ops] for ops in POLICY],
        "operations": operations(photo),
        "crops": crops(photo),
        "efficientnet_boxes": efficientnet_boxes(),
        "cutmix_boxes": cutmix_boxes(),
        "mixed": mixed(),
        "repeated": repeated(),
    }
    parts = []
    for name, value in content.items():
        if isinstance(value, list) and isinstance(value[0], dict):
            text = "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"
        else:
            text = json.dumps(value)
        parts.append(f"{json.dumps(name)}: {text}")
    golden = Path(__file__).with_name("augment.json")
    golden.write_text("{" + ",\n".join(parts) + "}\n")


if __name__ == "__main__":
    main(sys.argv[1])
