# SPDX-License-Identifier: Apache-2.0
"""The tables that `models` and `weights` print."""

import json

import pytest

from gluon_resnet.errors import InputError
from gluon_resnet.models import __main__ as models
from gluon_resnet.models import complexity
from gluon_resnet.weights import __main__ as weights
from gluon_resnet.weights import checkpoint, list_weights

COLUMNS = 80


def run(module, capsys, *arguments):
    """What the command prints, without the lines that are empty."""
    module.main(module.parser().parse_args([*map(str, arguments)]))
    return [line for line in capsys.readouterr().out.splitlines() if line]


def test_models_fit_80_columns(capsys):
    head, ruler, *rows, hint = run(models, capsys, "cifar_resnet*")
    assert len(ruler) <= COLUMNS and set(ruler) == {"-", " "}
    assert head.split() == [
        *("model", "family", "size", "classes", "parameters", "multiply-adds"),
    ]
    counted = complexity("cifar_resnet20_v1")
    (row,) = [row.split() for row in rows if row.startswith("cifar_resnet20_v1 ")]
    assert row == [
        *("cifar_resnet20_v1", "cifar_v1", "32", "10"),
        *(f"{counted.params / 1e6:.2f}", "M", f"{counted.flops / 1e9:.2f}", "G"),
    ]
    assert hint == "--wide: all digits, other names, and what the spec pages print"


def test_models_have_all_digits_and_the_pages_where_there_is_room(capsys):
    lines = run(models, capsys, "wide_resnet50_2", "--wide")
    table, pages = lines[:3], lines[3:]
    assert "68,883,240" in table[2] and "wide-resnet50" in table[2]
    assert pages[0].split()[:3] == ["page", "row", "model"]
    assert "Wide-ResNet-50" in pages[2] and "True" in pages[2]


def test_models_without_a_match_are_an_error(capsys):
    with pytest.raises(InputError, match=r"^no model matches 'resnet5000'; nearest: "):
        run(models, capsys, "resnet5000")


def test_weights_fit_80_columns_with_their_marks(capsys):
    lines = run(weights, capsys)
    ruler = lines[1]
    rows = [line for line in lines if line.partition(" ")[0] in list_weights()]
    assert len(rows) == len(list_weights())
    assert len(ruler) <= COLUMNS and max(map(len, rows)) <= COLUMNS
    assert len([row for row in rows if " * " in row]) == len(
        {checkpoint(name).model for name in list_weights()}
    )
    unchecked = [row.split()[0] for row in rows if " ! " in row]
    assert unchecked == [
        name for name in list_weights() if checkpoint(name).checksum.startswith("none")
    ]
    assert lines[-4:] == [
        "top-1, top-5: percent, as published",
        "* what the model's name alone stands for",
        "! no checksum is published: nothing tells a damaged download",
        "--wide or --json shows more columns, a whole NAME all of its row",
    ]


def test_weights_have_more_columns_where_there_is_room(capsys):
    head, _, *rows = run(weights, capsys, "resnet18_v1.*", "--wide")
    assert head.split()[2:6] == ["format", "bytes", "classes", "pixels"]
    assert "46,820,737" in rows[0]


def test_a_name_shows_all_that_is_known_of_its_row(capsys):
    lines = run(weights, capsys, "resnet18_v1.onnx_zoo")
    row = checkpoint("resnet18_v1.onnx_zoo")
    facts = dict(line.split(maxsplit=1) for line in lines if not line.startswith(" "))
    assert facts["name"] == f"{row.name}, which resnet18_v1 alone stands for"
    assert facts["size"] == str(row.size)
    shown = " ".join(" ".join(lines).split())
    assert row.checksum in shown
    assert row.note in shown
    assert f"resize {row.protocol.resize}" in shown
    assert all(url in shown for url in row.urls)


def test_json_has_every_field(capsys):
    (line,) = run(weights, capsys, "resnet18_v1.onnx_zoo", "--json")
    row = checkpoint("resnet18_v1.onnx_zoo")
    found = json.loads(line)
    assert (found["name"], found["sha256"]) == (row.name, row.sha256)
    assert found["protocol"]["size"] == row.protocol.size


def test_weights_without_a_match_are_an_error(capsys):
    with pytest.raises(InputError) as error:
        run(weights, capsys, "resnest50d.in2k")
    message = str(error.value)
    assert message.startswith("no published checkpoint matches 'resnest50d.in2k'; ")
    assert "nearest: resnest50d.in1k, " in message
    assert message.endswith("or a shell pattern, as in '*.onnx_zoo*'")
