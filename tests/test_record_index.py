# SPDX-License-Identifier: Apache-2.0
"""The index of a record file, made from the file itself."""

import re
import shlex

import mxnet as mx
import numpy as np
import pytest
from mxnet.recordio import IRHeader, MXIndexedRecordIO, pack

from gluon_resnet import bundled
from gluon_resnet.data.records import MAGIC, RecordFile
from gluon_resnet.errors import InputError
from imagenet_prep import index
from imagenet_prep.index import write_index

KEYS = [5, 3, 11, 0, 2**63, 2]


def error_of(function, *arguments):
    with pytest.raises(InputError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def write(path, identifiers):
    """Records of many lengths, one of them in parts, with MXNet's own writer."""
    writer = MXIndexedRecordIO(str(path.with_suffix(".idx")), str(path), "w")
    for number, identifier in enumerate(identifiers):
        content = b"x" * number if number % 2 else MAGIC * number
        writer.write_idx(identifier, pack(IRHeader(0, 1, identifier, 0), content))
    writer.close()
    return path


@pytest.fixture
def rec(tmp_path):
    return write(tmp_path / "a.rec", KEYS)


def test_index_is_the_one_that_was_lost(rec, tmp_path):
    lost = rec.with_suffix(".idx").read_bytes()
    rec.with_suffix(".idx").unlink()
    assert write_index(rec) == rec.with_suffix(".idx")
    assert rec.with_suffix(".idx").read_bytes() == lost
    copy = tmp_path / "b.rec"
    copy.write_bytes(bundled.VAL_REC.read_bytes())
    expected = bundled.VAL_REC.with_suffix(".idx").read_bytes()
    assert write_index(copy).read_bytes() == expected


def test_mxnet_reads_by_the_index(rec):
    write_index(rec)
    reader = MXIndexedRecordIO(str(rec.with_suffix(".idx")), str(rec), "r")
    for key in KEYS:
        assert mx.recordio.unpack(reader.read_idx(key))[0].id == key
    reader.close()


def test_keys_count_where_identifiers_occur_twice(tmp_path, capsys):
    rec = write(tmp_path / "a.rec", [7, 7, 1])
    write_index(rec)
    assert list(RecordFile.open(rec, num_classes=None).offsets) == [0, 1, 2]
    assert (
        f"{rec}: identifiers occur twice; the keys are 0 to 2"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda content: content[:-5], "the file ends within it"),
        (lambda content: content + b"more", "the file ends in its first words"),
        (lambda content: content + b"more" * 5, "no record begins there"),
        (lambda content: b"????" + content[4:], "no record begins there"),
        (
            lambda content: MAGIC + b"\x08\0\0\0" + bytes(8) + content,
            "8 bytes are too few for a header",
        ),
    ],
)
def test_damaged_file_keeps_the_index_that_it_has(rec, damage, why):
    before = rec.with_suffix(".idx").read_bytes()
    rec.write_bytes(damage(rec.read_bytes()))
    message = error_of(write_index, rec)
    place = f"{re.escape(str(rec))} at offset [0-9]+: "
    assert re.fullmatch(f"{place}{why}; write the file again", message)
    assert rec.with_suffix(".idx").read_bytes() == before
    assert {path.name for path in rec.parent.iterdir()} == {"a.rec", "a.idx"}


def test_what_is_no_record_file_is_refused(rec, tmp_path):
    for path in (tmp_path, tmp_path / "b.rec", rec.with_suffix(".idx")):
        assert error_of(write_index, path) == (
            f"{path} is no record file: give the path of a .rec"
        )
    rec.write_bytes(b"")
    assert error_of(write_index, rec) == f"{rec} is empty: write it again"


def test_command_prints_the_path_of_the_index(rec, capsys):
    index.main(index.parser().parse_args([str(rec)]))
    assert capsys.readouterr() == (f"{rec.with_suffix('.idx')}\n", "")


def test_records_are_read_after_the_remedy_of_the_error(rec):
    rec = rec.rename(rec.with_name("my 'own'.rec"))
    message = error_of(lambda: RecordFile.open(rec, num_classes=None))
    python, m, module, *arguments = shlex.split(message.partition(": make it with ")[2])
    assert (python, m, module) == ("python", "-m", "imagenet_prep.index")
    index.main(index.parser().parse_args(arguments))
    records = RecordFile.open(rec, num_classes=None)
    assert list(records.offsets) == KEYS
    np.testing.assert_array_equal(records.labels(11), [1])
