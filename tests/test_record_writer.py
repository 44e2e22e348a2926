# SPDX-License-Identifier: Apache-2.0
"""The record format, and going on with a record file that was cut short."""

import errno
import os
import random
import subprocess
import sys
import time
import tracemalloc

import pytest

from gluon_resnet.data.records import MAGIC
from gluon_resnet.errors import InputError
from imagenet_prep import record_writer
from imagenet_prep.record_writer import (
    frame,
    image_record,
    write_listing,
    write_records,
)
from imagenet_prep.working import working_in

ROWS = [(key, key % 3, f"{key % 3}/{key}.jpg") for key in range(7)]


def encode(key, name):
    return random.Random(name).randbytes(5 + 3 * key)


def error_of(function, *arguments, **options):
    with pytest.raises(InputError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def open_with_mxnet(prefix, mode):
    from mxnet.recordio import MXIndexedRecordIO

    return MXIndexedRecordIO(f"{prefix}.idx", f"{prefix}.rec", mode)


def contents_with_magic():
    """Contents with the magic word at every alignment, in pairs, first and last."""
    for gap in range(6):
        for length in range(9):
            yield bytes(gap) + MAGIC + bytes(length)
            yield bytes(gap) + MAGIC + bytes(length) + MAGIC
            yield bytes(gap) + MAGIC[:length] + MAGIC * 3
    yield from (bytes(length) for length in range(9))


def test_frames_are_byte_for_byte_mxnets(tmp_path):
    contents = list(contents_with_magic())
    path = tmp_path / "a.rec"
    writer = open_with_mxnet(tmp_path / "a", "w")
    for key, content in enumerate(contents):
        writer.write_idx(key, content)
    writer.close()
    assert path.read_bytes() == b"".join(map(frame, contents))
    assert path.read_bytes().count(MAGIC) > 2 * len(contents), "none was split"


def test_mxnet_reads_what_was_framed(tmp_path):
    contents = list(contents_with_magic())
    path = tmp_path / "a.rec"
    offset, lines = 0, []
    for key, content in enumerate(contents):
        lines.append(f"{key}\t{offset}\n")
        offset += len(frame(content))
    path.write_bytes(b"".join(map(frame, contents)))
    path.with_suffix(".idx").write_text("".join(lines))
    reader = open_with_mxnet(tmp_path / "a", "r")
    assert [reader.read_idx(key) for key in range(len(contents))] == contents
    reader.close()


def test_record_files_are_byte_for_byte_mxnets(tmp_path):
    write_listing(tmp_path / "a", ROWS, shuffle=False)
    assert write_records(tmp_path / "a", encode)
    from mxnet.recordio import IRHeader, pack

    writer = open_with_mxnet(tmp_path / "b", "w")
    for key, label, name in ROWS:
        writer.write_idx(key, pack(IRHeader(0, label, key, 0), encode(key, name)))
    writer.close()
    for suffix in ("rec", "idx"):
        ours, theirs = (tmp_path / f"{name}.{suffix}" for name in "ab")
        assert ours.read_bytes() == theirs.read_bytes()


def test_record_that_is_too_long_is_refused():
    class Long(bytes):
        def __radd__(self, header):
            return self

        def __len__(self):
            return 1 << 29

    assert error_of(image_record, (0, 0, "a.jpg"), lambda *_: Long()) == (
        "a.jpg makes a record of 536870912 bytes, which must be less than 536870912: "
        "shrink the image or leave it out"
    )


def test_listing_is_what_im2rec_reads(tmp_path):
    assert write_listing(tmp_path / "a", ROWS, shuffle=False) == 7
    lines = (tmp_path / "a.lst").read_text().splitlines()
    assert lines == [f"{key}\t{label}\t{name}" for key, label, name in ROWS]


def test_shuffled_listing_is_the_one_of_im2recs_seed(tmp_path):
    write_listing(tmp_path / "a", ROWS, shuffle=True)
    rows = list(ROWS)
    random.Random(100).shuffle(rows)
    lines = (tmp_path / "a.lst").read_text().splitlines()
    assert lines == [f"{key}\t{label}\t{name}" for key, label, name in rows]
    assert rows != ROWS


@pytest.mark.parametrize("name", ["a\tb", "a\nb", "a\rb"])
def test_name_that_breaks_a_line_is_refused(tmp_path, name):
    message = error_of(write_listing, tmp_path / "a", [(0, 0, name)], shuffle=False)
    assert message.startswith(f"the file name {name!r} cannot stand in a line of ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["ä b.jpg", "a\x85b", "a\u2028b", "a\x0cb", "caf\udce9", "'\""]
)
def test_other_names_are_kept(tmp_path, name):
    write_listing(tmp_path / "a", [(0, 0, name), (1, 0, "b")], shuffle=False)
    names = []
    write_records(tmp_path / "a", lambda _, name: names.append(name) or b"x", workers=1)
    assert names == [name, name, "b"], "the first is made once more to compare"


def test_empty_listing_is_refused(tmp_path):
    assert error_of(write_listing, tmp_path / "a", [], shuffle=False) == (
        f"there is no image to list in {tmp_path / 'a.lst'}: give at least one"
    )


@pytest.fixture
def whole(tmp_path):
    prefix = tmp_path / "whole"
    write_listing(prefix, ROWS, shuffle=False)
    write_records(prefix, encode)
    return (tmp_path / "whole.rec").read_bytes(), (tmp_path / "whole.idx").read_bytes()


@pytest.mark.parametrize("surplus", [0, 1, 50, 10_000])
def test_cut_anywhere_it_goes_on_to_the_same_bytes(tmp_path, whole, surplus):
    """The index is cut after any byte, and the records `surplus` bytes after that."""
    rec, idx = whole
    starts = [int(line.split(b"\t")[1]) for line in idx.splitlines()] + [len(rec)]
    prefix = tmp_path / "a"
    write_listing(prefix, ROWS, shuffle=False)
    encoded = []
    for cut in range(len(idx) + 1):
        listed = idx[:cut].count(b"\n")
        (tmp_path / ".a.part.rec").write_bytes(rec[: starts[listed] + surplus])
        (tmp_path / ".a.part.idx").write_bytes(idx[:cut])
        encoded.clear()
        assert write_records(
            prefix, lambda *row: encoded.append(row) or encode(*row), workers=1
        )
        assert len(encoded) == 1 + len(ROWS) - max(listed - 1, 0), "too much again"
        assert (tmp_path / "a.rec").read_bytes() == rec
        assert (tmp_path / "a.idx").read_bytes() == idx
        (tmp_path / "a.idx").unlink()


@pytest.mark.parametrize("index", [b"\0" * 9, b"0\t999999\n", b"0\t0\nx\n", b"\n"])
def test_index_that_makes_no_sense_is_begun_anew(tmp_path, whole, index):
    write_listing(tmp_path / "a", ROWS, shuffle=False)
    (tmp_path / ".a.part.rec").write_bytes(whole[0])
    (tmp_path / ".a.part.idx").write_bytes(index)
    write_records(tmp_path / "a", encode)
    assert (tmp_path / "a.rec").read_bytes() == whole[0]
    assert (tmp_path / "a.idx").read_bytes() == whole[1]


def test_killed_between_the_last_renames_it_goes_on(tmp_path, whole):
    write_listing(tmp_path / "a", ROWS, shuffle=False)
    (tmp_path / "a.rec").write_bytes(whole[0])
    (tmp_path / ".a.part.idx").write_bytes(whole[1])
    encoded = []
    write_records(
        tmp_path / "a", lambda *row: encoded.append(row) or encode(*row), workers=1
    )
    assert len(encoded) == 2
    assert (tmp_path / "a.rec").read_bytes() == whole[0]
    assert (tmp_path / "a.idx").read_bytes() == whole[1]
    assert {path.name for path in tmp_path.glob("*a.*")} == {"a.lst", "a.rec", "a.idx"}


def test_finished_records_are_left_alone_and_a_missing_file_is_made_again(
    tmp_path, whole
):
    prefix = tmp_path / "whole"
    assert not write_records(prefix, encode)
    for suffix in ("idx", "rec"):
        (tmp_path / f"whole.{suffix}").unlink()
        assert write_records(prefix, encode)
        assert (tmp_path / "whole.rec").read_bytes() == whole[0]
        assert (tmp_path / "whole.idx").read_bytes() == whole[1]


def remedy(prefix):
    part = prefix.with_name(f".{prefix.name}.part.idx")
    return f"give the same again, another target, or remove {prefix}.idx and {part}"


def test_records_of_other_options_are_refused(tmp_path, whole):
    prefix = tmp_path / "whole"
    expected = f"{prefix}.rec was begun with other images or options: {remedy(prefix)}"
    assert error_of(write_records, prefix, lambda *_: b"other") == expected
    (tmp_path / "whole.rec").rename(tmp_path / ".whole.part.rec")
    (tmp_path / "whole.idx").rename(tmp_path / ".whole.part.idx")
    assert error_of(write_records, prefix, lambda *_: b"other") == expected


@pytest.mark.parametrize("index", ["whole.idx", ".whole.part.idx"])
def test_records_of_another_listing_are_refused(tmp_path, whole, index):
    prefix = tmp_path / "whole"
    (tmp_path / "whole.idx").rename(tmp_path / index)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert error_of(write_listing, prefix, ROWS[1:], shuffle=False) == (
        f"{prefix}.rec was begun with another list of images: {remedy(prefix)}"
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_failure_leaves_nothing_under_a_final_name(tmp_path):
    def fails(key, name):
        if key == 3:
            raise InputError("image 3 is bad")
        return encode(key, name)

    write_listing(tmp_path / "a", ROWS, shuffle=False)
    assert error_of(write_records, tmp_path / "a", fails) == "image 3 is bad"
    assert {path.name for path in tmp_path.glob("[!.]*")} == {"a.lst"}


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_number_of_workers_changes_no_byte(tmp_path, whole, workers):
    def slow(key, name):
        time.sleep(random.random() / 500)
        return encode(key, name)

    write_listing(tmp_path / "a", ROWS, shuffle=False)
    write_records(tmp_path / "a", slow, workers=workers)
    assert (tmp_path / "a.rec").read_bytes() == whole[0]
    assert (tmp_path / "a.idx").read_bytes() == whole[1]


def test_memory_does_not_grow_with_the_records(tmp_path):
    rows = [(key, 0, str(key)) for key in range(300)]
    write_listing(tmp_path / "a", rows, shuffle=False)
    tracemalloc.start()
    write_records(tmp_path / "a", lambda *_: bytes(1 << 18), workers=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Of 300 images 8 are taken ahead; making a record holds it three times.
    assert peak < 16 * (1 << 18)


def test_listing_takes_a_few_bytes_a_row(tmp_path):
    tracemalloc.start()
    write_listing(
        tmp_path / "a", ((key, 0, f"{key:090}") for key in range(20_000)), shuffle=True
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000 * 20, "8 bytes a row, the growth of an array, and buffers"


FULL_DISK = """
import resource, sys
from pathlib import Path
from imagenet_prep.folder import convert
from gluon_resnet.errors import InputError
from gluon_resnet.in_order import in_order
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), -1))
try:
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
except InputError as error:
    print(error)
"""


def test_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path):
    source, prefix = tmp_path / "source", tmp_path / "target" / "a"
    (source / "class").mkdir(parents=True)
    for number in range(30):
        (source / "class" / f"{number}.jpg").write_bytes(encode(300 * number, "x"))

    def output(limit):
        command = [sys.executable, "-c", FULL_DISK, source, prefix, str(limit)]
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True)

    assert output(50_000) == (
        f"{prefix.parent} cannot hold more ({os.strerror(errno.EFBIG)}): make room and "
        "give the same command again, it goes on from there\n"
    )
    final = {path.name for path in prefix.parent.glob("[!.]*")}
    assert final == {"classes.txt", "a.lst"}
    assert output(1 << 30) == ""
    assert prefix.with_name("a.idx").read_text().count("\n") == 30


def test_second_run_in_a_folder_is_refused(tmp_path):
    with working_in(tmp_path):
        with pytest.raises(InputError) as error, working_in(tmp_path):
            pass
    assert str(error.value) == (
        f"another run is at work in {tmp_path}: wait for it or choose another folder"
    )
    with working_in(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_target_that_is_no_folder_is_refused(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(InputError) as error, working_in(path):
        pass
    assert str(error.value) == (
        f"cannot write into {path}: File exists; choose a folder that you may write to"
    )


def test_points_to_go_on_from_are_not_too_far_apart(tmp_path, monkeypatch):
    """Every `SYNC_BYTES` the index lists all that is on the disk."""
    synced = []
    sync = record_writer._sync
    monkeypatch.setattr(record_writer, "SYNC_BYTES", 100)
    monkeypatch.setattr(
        record_writer, "_sync", lambda *a: synced.append(len(a[2])) or sync(*a)
    )
    write_listing(tmp_path / "a", ROWS, shuffle=False)
    write_records(tmp_path / "a", encode)
    assert len(synced) > 3
    assert sum(synced) == len(ROWS)
