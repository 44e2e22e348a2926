# SPDX-License-Identifier: Apache-2.0
"""A folder of class folders to a record file, and what of an image goes into it."""

import os
import subprocess
import sys

import cv2
import killing
import numpy as np
import pytest
from PIL import Image
from small_archives import jpeg

from gluon_resnet.data.records import RecordFile
from gluon_resnet.errors import InputError
from gluon_resnet.preprocess import read_image
from imagenet_prep.encoding import Encoding, encode_file, encode_png
from imagenet_prep.folder import convert

CLASSES = ["Zebra", "cat", "dog", "ärger"]  # sorted by code point


def error_of(function, *arguments, **options):
    with pytest.raises(InputError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "photos"
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            image = jpeg(10 * label + number)
            (folder / name / f"{number} ü.JPG").write_bytes(image)
    return folder


def test_labels_follow_the_sorted_names_of_the_folders(source, tmp_path):
    prefix = tmp_path / "records" / "train"
    assert convert(source, prefix)
    target = prefix.parent
    assert (target / "classes.txt").read_text().splitlines() == CLASSES
    records = RecordFile.open(target / "train.rec", num_classes=4)
    assert sorted(records.offsets) == list(range(12))
    assert list(records.offsets) != list(range(12)), "shuffled unless told otherwise"
    for key in range(12):
        label, image = records.read(key)
        assert label == key // 3
        expected = read_image(jpeg(10 * label + key % 3))
        np.testing.assert_array_equal(image, expected)
    assert {path.name for path in target.iterdir()} == {
        "classes.txt",
        "train.lst",
        "train.rec",
        "train.idx",
    }


def test_order_can_be_kept(source, tmp_path):
    convert(source, tmp_path / "a", shuffle=False)
    records = RecordFile.open(tmp_path / "a.rec", num_classes=4)
    assert list(records.offsets) == list(range(12))


def test_finished_records_are_left_alone(source, tmp_path):
    prefix = tmp_path / "records" / "train"
    assert convert(source, prefix)
    before = killing.files_below(prefix.parent)
    assert not convert(source, prefix)
    assert killing.files_below(prefix.parent) == before


def test_what_is_no_image_is_left_out_and_said(source, tmp_path, capsys):
    (source / ".hidden").mkdir()
    (source / "README").touch()
    (source / "cat" / ".DS_Store").touch()
    (source / "cat" / "._0.jpg").touch()
    (source / "cat" / "notes.txt").touch()
    (source / "dog" / "more").mkdir()
    (source / "dog" / "folder.jpg").mkdir()
    convert(source, tmp_path / "a")
    assert len(RecordFile.open(tmp_path / "a.rec", num_classes=4).offsets) == 12
    assert capsys.readouterr().err.splitlines()[0] == (
        f"{source}: 3 entries are no image files and left out, such as "
        f"{source / 'dog' / 'more'}"
    )


def test_links_to_images_are_followed(source, tmp_path):
    (source / "cat" / "link.jpg").symlink_to(source / "dog" / "0 ü.JPG")
    convert(source, tmp_path / "a")
    assert len(RecordFile.open(tmp_path / "a.rec", num_classes=4).offsets) == 13


def test_splits_with_other_classes_are_refused(source, tmp_path):
    target = tmp_path / "records"
    convert(source, target / "train")
    (source / "elk").mkdir()
    assert error_of(convert, source, target / "val") == (
        f"{target / 'classes.txt'} lists other classes than the 5 found: give every "
        "split the same class folders (an empty one will do), or another target"
    )
    (source / "elk").rmdir()
    for path in (source / "cat").iterdir():
        path.unlink()
    assert convert(source, target / "val"), "a class without images is a class"


def test_source_without_class_folders_is_refused(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for path, why in ((tmp_path / "x", "is not a folder"), (empty, "holds no folder")):
        message = error_of(convert, path, tmp_path / "a")
        assert message.startswith(f"{path} {why}: give one ")


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "\udcff"])
def test_class_name_that_breaks_a_line_is_refused(source, tmp_path, name):
    (source / name).mkdir()
    assert error_of(convert, source, tmp_path / "records" / "a") == (
        f"{source} holds a folder {name!r}: rename it without tabs, line ends and what "
        "is not UTF-8"
    )
    assert not list((tmp_path / "records").iterdir())


def test_classes_without_images_are_refused(tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    message = error_of(convert, tmp_path / "photos", tmp_path / "a")
    assert message == (
        f"there is no image to list in {tmp_path / 'a.lst'}: give at least one"
    )


def test_killed_at_any_moment_the_next_run_makes_the_same_bytes(source, tmp_path):
    whole_folder = tmp_path / "whole"
    arguments = {"source": source, "prefix": whole_folder / "a"}
    total = killing.run(convert, arguments, whole_folder)
    whole = killing.files_below(whole_folder)
    for moment in killing.moments_to_try(total, count=8):
        target = tmp_path / f"killed{moment}"
        arguments["prefix"] = target / "a"
        assert killing.run(convert, arguments, target, kill_at=moment) is None
        convert(**arguments)
        assert killing.files_below(target) == whole, moment


@pytest.mark.parametrize("suffix", [".JPEG", ".png", ".bmp", ".webp", ".tif"])
def test_files_pass_through_byte_for_byte(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path)
    for encoding in (Encoding(), Encoding(verify=True)):
        assert encode_file(path, encoding) == path.read_bytes()


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((300, 200), 100, (150, 100)),
        ((200, 301), 100, (100, 150)),
        ((200, 200), 7, (7, 7)),
        ((90, 80), 100, (90, 80)),
        ((3000, 2), 1, (1500, 1)),
    ],
)
def test_short_side_shrinks_and_never_grows(tmp_path, size, side, expected):
    path = tmp_path / "a.png"
    Image.new("RGB", size, "red").save(path)
    encoded = encode_file(path, Encoding(resize=side))
    assert encoded.startswith(b"\xff\xd8"), "no JPEG"
    assert read_image(encoded).shape == (*expected[::-1], 3)


def test_colours_survive_the_encoding(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 64), (200, 100, 20)).save(path)
    for encoding in (Encoding(resize=32), Encoding(quality=90)):
        pixels = read_image(encode_file(path, encoding))
        assert np.abs(pixels - np.array([200.0, 100, 20])).max() < 4


def test_what_imagenet_hides_under_jpeg_is_encoded(tmp_path):
    """It has a PNG file and CMYK files under that name."""
    png, cmyk = tmp_path / "png.JPEG", tmp_path / "cmyk.JPEG"
    Image.new("RGB", (64, 64), "green").save(png, "PNG")
    Image.new("CMYK", (64, 64), (0, 255, 0, 0)).save(cmyk, "JPEG")
    for path in (png, cmyk):
        pixels = read_image(encode_file(path, Encoding(resize=32)))
        np.testing.assert_allclose(
            pixels, np.broadcast_to(read_image(path)[:32, :32], (32, 32, 3)), atol=4
        )


def test_quality_is_95_and_can_be_less(tmp_path):
    path = tmp_path / "a.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    sizes = [len(encode_file(path, Encoding(32, q))) for q in (50, 94, None, 95, 96)]
    assert sizes[0] < sizes[1] < sizes[2] == sizes[3] < sizes[4]


@pytest.mark.parametrize(
    "encoding", [Encoding(verify=True), Encoding(resize=8), Encoding(quality=90)]
)
def test_image_that_cannot_be_decoded_is_named(tmp_path, encoding):
    path = tmp_path / "a.jpg"
    for content in (b"no image", jpeg(0)[:200]):
        path.write_bytes(content)
        assert error_of(encode_file, path, encoding).startswith(f"{path}: ")
        assert encode_file(path, Encoding()) == content, "unseen if not asked for"


def test_empty_file_is_refused(tmp_path):
    path = tmp_path / "a.jpg"
    path.touch()
    assert error_of(encode_file, path, Encoding()) == (
        f"{path} is empty: fetch it again or leave it out"
    )


def test_image_that_jpeg_cannot_hold_is_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (65_536, 1)).save(path)
    assert error_of(encode_file, path, Encoding(resize=1)) == (
        f"{path} becomes an image of 65536 x 1 pixels, JPEG has at most 65535 a side: "
        "leave it out"
    )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"resize": 0}, "resize 0 is not a positive number of pixels"),
        ({"quality": 0}, "quality 0 is not in 1 to 100"),
        ({"quality": 101}, "quality 101 is not in 1 to 100"),
    ],
)
def test_unusable_options_are_refused(options, why):
    assert error_of(Encoding, **options) == why


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_png_holds_the_pixels(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    decoded = cv2.imdecode(np.frombuffer(encode_png(image), np.uint8), -1)
    np.testing.assert_array_equal(
        decoded if len(shape) == 2 else decoded[..., ::-1], image
    )


def test_command_writes_the_files_and_then_leaves_them(source, tmp_path):
    command = [sys.executable, "-m", "imagenet_prep.folder", "--workers", "2"]
    command += ["--source", source, "--target", tmp_path / "records", "--resize", "16"]
    for last_line in ("photos.rec: 12 of 12 images", "it was there already"):
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert result.stdout == f"{tmp_path / 'records' / 'photos.rec'}\n"
        assert result.stderr.splitlines()[-1] == last_line
    assert os.listdir(tmp_path / "records").count("photos.rec") == 1  # noqa: PTH208


def test_command_names_a_bad_image(source, tmp_path):
    bad = source / "cat" / "bad.jpg"
    bad.write_bytes(b"no image")
    command = [sys.executable, "-m", "imagenet_prep.folder", "--verify"]
    command += ["--source", source, "--target", tmp_path / "records"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == (
        f"python -m imagenet_prep.folder: {bad}: not an image; give one of these "
        "formats: BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP\n"
    )
