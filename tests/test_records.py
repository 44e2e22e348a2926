# SPDX-License-Identifier: Apache-2.0
"""Reading record files, and batches of their images."""

import re

import cv2
import mxnet as mx
import numpy as np
import pytest
from mxnet.recordio import IRHeader, MXIndexedRecordIO, pack

from gluon_resnet.data.loader import validation_batches
from gluon_resnet.data.records import MAGIC, NO_LABEL, RecordFile
from gluon_resnet.errors import InputError
from gluon_resnet.preprocess import Protocol

PROTOCOL = Protocol(size=8, crop_pct=1)
KEYS = [5, 3, 11, 0, 7, 2, 9]


def png(image):
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def image_of(key):
    return np.random.default_rng(key).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def write(path, records):
    """Write (key, bytes) with MXNet's own writer."""
    writer = MXIndexedRecordIO(str(path.with_suffix(".idx")), str(path), "w")
    for key, content in records:
        writer.write_idx(key, content)
    writer.close()
    return path


@pytest.fixture
def path(tmp_path):
    return write(
        tmp_path / "a.rec",
        [(key, pack(IRHeader(0, key % 4, key, 0), png(image_of(key)))) for key in KEYS],
    )


@pytest.fixture
def records(path):
    return RecordFile.open(path, num_classes=4)


def make_it(path):
    return f"make it with python -m imagenet_prep.index {path}"


def test_keys_stand_in_the_order_of_the_file(records):
    assert list(records.offsets) == KEYS


def test_record_reads_as_it_was_written(records):
    for key in KEYS:
        label, image = records.read(key)
        assert label == key % 4
        np.testing.assert_array_equal(image, image_of(key))


def test_record_that_contains_the_magic_word_is_put_together(tmp_path):
    image = image_of(1)
    # 24 bytes of header, then padding to where the writer looks for the word.
    encoded = png(image)
    encoded += b"\0" * (-len(encoded) % 4) + MAGIC + b"between" + b"\0" + MAGIC
    content = pack(IRHeader(0, 2, 1, 0), encoded)
    path = write(tmp_path / "a.rec", [(0, content), (1, content)])
    assert path.read_bytes().count(MAGIC) == 6, "the writer split neither record"
    records = RecordFile.open(path, num_classes=4)
    for key in (0, 1):
        assert records._content(key) == content
        np.testing.assert_array_equal(records.read(key)[1], image)


def damage(path, records, key, *, at, content):
    whole = bytearray(path.read_bytes())
    start = records.offsets[key] + at
    whole[start : start + len(content)] = content
    path.write_bytes(whole)


def error_of(function, *arguments, **options):
    with pytest.raises(InputError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


GO_ON = "; write the file again, or delete the line of {} in a.idx to go without it"


@pytest.mark.parametrize(
    ("at", "content", "why"),
    [
        (0, b"????", "no record begins there"),
        (7, b"\x60", "no record begins there"),  # the last part of a record
        (4, b"\x08\0\0\0", "8 bytes are too few for a header"),
        (4, b"\xff\xff\xff\x1f", "the file ends within it"),
        (8, b"\xff\xff\xff\xff", "it ends within its list of 4294967295 labels"),
        (36, b"??", "image of [0-9]+ bytes: .*"),
    ],
)
def test_damaged_record_names_file_key_and_offset(path, records, at, content, why):
    damage(path, records, 11, at=at, content=content)
    beginning = f"{path}, record 11 at offset {records.offsets[11]}: "
    assert re.fullmatch(
        f"{re.escape(beginning)}{why}{GO_ON.format(11)}", error_of(records.read, 11)
    )
    assert records.read(0)[0] == 0


def test_deleting_its_line_goes_without_a_damaged_record(path, records):
    damage(path, records, 11, at=0, content=b"????")
    index = path.with_suffix(".idx")
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join(line for line in lines if not line.startswith("11\t")))
    rest = RecordFile.open(path, num_classes=4)
    assert [rest.read(key)[0] for key in rest.offsets] == [1, 3, 0, 3, 2, 1]


@pytest.mark.parametrize(
    ("keep", "why"), [(5, "the file ends in its first words"), (40, "ends within it")]
)
def test_truncated_file_names_the_record(path, records, keep, why):
    last = records.offsets[9]
    path.write_bytes(path.read_bytes()[: last + keep])
    assert why in error_of(records.read, 9)
    assert f"record 9 at offset {last}" in error_of(records.read, 9)


LABELS = [
    (2, [2], None),
    ([2.0], [2], None),
    (3, [3], None),
    (-1, [-1], "it has no label (-1), and a class is needed"),
    ([-1], [-1], "it has no label (-1), and a class is needed"),
    (4, [4], "its label 4 is none of 4 classes"),
    (-2, [-2], "its label -2 is none of 4 classes"),
    (1e30, [1e30], f"its label {float(np.float32(1e30)):.0f} is none of 4 classes"),
    (0.25, [0.25], "its label 0.25 is no whole number"),
    (np.nan, [np.nan], "its label nan is no whole number"),
    (np.inf, [np.inf], "its label inf is no whole number"),
    ([3.0, 1.0], [3, 1], "it has 2 labels, and a class is one"),
    ([0] * 4000, [0] * 4000, "it has 4000 labels, and a class is one"),
]


@pytest.mark.parametrize(("label", "labels", "why"), LABELS)
def test_labels_are_read_as_mxnet_packs_them(tmp_path, label, labels, why):
    content = pack(IRHeader(0, label, 7, 0), png(image_of(7)))
    path = write(tmp_path / "a.rec", [(7, content)])
    records = RecordFile.open(path, num_classes=4)
    np.testing.assert_array_equal(records.labels(7), np.float32(labels))
    if why is None:
        assert records.read(7)[0] == labels[0]
    else:
        assert error_of(records.read, 7) == (
            f"{path}, record 7 at offset 0: {why}; give images with labels from 0 to 3"
        )
    # Where they do not matter, each of them will do.
    assert records.encoded_image(7) == png(image_of(7))
    read, image = RecordFile.open(path, num_classes=None).read(7)
    assert read == NO_LABEL
    np.testing.assert_array_equal(image, image_of(7))


def test_truncation_before_a_record_shows_when_the_file_is_opened(path, records):
    size = records.offsets[9]
    path.write_bytes(path.read_bytes()[:size])
    assert error_of(RecordFile.open, path, num_classes=4) == (
        f"{path.with_suffix('.idx')} line 7 gives key 9 the offset {size}; keys occur "
        f"once and offsets lie below the {size} bytes of a.rec: {make_it(path)}"
    )


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ("", "lists no record"),
        ("5\t0\n5\t96\n", "line 2 gives key 5 the offset 96; keys occur once"),
        ("5\t-8\n", "line 1 gives key 5 the offset -8;"),
        ("5 0\n", "line 1 is not KEY<tab>OFFSET"),
        ("5\t0\nx\t1\n", "line 2 is not KEY<tab>OFFSET"),
    ],
)
def test_unusable_index_is_refused(path, index, why):
    path.with_suffix(".idx").write_text(index)
    message = error_of(RecordFile.open, path, num_classes=4)
    assert message.startswith(f"{path.with_suffix('.idx')} {why}")
    assert message.endswith(f": {make_it(path)}")


def test_offset_that_is_wrong_shows_when_the_record_is_read(path, records):
    index = path.with_suffix(".idx")
    offset = records.offsets[11] + 4
    index.write_text(index.read_text().replace(f"11\t{offset - 4}", f"11\t{offset}"))
    assert error_of(RecordFile.open(path, num_classes=4).read, 11) == (
        f"{path}, record 11 at offset {offset}: no record begins there"
        f"{GO_ON.format(11)}"
    )


def test_index_that_is_no_text_is_refused(path):
    path.with_suffix(".idx").write_bytes(b"\xff\xfe\n")
    assert "line 1 is not KEY" in error_of(RecordFile.open, path, num_classes=4)


def test_missing_index_names_the_command_that_makes_it(path):
    path.with_suffix(".idx").unlink()
    assert error_of(RecordFile.open, path, num_classes=4) == (
        f"{path} has no a.idx beside it: {make_it(path)}"
    )


def test_what_is_no_record_file_is_named(path, tmp_path):
    rule = "a record file is a .rec with its .idx beside it: give the path of the .rec"
    for other in (tmp_path, path.with_suffix(".idx")):
        error = error_of(RecordFile.open, other, num_classes=4)
        assert error == f"{other} is no record file; {rule}"
    other = tmp_path / "b.rec"
    error = error_of(RecordFile.open, other, num_classes=4)
    assert error == f"{other} is not there; {rule}"


def test_validation_shows_each_image_once_in_order(records):
    batches = list(
        validation_batches(KEYS, records.read, batch_size=3, protocol=PROTOCOL)
    )
    assert [len(images) for images, _ in batches] == [3, 3, 1]
    labels = np.concatenate([labels for _, labels in batches])
    assert labels.tolist() == [key % 4 for key in KEYS]
    pixels = np.concatenate([images for images, _ in batches]).transpose(0, 2, 3, 1)
    pixels = (pixels * np.array(PROTOCOL.std) + np.array(PROTOCOL.mean)) * 255
    np.testing.assert_array_equal(
        pixels.round(), np.stack([image_of(key) for key in KEYS])
    )


def test_mxnet_reads_the_same(path, records):
    reader = mx.recordio.MXIndexedRecordIO(
        str(path.with_suffix(".idx")), str(path), "r"
    )
    for key in KEYS:
        assert reader.read_idx(key) == records._content(key)
    reader.close()
