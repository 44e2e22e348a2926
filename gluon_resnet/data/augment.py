# SPDX-License-Identifier: Apache-2.0
"""Training augmentation, of single images and of batches.

Of single images: functions (image, rng, *, options) -> image on uint8 RGB pixels
(H, W, 3) that draw from a numpy.random.Generator alone and leave their input as it is.
A training takes a sequence of them, the options bound, and does them in this order:

    (partial(random_resized_crop, size=224), random_flip, partial(lighting, std=0.1))

Of batches: `mixup` and `cutmix`, on images (N, C, H, W) and targets (N, classes).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from gluon_resnet.errors import InputError
from gluon_resnet.preprocess import Protocol, resize_image

Rgb = tuple[int, int, int]

# Luma of ITU-R BT.601.
GREY = np.array((0.299, 0.587, 0.114), np.float32)
# Principal components of ImageNet's RGB values, of pixels in [0, 255], each scaled by
# the root of its variance: AlexNet (2012), section 4.1, with MXNet's numbers.
COMPONENTS = np.array(
    (
        (-0.5675, 0.7192, 0.4009),
        (-0.5808, -0.0045, -0.8140),
        (-0.5836, -0.6948, 0.4203),
    ),
    np.float32,
) * np.array((55.46, 4.794, 1.148), np.float32)


def random_resized_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    size: int,
    area: tuple[float, float] = (0.08, 1),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
    library: str = "cv2",
) -> np.ndarray:
    """Cut out a `random_box` and resize it to (size, size, 3).

    interpolation and library are `Protocol`'s: "cv2" as in GluonCV and OpenMMLab,
    "pil" as in timm and torchvision.
    """
    rows, columns = image.shape[:2]
    top, left, height, width = random_box(rows, columns, rng, area=area, ratio=ratio)
    square = Protocol(size, 1, interpolation, "warp", library)
    return resize_image(image[top : top + height, left : left + width], square)


def random_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Draw top, left, height and width within an image (GoogLeNet, arXiv:1409.4842).

    The area is uniform in `area` times the image's, width / height log-uniform in
    `ratio`. After ten boxes that do not fit: as much of the middle as `ratio` allows.
    """
    for _ in range(10):
        pixels = rng.uniform(*area) * height * width
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_height = round(math.sqrt(pixels / aspect))
        box_width = round(math.sqrt(pixels * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top = int(rng.integers(height - box_height + 1))
            left = int(rng.integers(width - box_width + 1))
            return top, left, box_height, box_width
    box_height = max(1, min(height, round(width / ratio[0])))
    box_width = max(1, min(width, round(height * ratio[1])))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def efficientnet_crop(
    image: np.ndarray, rng: np.random.Generator, *, size: int
) -> np.ndarray:
    """Cut out an `efficientnet_box` and resize it to (size, size, 3), bicubic.

    ResNeSt's training at 320 pixels and more (its `ERandomCrop`), on Pillow's pixels.
    """
    rows, columns = image.shape[:2]
    top, left, height, width = efficientnet_box(rows, columns, rng, size=size)
    square = Protocol(size, 1, "bicubic", "warp", "pil")
    return resize_image(image[top : top + height, left : left + width], square)


def efficientnet_box(
    height: int, width: int, rng: np.random.Generator, *, size: int
) -> tuple[int, int, int, int]:
    """Draw top, left, height and width as TensorFlow's sample_distorted_bounding_box.

    width / height is uniform in [3/4, 4/3], then the height uniform among those that
    fit and give at least a tenth of the image. The whole image, or ten boxes that were
    too small, give the middle: size / (size + 32) of the short side.
    """
    smallest = 0.1 * (height * width)
    for _ in range(10):
        aspect = rng.uniform(3 / 4, 4 / 3)
        highest = min(
            height, int(width / aspect), round(math.sqrt(height * width / aspect))
        )
        lowest = min(highest, round(math.sqrt(smallest / aspect)))
        box_height = round(rng.uniform(lowest, highest))
        box_width = round(box_height * aspect)
        if box_height * box_width < smallest:
            continue
        if (box_height, box_width) == (height, width):
            break
        left = int(rng.integers(width - box_width + 1))
        top = int(rng.integers(height - box_height + 1))
        return top, left, box_height, box_width
    side = size / (size + 32) * min(height, width)
    top, left = (round((length - side) / 2) for length in (height, width))
    return top, left, round(top + side) - top, round(left + side) - left


def resize_square(
    image: np.ndarray, rng: np.random.Generator, *, side: int
) -> np.ndarray:
    """Warp to (side, side, 3), bilinear without antialias; draws nothing.

    The ONNX Model Zoo's training notebook and OpenMMLab's CUB-200 recipe begin so.
    """
    return resize_image(image, Protocol(side, 1, resize="warp"))


def random_crop(
    image: np.ndarray, rng: np.random.Generator, *, size: int
) -> np.ndarray:
    """Cut out (size, size, 3) anywhere; InputError where the image is smaller."""
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise InputError(
            f"a crop of {size} pixels does not fit an image of {width} x {height}: "
            "lower train_size"
        )
    top = int(rng.integers(height - size + 1))
    left = int(rng.integers(width - size + 1))
    return image[top : top + size, left : left + size]


def pad_and_crop(
    image: np.ndarray, rng: np.random.Generator, *, pad: int
) -> np.ndarray:
    """Shift by up to `pad` pixels each way; black comes in (ResNet's CIFAR recipe)."""
    height, width = image.shape[:2]
    padded = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_CONSTANT)
    top, left = rng.integers(0, 2 * pad + 1, 2)
    return padded[top : top + height, left : left + width]


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror left to right, one time out of two."""
    return cv2.flip(image, 1) if rng.random() < 0.5 else image


def color_jitter(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
) -> np.ndarray:
    """Adjust all three, in random order, by factors uniform in 1 +- the given ones.

    As MXNet's RandomColorJitter, which drops fractions where this rounds, and whose
    saturation is flawed: it blends with a tenth of the blue channel for grey.
    """
    adjustments = (
        (adjust_brightness, brightness),
        (adjust_contrast, contrast),
        (adjust_saturation, saturation),
    )
    for index in rng.permutation(3):
        adjust, spread = adjustments[index]
        image = adjust(image, rng.uniform(max(0, 1 - spread), 1 + spread))
    return image


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with black; 1 is the image itself."""
    return cv2.addWeighted(image, factor, image, 0, 0)


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the mean grey of the image; 1 is the image itself."""
    mean = float(GREY @ cv2.mean(image)[:3])
    return cv2.addWeighted(image, factor, image, 0, (1 - factor) * mean)


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the grey image; 1 is the image itself."""
    return cv2.transform(image, factor * np.eye(3) + (1 - factor) * GREY)


def lighting(image: np.ndarray, rng: np.random.Generator, *, std: float) -> np.ndarray:
    """Add one colour, normal along the principal `COMPONENTS` (AlexNet)."""
    color = (*(COMPONENTS @ rng.normal(0, std, 3)), 0)
    return cv2.add(image, color)  # type: ignore[call-overload]  # a colour is no array


def random_erasing(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    probability: float,
    fill: Rgb,
    area: tuple[float, float] = (0.02, 1 / 3),
    min_aspect: float = 0.3,
) -> np.ndarray:
    """Fill a rectangle with one colour (arXiv:1708.04896), as timm's mode "const" does.

    Its area is uniform in `area` times the image's, height / width log-uniform from
    min_aspect to its inverse. timm's default fills with the mean: round(255 * mean).
    """
    if rng.random() >= probability:
        return image
    ratio = (min_aspect, 1 / min_aspect)
    rows, columns = image.shape[:2]
    top, left, height, width = random_box(rows, columns, rng, area=area, ratio=ratio)
    erased = image.copy()
    erased[top : top + height, left : left + width] = fill
    return erased


class Warp(NamedTuple):
    """How rotated, sheared and shifted images are filled up and interpolated."""

    fill: Rgb
    resample: Image.Resampling
    rotate_resample: Image.Resampling


# What OpenMMLab's RSB recipes take, and ResNeSt's authors.
RSB_WARP = Warp((124, 116, 104), Image.Resampling.BICUBIC, Image.Resampling.BICUBIC)
RESNEST_WARP = Warp((0, 0, 0), Image.Resampling.BICUBIC, Image.Resampling.NEAREST)


def _affine(image: Image.Image, matrix: tuple[float, ...], warp: Warp) -> Image.Image:
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=warp.resample,
        fillcolor=warp.fill,
    )


def _rotate(image: Image.Image, degrees: float, warp: Warp) -> Image.Image:
    return image.rotate(degrees, resample=warp.rotate_resample, fillcolor=warp.fill)


def _solarize_add(image: Image.Image, added: int) -> Image.Image:
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


# Name -> function of a PIL image, the operation's own value and a Warp.
OPERATIONS: dict[str, Callable[[Image.Image, Any, Warp], Image.Image]] = {
    "AutoContrast": lambda image, _, __: ImageOps.autocontrast(image),
    "Equalize": lambda image, _, __: ImageOps.equalize(image),
    "Invert": lambda image, _, __: ImageOps.invert(image),
    "Rotate": _rotate,
    "Posterize": lambda image, bits, _: ImageOps.posterize(image, bits),
    "Solarize": lambda image, threshold, _: ImageOps.solarize(image, threshold),
    "SolarizeAdd": lambda image, added, _: _solarize_add(image, added),
    "Color": lambda image, value, _: ImageEnhance.Color(image).enhance(value),
    "Contrast": lambda image, value, _: ImageEnhance.Contrast(image).enhance(value),
    "Brightness": lambda image, value, _: ImageEnhance.Brightness(image).enhance(value),
    "Sharpness": lambda image, value, _: ImageEnhance.Sharpness(image).enhance(value),
    "ShearX": lambda image, v, warp: _affine(image, (1, v, 0, 0, 1, 0), warp),
    "ShearY": lambda image, v, warp: _affine(image, (1, 0, 0, v, 1, 0), warp),
    "TranslateX": lambda image, v, warp: _affine(
        image, (1, 0, v * image.width, 0, 1, 0), warp
    ),
    "TranslateY": lambda image, v, warp: _affine(
        image, (1, 0, 0, 0, 1, v * image.height), warp
    ),
}

# Name -> function of a level in [0, 10] and a sign to the operation's value; a higher
# level is a stronger operation (timm's "increasing" set).
RAND_VALUES: dict[str, Callable[[float, int], float]] = {
    "AutoContrast": lambda level, sign: 0,
    "Equalize": lambda level, sign: 0,
    "Invert": lambda level, sign: 0,
    "Rotate": lambda level, sign: sign * (level / 10 * 30),
    "Posterize": lambda level, sign: 4 - int(level / 10 * 4),
    "Solarize": lambda level, sign: 256 - int(level / 10 * 256),
    "SolarizeAdd": lambda level, sign: int(level / 10 * 110),
    **dict.fromkeys(
        ("Color", "Contrast", "Brightness", "Sharpness"),
        lambda level, sign: max(0.1, 1 + sign * (level / 10 * 0.9)),
    ),
    **dict.fromkeys(
        ("ShearX", "ShearY"), lambda level, sign: sign * (level / 10 * 0.3)
    ),
    **dict.fromkeys(
        ("TranslateX", "TranslateY"), lambda level, sign: sign * (level / 10 * 0.45)
    ),
}
# AutoAugment's levels run from 0.1, nearly grey or black, over 1 to 1.9.
AUTO_VALUES = RAND_VALUES | dict.fromkeys(
    ("Color", "Contrast", "Brightness", "Sharpness"),
    lambda level, sign: level / 10 * 1.8 + 0.1,
)

# Sub-policies for ImageNet: operations with probability and level, one after the other.
# AutoAugment (arXiv:1805.09501), table 9, as ResNeSt's authors have it: timm's
# "originalr" solarizes from `level`, not 10 - level, and has Color 2 in the 16th.
IMAGENET_POLICY = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 2)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 8), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
    (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 0)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
)


def auto_augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Do a sub-policy of `IMAGENET_POLICY`; in ResNeSt's recipe before the crop."""
    pixels = Image.fromarray(image)
    for name, probability, level in IMAGENET_POLICY[rng.integers(25)]:
        value = AUTO_VALUES[name](level, rng.choice((-1, 1)))
        if rng.random() < probability:
            pixels = OPERATIONS[name](pixels, value, RESNEST_WARP)
    return np.asarray(pixels)


def rand_augment(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    magnitude: float,
    std: float = 0.5,
    num_operations: int = 2,
    probability: float = 0.5,
) -> np.ndarray:
    """Do operations drawn with replacement (arXiv:1909.13719), timm's increasing set.

    Each is done with `probability`, at a level normal around `magnitude` and clipped
    to [0, 10]. timm interpolates bilinearly or bicubically at random.
    """
    pixels = Image.fromarray(image)
    for name in rng.choice(list(OPERATIONS), num_operations):
        level = float(np.clip(rng.normal(magnitude, std), 0, 10))
        value = RAND_VALUES[name](level, rng.choice((-1, 1)))
        if rng.random() < probability:
            pixels = OPERATIONS[name](pixels, value, RSB_WARP)
    return np.asarray(pixels)


def one_hot(
    labels: np.ndarray, num_classes: int, *, smoothing: float = 0
) -> np.ndarray:
    """Targets, float32 (N, classes), of labels (N,).

    `smoothing` is shared out evenly among all classes (arXiv:1512.00567, section 7).
    """
    targets = np.full((len(labels), num_classes), smoothing / num_classes, np.float32)
    targets[np.arange(len(labels)), labels] += 1 - smoothing
    return targets


def mixup(
    images: np.ndarray,
    targets: np.ndarray,
    rng: np.random.Generator,
    *,
    alpha: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Blend each image and target with those of the reversed batch (1710.09412).

    One share for the batch, of beta(alpha, alpha). Partners as in timm, GluonCV and
    ResNeSt; in a shuffled batch they are as random as drawn ones.
    """
    share = float(rng.beta(alpha, alpha))
    return blend(images, share), blend(targets, share)


def cutmix(
    images: np.ndarray,
    targets: np.ndarray,
    rng: np.random.Generator,
    *,
    alpha: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Paste a box from the reversed batch (arXiv:1905.04899).

    One box for the batch, see `cutmix_box`. Targets are blended by the area that the
    box really has within the image.
    """
    height, width = images.shape[2:]
    centre = int(rng.integers(height)), int(rng.integers(width))
    rows, columns = cutmix_box(
        height, width, share=float(rng.beta(alpha, alpha)), centre=centre
    )
    mixed = images.copy()
    mixed[:, :, rows, columns] = images[::-1, :, rows, columns]
    pasted = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, blend(targets, 1 - pasted / (height * width))


def cutmix_box(
    height: int, width: int, *, share: float, centre: tuple[int, int]
) -> tuple[slice, slice]:
    """Rows and columns of a box around `centre`, cut at the border.

    Whole, it would cover 1 - share of the image and have its aspect ratio.
    """

    def part(size: int, middle: int) -> slice:
        side = int(size * math.sqrt(1 - share))
        start, stop = middle - side // 2, middle + (side + 1) // 2
        return slice(max(start, 0), min(stop, size))

    return part(height, centre[0]), part(width, centre[1])


def blend(values: np.ndarray, share: float) -> np.ndarray:
    """Return share of the batch and 1 - share of the reversed batch, float32."""
    return np.float32(share) * values + np.float32(1 - share) * values[::-1]
