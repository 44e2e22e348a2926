# SPDX-License-Identifier: Apache-2.0
"""Fashion-MNIST's IDX files and the record files written from them."""

import gzip
import hashlib
import re
import shutil

import numpy as np
import pytest

from gluon_resnet import bundled
from gluon_resnet.data.records import RecordFile
from gluon_resnet.errors import InputError
from gluon_resnet.preprocess import read_image
from imagenet_prep import fashion_mnist
from imagenet_prep import make_sample as sample
from imagenet_prep.fashion_mnist import convert, read_idx, read_split
from imagenet_prep.make_sample import first_of_each_class, make_sample

NO_SUMS = {}
COUNT = 40


def idx(values):
    header = bytes([0, 0, 8, values.ndim])
    return header + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def write_idx_files(folder, images, labels):
    folder.mkdir(exist_ok=True)
    for split in ("train", "t10k"):
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(labels)
    return folder


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 28, 28), dtype=np.uint8)


@pytest.fixture
def labels():
    return np.random.default_rng(1).permutation(np.arange(COUNT, dtype=np.uint8) % 10)


@pytest.fixture
def source(tmp_path, images, labels):
    return write_idx_files(tmp_path / "source", idx(images), idx(labels))


def error_of(function, *arguments, **options):
    with pytest.raises(InputError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_split_holds_what_the_files_hold(source, images, labels):
    read_images, read_labels = read_split(source, "train", sha256=NO_SUMS)
    np.testing.assert_array_equal(read_images, images)
    np.testing.assert_array_equal(read_labels, labels)


def test_missing_file_says_where_to_get_it(tmp_path):
    assert error_of(read_split, tmp_path, "val") == (
        f"{tmp_path} holds neither t10k-images-idx3-ubyte.gz nor "
        "t10k-images-idx3-ubyte: install the Debian package dataset-fashion-mnist or "
        "fetch the four files of zalandoresearch/fashion-mnist"
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "begins with nothing, an IDX file of unsigned bytes with 000008"),
        (b"\0\0\x0d\x01\0\0\0\0", "begins with 00000d01, an IDX file of unsigned"),
        (b"\0\0\x08\x03\0\0", "ends within its header"),
        (idx(np.zeros(7, np.uint8))[:-1], "holds 6 values, its header announces 7"),
        (idx(np.zeros((2, 3), np.uint8)) + b"x", "holds 7 values, its header .* 2x3"),
    ],
)
def test_file_that_is_no_whole_idx_is_refused(tmp_path, content, why):
    path = tmp_path / "labels"
    path.write_bytes(content)
    assert re.fullmatch(f"{path} {why}.*: fetch it again", error_of(read_idx, path))


@pytest.mark.parametrize("damage", [lambda c: c[:-9], lambda c: b"x" + c])
def test_damaged_gzip_is_refused(tmp_path, damage):
    path = tmp_path / "labels.gz"
    path.write_bytes(damage(gzip.compress(idx(np.zeros(7, np.uint8)))))
    assert error_of(read_idx, path).startswith(f"{path} cannot be unpacked (")


def test_sum_is_of_the_unpacked_content(tmp_path):
    content = idx(np.arange(7, dtype=np.uint8))
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(content))
    read_idx(path, sha256=hashlib.sha256(content).hexdigest())
    assert f"the published file to {'0' * 64}" in error_of(
        read_idx, path, sha256="0" * 64
    )


def test_counts_of_images_and_labels_must_agree(tmp_path, images, labels):
    source = write_idx_files(tmp_path / "source", idx(images), idx(labels[1:]))
    assert f"holds {COUNT} images" in error_of(
        read_split, source, "train", sha256=NO_SUMS
    )


def test_exchanged_files_are_refused(tmp_path, images, labels):
    source = write_idx_files(tmp_path / "source", idx(labels), idx(images))
    assert "has 1 axes" in error_of(read_split, source, "train", sha256=NO_SUMS)


def test_label_beyond_the_classes_is_refused(tmp_path, images, labels):
    source = write_idx_files(tmp_path / "source", idx(images), idx(labels + 1))
    assert "holds the label 10, classes are 0 to 9" in error_of(
        read_split, source, "train", sha256=NO_SUMS
    )


def test_records_hold_every_image_with_its_label(source, tmp_path, images, labels):
    convert(source, tmp_path / "target", sha256=NO_SUMS)
    for split in ("train", "val"):
        path = tmp_path / "target" / f"{split}.rec"
        records = RecordFile.open(path, num_classes=10)
        assert sorted(records.offsets) == list(range(COUNT))
        for key in records.offsets:
            label, image = records.read(key)
            assert label == labels[key]
            np.testing.assert_array_equal(image, np.dstack([images[key]] * 3))
        listing = path.with_suffix(".lst").read_text().splitlines()
        assert listing == [
            f"{key}\t{labels[key]}\t{split}/{key:05d}.png" for key in records.offsets
        ]


def test_only_the_training_split_is_shuffled(source, tmp_path):
    convert(source, tmp_path / "target", sha256=NO_SUMS)
    train, val = (
        list(RecordFile.open(tmp_path / "target" / f"{s}.rec", num_classes=10).offsets)
        for s in ("train", "val")
    )
    assert val == list(range(COUNT))
    assert train != val


def test_two_runs_write_the_same_bytes(source, tmp_path):
    for name in ("a", "b"):
        convert(source, tmp_path / name, sha256=NO_SUMS)
    content = content_of(tmp_path / "a")
    assert content == content_of(tmp_path / "b")
    assert content.keys() == {
        f"{s}.{e}" for s in ("train", "val") for e in ("rec", "idx", "lst")
    }


def test_finished_files_are_left_alone(source, tmp_path):
    target = tmp_path / "target"
    assert len(convert(source, target, sha256=NO_SUMS)) == 2
    assert convert(source, target, sha256=NO_SUMS) == []
    for suffix in (".idx", ".rec"):
        (target / f"val{suffix}").unlink()
        assert convert(source, target, sha256=NO_SUMS) == [target / "val.rec"]


def test_target_with_records_of_other_images_is_refused(
    source, tmp_path, images, labels
):
    target = tmp_path / "target"
    convert(source, target, sha256=NO_SUMS)
    before = content_of(target)
    for wrong_images, wrong_labels in (
        (images, labels[::-1].copy()),
        (255 - images, labels),
    ):
        write_idx_files(source, idx(wrong_images), idx(wrong_labels))
        message = error_of(convert, source, target, sha256=NO_SUMS)
        assert message.startswith(f"{target / 'train'}.rec was begun with ")
        assert content_of(target) == before


def test_sample_is_the_first_images_of_each_class(
    source, tmp_path, images, labels, monkeypatch
):
    monkeypatch.setattr(sample, "PER_CLASS", 2)
    target = tmp_path / "target"
    make_sample(source, target, sha256=NO_SUMS)
    for path in (bundled.TRAIN_REC, bundled.VAL_REC):
        records = RecordFile.open(target / path.name, num_classes=10)
        positions = list(records.offsets)
        assert positions == sorted(positions)
        for label in range(10):
            of_label = [key for key in positions if records.read(key)[0] == label]
            assert of_label == np.flatnonzero(labels == label)[:2].tolist()
    paths = sorted((target / "images").iterdir())
    assert [path.name for path in paths] == [
        path.name for path in sorted(bundled.IMAGES.iterdir())
    ]
    for label, path in enumerate(paths):
        first = images[np.flatnonzero(labels == label)[0]]
        np.testing.assert_array_equal(read_image(path), np.dstack([first] * 3))


def test_sample_takes_the_place_of_the_one_before(source, tmp_path, monkeypatch):
    target, other = tmp_path / "target", tmp_path / "other"
    for per_class, folder in ((1, target), (2, target), (2, other)):
        monkeypatch.setattr(sample, "PER_CLASS", per_class)
        make_sample(source, folder, sha256=NO_SUMS)
        shutil.rmtree(folder / "images")
    assert content_of(target) == content_of(other)
    assert content_of(target).keys() == {
        path.with_suffix(suffix).name
        for path in (bundled.TRAIN_REC, bundled.VAL_REC)
        for suffix in (".rec", ".idx")
    }


def test_sample_wants_enough_images_of_each_class(labels):
    assert error_of(first_of_each_class, labels, 5) == (
        "class 0 has 4 images, the sample takes 5 of each class: give the whole data "
        "set"
    )


def test_bundled_sample_is_balanced_and_named_by_label():
    for path in (bundled.TRAIN_REC, bundled.VAL_REC):
        records = RecordFile.open(path, num_classes=10)
        labels = [records.read(key)[0] for key in records.offsets]
        assert np.bincount(labels).tolist() == [50] * 10
    names = [path.name for path in sorted(bundled.IMAGES.iterdir())]
    assert names[0] == "0-t-shirt_top.png"
    assert names[9] == "9-ankle_boot.png"


@pytest.mark.parametrize(
    "module", [fashion_mnist, sample], ids=["fashion_mnist", "make_sample"]
)
def test_command_answers_a_missing_source_with_one_line(run_command, tmp_path, module):
    folders = ["--source", tmp_path, "--target", tmp_path / "target"]
    done = run_command(module, *folders)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(
        f"python -m {module.__name__}: {tmp_path} holds neither train-images-idx3"
    )
    assert done.err.count("\n") == 1
    assert not (tmp_path / "target").exists()
