# SPDX-License-Identifier: Apache-2.0
"""ImageNet's official files, small ones in the real layouts, to record files."""

import contextlib
import hashlib
import io
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import cv2
import killing
import numpy as np
import pytest
from scipy.io import savemat
from small_archives import EVIL_MEMBERS, jpeg, member, tar, tgz

from gluon_resnet.data.augment import random_flip, random_resized_crop
from gluon_resnet.data.loader import training_batches
from gluon_resnet.errors import InputError
from gluon_resnet.preprocess import Protocol, read_image
from imagenet_prep import imagenet
from imagenet_prep.encoding import Encoding
from imagenet_prep.imagenet import DEVKIT, TRAIN_ARCHIVE, VAL_ARCHIVE, DataSet, prepare

WNIDS = ("n00000003", "n00000011", "n00000020", "n00000100")
IDS = (3, 1, 4, 2)  # ILSVRC2012_IDs do not follow the WordNet IDs
PER_CLASS, NUM_VAL = 3, 8
SYNSET = [
    ("ILSVRC2012_ID", object),
    ("WNID", object),
    ("words", object),
    ("gloss", object),
    ("num_children", object),
    ("children", object),
    ("wordnet_height", object),
    ("num_train_images", object),
]


def train_members(wnids=WNIDS, per_class=PER_CLASS, make=jpeg):
    """The class archives, not sorted, as little as the published ones are."""
    for label in reversed(range(len(wnids))):
        wnid = wnids[label]
        images = [
            (f"{wnid}_{number}.JPEG", make(100 * label + number))
            for number in reversed(range(per_class))
        ]
        yield f"{wnid}.tar", tar(images)


def val_members(count=NUM_VAL, make=jpeg):
    return [
        (f"ILSVRC2012_val_{number:08}.JPEG", make(10_000 + number))
        for number in range(1, count + 1)
    ]


def meta_mat(ids=IDS, wnids=WNIDS):
    """meta.mat: the classes, and above them synsets that have children."""
    synsets = np.zeros((len(ids) + 2, 1), dtype=SYNSET)
    for row, (number, wnid) in enumerate(zip(ids, wnids)):
        synsets[row, 0] = (number, wnid, "words", "gloss", 0, np.zeros(0), 0, 3)
    for row in (len(ids), len(ids) + 1):
        wnid = f"n{row:08}"
        synsets[row, 0] = (row + 1, wnid, "words", "gloss", 2, np.array([1, 2]), 1, 0)
    file = io.BytesIO()
    savemat(file, {"synsets": synsets}, do_compression=True)
    return file.getvalue()


def ground_truth(count=NUM_VAL, ids=IDS):
    return "".join(f"{ids[number % len(ids)]}\n" for number in range(count)).encode()


def devkit(meta=None, truth=None):
    root = "ILSVRC2012_devkit_t12"
    return tgz(
        [
            (f"{root}/readme.txt", b"read me"),
            (f"{root}/data/meta.mat", meta_mat() if meta is None else meta),
            (
                f"{root}/data/ILSVRC2012_validation_ground_truth.txt",
                ground_truth() if truth is None else truth,
            ),
        ]
    )


def checksums_of(folder):
    return {
        TRAIN_ARCHIVE: hashlib.sha1((folder / TRAIN_ARCHIVE).read_bytes()).hexdigest(),
        VAL_ARCHIVE: hashlib.sha1((folder / VAL_ARCHIVE).read_bytes()).hexdigest(),
        DEVKIT: hashlib.md5((folder / DEVKIT).read_bytes()).hexdigest(),
    }


@pytest.fixture
def official(tmp_path):
    """The folder of the official files."""
    folder = tmp_path / "official"
    folder.mkdir()
    (folder / TRAIN_ARCHIVE).write_bytes(tar(train_members()))
    (folder / VAL_ARCHIVE).write_bytes(tar(val_members()))
    (folder / DEVKIT).write_bytes(devkit())
    return folder


@pytest.fixture
def dataset(official):
    return DataSet(
        WNIDS,
        {"train": len(WNIDS) * PER_CLASS, "val": NUM_VAL},
        checksums_of(official),
    )


def without_checksums(dataset):
    return replace(dataset, checksums={})


def records_of(path, num_classes=4):
    from gluon_resnet.data.records import RecordFile

    return RecordFile.open(path, num_classes=num_classes)


def error_of(function, *arguments, **options):
    with pytest.raises(InputError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_class_folders_hold_the_original_files(official, dataset, tmp_path):
    target = tmp_path / "target"
    written = prepare(official, target, dataset=dataset)
    assert written == [target / "train.rec", target / "val.rec"]
    files = killing.files_below(target)
    images = {name: files[name] for name in files if name.endswith(".JPEG")}
    expected = {
        f"train/{wnid}/{wnid}_{number}.JPEG": jpeg(100 * label + number)
        for label, wnid in enumerate(WNIDS)
        for number in range(PER_CLASS)
    }
    wnid_of_id = dict(zip(IDS, WNIDS))
    for number in range(NUM_VAL):
        wnid = wnid_of_id[IDS[number % 4]]
        name = f"ILSVRC2012_val_{number + 1:08}.JPEG"
        expected[f"val/{wnid}/{name}"] = jpeg(10_000 + number + 1)
    assert images == expected
    assert set(files) - set(images) == {
        f"{split}.{suffix}"
        for split in ("train", "val")
        for suffix in ("lst", "rec", "idx")
    }, "something else was left"


def test_labels_are_places_among_the_sorted_wordnet_ids(official, dataset, tmp_path):
    prepare(official, tmp_path / "target", dataset=dataset)
    for split in ("train", "val"):
        path = tmp_path / "target" / f"{split}.rec"
        records = records_of(path)
        lines = path.with_suffix(".lst").read_text().splitlines()
        rows = [line.split("\t") for line in lines]
        assert [int(key) for key, _, _ in rows] == list(records.offsets)
        for key, label, name in rows:
            source = tmp_path / "target" / split / name
            assert source.parent.name == WNIDS[int(label)]
            found, image = records.read(int(key))
            assert found == int(label)
            np.testing.assert_array_equal(image, read_image(source))
        names = [name for _, _, name in rows]
        assert (names == sorted(names)) == (split == "val")


def test_classes_are_in_the_order_of_the_packages_own_list():
    dataset = imagenet.ilsvrc2012()
    assert len(dataset.wnids) == 1000
    assert list(dataset.wnids) == sorted(dataset.wnids)
    assert (dataset.wnids[0], dataset.wnids[-1]) == ("n01440764", "n15075141")
    assert dataset.counts == {"train": 1_281_167, "val": 50_000}
    assert set(dataset.checksums) == {TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT}


@pytest.mark.parametrize("workers", [1, 2])
def test_number_of_workers_changes_no_byte(official, dataset, tmp_path, workers):
    encoding = Encoding(resize=16, quality=90)
    for name, count in (("a", workers), ("b", 3)):
        prepare(
            official,
            tmp_path / name,
            dataset=dataset,
            encoding=encoding,
            workers=count,
        )
    files = killing.files_below(tmp_path / "a")
    assert files == killing.files_below(tmp_path / "b")


def test_resize_and_quality_make_new_jpegs(official, dataset, tmp_path):
    prepare(official, tmp_path / "a", dataset=dataset, splits=["val"])
    sizes = []
    for quality in (95, 20):
        target = tmp_path / f"quality{quality}"
        encoding = Encoding(resize=16, quality=quality)
        prepare(official, target, dataset=dataset, splits=["val"], encoding=encoding)
        records = records_of(target / "val.rec")
        for key in records.offsets:
            _, original = records_of(tmp_path / "a" / "val.rec").read(key)
            _, image = records.read(key)
            height, width = original.shape[:2]
            assert image.shape == (16, 16 * width // height, 3)
            if quality == 95:
                small = cv2.resize(original, image.shape[1::-1])
                difference = np.abs(image - small.astype(float)).mean()
                assert difference < 16, "another image; of 1/4 of the colours"
        sizes.append((target / "val.rec").stat().st_size)
    assert sizes[0] > sizes[1]


def test_one_split_needs_the_files_of_that_split_alone(official, dataset, tmp_path):
    (official / TRAIN_ARCHIVE).unlink()
    written = prepare(official, tmp_path, dataset=dataset, splits=["val"])
    assert written == [tmp_path / "val.rec"]
    assert error_of(prepare, official, tmp_path, dataset=dataset) == (
        f"{official / TRAIN_ARCHIVE} is not there: register at https://image-net.org, "
        "download it, and give its folder as --download-dir"
    )


def test_what_is_there_is_kept(official, dataset, tmp_path):
    target = tmp_path / "target"
    prepare(official, target, dataset=dataset)
    before = killing.files_below(target)
    for path in official.iterdir():
        path.unlink()
    assert prepare(official, target, dataset=dataset) == []
    assert killing.files_below(target) == before


def test_class_folders_may_be_removed_after_use(official, dataset, tmp_path):
    target = tmp_path / "target"
    prepare(official, target, dataset=dataset)
    for split in ("train", "val"):
        shutil.rmtree(target / split)
    before = killing.files_below(target)
    assert prepare(official, target, dataset=dataset) == []
    assert killing.files_below(target) == before


def test_records_of_other_options_are_refused(official, dataset, tmp_path):
    prepare(official, tmp_path, dataset=dataset, splits=["val"])
    message = error_of(
        prepare,
        official,
        tmp_path,
        dataset=dataset,
        splits=["val"],
        encoding=Encoding(resize=16),
    )
    assert message.startswith(f"{tmp_path / 'val'}.rec was begun with other images or")


@pytest.mark.parametrize("name", [TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT])
def test_wrong_checksum_is_refused_before_anything_is_written(
    official, dataset, tmp_path, name
):
    path = official / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    message = error_of(
        prepare,
        official,
        tmp_path / "target",
        dataset=dataset,
        splits=["train" if name == TRAIN_ARCHIVE else "val"],
    )
    digest = checksums_of(official)[name]
    algorithm = "MD5" if name == DEVKIT else "SHA1"
    assert message == (
        f"{path} has the {algorithm} {digest}, the published file "
        f"{dataset.checksums[name]}: fetch it again"
    )
    assert not list((tmp_path / "target").iterdir())


WRONG_NAMES = [
    (member("evil.JPEG"), "is no name of its images|does not hold the archives"),
    (member("evil.JPEG\0/../x"), "leads out|no name of its images|does not hold"),
]


@pytest.mark.parametrize(("evil", "why"), EVIL_MEMBERS + WRONG_NAMES)
@pytest.mark.parametrize("place", ["val", "class", "train"])
def test_dangerous_members_are_refused(official, dataset, tmp_path, evil, why, place):
    if place == "val":
        (official / VAL_ARCHIVE).write_bytes(tar([*val_members(), evil]))
    elif place == "train":
        (official / TRAIN_ARCHIVE).write_bytes(tar([*train_members(), evil]))
    else:
        members = dict(train_members())
        members[f"{WNIDS[1]}.tar"] = tar([evil])
        (official / TRAIN_ARCHIVE).write_bytes(tar(members.items()))
    before = killing.files_below(tmp_path)
    message = error_of(
        prepare,
        official,
        tmp_path / "deep" / "target",
        dataset=without_checksums(dataset),
        splits=["val" if place == "val" else "train"],
    )
    assert re.search(why, message)
    assert str(VAL_ARCHIVE if place == "val" else TRAIN_ARCHIVE) in message
    after = killing.files_below(tmp_path)
    new = set(after) - set(before)
    assert all(re.match(r"deep/target/\.(train|val)\.part/", name) for name in new)
    assert not any("evil" in name for name in new)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.6, 0.97])
@pytest.mark.parametrize("split", ["train", "val"])
def test_truncated_archive_is_refused(official, dataset, tmp_path, split, fraction):
    path = official / (TRAIN_ARCHIVE if split == "train" else VAL_ARCHIVE)
    members = tar(train_members() if split == "train" else val_members())
    # Padding at the end of an archive is no loss.
    whole = len(members.rstrip(b"\0"))
    path.write_bytes(members[: int(fraction * whole)])
    message = error_of(
        prepare,
        official,
        tmp_path / "target",
        dataset=without_checksums(dataset),
        splits=[split],
    )
    assert re.search("is damaged|does not hold|images, the data set has", message)
    assert not (tmp_path / "target" / split).exists()


def test_folder_of_a_bad_archive_is_not_gone_on_with(official, dataset, tmp_path):
    """What came of a damaged file must not stay when the right one is given."""
    path, target = official / VAL_ARCHIVE, tmp_path / "target"
    good = path.read_bytes()
    bad = [*val_members(make=lambda seed: jpeg(seed)[::-1]), ("x", b"")]
    path.write_bytes(tar(bad))
    error_of(
        prepare,
        official,
        target,
        dataset=without_checksums(dataset),
        splits=["val"],
    )
    assert list(target.glob(".val.part/*/*.JPEG"))
    path.write_bytes(good)
    prepare(official, target, dataset=dataset, splits=["val"])
    for image in target.glob("val/*/*.JPEG"):
        assert image.read_bytes() == jpeg(10_000 + int(image.stem[-8:]))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (devkit(meta=b"no file of MATLAB"), "has a meta.mat that cannot be read"),
        (devkit(meta=meta_mat()[:-40]), "has a meta.mat that cannot be read"),
        (devkit(meta=meta_mat(IDS[:3], WNIDS[:3])), "has 3 classes in meta.mat, not"),
        (devkit(truth=ground_truth(7)), "has the classes of 7 validation images, not"),
        (devkit(truth=b"5\n" * 8), "a ground truth that meta.mat does not know"),
        (devkit(truth=b"x\n" * 8), "a ground truth that meta.mat does not know"),
        (tgz([("readme.txt", b"")]), "lacks ILSVRC2012_devkit_t12/data/meta.mat"),
        (devkit()[:300], "is damaged"),
        (b"no archive", "is damaged"),
        (b"", "is damaged"),
    ],
)
def test_damaged_devkit_is_refused(official, dataset, tmp_path, content, why):
    (official / DEVKIT).write_bytes(content)
    message = error_of(
        prepare,
        official,
        tmp_path,
        dataset=without_checksums(dataset),
        splits=["val"],
    )
    assert message.startswith(f"{official / DEVKIT} ")
    assert why in message


@pytest.mark.parametrize(
    ("split", "members", "why"),
    [
        ("train", train_members(per_class=2), "holds 8 images, the data set has 12"),
        ("train", train_members(per_class=4), "holds 16 images, the data set has 12"),
        ("train", train_members(WNIDS[:3]), "archives of the 4 classes but 3 files"),
        ("val", val_members(7), "holds 7 images, the data set has 8"),
        ("val", val_members(9), "ILSVRC2012_val_00000009.JPEG, images are numbered"),
        ("val", val_members() + val_members(1), None),
    ],
)
def test_wrong_counts_are_refused(official, dataset, tmp_path, split, members, why):
    path = official / (TRAIN_ARCHIVE if split == "train" else VAL_ARCHIVE)
    path.write_bytes(tar(members))
    options = {"dataset": without_checksums(dataset), "splits": [split]}
    if why:
        assert why in error_of(prepare, official, tmp_path, **options)
        assert not (tmp_path / split).exists()
    else:
        assert prepare(official, tmp_path, **options), "a file twice is no image more"


def test_images_that_were_lost_are_noticed(official, dataset, tmp_path):
    prepare(official, tmp_path, dataset=dataset, splits=["val"])
    for path in tmp_path.glob("val.*"):
        path.unlink()
    next(tmp_path.glob("val/*/*.JPEG")).unlink()
    assert error_of(prepare, official, tmp_path, dataset=dataset, splits=["val"]) == (
        f"{tmp_path / 'val'} holds 7 images, the data set has 8: remove it and extract "
        "the published archive again"
    )


@pytest.fixture
def arguments(official, dataset):
    return {
        "download_dir": official,
        "dataset": dataset,
        "encoding": Encoding(resize=16),
    }


def test_killed_at_any_moment_the_next_run_makes_the_same_bytes(arguments, tmp_path):
    whole = tmp_path / "whole"
    total = killing.run(prepare, {"target": whole, **arguments}, whole)
    assert total > 60, "the moments are no longer those of every phase"
    for moment in killing.moments_to_try(total, count=25):
        target = tmp_path / f"killed{moment}"
        options = {"target": target, **arguments}
        assert killing.run(prepare, options, target, kill_at=moment) is None
        prepare(**options)
        assert killing.files_below(target) == killing.files_below(whole), moment


def test_killed_again_and_again_it_comes_to_the_same_bytes(arguments, tmp_path):
    """Each run gets a little further, or the last one would never come."""
    prepare(target=tmp_path / "whole", **arguments)
    target = tmp_path / "killed"
    options = {"target": target, **arguments}
    kills = 0
    while killing.run(prepare, options, target, kill_at=50) is None:
        kills += 1
        assert kills < 30
    assert kills > 1
    assert killing.files_below(target) == killing.files_below(tmp_path / "whole")


def stop(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("split", ["train", "val"])
def test_file_that_was_being_written_at_the_kill_is_written_anew(
    arguments, tmp_path, split
):
    whole, target = tmp_path / "whole", tmp_path / "killed"
    prepare(target=whole, splits=[split], **arguments)
    options = {"target": target, "splits": [split], **arguments}
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(imagenet, "finish", stop)
        prepare(**options)
    images = sorted(target.glob(f".{split}.part/*/*.JPEG"))
    images[0].write_bytes(images[0].read_bytes()[:-1])
    images[1].write_bytes(b"")
    prepare(**options)
    assert killing.files_below(target) == killing.files_below(whole)


def test_verified_archive_is_not_read_again_after_a_kill(
    official, dataset, tmp_path, monkeypatch
):
    arguments = {"download_dir": official, "target": tmp_path / "a"}
    arguments |= {"dataset": dataset, "splits": ["train"]}

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(imagenet, "extract_train", stop)
        prepare(**arguments)
    monkeypatch.setattr("imagenet_prep.archives.check_sum", stop)
    prepare(**arguments)


def test_command_says_in_one_line_what_is_wrong(official, run_command, tmp_path):
    options = ["--download-dir", official, "--target", tmp_path / "target"]
    done = run_command(imagenet, *options)
    assert (done.code, done.out) == (1, "")
    (error,) = done.err.splitlines()
    assert error == (
        "python -m imagenet_prep.imagenet: "
        f"{official / TRAIN_ARCHIVE} has the SHA1 "
        f"{checksums_of(official)[TRAIN_ARCHIVE]}, the published file "
        f"{imagenet.CHECKSUMS[TRAIN_ARCHIVE]}: fetch it again"
    )


def test_command_refuses_wrong_usage(run_command):
    done = run_command(imagenet, "--target", "x")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "python -m imagenet_prep.imagenet: the following arguments are required: "
        "--download-dir; see python -m imagenet_prep.imagenet --help\n"
    )


PROGRAM = """
import pickle, sys
from imagenet_prep import record_writer
from imagenet_prep.imagenet import prepare
record_writer.SYNC_BYTES = 1 << 20
arguments = pickle.load(sys.stdin.buffer)
print("ready", flush=True)
prepare(**arguments)
"""


@pytest.mark.slow
def test_ten_thousand_images_survive_kills_at_random_times(tmp_path):
    """Archive, record, loader: the same bytes for 1 and 2 workers and after kills."""
    folder = tmp_path / "official"
    folder.mkdir()
    wnids = tuple(f"n{number:08}" for number in range(10))
    ids = tuple(range(10, 0, -1))
    truth = ground_truth(2000, ids)
    pool = [jpeg(seed, 64, 80) for seed in range(50)]

    def make(seed):
        return pool[seed % 50] + f"{seed:08}".encode()  # what follows a JPEG is ignored

    (folder / TRAIN_ARCHIVE).write_bytes(
        tar(train_members(wnids, per_class=800, make=make))
    )
    (folder / VAL_ARCHIVE).write_bytes(tar(val_members(2000, make=make)))
    (folder / DEVKIT).write_bytes(devkit(meta_mat(ids, wnids), truth))
    dataset = DataSet(wnids, {"train": 8000, "val": 2000}, checksums_of(folder))
    arguments = {"download_dir": folder, "dataset": dataset}
    arguments["encoding"] = Encoding(resize=48)
    sums, seconds = [], 0.0
    for workers in (1, 2):
        target = tmp_path / f"workers{workers}"
        start = time.monotonic()
        prepare(target=target, workers=workers, **arguments)
        seconds = time.monotonic() - start
        sums.append(sum_of(target))
    assert sums[0] == sums[1]

    target = tmp_path / "killed"
    content = pickle.dumps({"target": target, "workers": 2, **arguments})
    rng, exit_codes = random.Random(0), []
    for share in (0.3, 0.3, 0.3, 0.3, 0.3, None):
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            process.stdin.write(content)
            process.stdin.close()
            assert process.stdout.readline() == b"ready\n"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(share and share * rng.random() * seconds)
            process.kill()
            exit_codes.append(process.wait())
    assert set(exit_codes) == {0, -signal.SIGKILL}
    assert exit_codes[-1] == 0
    assert sum_of(target) == sums[0]

    records = records_of(target / "train.rec", num_classes=10)
    assert sorted(records.offsets) == list(range(8000))
    for key in range(0, 8000, 400):
        label, image = records.read(key)
        assert label == key // 800
        assert min(image.shape[:2]) == 48
    assert epoch_sum(target, workers=2) == epoch_sum(tmp_path / "workers1", workers=1)


def epoch_sum(target, *, workers):
    """Digest of what an epoch of training sees."""
    digest = hashlib.sha256()
    records = records_of(target / "train.rec", num_classes=10)
    for images, labels in training_batches(
        list(records.offsets),
        records.read,
        batch_size=100,
        protocol=Protocol(size=32, crop_pct=1),
        transforms=(partial(random_resized_crop, size=32), random_flip),
        seed=0,
        epoch=1,
        workers=workers,
    ):
        digest.update(images.tobytes() + labels.tobytes())
    return digest.hexdigest()


def sum_of(folder):
    digest = hashlib.sha256()
    for name, content in killing.files_below(folder).items():
        digest.update(name.encode() + content)
    return digest.hexdigest()
