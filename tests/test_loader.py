# SPDX-License-Identifier: Apache-2.0
"""Batches from record files: order, sharing, damage and a clean end."""

import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from functools import partial
from itertools import chain, combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from mxnet.recordio import IRHeader, MXIndexedRecordIO, pack

from gluon_resnet.data import loader
from gluon_resnet.data.augment import color_jitter, random_flip, random_resized_crop
from gluon_resnet.data.loader import (
    Share,
    Skip,
    permutation,
    steps_per_epoch,
    training_batches,
    validation_batches,
)
from gluon_resnet.data.records import RecordFile
from gluon_resnet.errors import InputError
from gluon_resnet.preprocess import Protocol, preprocess

GOLDEN_PATH = Path(__file__).with_name("golden") / "augment.json"
REPEATED = json.loads(GOLDEN_PATH.read_text())["repeated"]
PROTOCOL = Protocol(size=8, crop_pct=0.8)
TRANSFORMS = (
    partial(random_resized_crop, size=8),
    random_flip,
    partial(color_jitter, brightness=0.4, contrast=0.4, saturation=0.4),
)
COUNT = 25
DAMAGED = 7


def write(path, *, damaged=()):
    """Write images of several sizes, labelled by their key."""
    writer = MXIndexedRecordIO(str(path.with_suffix(".idx")), str(path), "w")
    for key in range(COUNT):
        rng = np.random.default_rng(key)
        image = rng.integers(0, 256, (12 + key % 3, 14, 3), dtype=np.uint8)
        encoded = cv2.imencode(".jpg", image)[1].tobytes()
        if key in damaged:
            encoded = encoded[:-30]
        writer.write_idx(key, pack(IRHeader(0, key, key, 0), encoded))
    writer.close()
    return RecordFile.open(path, num_classes=COUNT)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write(tmp_path_factory.mktemp("whole") / "a.rec")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    return write(tmp_path_factory.mktemp("damaged") / "a.rec", damaged=[DAMAGED])


def training(records, **options):
    options = {
        "batch_size": 4,
        "protocol": replace(PROTOCOL, crop_pct=1),
        "transforms": TRANSFORMS,
        "seed": 0,
        "epoch": 0,
        "workers": 2,
        **options,
    }
    return training_batches(list(records.offsets), records.read, **options)


def validation(records, **options):
    options = {"batch_size": 4, "protocol": PROTOCOL, "workers": 2, **options}
    return validation_batches(list(records.offsets), records.read, **options)


LOADERS = pytest.mark.parametrize("load", [training, validation])


def labels_of(batches):
    return [label for _, labels in batches for label in labels.tolist()]


def content(batches):
    return [(images.tobytes(), labels.tobytes()) for images, labels in batches]


def reading_threads():
    return [t for t in threading.enumerate() if "ThreadPoolExecutor" in t.name]


@LOADERS
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_batches_do_not_depend_on_the_workers(records, load, workers):
    alone = content(load(records, workers=0))
    assert content(load(records, workers=workers)) == alone


@LOADERS
def test_batches_begin_anew_with_each_pass(records, load):
    batches = load(records)
    assert content(batches) == content(batches)
    assert len(batches) == len(list(batches))


@LOADERS
@pytest.mark.parametrize("start", [0, 1, 3, 6])
def test_batches_go_on_where_they_stopped(records, load, start):
    whole = content(load(records))
    rest = load(records, start_batch=start)
    assert content(rest) == whole[start:]
    assert len(rest) == len(whole) - start


def test_batches_before_the_start_are_not_read(records):
    read = []

    def noting(key):
        read.append(key)
        return records.read(key)

    batches = validation_batches(
        range(COUNT), noting, batch_size=4, protocol=PROTOCOL, start_batch=5
    )
    assert labels_of(batches) == sorted(read) == [20, 21, 22, 23, 24]


def test_permutation_holds_every_key_once_and_follows_from_seed_and_epoch():
    keys = range(100, 200)
    orders = [
        permutation(keys, seed=seed, epoch=epoch).tolist()
        for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]
    ]
    assert all(sorted(order) == list(keys) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert permutation(keys, seed=1, epoch=1).tolist() == orders[3]


def test_epoch_shows_images_at_most_once_in_whole_batches(records):
    batches = list(training(records))
    assert [images.shape for images, _ in batches] == [(4, 3, 8, 8)] * 6
    assert {images.dtype.name for images, _ in batches} == {"float32"}
    assert {labels.dtype.name for _, labels in batches} == {"int64"}
    assert (
        labels_of(batches) == permutation(range(COUNT), seed=0, epoch=0)[:24].tolist()
    )


def test_epochs_and_seeds_differ_in_order_and_augmentation(records):
    shown = []
    for seed, epoch in [(0, 0), (0, 1), (1, 0)]:
        ((images, labels),) = training(
            records, batch_size=COUNT, seed=seed, epoch=epoch
        )
        shown.append(dict(zip(labels.tolist(), map(bytes, images))))
    for one, other in combinations(shown, 2):
        assert list(one) != list(other)
        assert all(one[key] != other[key] for key in range(COUNT))


def test_images_without_transforms_are_fitted_and_normalised(records):
    (images, labels), *_ = training(records, transforms=(), batch_size=COUNT)
    for image, label in zip(images, labels.tolist()):
        expected = preprocess(records.read(label)[1], 8, crop_pct=1)
        np.testing.assert_array_equal(image, expected)


def test_validation_shows_every_image_once_as_preprocess_does(records):
    batches = list(validation(records))
    assert [len(labels) for _, labels in batches] == [4] * 6 + [1]
    assert labels_of(batches) == list(range(COUNT))
    for images, labels in batches:
        for image, label in zip(images, labels.tolist()):
            expected = preprocess(records.read(label)[1], 8, crop_pct=0.8)
            np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_of_a_validation_share_the_images(records, world):
    shares = [
        labels_of(validation(records, share=Share(r, world))) for r in range(world)
    ]
    assert sorted(chain(*shares)) == list(range(COUNT))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("repeats", [1, 3])
def test_ranks_of_a_training_are_together_one(records, repeats):
    alone = list(training(records, batch_size=6, repeats=repeats))
    ranks = [
        list(training(records, batch_size=2, share=Share(r, 3), repeats=repeats))
        for r in range(3)
    ]
    assert [len(batches) for batches in ranks] == [len(alone)] * 3
    for (images, labels), *shares in zip(alone, *ranks):
        for rank, (share_images, share_labels) in enumerate(shares):
            np.testing.assert_array_equal(share_images, images[rank::3])
            np.testing.assert_array_equal(share_labels, labels[rank::3])


def test_repeated_images_stand_together_each_with_its_own_augmentation(records):
    (images, labels), *_ = training(records, batch_size=24, repeats=3)
    order = permutation(range(COUNT), seed=0, epoch=0).tolist()
    assert labels.tolist() == [key for key in order for _ in range(3)][:24]
    assert len({image.tobytes() for image in images}) == 24


@pytest.mark.parametrize("case", REPEATED, ids=str)
def test_repeated_images_are_shared_out_as_in_timm(monkeypatch, case):
    # timm's order is without its shuffling.
    monkeypatch.setattr(loader, "permutation", lambda keys, **_: np.array(keys))
    world = len(case["orders"])
    for rank, order in enumerate(case["orders"]):
        batches = training_batches(
            range(case["count"]),
            lambda key: (key, np.zeros((8, 8, 3), np.uint8)),
            batch_size=len(order),
            protocol=PROTOCOL,
            transforms=(),
            seed=0,
            epoch=0,
            repeats=3,
            share=Share(rank, world),
        )
        assert labels_of(batches) == order


@LOADERS
@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_record_is_an_error_with_file_key_and_offset(damaged, load, workers):
    where = f"{damaged.path}, record {DAMAGED} at offset {damaged.offsets[DAMAGED]}: "
    with pytest.raises(InputError) as error:
        list(load(damaged, workers=workers, batch_size=COUNT))
    assert str(error.value).startswith(where)


def test_first_of_several_damaged_records_is_named_with_any_workers(tmp_path):
    records = write(tmp_path / "a.rec", damaged=[4, 5, 6])
    for workers in (0, 1, 2, 3):
        with pytest.raises(InputError, match=r"a\.rec, record 4 at offset"):
            list(validation(records, workers=workers))


def damage_of(records, key=DAMAGED):
    with pytest.raises(InputError) as error:
        records.read(key)
    return str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_goes_on_without_a_damaged_record(records, damaged, workers, caplog):
    whole = validation(records, batch_size=5)
    for _ in range(2):
        caplog.clear()
        skip = Skip(COUNT)
        rest = list(validation(damaged, batch_size=5, on_damaged=skip, workers=workers))
        assert (skip.count, skip.first) == (1, [damage_of(damaged)])
        assert caplog.messages == [f"left out: {damage_of(damaged)}"]
        for (images, labels), (kept_images, kept_labels) in zip(whole, rest):
            good = labels != DAMAGED
            np.testing.assert_array_equal(images[good], kept_images)
            np.testing.assert_array_equal(labels[good], kept_labels)


def test_batch_of_damaged_records_alone_is_left_out(damaged):
    batches = validation(damaged, batch_size=1, on_damaged=Skip(COUNT))
    assert labels_of(batches) == [key for key in range(COUNT) if key != DAMAGED]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_next_image_takes_the_place_of_a_damaged_one_in_training(
    records, damaged, batch_size, workers
):
    skip = Skip(COUNT)
    whole = list(training(records, batch_size=batch_size))
    mended = list(
        training(damaged, batch_size=batch_size, on_damaged=skip, workers=workers)
    )
    images, labels, kept_images, kept_labels = (
        np.concatenate(arrays) for arrays in (*zip(*whole), *zip(*mended))
    )
    place = labels.tolist().index(DAMAGED)
    images[place], labels[place] = images[place + 1], labels[place + 1]
    np.testing.assert_array_equal(kept_labels, labels)
    np.testing.assert_array_equal(kept_images, images)
    assert skip.count == 1


def test_place_of_several_damaged_images_in_a_row_goes_to_the_next_whole_one(tmp_path):
    order = permutation(range(COUNT), seed=0, epoch=0).tolist()
    records = write(tmp_path / "a.rec", damaged=[order[2], order[3], order[24]])
    skip = Skip(1000)
    labels = labels_of(training(records, batch_size=5, on_damaged=skip))
    assert labels == [*order[:2], order[4], *order[4:5], *order[4:24], order[0]]
    assert skip.count == 3


def test_more_damaged_records_than_one_in_a_hundred_are_refused(tmp_path):
    records = write(tmp_path / "a.rec", damaged=[4, 5, 6])
    first = " | ".join(damage_of(records, key) for key in (4, 5))
    with pytest.raises(InputError) as error:
        list(validation(records, on_damaged=Skip(COUNT)))
    assert str(error.value) == (
        f"2 damaged records in {COUNT} images are more than the 1% that are left out, "
        f"the first: {first}"
    )
    skip = Skip(300)
    list(validation(records, on_damaged=skip))
    assert skip.count == 3


def test_damaged_records_before_a_break_count(tmp_path):
    records = write(tmp_path / "a.rec", damaged=[4])
    with pytest.raises(InputError, match=r"^4 damaged records in 300 images are more"):
        list(validation(records, on_damaged=Skip(300, count=3)))


def test_training_without_a_whole_record_ends(tmp_path):
    records = write(tmp_path / "a.rec", damaged=range(COUNT))
    with pytest.raises(InputError, match=r"^no record can be read: write the file"):
        list(training(records, on_damaged=Skip(100 * COUNT)))


def test_steps_of_an_epoch_are_its_batches(records):
    for batch_size, share in ((4, Share()), (25, Share()), (3, Share(1, 4))):
        batches = training(records, batch_size=batch_size, share=share)
        assert len(batches) == steps_per_epoch(COUNT, batch_size, share)


@pytest.mark.parametrize("stop", ["end", "break", "error", "damage"])
def test_no_thread_is_left(records, damaged, stop):
    assert not reading_threads()
    if stop == "end":
        list(validation(records))
    elif stop == "break":
        for _ in validation(records):
            assert reading_threads()
            break
    elif stop == "error":
        with pytest.raises(ZeroDivisionError):
            for images, _ in validation(records):
                1 / (images.size - images.size)
    else:
        with pytest.raises(InputError):
            list(validation(damaged))
    gc.collect()
    assert not reading_threads()


def test_other_errors_of_a_worker_come_through(records):
    def broken(image, rng):
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(training(records, transforms=(broken,)))


def test_ctrl_c_ends_a_process_at_once():
    code = """
        import time
        from gluon_resnet.data.loader import validation_batches
        from gluon_resnet.preprocess import Protocol
        import numpy as np

        def read(key):
            time.sleep(0.01)
            return 0, np.zeros((8, 8, 3), np.uint8)

        batches = validation_batches(
            range(100_000), read, batch_size=1000, protocol=Protocol(8), workers=2
        )
        print("ready", flush=True)
        for batch in batches:
            pass
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=10)  # The batches begun take 15.
    assert "KeyboardInterrupt" in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"workers": -1}, "workers is -1; it must be at least 0"),
        (
            {"start_batch": 8},
            "start_batch is 8, but there are {} batches: give a number from 0 to {}",
        ),
    ],
)
@LOADERS
def test_arguments_out_of_range_are_refused(records, load, options, message):
    count = len(load(records))
    with pytest.raises(InputError) as error:
        load(records, **options)
    assert str(error.value) == message.format(count, count)


@pytest.mark.parametrize(
    ("rank", "world", "message"),
    [
        (0, 0, "world is 0; it must be at least 1"),
        (2, 2, "rank is 2 in a world of 2: give a number from 0 to 1"),
        (-1, 2, "rank is -1 in a world of 2: give a number from 0 to 1"),
    ],
)
def test_share_out_of_range_is_refused(rank, world, message):
    with pytest.raises(InputError) as error:
        Share(rank, world)
    assert str(error.value) == message


def test_training_refuses_what_fills_no_batch(records):
    with pytest.raises(InputError) as error:
        training(records, batch_size=9, share=Share(world=3))
    assert str(error.value) == (
        "25 images fill no batch of 9 in each of 3 processes: lower the batch size or "
        "give more images"
    )
    with pytest.raises(InputError, match=r"^repeats is 0; it must be at least 1$"):
        training(records, repeats=0)
