# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import struct
import zlib
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageFile

from gluon_resnet.errors import InputError
from gluon_resnet.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAX_PIXELS,
    Protocol,
    preprocess,
    preprocess_batch,
    read_image,
    ten_crop,
)

PHOTO_PATH = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
GOLDEN_PATH = Path(__file__).with_name("golden") / "preprocess.json"
GOLDENS = json.loads(GOLDEN_PATH.read_text())["cases"]

# top, left, height, width of parts of the 600 x 512 photo, some of odd shape.
PARTS = [
    (0, 0, 600, 512),
    (100, 6, 375, 500),
    (0, 70, 500, 375),
    (3, 1, 331, 299),
    (9, 9, 333, 501),
    (300, 256, 1, 1),
    (300, 0, 6, 512),
]
# OpenCV 3.4 inside MXNet and OpenCV 4.9 round bicubic sums differently: one level.
ONE_LEVEL = 1 / 255 / min(IMAGENET_STD) + 1e-5
# OpenMMLab normalises 0..255 instead of 0..1: a few roundings of values up to 2.7.
OTHER_SCALE = 1e-6


@pytest.fixture(scope="module")
def photo():
    return np.asarray(Image.open(PHOTO_PATH))


def part_of(photo, part):
    top, left, height, width = part
    return photo[top : top + height, left : left + width]


def as_png(image, **options):
    file = BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


# Against upstream.


@pytest.mark.parametrize(
    "golden",
    GOLDENS,
    ids=lambda golden: "-".join(
        map(str, [*golden["fields"].values(), *golden["part"], golden["call"]])
    ),
)
def test_pil_pixels_equal_timm_and_torchvision(photo, golden):
    call = {"preprocess": preprocess, "ten_crop": ten_crop}[golden["call"]]
    values = call(part_of(photo, golden["part"]), library="pil", **golden["fields"])
    assert values.dtype == np.float32
    assert list(values.shape) == golden["shape"]
    samples = values.ravel()[:: values.size // 16][:16].tolist()
    assert samples == golden["samples"]
    assert hashlib.sha256(values.tobytes()).hexdigest() == golden["sha256"]


def test_pil_pixels_equal_torchvision_arithmetic_written_out():
    image = Image.open(PHOTO_PATH).resize((256, 300), Image.Resampling.BILINEAR)
    pixels = np.asarray(image.crop((16, 38, 240, 262)))
    scaled = (pixels / np.float32(255)).astype(np.float32)
    expected = (scaled - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    values = preprocess(PHOTO_PATH, library="pil")
    assert np.array_equal(values, expected.transpose(2, 0, 1))


@pytest.fixture(scope="module")
def gluon():
    """MXNet's transforms as numpy -> numpy functions."""
    mx = pytest.importorskip("mxnet")
    from gluoncv.data.transforms.presets.imagenet import transform_eval
    from mxnet.gluon.data.vision import transforms

    def warp(pixels, side, size, interpolation=1):
        steps = [
            transforms.Resize(side, interpolation=interpolation),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
        return transforms.Compose(steps)(mx.nd.array(pixels, dtype="uint8")).asnumpy()

    def short(pixels, side, size):
        values = transform_eval(mx.nd.array(pixels, dtype="uint8"), side, size)
        return values.asnumpy()[0]

    return {"warp": warp, "short": short}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("resize", "size", "crop_pct", "side"),
    [
        ("short", 224, 0.875, 256),
        ("short", 256, 0.875, 293),
        ("short", 32, 1.0, 32),
        ("warp", 224, 0.875, 256),
        ("warp", 224, 1.0, 224),
    ],
)
def test_cv2_pixels_equal_gluon(photo, gluon, part, resize, size, crop_pct, side):
    pixels = part_of(photo, part)
    values = preprocess(pixels, size, crop_pct=crop_pct, resize=resize)
    assert np.array_equal(values, gluon[resize](pixels, side, size))


def test_cv2_bicubic_equals_gluon_within_one_level(photo, gluon):
    values = preprocess(photo, interpolation="bicubic", resize="warp")
    expected = gluon["warp"](photo, 256, 224, interpolation=2)
    assert np.abs(values - expected).max() <= ONE_LEVEL


@pytest.mark.parametrize("part", PARTS)
def test_mmcv_pixels_equal_openmmlab_arithmetic_written_out(photo, part):
    pixels = part_of(photo, part)
    height, width = pixels.shape[:2]
    if width < height:
        width, height = 256, int(256 * height / width)
    else:
        width, height = int(256 * width / height), 256
    resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    top, left = round((height - 224) / 2), round((width - 224) / 2)
    square = resized[top : top + 224, left : left + 224].astype(np.float32)
    mean, std = (
        np.float32([123.675, 116.28, 103.53]),
        np.float32([58.395, 57.12, 57.375]),
    )
    expected = ((square - mean) / std).transpose(2, 0, 1)
    values = preprocess(pixels, library="mmcv")
    assert np.abs(values - expected).max() <= OTHER_SCALE


def test_mmcv_reproduces_openmmlab_cub_protocol(photo):
    resized = cv2.resize(photo, (600, 600), interpolation=cv2.INTER_LINEAR)
    values = preprocess(photo, 448, crop_pct=448 / 600, resize="warp", library="mmcv")
    same = preprocess(resized[76:524, 76:524], 448, crop_pct=1, library="mmcv")
    assert np.array_equal(values, same)


def zoo_preprocess(pixels):
    """The steps of imagenet_preprocess.py of the ONNX Model Zoo (onnx/models, 2020)."""
    height, width, _ = pixels.shape
    ratio = float(256) / min(width, height)
    if width > height:
        size = (int(round(ratio * width)), 256)  # noqa: RUF046
    else:
        size = (256, int(round(ratio * height)))  # noqa: RUF046
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    left, top = size[0] // 2 - 224 // 2, size[1] // 2 - 224 // 2
    image = np.array(image)[top : top + 224, left : left + 224]
    data = image.transpose(2, 0, 1).astype("float32")
    values = np.zeros(data.shape).astype("float32")
    for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD)):
        values[channel] = (data[channel] / 255 - np.array(mean)) / np.array(std)
    return values


def test_onnx_zoo_pixels_equal_its_later_script(photo):
    rng = np.random.default_rng(0)
    sizes = [(427, 640), (600, 512), (512, 600), (224, 224), (1, 1), (512, 513)]
    sizes += [(height, width) for height, width in rng.integers(1, 512, (40, 2))]
    # Half a pixel on the long side: it goes to the even neighbour.
    sizes += [(512, 513), (512, 515), (517, 512)]
    for height, width in sizes:
        part = np.resize(photo, (height, width, 3))
        values = preprocess(part, library="onnx_zoo")
        assert np.array_equal(values, zoo_preprocess(part)), (height, width)
    floored = np.resize(photo, (427, 640, 3))
    assert not np.array_equal(
        preprocess(floored, library="onnx_zoo"), preprocess(floored, library="pil")
    )


def test_odd_margins_round_down_for_cv2_and_to_even_for_mmcv():
    pixels = np.zeros((4, 7, 3), np.uint8)
    pixels[..., 0] = np.arange(7)
    unscaled = {"crop_pct": 1, "mean": (0, 0, 0), "std": (1 / 255,) * 3}
    first_columns = {
        library: round(
            float(preprocess(pixels, 4, library=library, **unscaled)[0, 0, 0])
        )
        for library in ("cv2", "mmcv", "onnx_zoo", "pil")
    }
    assert first_columns == {"cv2": 1, "mmcv": 2, "onnx_zoo": 1, "pil": 2}


def test_cifar_images_are_only_normalised(photo):
    pixels = photo[180:212, 240:272]
    expected = (pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
    for library in ("cv2", "mmcv", "onnx_zoo", "pil"):
        values = preprocess(
            pixels, 32, crop_pct=1, library=library, mean=(0.5,) * 3, std=(0.25,) * 3
        )
        assert np.array_equal(values, expected.astype(np.float32).transpose(2, 0, 1))


def test_ten_crop_is_corners_centre_and_mirror():
    pixels = np.arange(5 * 5 * 3, dtype=np.uint8).reshape(5, 5, 3)
    crops = ten_crop(pixels, size=3, crop_pct=0.6)
    corners = [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]
    for view, offset in ((pixels, 0), (pixels[:, ::-1], 5)):
        for index, (top, left) in enumerate(corners):
            square = view[top : top + 3, left : left + 3]
            assert np.array_equal(
                crops[offset + index], preprocess(square, 3, crop_pct=1)
            )


def test_jpeg_pixels_of_pillow_and_opencv_are_equal(photo):
    image = Image.fromarray(photo)
    for options in ({"subsampling": 0}, {"subsampling": 2}, {"progressive": True}):
        file = BytesIO()
        image.save(file, "JPEG", **options)
        pixels = cv2.imdecode(
            np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_COLOR
        )
        assert np.array_equal(read_image(file.getvalue()), pixels[:, :, ::-1])


# The calls.


def test_every_kind_of_source_gives_the_same_pixels():
    expected = preprocess(PHOTO_PATH)
    with PHOTO_PATH.open("rb") as file:
        assert np.array_equal(preprocess(file), expected)
    assert np.array_equal(preprocess(str(PHOTO_PATH)), expected)
    assert np.array_equal(preprocess(PHOTO_PATH.read_bytes()), expected)
    assert np.array_equal(preprocess(Image.open(PHOTO_PATH)), expected)
    assert np.array_equal(preprocess(read_image(PHOTO_PATH)), expected)
    bgr = np.ascontiguousarray(read_image(PHOTO_PATH)[:, :, ::-1])
    assert np.array_equal(preprocess(bgr[:, :, ::-1]), expected)


def test_batch_stacks_the_single_images(photo):
    images = [photo, PHOTO_PATH, photo[:100]]
    batch = preprocess_batch(images, size=64, library="pil")
    assert batch.shape == (3, 3, 64, 64)
    for values, image in zip(batch, images):
        assert np.array_equal(values, preprocess(image, 64, library="pil"))
    with pytest.raises(InputError, match="there is no image in the batch"):
        preprocess_batch([])


@pytest.mark.parametrize("call", [preprocess, ten_crop])
def test_protocol_is_given_whole_or_by_its_fields(photo, call):
    protocol = Protocol(64, 0.5, "bicubic", "warp", "pil", (0.5,) * 3, (0.25,) * 3)
    fields = asdict(protocol)
    expected = call(photo, **fields)
    other = replace(protocol, size=32, library="cv2")
    del fields["size"]
    for same in (
        call(photo, protocol),
        call(photo, protocol=protocol),
        call(photo, other, size=64, library="pil"),
        call(photo, 64, **fields),
    ):
        assert np.array_equal(same, expected)
    assert np.array_equal(call(photo), call(photo, Protocol()))
    (batched,) = preprocess_batch([photo], protocol)
    assert np.array_equal(batched, preprocess(photo, protocol))


def test_protocol_can_be_stored():
    stored = json.loads(json.dumps(asdict(Protocol(size=320))))
    assert Protocol(**stored) == Protocol(size=320)


def test_unknown_field_is_refused(photo):
    for call in (preprocess, ten_crop):
        with pytest.raises(InputError) as error:
            call(photo, crop=224)
        assert str(error.value) == (
            "crop is no field of a protocol; its fields are size, crop_pct, "
            "interpolation, resize, library, mean, std"
        )


def test_size_is_given_once(photo):
    with pytest.raises(InputError) as error:
        preprocess(photo, 64, size=32)
    assert str(error.value) == "size is given twice, as 64 and as 32; give it once"


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"size": 0}, "size 0 is not a positive whole number"),
        ({"size": 224.0}, "size 224.0 is not a positive whole number"),
        ({"crop_pct": 1.5}, "crop_pct 1.5 is not in (0, 1]; use 1 for no crop"),
        ({"crop_pct": 0}, "crop_pct 0 is not in (0, 1]; use 1 for no crop"),
        (
            {"interpolation": "area"},
            "interpolation 'area' is unknown; use bilinear or bicubic",
        ),
        ({"resize": "long"}, "resize 'long' is unknown; use short or warp"),
        (
            {"library": "PIL"},
            "library 'PIL' is unknown; use cv2 or mmcv or onnx_zoo or pil",
        ),
        (
            {"mean": (0.5, 0.5)},
            "mean (0.5, 0.5) is not three finite numbers, one a channel",
        ),
        (
            {"std": (1, 0, 1)},
            "std (1, 0, 1) is not three finite numbers above 0, one a channel",
        ),
    ],
)
def test_unusable_protocol_is_refused(photo, field, message):
    with pytest.raises(InputError) as error:
        preprocess(photo, **field)
    assert str(error.value) == message


def test_aspect_ratio_that_needs_too_many_pixels_is_refused():
    with pytest.raises(
        InputError, match=r"^256 x 768000 are more than 178956970 pixels"
    ):
        preprocess(np.zeros((3000, 1, 3), np.uint8))


# read_image: what it reads.


def test_exif_orientation_is_applied(photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned: show it rotated by 90 degrees clockwise.
    image = Image.fromarray(photo)
    assert np.array_equal(read_image(as_png(image, exif=exif)), np.rot90(photo, -1))


def test_modes_become_rgb(photo):
    rgb = Image.fromarray(photo[:40, :30])
    palette = rgb.quantize(16)
    transparent = as_png(palette, transparency=bytes(range(16)))
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(read_image(transparent), expected)
    for mode in ("1", "L", "LA", "RGBA"):
        image = rgb.convert(mode)
        expected = np.asarray(image.convert("RGB"))
        assert np.array_equal(read_image(as_png(image)), expected)
    cmyk = BytesIO()
    rgb.convert("CMYK").save(cmyk, "TIFF")
    expected = np.asarray(rgb.convert("CMYK").convert("RGB"))
    assert np.array_equal(read_image(cmyk.getvalue()), expected)


def test_alpha_is_dropped_not_composited():
    image = Image.new("RGBA", (2, 2), (200, 100, 50, 0))
    assert read_image(as_png(image))[0, 0].tolist() == [200, 100, 50]


def test_sixteen_bit_samples_keep_their_high_byte():
    samples = np.random.default_rng(0).integers(0, 65536, (9, 7, 3), dtype=np.uint16)
    _, rgb = cv2.imencode(".png", samples[:, :, ::-1])
    assert np.array_equal(read_image(rgb.tobytes()), samples >> 8)
    _, grey = cv2.imencode(".png", samples[:, :, 0])
    assert np.array_equal(read_image(grey.tobytes()), samples[:, :, [0, 0, 0]] >> 8)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    file = BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert (read_image(file.getvalue()) == (255, 0, 0)).all()


def test_single_pixel_is_read_into_a_writable_array():
    pixels = read_image(as_png(Image.new("RGB", (1, 1), "white")))
    pixels[0, 0] = 0
    assert pixels.shape == (1, 1, 3)


# read_image: what it refuses, each with one line that names the file.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an image; give one of these formats: BMP, GIF, JPEG, PNG, "),
        (b"no image", "not an image; give one of these formats: "),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image; "),
        (b"%PDF-1.4", "not an image; "),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image; "),
        (PHOTO_PATH.read_bytes()[:9000], "cannot be read as an image "),
    ],
    ids=["empty", "text", "svg", "pdf", "eps", "truncated jpeg"],
)
def test_file_that_is_no_whole_image_is_refused(tmp_path, content, message):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_image(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=f"^image of {len(content)} bytes: {message}"):
        preprocess(content)


def test_truncated_file_is_refused_after_gluoncv_told_pillow_not_to(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(InputError, match="it ends before its last pixels"):
        read_image(PHOTO_PATH.read_bytes()[:9000])


def test_missing_file_and_folder_are_refused(tmp_path):
    missing = tmp_path / "missing.jpg"
    with pytest.raises(InputError) as error:
        read_image(missing)
    assert str(error.value) == f"{missing}: no such file; give the path of an image"
    with pytest.raises(InputError, match="Is a directory"):
        read_image(str(tmp_path))


def png_header(width, height):
    """Return the start of a PNG: all that may be looked at before it is refused."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(header))
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + crc
    return start + struct.pack(">I", 100_000_000) + b"IDAT"


def test_image_above_the_pixel_limit_is_refused_from_its_header(monkeypatch):
    data = png_header(20_000, 20_000)
    with pytest.raises(
        InputError, match=r"400000000 pixels\) exceeds limit of 178956970 pixels; scale"
    ):
        read_image(data)
    # Also if the process has lifted Pillow's own limit.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(InputError) as error:
        read_image(data)
    assert str(error.value) == (
        f"image of {len(data)} bytes: 20000 x 20000 are more than {MAX_PIXELS} "
        "pixels; scale it down first"
    )


def test_pixels_without_a_known_range_are_refused():
    file = BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(file, "TIFF")
    with pytest.raises(InputError, match="pixels of type 'F' have no known range; "):
        read_image(file.getvalue())
