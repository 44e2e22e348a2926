# SPDX-License-Identifier: Apache-2.0
"""What is decoded once, and what is not: the sum of all images decides."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from mxnet.recordio import IRHeader, MXIndexedRecordIO, pack
from PIL import Image

from gluon_resnet.data.in_memory import decoded_once, fits
from gluon_resnet.data.records import RecordFile
from gluon_resnet.errors import InputError

SIZES = [(6, 4), (40, 30), (40, 30)]
BYTES = 3 * sum(width * height for width, height in SIZES)


def encoded(width, height, kind):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (90, 10, 200)).save(buffer, kind)
    return buffer.getvalue()


def write(folder, sizes=SIZES, kind="JPEG", damaged=()):
    path = folder / "a.rec"
    writer = MXIndexedRecordIO(str(path.with_suffix(".idx")), str(path), "w")
    for key, size in enumerate(sizes):
        content = b"no image" if key in damaged else encoded(*size, kind)
        writer.write_idx(key, pack(IRHeader(0, key, key, 0), content))
    writer.close()
    return RecordFile.open(path, num_classes=len(sizes))


@pytest.mark.parametrize("sizes", [SIZES, SIZES[::-1]], ids=["small first", "last"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_sum_of_all_images_decides_whatever_their_order(tmp_path, sizes, kind):
    records = write(tmp_path, sizes, kind)
    assert fits(records, BYTES)
    assert not fits(records, BYTES - 1)


def test_headers_are_read_only_until_the_sum_is_too_large(tmp_path, monkeypatch):
    records = write(tmp_path, SIZES * 100)
    asked = []
    read = RecordFile.encoded_image

    def noting(self, key):
        asked.append(key)
        return read(self, key)

    monkeypatch.setattr(RecordFile, "encoded_image", noting)
    assert not fits(records, BYTES)
    assert asked == [0, 1, 2, 3]


def test_images_that_fit_are_decoded_once(tmp_path):
    records = write(tmp_path)
    read = decoded_once(records, most_bytes=BYTES)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, [*range(3)] * 20))
    for key in range(3):
        label, image = read(key)
        assert read(key)[1] is image
        assert label == key
        np.testing.assert_array_equal(image, records.read(key)[1])


def test_images_that_do_not_fit_are_decoded_each_time(tmp_path):
    records = write(tmp_path)
    read = decoded_once(records, most_bytes=BYTES - 1)
    assert read(0)[1] is not read(0)[1]
    np.testing.assert_array_equal(read(1)[1], records.read(1)[1])


def test_damaged_image_takes_no_place_and_is_told_when_it_is_read(tmp_path):
    records = write(tmp_path, damaged=[1])
    assert fits(records, BYTES - 3 * 40 * 30)
    with pytest.raises(InputError, match=r"a\.rec, record 1 at offset"):
        decoded_once(records)(1)


def test_header_of_a_label_list_does_not_hide_the_image(tmp_path):
    path = tmp_path / "a.rec"
    writer = MXIndexedRecordIO(str(path.with_suffix(".idx")), str(path), "w")
    writer.write_idx(0, pack(IRHeader(0, [1, 2], 0, 0), encoded(6, 4, "PNG")))
    writer.close()
    records = RecordFile.open(path, num_classes=3)
    assert records.encoded_image(0) == encoded(6, 4, "PNG")
    assert not fits(records, 3 * 6 * 4 - 1)
