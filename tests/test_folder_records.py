# SPDX-License-Identifier: Apache-2.0
"""A folder of class folders to a record file, and what of an image goes into it."""

import os
from collections import Counter

import cv2
import killing
import numpy as np
import pytest
from PIL import Image
from small_archives import jpeg

from gluon_resnet.data.records import RecordFile
from gluon_resnet.errors import InputError
from gluon_resnet.preprocess import read_image
from imagenet_prep import folder
from imagenet_prep.encoding import Encoding, encode_file, encode_png
from imagenet_prep.folder import convert, convert_split

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


def test_what_is_no_image_is_left_out_and_told_once(source, tmp_path, caplog):
    (source / ".hidden").mkdir()
    (source / "__MACOSX").mkdir()
    (source / "loose.jpg").touch()
    for name in CLASSES:
        (source / name / ".DS_Store").touch()
        (source / name / "._0.jpg").touch()
    (source / "cat" / "notes.txt").touch()
    (source / "cat" / ".ipynb_checkpoints").mkdir()
    (source / "cat" / ".ipynb_checkpoints" / "0-checkpoint.jpg").touch()
    (source / "dog" / "gone.jpg").symlink_to("nowhere")
    convert(source, tmp_path / "a")
    assert len(RecordFile.open(tmp_path / "a.rec", num_classes=4).offsets) == 12
    (message,) = caplog.messages
    assert message == (
        f"{source}: left out 11 hidden, such as {source}/.hidden; "
        f"1 not in a class folder, such as {source}/loose.jpg; "
        f"1 not named like an image, such as {source}/cat/notes.txt; "
        f"1 linked to nothing, such as {source}/dog/gone.jpg"
    )


def test_images_at_any_depth_of_a_class_folder_are_taken(source, tmp_path, caplog):
    deep = source / "cat" / "2020.jpg" / "may"
    deep.mkdir(parents=True)
    (deep / "9.jpg").write_bytes(jpeg(99))
    (source / "dog" / "circle").symlink_to(".")
    other = tmp_path / "other"
    other.mkdir()
    (other / "8.png").write_bytes(encode_png(np.zeros((4, 4), np.uint8)))
    (source / "ärger" / "linked").symlink_to(other)
    convert(source, tmp_path / "a", shuffle=False)
    listed = (tmp_path / "a.lst").read_text().splitlines()
    assert len(listed) == 14
    assert "6\t1\tcat/2020.jpg/may/9.jpg" in listed
    assert listed[-1] == "13\t3\tärger/linked/8.png"
    records = RecordFile.open(tmp_path / "a.rec", num_classes=4)
    np.testing.assert_array_equal(records.read(6)[1], read_image(jpeg(99)))
    assert not caplog.records


def test_class_folders_may_be_links(source, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in CLASSES:
        (linked / name).symlink_to(source / name)
    convert(linked, tmp_path / "a")
    convert(source, tmp_path / "b")
    for suffix in ("lst", "rec", "idx"):
        contents = [(tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab"]
        assert contents[0] == contents[1]


def test_classes_without_images_are_told(source, tmp_path, caplog):
    for name in ("elk", "fox"):
        (source / name).mkdir()
    convert(source, tmp_path / "a")
    assert caplog.messages == [f"{source}: 2 of 6 classes have no image, such as elk"]


@pytest.mark.parametrize("part", ["train", "Val", "test"])
def test_folder_of_the_parts_of_a_data_set_is_refused(source, tmp_path, part):
    parts = tmp_path / "parts"
    parts.mkdir()
    source.rename(parts / part)
    assert error_of(convert, parts, tmp_path / "a") == (
        f"{parts} holds {part}, which holds folders and no images: give "
        f"--source {parts / part} if its folders are the classes"
    )
    # A class of trains is one.
    (parts / part / "0.jpg").write_bytes(jpeg(0))
    convert(parts, tmp_path / "a")


def test_names_of_any_bytes_are_kept(source, tmp_path):
    names = [
        b"caf\xe9.jpg",
        b"a b'c\"d\\e $HOME.jpg",
        b"\xc3\xa9.jpg",
        b"x\x0cy\x85.jpg",
    ]
    for number, name in enumerate(names):
        path = source / "cat" / os.fsdecode(name)
        path.write_bytes(jpeg(50 + number))
    convert(source, tmp_path / "a", shuffle=False)
    listed = (tmp_path / "a.lst").read_bytes()
    for name in names:
        assert b"\t1\tcat/" + name + b"\n" in listed
    assert len(RecordFile.open(tmp_path / "a.rec", num_classes=4).offsets) == 16
    assert convert(source, tmp_path / "a", shuffle=False) == [], "the same list again"


def test_unreadable_image_with_a_name_that_is_no_utf8_is_named(source, tmp_path):
    (source / "cat" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"no image")
    message = error_of(convert, source, tmp_path / "a", encoding=Encoding(verify=True))
    assert message.startswith(rf"{source}/cat/caf\udce9.jpg: not an image; ")


def test_name_with_a_line_end_is_refused(source, tmp_path):
    (source / "cat" / "a\nb.jpg").write_bytes(jpeg(0))
    assert error_of(convert, source, tmp_path / "a") == (
        rf"the file name 'cat/a\nb.jpg' cannot stand in a line of {tmp_path}/a.lst: "
        "rename the file without tabs and line ends"
    )
    assert not list(tmp_path.glob("*a.*"))


def test_links_to_images_are_followed(source, tmp_path):
    (source / "cat" / "link.jpg").symlink_to(source / "dog" / "0 ü.JPG")
    convert(source, tmp_path / "a")
    assert len(RecordFile.open(tmp_path / "a.rec", num_classes=4).offsets) == 13


def test_splits_with_other_classes_are_refused(source, tmp_path):
    target = tmp_path / "records"
    convert(source, target / "train")
    (source / "elk").mkdir()
    assert error_of(convert, source, target / "val") == (
        f"{target}/classes.txt lists 4 classes, others than the 5 found; elk is only "
        "in one of the two: give every split the same class folders (an empty one will "
        "do), or another target"
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


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "a\x0cb", "a\u2028b", "\udcff"])
def test_class_name_that_breaks_a_line_is_refused(source, tmp_path, name):
    (source / name).mkdir()
    assert error_of(convert, source, tmp_path / "records" / "a") == (
        f"{source} holds a folder {name!r}: rename it without tabs, line ends and what "
        "is not UTF-8"
    )
    assert not list((tmp_path / "records").iterdir())


SUFFIXES = (
    ".apng, .bmp, .gif, .jfif, .jpe, .jpeg, .jpg, .pbm, .pgm, .png, .pnm, .ppm, .tif, "
    ".tiff, .webp"
)


def test_classes_without_images_are_refused(tmp_path):
    photos = tmp_path / "photos"
    (photos / "cat").mkdir(parents=True)
    assert error_of(convert, photos, tmp_path / "a") == (
        f"{photos} has no class folder with an image: give files that end in {SUFFIXES}"
    )
    (photos / "cat" / "a.jpg").write_bytes(jpeg(0))
    assert error_of(convert_split, photos, tmp_path / "a", 0.5) == (
        f"{photos} has no class folder with two images: give files that end in "
        f"{SUFFIXES}"
    )


# A share of each class for validation.


@pytest.fixture
def uneven(tmp_path):
    """Classes of 1, 2, 3, 10 and 40 images, and one without."""
    folder = tmp_path / "photos"
    for label, count in enumerate((1, 2, 3, 10, 40, 0)):
        (folder / str(label)).mkdir(parents=True)
        for number in range(count):
            image = jpeg(100 * label + number, height=4, width=5)
            (folder / str(label) / f"{number}.jpg").write_bytes(image)
    return folder


def rows_of(lst):
    rows = [line.split("\t") for line in lst.read_text().splitlines()]
    return {int(key): (int(label), name) for key, label, name in rows}


@pytest.mark.parametrize(
    ("share", "drawn"),
    [
        (0.2, [0, 1, 1, 2, 8]),
        (0.25, [0, 1, 1, 2, 10]),
        (0.01, [0, 1, 1, 1, 1]),
        (0.99, [0, 1, 2, 9, 39]),
    ],
)
def test_split_draws_a_share_of_each_class(uneven, tmp_path, caplog, share, drawn):
    target = tmp_path / "records"
    written = convert_split(uneven, target, share)
    assert written == [target / "train.rec", target / "val.rec"]
    train, val = (rows_of(target / f"{part}.lst") for part in ("train", "val"))
    counts = Counter(label for label, _ in val.values())
    assert [counts[label] for label in range(5)] == drawn
    # Each image is in one of them, with its label.
    assert sorted({**train, **val}) == list(range(56)) == sorted([*train, *val])
    for label, name in {**train, **val}.values():
        assert name.startswith(f"{label}/")
    for part, rows in (("train", train), ("val", val)):
        records = RecordFile.open(target / f"{part}.rec", num_classes=6)
        assert list(records.offsets) == list(rows)
        for key, (label, name) in rows.items():
            expected = read_image(uneven / name)
            read, image = records.read(key)
            assert read == label
            np.testing.assert_array_equal(image, expected)
    assert list(val) == sorted(val) and list(train) != sorted(train)
    assert (target / "classes.txt").read_text() == "0\n1\n2\n3\n4\n5\n"
    assert caplog.messages == [
        f"{uneven}: 1 of 6 classes have no image, such as 5",
        f"{uneven}: 1 of 6 classes have one image, which is in train, such as 0",
    ]


def test_split_is_the_same_for_the_same_seed_alone(uneven, tmp_path):
    drawn = []
    for number, seed in enumerate((0, 0, 1)):
        convert_split(uneven, tmp_path / str(number), 0.2, seed=seed)
        drawn.append((tmp_path / str(number) / "val.lst").read_text())
    assert drawn[0] == drawn[1] != drawn[2]
    assert error_of(convert_split, uneven, tmp_path / "0", 0.2, seed=1) == (
        f"{tmp_path}/0/train.rec was begun with another list of images: give the same "
        f"again, another target, or remove {tmp_path}/0/train.idx and "
        f"{tmp_path}/0/.train.part.idx"
    )
    assert convert_split(uneven, tmp_path / "0", 0.2) == []


@pytest.mark.parametrize("share", [0, 1, -0.1, 20, float("nan")])
def test_share_that_is_none_is_refused(uneven, tmp_path, share):
    assert error_of(convert_split, uneven, tmp_path / "a", share) == (
        f"split {share} is not between 0 and 1; 0.2 draws a fifth of each class"
    )
    assert not (tmp_path / "a").exists()


def test_killed_split_makes_the_same_bytes(uneven, tmp_path):
    arguments = {"source": uneven, "share": 0.2, "target": tmp_path / "whole"}
    total = killing.run(convert_split, arguments, arguments["target"])
    whole = killing.files_below(tmp_path / "whole")
    for moment in killing.moments_to_try(total, count=4):
        target = arguments["target"] = tmp_path / f"killed{moment}"
        assert killing.run(convert_split, arguments, target, kill_at=moment) is None
        convert_split(**arguments)
        assert killing.files_below(target) == whole, moment


@pytest.mark.slow
def test_ten_thousand_and_one_classes_are_converted(tmp_path):
    image = jpeg(0, height=4, width=5)
    for label in range(10_001):
        folder = tmp_path / "photos" / f"{label:05}"
        folder.mkdir(parents=True)
        for number in range(2):
            (folder / f"{number}.jpg").write_bytes(image)
    target = tmp_path / "records"
    convert_split(tmp_path / "photos", target, 0.5)
    assert len((target / "classes.txt").read_text().splitlines()) == 10_001
    for part in ("train", "val"):
        records = RecordFile.open(target / f"{part}.rec", num_classes=10_001)
        assert len(records.offsets) == 10_001
        last = max(records.offsets)
        assert records.read(last)[0] == 10_000 == last // 2


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


def test_command_writes_the_files_and_then_leaves_them(source, run_command, tmp_path):
    target = tmp_path / "records"
    options = ["--workers", 2, "--source", source, "--target", target, "--resize", 16]
    done = run_command(folder, *options)
    assert (done.code, done.out) == (0, f"{target / 'photos.rec'}\n")
    done = run_command(folder, *options)
    assert (done.code, done.out) == (0, "")
    assert done.err == f"{target} held the rest already\n"


def test_command_splits(source, run_command, tmp_path):
    target = tmp_path / "records"
    options = ["--source", source, "--target", target, "--split", 0.3, "--seed", 5]
    done = run_command(folder, *options)
    assert (done.code, done.out) == (0, f"{target}/train.rec\n{target}/val.rec\n")
    convert_split(source, tmp_path / "same", 0.3, seed=5)
    assert killing.files_below(target) == killing.files_below(tmp_path / "same")
    done = run_command(folder, *options, "--name", "a")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "python -m imagenet_prep.folder: name a is that of one record file; with "
        "--split there are two, train and val: leave one of the options out\n"
    )


def test_command_names_a_bad_image(source, run_command, tmp_path):
    bad = source / "cat" / "bad.jpg"
    bad.write_bytes(b"no image")
    options = ["--verify", "--source", source, "--target", tmp_path / "records"]
    done = run_command(folder, *options)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"python -m imagenet_prep.folder: {bad}: not an image; give one of these "
        "formats: BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP\n"
    )
