# SPDX-License-Identifier: Apache-2.0
"""CUB-200-2011's archive, a small one in the real layout, to record files."""

import hashlib

import killing
import numpy as np
import pytest
from small_archives import EVIL_MEMBERS, jpeg, tgz

from gluon_resnet.data.records import RecordFile
from gluon_resnet.errors import InputError
from gluon_resnet.preprocess import read_image
from imagenet_prep import cub
from imagenet_prep.cub import prepare
from imagenet_prep.encoding import Encoding

CLASSES = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"]
COUNT = 12
LABELS = [number % 3 for number in range(COUNT)]
IN_TRAIN = [number % 5 < 3 for number in range(COUNT)]
COUNTS = {"train": sum(IN_TRAIN), "val": COUNT - sum(IN_TRAIN)}


def name_of(number):
    return f"{CLASSES[LABELS[number]]}/Bird_{number:04}_{number}.jpg"


def table(values):
    lines = [f"{number} {value}\n" for number, value in enumerate(values, 1)]
    return "".join(lines).encode()


def members():
    root = "CUB_200_2011"
    tables = {
        "classes.txt": table(CLASSES),
        "image_class_labels.txt": table(label + 1 for label in LABELS),
        "images.txt": table(map(name_of, range(COUNT))),
        "train_test_split.txt": table(map(int, IN_TRAIN)),
    }
    images = {f"images/{name_of(n)}": jpeg(n) for n in reversed(range(COUNT))}
    others = {"README": b"read me", "parts/parts.txt": b"1 back\n"}
    contents = {**images, **others, **tables}
    return {
        "attributes.txt": b"1 has_bill_shape::curved\n",
        **{f"{root}/{name}": content for name, content in contents.items()},
    }


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "CUB_200_2011.tgz"
    path.write_bytes(tgz(members().items()))
    return path


def write(archive, content):
    archive.write_bytes(tgz(content.items()))


def run(archive, target, **options):
    return prepare(archive, target, counts=COUNTS, checksum=None, **options)


def error_of(function, *arguments, **options):
    with pytest.raises(InputError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_records_follow_the_published_split(archive, tmp_path):
    target = tmp_path / "target"
    assert run(archive, target) == [target / "train.rec", target / "val.rec"]
    assert (target / "classes.txt").read_text().splitlines() == CLASSES
    keys = {}
    for split in COUNTS:
        records = RecordFile.open(target / f"{split}.rec", num_classes=3)
        keys[split] = list(records.offsets)
        for key in records.offsets:
            label, image = records.read(key)
            assert label == LABELS[key - 1]
            np.testing.assert_array_equal(image, read_image(jpeg(key - 1)))
    numbers = np.arange(1, COUNT + 1)
    assert keys["val"] == numbers[~np.array(IN_TRAIN)].tolist()
    assert sorted(keys["train"]) == numbers[IN_TRAIN].tolist()
    assert sorted(keys["train"]) != keys["train"]


def test_what_is_there_is_kept(archive, tmp_path):
    target = tmp_path / "target"
    run(archive, target)
    archive.unlink()
    before = killing.files_below(target)
    assert run(archive, target) == []
    assert killing.files_below(target) == before


def test_images_can_be_made_smaller(archive, tmp_path):
    run(archive, tmp_path / "target", encoding=Encoding(resize=16))
    records = RecordFile.open(tmp_path / "target" / "val.rec", num_classes=3)
    assert {min(records.read(key)[1].shape[:2]) for key in records.offsets} == {16}


@pytest.mark.parametrize(("evil", "why"), EVIL_MEMBERS)
def test_dangerous_members_are_refused(archive, tmp_path, evil, why):
    archive.write_bytes(tgz([*members().items(), evil]))
    before = set(killing.files_below(tmp_path))
    with pytest.raises(InputError, match=why):
        run(archive, tmp_path / "target")
    new = set(killing.files_below(tmp_path)) - before
    assert all(name.startswith("target/.CUB_200_2011.part/") for name in new)
    assert not any("evil" in name for name in new)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("classes.txt", None, "lacks CUB_200_2011/classes.txt: fetch it again"),
        ("images.txt", None, "lacks CUB_200_2011/images.txt: fetch it again"),
        ("images.txt", table(map(name_of, range(11))), "lists 7 and 4 images, the"),
        ("images.txt", b"1 a/b.jpg\n1 a/c.jpg\n", "line 2 is '1 a/c.jpg', not a new"),
        ("images.txt", b"x a/b.jpg\n", "line 1 is 'x a/b.jpg', not a new number"),
        ("images.txt", table(["../../x.jpg"] * COUNT), "image 1 '../../x.jpg' has no"),
        ("images.txt", table(["/etc/x.jpg"] * COUNT), "image 1 '/etc/x.jpg' has no"),
        ("images.txt", table(["a/passwd"] * COUNT), "image 1 'a/passwd' has no name"),
        ("image_class_labels.txt", table([4] * COUNT), "image 1 '001.Black_footed_Alb"),
        ("image_class_labels.txt", table(["x"] * COUNT), "image 1 '001.Black_footed_A"),
        ("image_class_labels.txt", b"", "image 1 '001.Black_footed_Albatross/Bird_00"),
        ("train_test_split.txt", table([2] * COUNT), "image 1 '001.Black_footed_Albat"),
        ("train_test_split.txt", table([1] * COUNT), "lists 12 and 0 images, the data"),
        (f"images/{name_of(4)}", None, f"lacks images/{name_of(4)}: fetch the archive"),
    ],
)
def test_damaged_archive_is_refused(archive, tmp_path, name, content, why):
    damaged = members()
    damaged[f"CUB_200_2011/{name}"] = content
    write(
        archive, {name: damaged[name] for name in damaged if damaged[name] is not None}
    )
    assert why in error_of(run, archive, tmp_path / "target")
    assert not list((tmp_path / "target").glob("[!.]*"))


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8])
def test_truncated_archive_is_refused(archive, tmp_path, share):
    content = archive.read_bytes()
    archive.write_bytes(content[: int(share * len(content))])
    message = error_of(run, archive, tmp_path / "target")
    assert message.startswith(f"{archive} is damaged (")


def test_wrong_checksum_is_refused(archive, tmp_path):
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    assert error_of(prepare, archive, tmp_path / "target") == (
        f"{archive} has the MD5 {digest}, the published file "
        "97eceeb196236b17998738112f37df78: fetch it again"
    )


def test_killed_at_any_moment_the_next_run_makes_the_same_bytes(archive, tmp_path):
    arguments = {"archive": archive, "counts": COUNTS, "checksum": None}
    whole_folder = tmp_path / "whole"
    total = killing.run(prepare, {"target": whole_folder, **arguments}, whole_folder)
    whole = killing.files_below(whole_folder)
    for moment in killing.moments_to_try(total, count=12):
        target = tmp_path / f"killed{moment}"
        options = {"target": target, **arguments}
        assert killing.run(prepare, options, target, kill_at=moment) is None
        prepare(**options)
        assert killing.files_below(target) == whole, moment


def test_missing_file_says_where_to_get_it(run_command, tmp_path):
    options = ["--archive", tmp_path / "a", "--target", tmp_path / "target"]
    done = run_command(cub, *options)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"python -m imagenet_prep.cub: {tmp_path / 'a'} is not there: download "
        "CUB_200_2011.tgz from https://data.caltech.edu/records/65de6-vp158\n"
    )
