# SPDX-License-Identifier: Apache-2.0
"""From a file's bytes or an array to RGB pixels: what is odd, and what is refused."""

import itertools
import logging
import struct
from io import BytesIO

import cv2
import mxnet as mx
import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from gluon_resnet.errors import InputError
from gluon_resnet.preprocess import image_size, preprocess, read_image

# 16 x 8 grey pixels, arithmetic-coded by jpegtran -arithmetic (libjpeg-turbo 2.1.5).
ARITHMETIC_JPEG = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb004300100b0c0e0c0a100e0d0e121110"
    "1318281a181616183123251d283a333d3c3933383740485c4e404457453738506d51575f6267"
    "68673e4d71797064785c656763ffc9000b080008001001011100ffcc000600101005ffda0008"
    "010100003f00feaf1055df265e86565824ffd9"
)

BYTE, ASCII, SHORT, LONG, RATIONAL = 1, 2, 3, 4, 5
SBYTE, UNDEFINED, SSHORT, SLONG, FLOAT = 6, 7, 8, 9, 11
FORMATS = {BYTE: "B", SHORT: "H", LONG: "I", SBYTE: "b", SSHORT: "h", SLONG: "i"}
MAKE, ORIENTATION, RESOLUTION, EXIF_IFD, GPS_IFD = 0x10F, 0x112, 0x11A, 0x8769, 0x8825


@pytest.fixture(scope="module")
def pixels():
    noise = np.random.default_rng(0).integers(0, 256, (27, 40, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (5, 5), 0)


def encoded(pixels, format, mode="RGB", **options):
    file = BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format, **options)
    return file.getvalue()


def error_of(function, *arguments, **options):
    with pytest.raises(InputError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# Orientation.


def field(order, tag, kind, value, count=1):
    """An entry of a directory; `value` is a number or the bytes that stand there."""
    if not isinstance(value, bytes):
        value = struct.pack(order + FORMATS[kind], value)
    return struct.pack(f"{order}HHI", tag, kind, count) + value.ljust(4, b"\0")


def exif(order, *fields, following=0, behind=b""):
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8)
    directory = struct.pack(f"{order}H", len(fields)) + b"".join(fields)
    return b"Exif\0\0" + head + directory + struct.pack(f"{order}I", following) + behind


def turned_by(number, pixels):
    image = Image.fromarray(pixels)
    image.getexif()[ORIENTATION] = number
    return np.asarray(ImageOps.exif_transpose(image))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("number", range(1, 9))
def test_image_is_turned_by_the_number_of_its_orientation(pixels, number, order):
    block = exif(order, field(order, ORIENTATION, SHORT, number))
    expected = turned_by(number, pixels)
    assert np.array_equal(read_image(encoded(pixels, "PNG", exif=block)), expected)
    webp = encoded(pixels, "WEBP", lossless=True, exif=block)
    assert np.array_equal(read_image(webp), expected)
    plain, tagged = (encoded(pixels, "JPEG", exif=e) for e in (b"", block))
    assert np.array_equal(read_image(tagged), turned_by(number, read_image(plain)))
    assert image_size(tagged) == (40, 27)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [BYTE, SHORT, LONG, SBYTE, SSHORT, SLONG])
def test_orientation_may_be_a_whole_number_of_any_width(pixels, kind, order):
    block = exif(order, field(order, ORIENTATION, kind, 6))
    image = read_image(encoded(pixels, "PNG", exif=block))
    assert np.array_equal(image, np.rot90(pixels, -1))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("tag", "kind", "count", "value"),
    [
        (MAKE, RATIONAL, 1, b"\xff\xff\xff\x7f"),  # beyond the end
        (MAKE, ASCII, 0xFFFFFFFF, b"\x08\0\0\x08"),  # 4 GB of it
        (MAKE, ASCII, 0, b""),
        (MAKE, 0, 1, b""),  # types that there are not
        (MAKE, 99, 7, b"\xff"),
        (MAKE, SHORT, 1, b"\1"),
        (0, BYTE, 1, b""),
        (ORIENTATION, ASCII, 2, b"3\0"),  # not this one, but the one that follows
        (RESOLUTION, ASCII, 3, b"72\0"),
        (RESOLUTION, RATIONAL, 2, b"\x08\0\0\x08"),
        (RESOLUTION, FLOAT, 1, b"\0\0\xc0\x7f"),
        (0x128, ASCII, 4, b"inch"),
        (EXIF_IFD, LONG, 1, b"\x08\0\0\x08"),  # itself
        (EXIF_IFD, LONG, 1, b"\xff\xff\xff\xff"),
        (EXIF_IFD, ASCII, 2, b"no"),
        (GPS_IFD, RATIONAL, 1, b"\0\0\0\1"),
        (GPS_IFD, UNDEFINED, 4, b"\1\1\1\1"),
        (0x9000, ASCII, 4, b"0232"),
        (0xFFFF, SHORT, 3, b"\xff\xff\xff\xff"),
    ],
)
def test_no_other_tag_keeps_an_image_from_being_turned(
    pixels, tag, kind, count, value, order
):
    odd = field(order, tag, kind, value, count)
    turn = field(order, ORIENTATION, SHORT, 6)
    fields = [odd, turn] if tag <= ORIENTATION else [turn, odd]
    for format in ("PNG", "JPEG"):
        upright, turned = (
            read_image(encoded(pixels, format, exif=block))
            for block in (b"", exif(order, *fields))
        )
        assert np.array_equal(turned, np.rot90(upright, -1)), format


@pytest.mark.parametrize("order", "<>")
def test_thumbnail_in_the_second_directory_turns_nothing(pixels, order):
    turn = field(order, ORIENTATION, SHORT, 6)
    thumbnail = struct.pack(f"{order}H", 1) + turn + bytes(4)
    upright = exif(order, field(order, MAKE, ASCII, b"a", 2), following=26)
    png = encoded(pixels, "PNG", exif=upright + thumbnail)
    assert np.array_equal(read_image(png), pixels)
    circle = exif(order, turn, following=8)
    png = encoded(pixels, "PNG", exif=circle)
    assert np.array_equal(read_image(png), np.rot90(pixels, -1))


@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0XX*\0\x08\0\0\0",
        exif("<", field("<", ORIENTATION, SHORT, 6))[:24],  # it ends within the field
        exif("<", field("<", MAKE, ASCII, b"a", 2)),
        exif("<", field("<", ORIENTATION, ASCII, b"6", 2)),
        exif("<", field("<", ORIENTATION, RATIONAL, b"\x08\0\0\0")),
    ],
)
def test_exif_without_an_orientation_turns_nothing(pixels, block):
    upright = read_image(encoded(pixels, "JPEG"))
    assert np.array_equal(read_image(encoded(pixels, "JPEG", exif=block)), upright)


@pytest.mark.parametrize(("kind", "number"), [(SHORT, 0), (SHORT, 9), (LONG, 65542)])
def test_number_that_means_nothing_turns_nothing_and_is_told(
    pixels, tmp_path, caplog, kind, number
):
    path = tmp_path / "a.png"
    block = exif("<", field("<", ORIENTATION, kind, number))
    path.write_bytes(encoded(pixels, "PNG", exif=block))
    with caplog.at_level(logging.INFO, "gluon_resnet"):
        assert np.array_equal(read_image(path), pixels)
    assert caplog.messages == [
        f"{path}: its orientation {number} is none of 1 to 8; it is not turned"
    ]


def test_orientation_in_several_segments_of_a_jpeg_is_read(pixels):
    jpeg = encoded(pixels, "JPEG", exif=exif("<", field("<", ORIENTATION, SHORT, 6)))
    segment = struct.pack(">BBH", 0xFF, 0xE1, 12) + b"Exif\0\0more"
    start = jpeg.index(b"\xff\xdb")
    twice = jpeg[:start] + segment + jpeg[start:]
    assert np.array_equal(read_image(twice), read_image(jpeg))


@pytest.mark.parametrize(
    "text", ['tiff:Orientation="6"', "<tiff:Orientation>6</tiff:Orientation>"]
)
def test_orientation_in_xmp_counts_where_exif_has_none(pixels, text):
    webp = encoded(pixels, "WEBP", lossless=True, xmp=text.encode())
    assert np.array_equal(read_image(webp), np.rot90(pixels, -1))
    block = exif("<", field("<", ORIENTATION, SHORT, 1))
    webp = encoded(pixels, "WEBP", lossless=True, xmp=text.encode(), exif=block)
    assert np.array_equal(read_image(webp), pixels)


@pytest.mark.parametrize("number", range(1, 9))
def test_tiff_file_is_turned_once(pixels, number):
    for options in ({}, {"compression": "tiff_lzw"}):
        tiff = encoded(pixels, "TIFF", tiffinfo={ORIENTATION: number}, **options)
        assert np.array_equal(read_image(tiff), turned_by(number, pixels))


def test_pil_image_is_turned_like_its_file(pixels):
    png = encoded(pixels, "PNG", exif=exif(">", field(">", ORIENTATION, SHORT, 6)))
    with Image.open(BytesIO(png)) as image:
        assert np.array_equal(preprocess(image), preprocess(np.rot90(pixels, -1)))


# JPEG files without their end.

JPEGS = {
    "baseline": {},
    "4:4:4": {"subsampling": 0},
    "optimized": {"optimize": True},
    "progressive": {"progressive": True},
    "grey": {"mode": "L"},
    "CMYK": {"mode": "CMYK"},
    "restart markers": {"restart_marker_blocks": 1},
    "rows of restarts": {"restart_marker_rows": 1},
    "progressive restarts": {"progressive": True, "restart_marker_blocks": 2},
}


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_is_read_without_its_end_marker(pixels, tmp_path, kind):
    whole = encoded(pixels, "JPEG", **JPEGS[kind])
    expected = read_image(whole)
    path = tmp_path / "a.jpg"
    for cut in (1, 2):
        path.write_bytes(whole[:-cut])
        assert np.array_equal(read_image(path), expected)
        opencv = cv2.imread(str(path))[:, :, ::-1].astype(int)
        assert np.abs(opencv - expected).max() <= (kind == "CMYK")


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_is_refused_where_pixels_are_missing(pixels, kind):
    whole = encoded(pixels, "JPEG", **JPEGS[kind])
    expected = read_image(whole)
    read = []
    for cut in itertools.chain(range(3, 60), range(60, len(whole), 7)):
        try:
            image = read_image(whole[:-cut])
        except InputError:
            continue
        # The last byte may be padding.
        assert np.array_equal(image, expected), cut
        read.append(cut)
    assert set(read) <= {3}


def test_jpeg_that_ends_between_two_parts_is_refused(pixels):
    """Where no decoder misses a bit: before a restart marker, before a scan."""
    jpeg = encoded(pixels, "JPEG", restart_marker_blocks=1)
    restarts = [at for at in range(len(jpeg)) if jpeg[at : at + 2] in RESTARTS]
    scans = encoded(pixels, "JPEG", progressive=True)
    starts = [at for at in range(len(scans)) if scans[at : at + 2] == b"\xff\xda"]
    assert len(restarts) == 5 and len(starts) > 5
    for data, ends in ((jpeg, restarts), (scans, starts[1:])):
        for end in ends:
            assert "it ends before its last " in error_of(read_image, data[:end])


RESTARTS = [bytes((0xFF, 0xD0 + number)) for number in range(8)]


def test_jpeg_is_read_without_its_end_from_any_source(pixels, tmp_path):
    jpeg = encoded(pixels, "JPEG")
    expected = read_image(jpeg)
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg[:-2])
    assert np.array_equal(read_image(path), expected)
    with path.open("rb") as file:
        assert np.array_equal(read_image(file), expected)
    with Image.open(path) as image:
        assert np.array_equal(preprocess(image, 8), preprocess(expected, 8))


def test_jpeg_without_its_end_is_turned_too(pixels):
    jpeg = encoded(pixels, "JPEG", exif=exif("<", field("<", ORIENTATION, SHORT, 6)))
    assert np.array_equal(read_image(jpeg[:-2]), read_image(jpeg))
    assert read_image(jpeg).shape == (40, 27, 3)


def test_arithmetic_jpeg_of_any_length_is_read(monkeypatch):
    expected = read_image(ARITHMETIC_JPEG)
    pixels = cv2.imdecode(np.frombuffer(ARITHMETIC_JPEG, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(expected, pixels)
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 16)  # as if it had many times 64 KiB
    assert np.array_equal(read_image(ARITHMETIC_JPEG), expected)


def test_arithmetic_jpeg_without_its_end_is_refused():
    for cut in (1, 2, 9):
        assert error_of(read_image, ARITHMETIC_JPEG[:-cut]) == (
            f"image of {len(ARITHMETIC_JPEG) - cut} bytes: cannot be read as an image "
            "(it is arithmetic-coded and lacks its end marker); get it again"
        )


def test_size_is_told_by_the_header_alone(pixels):
    for format in ("PNG", "JPEG"):
        whole = encoded(pixels, format)
        assert image_size(whole) == image_size(whole[:-200]) == (40, 27)
    assert "not an image; " in error_of(image_size, b"no image")


# Samples of more than 8 bits.


@pytest.fixture(scope="module")
def samples():
    return np.random.default_rng(1).integers(0, 65536, (5, 7, 4), dtype=np.uint16)


def tiff(samples, order="<", *, photometric, bits=16, planes=1, alpha=None):
    """An uncompressed TIFF file of samples (H, W) or (H, W, C)."""
    height, width, channels = np.atleast_3d(samples).shape
    data = samples.astype(f"{order}u2").tobytes()
    if planes == 2:
        data = samples.transpose(2, 0, 1).astype(f"{order}u2").tobytes()
    if bits == 12:
        rows = ["".join(f"{sample:012b}" for sample in row) for row in samples]
        rows = [row + "0" * (-len(row) % 8) for row in rows]
        data = b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in rows)
    fields = [
        (256, SHORT, [width]),
        (257, SHORT, [height]),
        (258, SHORT, [bits] * channels),
        (259, SHORT, [1]),
        (262, SHORT, [photometric]),
        (273, LONG, [0] * (channels if planes == 2 else 1)),
        (277, SHORT, [channels]),
        (278, SHORT, [height]),
        (279, LONG, [len(data) // len(strips)] * len(strips))
        if (strips := range(channels if planes == 2 else 1))
        else None,
        (284, SHORT, [planes]),
    ]
    if alpha is not None:
        fields.append((338, SHORT, [alpha]))
    end = 8 + 2 + 12 * len(fields) + 4
    long_values = [v for _, k, v in fields if len(v) * struct.calcsize(FORMATS[k]) > 4]
    start = end + sum(len(v) * 4 for v in long_values)
    fields[5] = (273, LONG, [start + i * len(data) // len(strips) for i in strips])
    entries = behind = b""
    for tag, kind, values in fields:
        content = struct.pack(f"{order}{len(values)}{FORMATS[kind]}", *values)
        if len(content) > 4:
            offset = end + len(behind)
            behind += content.ljust(4 * len(values), b"\0")
            content = struct.pack(f"{order}I", offset)
        entries += struct.pack(f"{order}HHI", tag, kind, len(values))
        entries += content.ljust(4, b"\0")
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8)
    return (
        head
        + struct.pack(f"{order}H", len(fields))
        + entries
        + bytes(4)
        + behind
        + data
    )


def high_bytes(samples):
    """RGB of 16-bit samples: grey, RGB or RGBA."""
    high = (samples >> 8).astype(np.uint8)
    return np.stack([high] * 3, axis=2) if samples.ndim == 2 else high[:, :, :3]


@pytest.mark.parametrize("order", "<>")
def test_tiff_samples_of_16_bits_keep_their_high_byte(samples, order):
    grey, rgb = samples[:, :, 0], samples[:, :, :3]
    for content, file in (
        (grey, tiff(grey, order, photometric=1)),
        (rgb, tiff(rgb, order, photometric=2)),
        (samples, tiff(samples, order, photometric=2, alpha=2)),
    ):
        assert np.array_equal(read_image(file), high_bytes(content))
    compressed = BytesIO()
    Image.fromarray(grey).save(compressed, "TIFF", compression="tiff_adobe_deflate")
    assert np.array_equal(read_image(compressed.getvalue()), high_bytes(grey))


def test_tiff_whose_zero_is_white_is_inverted(samples):
    grey = samples[:, :, 0]
    image = read_image(tiff(grey, photometric=0))
    assert np.array_equal(image, high_bytes(65535 - grey))


def test_tiff_samples_of_12_bits_keep_their_8_highest(samples):
    grey = samples[:, :, 0] >> 4
    image = read_image(tiff(grey, photometric=1, bits=12))
    assert np.array_equal(image, high_bytes(samples[:, :, 0]))


@pytest.mark.parametrize("order", "<>")
def test_tiff_of_wide_planes_is_refused(samples, order):
    file = tiff(samples[:, :, :3], order, photometric=2, planes=2)
    assert error_of(read_image, file) == (
        f"image of {len(file)} bytes: its samples of 16 bits stand plane by plane, "
        "which is not read; save it with 8 bits, or with interleaved colours"
    )


def test_png_samples_of_16_bits_keep_their_high_byte(samples):
    for content in (samples[:, :, 0], samples[:, :, :3], samples):
        bgr = (
            content
            if content.ndim == 2
            else content[:, :, [2, 1, 0, 3][: content.shape[2]]]
        )
        png = cv2.imencode(".png", bgr)[1].tobytes()
        assert np.array_equal(read_image(png), high_bytes(content))


@pytest.mark.parametrize("maximum", [256, 1000, 1023, 4095, 65535])
def test_ppm_samples_are_brought_to_16_bits_and_keep_their_high_byte(samples, maximum):
    for magic, content in ((b"25", samples[:, :, 0]), (b"36", samples[:, :, :3])):
        values = np.rint(content / 65535 * maximum).astype(">u2")
        expected = high_bytes(np.rint(values / maximum * 65535).astype(np.uint16))
        header = b" 7 5 %d\n" % maximum
        text = b"# a remark\n" + b" ".join(b"%d" % value for value in values.ravel())
        for kind, body in zip(magic, (text, values.tobytes())):
            file = b"P%c" % kind + header + body
            assert np.array_equal(read_image(file), expected), (kind, maximum)


@pytest.mark.parametrize(
    "body", [bytes(6 * 5 * 7 - 1), b"\xff" * 6 * 5 * 7], ids=["short", "above maximum"]
)
def test_damaged_wide_ppm_is_refused(body):
    file = b"P6 7 5 1023\n" + body
    assert error_of(read_image, file) == (
        f"image of {len(file)} bytes: cannot be read as an image (it does not hold 105 "
        "samples of 0 to 1023); get it again"
    )


# Pixels in memory.

UNSCALED = {"size": 5, "crop_pct": 1, "mean": (0, 0, 0), "std": (1 / 255,) * 3}


def seen(image):
    """The pixels (5, 5, 3) that `preprocess` sees."""
    return (
        np.rint(preprocess(image, **UNSCALED)).astype(int).transpose(1, 2, 0).tolist()
    )


class Tensor:
    """An array of another library."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None):
        if self.array is None:
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy.\nUse cpu()"
            )
        return self.array


def test_pixels_are_taken_from_arrays_of_any_kind():
    rgba = np.random.default_rng(2).integers(0, 256, (5, 5, 4), dtype=np.uint8)
    rgb, grey = rgba[:, :, :3], rgba[:, :, :1]
    colours, greys = rgb.tolist(), np.repeat(grey, 3, axis=2).tolist()
    assert seen(rgb) == seen(rgba) == colours
    assert seen(grey) == seen(grey[:, :, 0]) == greys
    for image, expected in ((rgb, colours), (rgba, colours), (grey, greys)):
        assert seen(image.transpose(2, 0, 1)) == expected
        assert seen(mx.nd.array(image, dtype="uint8")) == expected
        assert seen(Tensor(image)) == expected
        assert seen(image.tolist()) == expected
        assert seen(tuple(map(tuple, image.tolist()))) == expected
        assert seen(image[::-1, ::-1][::-1, ::-1]) == expected
        assert seen(memoryview(image)) == expected


@pytest.mark.parametrize("dtype", ["int32", "int64", "float16", "float32", "float64"])
def test_whole_numbers_of_a_wider_type_are_pixels(dtype):
    pixels = np.random.default_rng(5).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    for image in (pixels, pixels.transpose(2, 0, 1), 255 * (pixels > 99)):
        assert seen(image.astype(dtype)) == seen(image.astype(np.uint8))
        assert seen(mx.nd.array(image, dtype=dtype)) == seen(image.astype(np.uint8))


def test_image_of_mxnet_is_taken_as_it_was_read(pixels, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(pixels, "PNG"))
    values = preprocess(mx.image.imread(str(path)), size=8)
    assert np.array_equal(values, preprocess(pixels, size=8))


@pytest.mark.parametrize("height", [1, 2, 3, 4])
def test_rgb_with_channels_last_is_what_it_seems(height):
    strip = np.random.default_rng(3).integers(0, 256, (height, 9, 3), dtype=np.uint8)
    values = preprocess(strip, size=height, resize="warp", crop_pct=1)
    file = preprocess(encoded(strip, "PNG"), size=height, resize="warp", crop_pct=1)
    assert np.array_equal(values, file)


def test_model_zoo_snippet_for_channels_first_gives_the_same_values():
    rng = np.random.default_rng(4)
    img_data = rng.integers(0, 256, (3, 224, 224), dtype=np.uint8)
    mean_vec = np.array([0.485, 0.456, 0.406])
    stddev_vec = np.array([0.229, 0.224, 0.225])
    norm_img_data = np.zeros(img_data.shape).astype("float32")
    for i in range(img_data.shape[0]):
        norm_img_data[i] = (img_data[i] / 255 - mean_vec[i]) / stddev_vec[i]
    values = preprocess(img_data, crop_pct=1)
    # The snippet computes in 64 bits.
    np.testing.assert_allclose(values, norm_img_data, rtol=0, atol=1e-6)


RULE = (
    "give whole numbers 0 to 255 (uint8) of shape (H, W), (H, W, C) or (C, H, W), "
    "where C is 1 (grey), 3 (RGB) or 4 (RGBA)"
)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (np.zeros((8, 8, 3), np.float32), "float32 (8, 8, 3)"),
        (np.full((8, 8, 3), 256, np.int64), "int64 (8, 8, 3)"),
        (np.full((8, 8, 3), -1, np.int32), "int32 (8, 8, 3)"),
        (np.full((8, 8, 3), 9, np.uint16), "uint16 (8, 8, 3)"),
        (np.full((8, 8, 3), 9.5, np.float32), "float32 (8, 8, 3)"),
        (np.full((8, 8, 3), 256.0), "float64 (8, 8, 3)"),
        (np.full((8, 8, 3), np.nan), "float64 (8, 8, 3)"),
        (np.ones((8, 8, 3), np.float32), "float32 (8, 8, 3)"),
        (np.zeros((8, 8, 3), bool), "bool (8, 8, 3)"),
        (np.zeros((8, 8, 3), object), "object (8, 8, 3)"),
        (np.zeros((8, 8, 2), np.uint8), "uint8 (8, 8, 2)"),
        (np.zeros((2, 8, 8), np.uint8), "uint8 (2, 8, 8)"),
        (np.zeros(8, np.uint8), "uint8 (8,)"),
        (np.uint8(3), "uint8 ()"),
        (np.zeros((0, 8, 3), np.uint8), "uint8 (0, 8, 3)"),
        (mx.nd.zeros((8, 8, 3)), "float32 (8, 8, 3)"),
        (Tensor(np.zeros((8, 8, 3))), "float64 (8, 8, 3)"),
        ([[0.5, 1.0]], "float64 (1, 2)"),
        ([[0, 256]], "int64 (1, 2)"),
        ([[0, -1]], "int64 (1, 2)"),
        ([[True]], "bool (1, 1)"),
        ([], "float64 (0,)"),
    ],
)
def test_array_that_is_no_image_is_refused(image, kind):
    message = f"an array of {kind} is not an image; {RULE}"
    assert error_of(preprocess, image) == message


def test_several_images_are_refused_as_one():
    batch = np.zeros((2, 8, 8, 3), np.uint8)
    message = "an array of uint8 (2, 8, 8, 3) is not an image; "
    message += f"{RULE}; of several images use preprocess_batch"
    assert error_of(preprocess, batch) == message
    assert error_of(preprocess, list(batch)) == message
    for images in (["a.jpg", "b.jpg"], [b"secret"] * 2, [[1], [1, 2]]):
        assert error_of(preprocess, images) == (
            f"a list of 2 is not an image; {RULE}; of several images use "
            "preprocess_batch"
        )


@pytest.mark.parametrize(
    "shape", [(3, 8, 4), (3, 8, 1), (4, 8, 4), (1, 8, 1), (1, 1, 4)]
)
def test_shape_that_may_mean_two_things_is_refused(shape):
    assert error_of(preprocess, np.zeros(shape, np.uint8)) == (
        f"an array of {shape} may be (H, W, C) or (C, H, W); give RGB (H, W, 3)"
    )


def test_tensor_that_stays_on_its_device_is_refused():
    assert error_of(preprocess, Tensor(None)) == (
        "a Tensor does not become an array (can't convert cuda:0 device type tensor to "
        f"numpy.); {RULE}"
    )


@pytest.mark.parametrize("image", [None, 3, {"a": 1}, object])
def test_what_holds_no_pixels_is_refused(image):
    assert error_of(preprocess, image) == (
        f"a {type(image).__name__}: not an image; give a path, the bytes of a file, a "
        "file, a PIL image or pixels in an array"
    )


def test_bytes_of_any_kind_are_a_file(pixels):
    png = encoded(pixels, "PNG")
    for data in (png, bytearray(png), memoryview(png)):
        assert np.array_equal(read_image(data), pixels)
        assert error_of(preprocess, data[:50]).startswith("image of 50 bytes: ")


def test_name_that_is_no_utf8_stands_escaped_in_a_message(pixels, tmp_path):
    path = tmp_path / "caf\udce9\n.png"
    assert error_of(read_image, path) == (
        rf"{tmp_path}/caf\udce9\n.png: no such file; give the path of an image"
    )
    path.write_bytes(encoded(pixels, "PNG"))
    assert np.array_equal(read_image(path), pixels)
