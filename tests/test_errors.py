# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from gluon_resnet.errors import InputError, one_line


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"caf\xc3\xa9 \xe5\x9b\xbe.png", "café 图.png"),
        (b"caf\xe9.png", r"caf\udce9.png"),
        (b"a\nb\tc\r\x1b[31m.png", r"a\nb\tc\r\x1b[31m.png"),
        ("a\u2028b\x85c".encode(), r"a\u2028b\x85c"),
    ],
)
def test_message_is_one_line_whatever_a_file_is_called(name, shown):
    assert one_line(os.fsdecode(name)) == shown
    message = str(InputError(f"{os.fsdecode(name)}: no such file"))
    assert message == f"{shown}: no such file"
    message.encode()
