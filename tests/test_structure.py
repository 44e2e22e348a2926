# SPDX-License-Identifier: Apache-2.0
"""Imports point one way: from what users run down to what all else stands on."""

import ast
from pathlib import Path

import gluon_resnet

PACKAGE = Path(gluon_resnet.__file__).parent
# A room is a module or a folder of the package; it may import those before it.
ROOMS = [
    "errors",
    "precision",
    "nearest",
    "interrupt",
    "random_streams",
    "cpu",
    "_before_mxnet",
    "lazy",
    "in_order",
    "files",
    "progress",
    "command",
    "device",
    "graph",
    "decoding",
    "preprocess",
    "image_files",
    "postprocess",
    "bundled",
    "models",
    "weights",
    "image_sources",
    "data",
    "predictions",
    "cam",
    "create",
    "training",
    "inference",
    "classifier",
    "onnx_export",
    "model_options",
]
COMMANDS = ["infer", "validate", "train", "quantize", "benchmark", "convert", "export"]


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(path):
    """The rooms that a module imports, on first use, too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, _, inner = name.partition(".")
            assert package != "tests", f"{path} imports the tests"
            if package == "gluon_resnet":
                room = inner.partition(".")[0]
                # A name of __init__, such as __version__, is no room.
                yield room if room in (*ROOMS, *COMMANDS) else "__init__"


def modules():
    return [
        path
        for path in PACKAGE.rglob("*.py")
        if room_of(path) not in ("__init__", "__main__")
    ]


def test_each_module_has_a_room():
    assert {room_of(path) for path in modules()} <= {*ROOMS, *COMMANDS}


def test_imports_point_one_way():
    for path in modules():
        room = room_of(path)
        below = ROOMS if room in COMMANDS else ROOMS[: ROOMS.index(room)]
        wrong = set(imported_rooms(path)) - {*below, room, "__init__"}
        assert not wrong, f"{path} imports {', '.join(wrong)}"


def test_nothing_imports_a_command():
    for path in modules():
        # test_imports_point_one_way allows a room itself.
        assert not set(imported_rooms(path)) & set(COMMANDS), path
    for path in PACKAGE.rglob("__main__.py"):
        assert "__main__ import" not in path.read_text(encoding="utf-8")


def test_inference_and_training_do_not_know_each_other():
    for first, second in (("inference", "training"), ("training", "inference")):
        for path in (PACKAGE / first).rglob("*.py"):
            assert second not in imported_rooms(path), path


def test_only_graph_knows_how_mxnet_writes_a_symbol_down():
    # int8.py reads and writes the symbol of a file as a whole.
    whole = {"tojson", "load_json"}
    parts = {"nodes", "arg_nodes", "node_row_ptr", "heads"}
    for path in modules():
        if room_of(path) == "graph":
            continue
        known = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                known |= whole & {node.attr}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                known |= parts & {node.value}
        assert known <= (whole if path.name == "int8.py" else set()), path
