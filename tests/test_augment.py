# SPDX-License-Identifier: Apache-2.0
"""Training augmentation: timm's and MXNet's values, and the drawn distributions."""

import hashlib
import json
import math
import random
from functools import partial
from pathlib import Path

import matplotlib
import mxnet as mx
import numpy as np
import pytest
from PIL import Image

from gluon_resnet.data import augment
from gluon_resnet.data.augment import (
    AUTO_VALUES,
    IMAGENET_POLICY,
    OPERATIONS,
    RAND_VALUES,
    Warp,
    auto_augment,
    blend,
    color_jitter,
    cutmix,
    cutmix_box,
    efficientnet_box,
    efficientnet_crop,
    lighting,
    mixup,
    one_hot,
    pad_and_crop,
    rand_augment,
    random_box,
    random_crop,
    random_erasing,
    random_flip,
    random_resized_crop,
    resize_square,
)
from gluon_resnet.errors import InputError

GOLDEN = json.loads(
    Path(__file__).with_name("golden").joinpath("augment.json").read_text()
)
REGENERATE = "regenerate with tests/golden/make_augment.py"
PHOTO_PATH = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
# The mean of so many draws is off by 1 / 63 of their standard deviation; `near` allows
# five times that.
NUM_DRAWS = 4000
# MXNet drops the fraction of a value where this project rounds it.
ROUNDING = 1


@pytest.fixture(scope="module")
def photo():
    top, left, height, width = GOLDEN["part"]
    whole = np.asarray(Image.open(PHOTO_PATH))
    return whole[top : top + height, left : left + width]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


class Drawn:
    """A generator whose draws are given."""

    def __init__(self, **draws):
        self.draws = {name: iter(values) for name, values in draws.items()}

    def __getattr__(self, name):
        return lambda *_: next(self.draws[name])


def sha256(pixels):
    return hashlib.sha256(np.asarray(pixels, "<f4", order="C").tobytes()).hexdigest()


def near(mean, expected, deviation):
    return abs(mean - expected) < 5 * deviation / math.sqrt(NUM_DRAWS)


@pytest.mark.parametrize(
    "case",
    GOLDEN["operations"],
    ids=lambda case: "{kind}-{name}-{level}-{sign}".format(**case),
)
def test_operations_are_timm_s(photo, case):
    values = {"rand": RAND_VALUES, "auto": AUTO_VALUES}[case["kind"]]
    value = values[case["name"]](case["level"], case["sign"])
    assert value == pytest.approx(case["value"], abs=1e-12)
    bicubic = Image.Resampling.BICUBIC
    warp = Warp(tuple(GOLDEN["fill"]), bicubic, bicubic)
    pixels = OPERATIONS[case["name"]](Image.fromarray(photo), value, warp)
    assert sha256(pixels) == case["sha256"], REGENERATE


def test_every_operation_has_a_golden_and_values():
    covered = {case["name"] for case in GOLDEN["operations"]}
    assert covered == set(OPERATIONS) == set(RAND_VALUES) == set(AUTO_VALUES)


def test_policy_is_the_paper_s_with_resnest_s_level_of_one_colour():
    theirs = [
        tuple((name.replace("Increasing", ""), p, level) for name, p, level in ops)
        for ops in GOLDEN["policy"]
    ]
    different = [i for i in range(25) if theirs[i] != IMAGENET_POLICY[i]]
    assert different == [15]
    assert (theirs[15][1], IMAGENET_POLICY[15][1]) == (("Color", 1, 2), ("Color", 1, 0))


def test_solarize_grows_with_the_level_in_resnest_s_auto_augment():
    assert [AUTO_VALUES["Solarize"](level, 1) for level in (0, 3, 10)] == [256, 180, 0]


def counting_operations(monkeypatch):
    calls = []
    for name in OPERATIONS:

        def called(image, value, warp, name=name):
            calls.append((name, value))
            return image

        monkeypatch.setitem(OPERATIONS, name, called)
    return calls


def test_rand_augment_draws_operations_signs_and_levels(monkeypatch, rng):
    calls = counting_operations(monkeypatch)
    image = np.zeros((2, 2, 3), np.uint8)
    for _ in range(NUM_DRAWS):
        rand_augment(image, rng, magnitude=7, std=0.5)
    assert near(len(calls) / NUM_DRAWS, 1, math.sqrt(2) / 2)
    shares = [
        sum(name == each for name, _ in calls) / len(calls) for each in OPERATIONS
    ]
    assert max(abs(share - 1 / 15) for share in shares) < 5 * 0.25 / 63
    degrees = np.array([value for name, value in calls if name == "Rotate"])
    assert abs((degrees > 0).mean() - 0.5) < 5 * 0.5 / math.sqrt(len(degrees))
    assert abs(np.abs(degrees).mean() - 21) < 5 * 1.5 / math.sqrt(len(degrees))
    assert abs(np.abs(degrees).std() - 1.5) < 0.4


def test_rand_augment_clips_levels(monkeypatch, rng):
    calls = counting_operations(monkeypatch)
    for _ in range(200):
        rand_augment(np.zeros((2, 2, 3), np.uint8), rng, magnitude=10, std=5)
    degrees = np.abs([value for name, value in calls if name == "Rotate"])
    assert degrees.max() == 30 > degrees.min()


def test_auto_augment_does_sub_policies_by_their_probabilities(monkeypatch, rng):
    calls = counting_operations(monkeypatch)
    image = np.zeros((2, 2, 3), np.uint8)
    for _ in range(NUM_DRAWS):
        auto_augment(image, rng)
    for name in OPERATIONS:
        expected = sum(p for ops in IMAGENET_POLICY for op, p, _ in ops if op == name)
        done = sum(called == name for called, _ in calls)
        assert near(done / NUM_DRAWS, expected / 25, 1), name


def test_box_has_the_areas_and_ratios_that_were_asked_for(rng):
    boxes = np.array(
        [
            random_box(375, 500, rng, area=(0.08, 0.5), ratio=(3 / 4, 4 / 3))
            for _ in range(NUM_DRAWS)
        ]
    )
    top, left, height, width = boxes.T
    assert top.min() == left.min() == 0
    assert (top + height).max() == 375 and (left + width).max() == 500
    areas, ratios = height * width / (375 * 500), np.log(width / height)
    # Boxes of up to half of this image fit at every ratio: nothing is redrawn.
    assert near(areas.mean(), 0.29, 0.42 / math.sqrt(12))
    assert near(areas.std(), 0.42 / math.sqrt(12), 0.1)
    assert near(ratios.mean(), 0, 2 * math.log(4 / 3) / math.sqrt(12))
    assert ratios.min() < -0.28 and ratios.max() > 0.28
    assert near((top / (375 - height)).mean(), 0.5, 1 / math.sqrt(12))


def test_whole_box_leaves_the_image_as_it_is(photo, rng):
    box = random_box(90, 90, rng, area=(1, 1), ratio=(1, 1))
    assert box == (0, 0, 90, 90)


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(10, 100, (0, 43, 10, 13)), (100, 10, (43, 0, 13, 10)), (1, 1, (0, 0, 1, 1))],
)
def test_box_that_never_fits_is_the_middle(height, width, box, rng):
    assert random_box(height, width, rng, area=(1, 1), ratio=(3 / 4, 4 / 3)) == box


@pytest.mark.parametrize("case", GOLDEN["crops"], ids=str)
def test_pil_crops_are_torchvision_s(photo, monkeypatch, rng, case):
    monkeypatch.setattr(augment, "random_box", lambda *_, **__: case["box"])
    pixels = random_resized_crop(
        photo, rng, size=24, interpolation=case["interpolation"], library="pil"
    )
    assert sha256(pixels) == case["sha256"], REGENERATE


def test_cv2_crops_are_mxnet_s(photo, monkeypatch, rng):
    top, left, height, width = box = (10, 20, 33, 44)
    monkeypatch.setattr(augment, "random_box", lambda *_, **__: box)
    theirs = mx.image.fixed_crop(
        mx.nd.array(photo, dtype=np.uint8), left, top, width, height, (24, 24), 1
    )
    np.testing.assert_array_equal(
        random_resized_crop(photo, rng, size=24), theirs.asnumpy()
    )


def test_crop_distribution_is_mxnet_s(rng):
    random.seed(0)
    image = mx.nd.zeros((30, 40, 3), dtype=np.uint8)
    boxes = [
        mx.image.random_size_crop(image, (2, 2), (0.08, 1), (3 / 4, 4 / 3))[1]
        for _ in range(400)
    ]
    theirs = np.array([width * height for _, _, width, height in boxes])
    ours = np.array(
        [
            math.prod(random_box(30, 40, rng, area=(0.08, 1), ratio=(3 / 4, 4 / 3))[2:])
            for _ in range(NUM_DRAWS)
        ]
    )
    error = theirs.std() / math.sqrt(len(theirs))
    assert abs(theirs.mean() - ours.mean()) < 4 * error


@pytest.mark.parametrize("case", GOLDEN["efficientnet_boxes"], ids=str)
def test_efficientnet_boxes_are_resnest_s(case):
    box = efficientnet_box(*case["size"], Drawn(**case["draws"]), size=320)
    assert list(box) == case["box"], REGENERATE


def test_efficientnet_boxes_cover_a_tenth_to_all_of_the_image(rng):
    areas = []
    for _ in range(NUM_DRAWS):
        top, left, height, width = efficientnet_box(75, 100, rng, size=320)
        assert 0 <= top <= 75 - height and 0 <= left <= 100 - width
        assert 0.73 < width / height < 1.37
        areas.append(height * width / 7500)
    assert 0.1 <= min(areas) < 0.11 and 0.95 < max(areas) <= 1


@pytest.mark.parametrize(
    "case",
    [case for case in GOLDEN["crops"] if case["interpolation"] == "bicubic"],
    ids=str,
)
def test_efficientnet_crops_are_bicubic_as_torchvision_s(photo, monkeypatch, rng, case):
    monkeypatch.setattr(augment, "efficientnet_box", lambda *_, **__: case["box"])
    pixels = efficientnet_crop(photo, rng, size=24)
    assert sha256(pixels) == case["sha256"], REGENERATE


def test_square_resize_is_the_model_zoo_notebook_s(photo, rng):
    theirs = mx.gluon.data.vision.transforms.Resize(48)(mx.nd.array(photo, dtype="u1"))
    np.testing.assert_array_equal(resize_square(photo, rng, side=48), theirs.asnumpy())


def test_random_crop_comes_from_everywhere(rng):
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    corners = set()
    for _ in range(300):
        crop = random_crop(image, rng, size=3)
        top, left = divmod(int(crop[0, 0, 0]) // 3, 5)
        np.testing.assert_array_equal(crop, image[top : top + 3, left : left + 3])
        corners.add((top, left))
    assert corners == {(top, left) for top in range(2) for left in range(3)}


def test_random_crop_larger_than_the_image_is_said(rng):
    with pytest.raises(InputError) as error:
        random_crop(np.zeros((4, 5, 3), np.uint8), rng, size=5)
    assert str(error.value) == (
        "a crop of 5 pixels does not fit an image of 5 x 4: lower train_size"
    )


@pytest.mark.parametrize("factor", [0.6, 1, 1.37])
@pytest.mark.parametrize("kind", ["brightness", "contrast"])
def test_adjustments_are_mxnet_s(photo, kind, factor):
    theirs = getattr(mx.nd.image, f"random_{kind}")(
        mx.nd.array(photo, dtype=np.uint8), min_factor=factor, max_factor=factor
    )
    ours = getattr(augment, f"adjust_{kind}")(photo, factor)
    assert np.abs(theirs.asnumpy().astype(int) - ours).max() <= ROUNDING


@pytest.mark.parametrize("factor", [0.6, 1, 1.37])
def test_saturation_is_the_one_of_mxnet_s_image_module(photo, monkeypatch, factor):
    monkeypatch.setattr("random.uniform", lambda *_: factor - 1)
    theirs = mx.image.SaturationJitterAug(0.4)(mx.nd.array(photo)).asnumpy()
    ours = augment.adjust_saturation(photo, factor)
    assert np.abs(np.clip(theirs, 0, 255) - ours).max() <= ROUNDING


def test_jitter_draws_each_factor_around_one_in_every_order(monkeypatch, rng):
    drawn = []
    for kind in ("brightness", "contrast", "saturation"):

        def adjust(image, factor, kind=kind):
            drawn.append((kind, factor))
            return image

        monkeypatch.setattr(augment, f"adjust_{kind}", adjust)
    for _ in range(NUM_DRAWS):
        color_jitter(None, rng, brightness=0.4, contrast=0.2, saturation=1.5)
    for kind, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.8, 1.2),
        ("saturation", 0, 2.5),
    ):
        factors = np.array([factor for name, factor in drawn if name == kind])
        assert len(factors) == NUM_DRAWS
        assert low <= factors.min() and factors.max() <= high
        assert near(factors.mean(), (low + high) / 2, (high - low) / math.sqrt(12))
    orders = {tuple(name for name, _ in drawn[i : i + 3]) for i in range(0, 300, 3)}
    assert len(orders) == 6


def test_lighting_is_mxnet_s(photo):
    alpha = (0.1, -0.2, 0.05)
    theirs = mx.nd.image.adjust_lighting(
        mx.nd.array(photo, dtype=np.uint8), alpha=alpha
    )
    ours = lighting(photo, Drawn(normal=[np.array(alpha)]), std=0.1)
    assert np.abs(theirs.asnumpy().astype(int) - ours).max() <= ROUNDING


def test_lighting_components_are_orthogonal():
    lengths = np.linalg.norm(augment.COMPONENTS, axis=0)
    assert lengths == pytest.approx([55.46, 4.794, 1.148], rel=1e-3)
    products = augment.COMPONENTS.T @ augment.COMPONENTS / np.outer(lengths, lengths)
    assert products == pytest.approx(np.eye(3), abs=1e-3)


def test_flip_mirrors_one_time_out_of_two(photo, rng):
    flipped = [np.array_equal(random_flip(photo, rng), photo) for _ in range(400)]
    assert abs(np.mean(flipped) - 0.5) < 5 * 0.5 / 20
    mirrored = random_flip(photo, Drawn(random=[0.49]))
    np.testing.assert_array_equal(mirrored, photo[:, ::-1])


def test_padded_crop_shifts_by_up_to_the_padding(rng):
    image = np.full((5, 5, 3), 9, np.uint8)
    image[2, 2] = 255
    places = set()
    for _ in range(500):
        shifted = pad_and_crop(image, rng, pad=2)
        assert shifted.shape == image.shape
        places.add(tuple(np.argwhere(shifted[..., 0] == 255)[0]))
    assert places == {(row, column) for row in range(5) for column in range(5)}
    corner = pad_and_crop(image, Drawn(integers=[(0, 0)]), pad=2)
    assert not corner[:2].any() and not corner[:, :2].any() and corner[2:, 2:].all()


def test_erasing_fills_a_rectangle_of_the_drawn_area(rng):
    image = np.zeros((60, 60, 3), np.uint8)
    areas = []
    for _ in range(NUM_DRAWS):
        erased = random_erasing(image, rng, probability=0.5, fill=(1, 2, 3))
        rows, columns = np.nonzero(erased[..., 2] == 3)
        areas.append(len(rows) / 3600)
        if len(rows):
            extent = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
            assert extent == len(rows) == (erased == (1, 2, 3)).all(axis=2).sum()
    assert not image.any()
    areas = np.array(areas)
    assert near((areas > 0).mean(), 0.5, 0.5)
    areas = areas[areas > 0]
    assert 0.015 < areas.min() < 0.025 and 0.3 < areas.max() < 0.35
    assert abs(areas.mean() - (0.02 + 1 / 3) / 2) < 0.01


@pytest.mark.parametrize(
    "transform",
    [
        partial(random_resized_crop, size=32),
        partial(random_resized_crop, size=32, interpolation="bicubic", library="pil"),
        partial(efficientnet_crop, size=32),
        partial(random_crop, size=32),
        partial(pad_and_crop, pad=4),
        random_flip,
        partial(color_jitter, brightness=0.4, contrast=0.4, saturation=0.4),
        partial(lighting, std=0.1),
        partial(random_erasing, probability=1, fill=(1, 2, 3)),
        auto_augment,
        partial(rand_augment, magnitude=7, probability=1),
    ],
    ids=lambda transform: getattr(transform, "func", transform).__name__,
)
def test_transforms_follow_from_the_generator_and_keep_their_input(photo, transform):
    before = photo.copy()
    results = [transform(photo, np.random.default_rng(i)) for i in (0, 0, 1, 2, 3, 4)]
    np.testing.assert_array_equal(photo, before)
    np.testing.assert_array_equal(results[0], results[1])
    assert any(not np.array_equal(results[0], other) for other in results[2:])
    for result in results:
        assert result.dtype == np.uint8 and result.shape[2:] == (3,)


@pytest.mark.parametrize("case", GOLDEN["cutmix_boxes"], ids=str)
def test_cutmix_boxes_are_timm_s(case):
    rows, columns = cutmix_box(
        *case["size"], share=case["share"], centre=case["centre"]
    )
    assert [rows.start, rows.stop, columns.start, columns.stop] == case["box"]


@pytest.mark.parametrize("case", GOLDEN["mixed"], ids=["mixup", "cutmix"])
def test_mixed_batches_are_timm_s(case):
    images = np.arange(180, dtype=np.float32).reshape(3, 2, 6, 5)
    before = images.copy()
    targets = one_hot(np.array([2, 0, 3]), 4, smoothing=0.1)
    rng = Drawn(beta=[case["share"]], integers=case["centre"])
    mix = cutmix if case["cutmix"] else mixup
    images_mixed, targets_mixed = mix(images, targets, rng, alpha=1)
    np.testing.assert_array_equal(images, before)
    assert images_mixed.dtype == targets_mixed.dtype == np.float32
    assert images_mixed == pytest.approx(np.array(case["images"]), rel=1e-6)
    assert targets_mixed == pytest.approx(np.array(case["targets"]), rel=1e-6)


def test_shares_are_beta_distributed(rng):
    images, targets = np.zeros((2, 1, 4, 4), np.float32), np.float32([[1, 0], [0, 1]])
    shares = np.array(
        [mixup(images, targets, rng, alpha=0.2)[1][0, 0] for _ in range(NUM_DRAWS)]
    )
    # Beta(a, a) has the variance 1 / (4 (2 a + 1)).
    assert near(shares.mean(), 0.5, math.sqrt(1 / 5.6))
    assert near(shares.var(), 1 / 5.6, 0.1)


def test_targets_sum_to_one():
    targets = one_hot(np.array([0, 2]), 3, smoothing=0.3)
    assert targets == pytest.approx(np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]))
    assert blend(targets, 0.25).sum(axis=1) == pytest.approx([1, 1])
