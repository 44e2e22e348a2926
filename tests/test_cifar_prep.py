# SPDX-License-Identifier: Apache-2.0
"""CIFAR's archives, small ones in the real layouts, to record files."""

import hashlib
import io
import pickle
import struct

import killing
import numpy as np
import pytest
from small_archives import EVIL_MEMBERS, tar, tgz

from gluon_resnet.data.records import RecordFile
from gluon_resnet.errors import InputError
from imagenet_prep import archives, cifar
from imagenet_prep.cifar import prepare, read_archive

COUNTS = {"train": 20, "val": 6}
KINDS = [(classes, kind) for classes in (10, 100) for kind in ("python", "binary")]


class Python2Pickler(pickle._Pickler):
    """Writes all strings as Python 2 did, which wrote the published files."""

    def save_string(self, string):
        content = string.encode() if isinstance(string, str) else string
        if len(content) < 256:
            self.write(b"U" + bytes([len(content)]) + content)
        else:
            self.write(b"T" + struct.pack("<i", len(content)) + content)
        self.memoize(string)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_string, str: save_string}  # noqa: RUF012


def pickled(content):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue()


def images_of(split, num_classes):
    rng = np.random.default_rng([num_classes, len(split)])
    pixels = rng.integers(0, 256, (COUNTS[split], 3072), dtype=np.uint8)
    return pixels, rng.integers(0, num_classes, COUNTS[split]).tolist()


def batches(num_classes):
    """Name, pixels and labels of each published batch."""
    for split in ("train", "val"):
        pixels, labels = images_of(split, num_classes)
        if num_classes == 100:
            yield {"train": "train", "val": "test"}[split], pixels, labels
        elif split == "val":
            yield "test_batch", pixels, labels
        else:
            for number in range(5):
                part = slice(4 * number, 4 * number + 4)
                yield f"data_batch_{number + 1}", pixels[part], labels[part]


def python_members(num_classes):
    folder = "cifar-10-batches-py" if num_classes == 10 else "cifar-100-python"
    for name, pixels, labels in batches(num_classes):
        key = b"labels" if num_classes == 10 else b"fine_labels"
        batch = {
            b"batch_label": b"training batch 1 of 5",
            key: labels,
            b"coarse_labels": [0] * len(labels),
            b"data": pixels,
            b"filenames": [b"a_%d.png" % number for number in range(len(labels))],
        }
        yield f"{folder}/{name}", pickled(batch)
    yield f"{folder}/batches.meta", pickled({b"label_names": [b"airplane"]})


def binary_members(num_classes):
    folder = "cifar-10-batches-bin" if num_classes == 10 else "cifar-100-binary"
    coarse = [] if num_classes == 10 else [7]
    for name, pixels, labels in batches(num_classes):
        rows = [
            bytes([*coarse, label]) + row.tobytes()
            for row, label in zip(pixels, labels)
        ]
        yield f"{folder}/{name}.bin", b"".join(rows)
    yield f"{folder}/readme.html", b"<html>"


def members(num_classes, kind):
    make = python_members if kind == "python" else binary_members
    return dict(make(num_classes))


def write(path, content):
    path.write_bytes(tgz(content.items()))
    return path


def error_of(function, *arguments, **options):
    with pytest.raises(InputError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def read(archive):
    return read_archive(archive, counts=COUNTS, verify=False)


@pytest.mark.parametrize(("num_classes", "kind"), KINDS)
def test_records_hold_every_image_with_its_label(tmp_path, num_classes, kind):
    archive = write(tmp_path / "a.tar.gz", members(num_classes, kind))
    target = tmp_path / "target"
    assert prepare(archive, target, counts=COUNTS, verify=False) == [
        target / "train.rec",
        target / "val.rec",
    ]
    for split, count in COUNTS.items():
        pixels, labels = images_of(split, num_classes)
        records = RecordFile.open(target / f"{split}.rec", num_classes=num_classes)
        assert sorted(records.offsets) == list(range(count))
        assert (list(records.offsets) == list(range(count))) == (split == "val")
        for key in records.offsets:
            label, image = records.read(key)
            assert label == labels[key]
            planes = pixels[key].reshape(3, 32, 32)
            np.testing.assert_array_equal(image.transpose(2, 0, 1), planes)
    assert prepare(archive, target, counts=COUNTS, verify=False) == []


@pytest.mark.parametrize("num_classes", [10, 100])
def test_both_archives_of_a_data_set_give_the_same_files(tmp_path, num_classes):
    for kind in ("python", "binary"):
        archive = write(tmp_path / f"{kind}.tar.gz", members(num_classes, kind))
        prepare(archive, tmp_path / kind, counts=COUNTS, verify=False, workers=1)
    files = killing.files_below(tmp_path / "python")
    assert files == killing.files_below(tmp_path / "binary")
    assert len(files) == 6


def test_pickles_are_read_like_numpy_would(tmp_path):
    pixels, labels = images_of("val", 100)
    content = pickled({b"data": pixels, b"fine_labels": labels})
    numpys = pickle.loads(content, encoding="bytes")
    ours = cifar.read_pickle(content, b"fine_labels")
    np.testing.assert_array_equal(ours[0], numpys[b"data"])
    assert ours[1].tolist() == numpys[b"fine_labels"] == labels


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


RAN = []


@pytest.mark.parametrize(
    "call",
    [
        Call(exec, "import test_cifar_prep; test_cifar_prep.RAN.append(1)"),
        Call(RAN.append, 1),
        Call(getattr, RAN, "append"),
        Call(np.load, "x"),
        Call(np.zeros, (1 << 40,)),
        np.dtype([("a", "O")]),
        np.array([RAN], dtype=object),
    ],
)
def test_pickle_that_wants_to_run_code_is_refused(tmp_path, call):
    pixels, labels = images_of("train", 100)
    batch = {b"fine_labels": labels, b"data": pixels, b"evil": call}
    content = {**members(100, "python"), "cifar-100-python/train": pickled(batch)}
    if isinstance(call, Call):
        message = error_of(read, write(tmp_path / "a.tar.gz", content))
        assert "cifar-100-python/train cannot be read (" in message
        if call.call[0] is not RAN.append:
            assert "it calls " in message
    else:  # NumPy's own: read as inert stand-ins
        read(write(tmp_path / "a.tar.gz", content))
    assert RAN == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        pickled([1, 2]),
        pickled({b"data": 1, b"fine_labels": [1]}),
        pickled({b"data": np.zeros((20, 3072), np.int16), b"fine_labels": [1] * 20}),
        pickled({b"data": np.zeros((20, 3071), np.uint8), b"fine_labels": [1] * 20}),
        pickled({b"data": np.zeros((3072, 20), np.uint8).T, b"fine_labels": [1] * 20}),
        pickled({b"data": np.zeros((20, 3072), np.uint8)}),
        members(100, "python")["cifar-100-python/train"][:-9],
    ],
)
def test_damaged_pickle_is_refused(tmp_path, content):
    content = {**members(100, "python"), "cifar-100-python/train": content}
    message = error_of(read, write(tmp_path / "a.tar.gz", content))
    assert "a.tar.gz: cifar-100-python/train cannot be read (" in message


@pytest.mark.parametrize("labels", [[1] * 19, [100] * 20, [-1] * 20, [[1]] * 20])
def test_labels_that_are_no_classes_are_refused(tmp_path, labels):
    batch = {b"data": images_of("train", 100)[0], b"fine_labels": labels}
    content = {**members(100, "python"), "cifar-100-python/train": pickled(batch)}
    assert error_of(read, write(tmp_path / "a.tar.gz", content)).endswith(
        "cifar-100-python/train has labels that are not one of 100 classes for each "
        "image: fetch it again"
    )


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda content: content[:-1], "cannot be read (cannot reshape"),
        (lambda content: b"\x0a" + content[1:], "has labels that are not one of 10"),
        (lambda content: content[3073:], "holds 19 images of train, not 20"),
    ],
)
def test_damaged_binary_batch_is_refused(tmp_path, damage, why):
    content = members(10, "binary")
    name = "cifar-10-batches-bin/data_batch_3.bin"
    content[name] = damage(content[name])
    assert why in error_of(read, write(tmp_path / "a.tar.gz", content))


@pytest.mark.parametrize(("num_classes", "kind"), KINDS)
def test_missing_batch_is_named(tmp_path, num_classes, kind):
    content = members(num_classes, kind)
    name = next(name for name in content if "test" in name)
    del content[name]
    archive = write(tmp_path / "a.tar.gz", content)
    assert error_of(read, archive) == f"{archive} lacks {name}: fetch it again"


@pytest.mark.parametrize(("evil", "why"), EVIL_MEMBERS)
def test_dangerous_members_are_refused(tmp_path, evil, why):
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(tgz([*members(10, "binary").items(), evil]))
    with pytest.raises(InputError, match=why):
        read(archive)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (tgz([("a", b"")]), "holds no batches of CIFAR: give one of cifar-"),
        (tar([("a", b"")]), "is damaged (not a gzip file): fetch it again"),
        (tgz(members(10, "binary").items())[:9000], "is damaged ("),
        (b"", "is damaged ("),
    ],
)
def test_file_that_is_no_archive_of_cifar_is_refused(tmp_path, content, why):
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(content)
    assert error_of(read, archive).startswith(f"{archive} {why}")


def test_missing_file_says_where_to_get_it(tmp_path):
    assert error_of(read, tmp_path / "a") == (
        f"{tmp_path / 'a'} is not there: download it from "
        "https://www.cs.toronto.edu/~kriz/cifar.html"
    )


def test_checksum_is_compared_before_anything_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "open_archive", None)
    content = {**members(100, "python"), "cifar-100-python/train": b"bad"}
    archive = write(tmp_path / "a.tar.gz", content)
    message = error_of(prepare, archive, tmp_path / "target")
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    assert message == (
        f"{archive} has the MD5 {digest}, none of those of the published "
        "cifar-{10,100}-{python,binary}.tar.gz: fetch it again"
    )


def test_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    content = {**members(10, "binary"), "other": bytes(100_000)}
    whole = sum(map(len, content.values()))
    archive = write(tmp_path / "a.tar.gz", content)
    monkeypatch.setattr(cifar, "_MOST_BYTES", whole)
    read(archive)
    monkeypatch.setattr(cifar, "_MOST_BYTES", whole - 1)
    assert error_of(read, archive) == (
        f"{archive} unpacks to more than {whole - 1} bytes: fetch the published archive"
    )


def test_archive_of_too_many_members_is_refused(tmp_path, monkeypatch):
    content = members(10, "binary")
    archive = write(tmp_path / "a.tar.gz", content)
    monkeypatch.setattr(archives, "_MOST_MEMBERS", len(content))
    read(archive)
    monkeypatch.setattr(archives, "_MOST_MEMBERS", len(content) - 1)
    assert error_of(read, archive) == (
        f"{archive} holds more than {len(content) - 1} members: do not trust it, fetch "
        "the published file"
    )


def test_killed_at_any_moment_the_next_run_makes_the_same_bytes(tmp_path):
    archive = write(tmp_path / "a.tar.gz", members(10, "binary"))
    arguments = {"archive": archive, "counts": COUNTS, "verify": False}
    whole = tmp_path / "whole"
    total = killing.run(prepare, {"target": whole, **arguments}, whole)
    for moment in killing.moments_to_try(total, count=8):
        target = tmp_path / f"killed{moment}"
        options = {"target": target, **arguments}
        assert killing.run(prepare, options, target, kill_at=moment) is None
        prepare(**options)
        assert killing.files_below(target) == killing.files_below(whole), moment


def test_command_says_in_one_line_what_is_wrong(run_command, tmp_path):
    options = ["--archive", tmp_path / "a", "--target", tmp_path / "target"]
    done = run_command(cifar, *options)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"python -m imagenet_prep.cifar: {error_of(read, tmp_path / 'a')}\n"
    )
