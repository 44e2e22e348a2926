# SPDX-License-Identifier: Apache-2.0
"""Weights in every format and layout, damaged and hostile files among them."""

import base64
import dataclasses
import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
import verify_layouts
from draw import draw_images, draw_tensor
from safetensors.numpy import load_file, save_file
from torch_files import write_torch

from gluon_resnet import list_models, load_weights, model_spec
from gluon_resnet.errors import InputError
from gluon_resnet.models.resnet import resnet
from gluon_resnet.weights import layouts, load
from gluon_resnet.weights.arrays import BFLOAT16, dtype_name, float32
from gluon_resnet.weights.formats import read_tensors
from gluon_resnet.weights.save import save_weights

GOLDEN = json.loads(
    Path(__file__).with_name("golden").joinpath("weights.json").read_text()
)
REGENERATE = "python tests/golden/make_weights.py, see its docstring"
COUNT = np.arange(12, dtype=np.float32).reshape(3, 4)


def tiny(family="v1b", num_classes=3):
    """Make a net of 20 thousand parameters with the names of its family."""
    name = {"v1b": "resnet18_v1b", "v1d": "resnet50_v1d", "v2": "resnet18_v2"}[family]
    spec = dataclasses.replace(
        model_spec(name), blocks=(1, 1, 1, 1), channels=(8, 8, 16, 16)
    )
    net = resnet(spec, num_classes=num_classes)
    net.initialize(mx.init.Zero())
    return net


def drawn(net):
    """Draw a value for each parameter by our own names."""
    return {
        name: draw_tensor(name.replace("gamma", "weight"), parameter.shape)
        if name != "stem.bn0.gamma"
        else np.ones(3, np.float32)
        for name, parameter in net._collect_params_with_prefix().items()
    }


def values(net):
    parameters = net._collect_params_with_prefix()
    return {name: p.data().asnumpy() for name, p in parameters.items()}


def named(layout, net, tensors):
    """Rename our own names as a layout does."""
    keys = getattr(layouts, layout)(net.spec, list(tensors))
    return {keys[name]: value for name, value in tensors.items()}


def assert_equal(found, tensors):
    assert found.keys() == tensors.keys()
    for key, value in tensors.items():
        np.testing.assert_array_equal(found[key], value, key)


# Formats


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_torchs_files_are_read_as_torch_wrote_them(form, tmp_path):
    path = tmp_path / "theirs.pth"
    path.write_bytes(base64.b64decode(GOLDEN["torch_files"][form]))
    file_format, tensors = read_tensors(path)
    assert file_format == "pth"
    expected = {
        "0.weight": [1, 1],
        "0.bias": [0, 0],
        "0.running_mean": [0, 0],
        "0.running_var": [1, 1],
        "0.num_batches_tracked": 0,
        "float32": COUNT,
        "shared": COUNT,
        "transposed": COUNT.T,
        "sliced": COUNT[1:, ::2],
        "parameter": COUNT,
        "scalar": 7,
        "float64": COUNT,
        "float16": COUNT,
        "bfloat16": COUNT,
        "int64": COUNT,
    }
    assert_equal({key: float32(value) for key, value in tensors.items()}, expected)
    for dtype in ("float32", "float64", "float16", "bfloat16", "int64"):
        assert dtype_name(tensors[dtype]) == dtype


def test_safetensors_of_the_library_are_read(tmp_path):
    tensors = {str(np.dtype(t)): COUNT.astype(t) for t in "fdelb"}
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert read_tensors(tmp_path / "theirs")[0] == "safetensors"
    assert_equal(read_tensors(tmp_path / "theirs")[1], tensors)


def test_params_of_mxnet_are_read(tmp_path):
    tensors = {str(np.dtype(t)): COUNT.astype(t) for t in "fdeilbB"}
    arrays = {k: mx.nd.array(v, dtype=v.dtype) for k, v in tensors.items()}
    arrays["bfloat16"] = mx.nd.array(COUNT).astype(BFLOAT16)
    mx.nd.save(str(tmp_path / "theirs"), arrays)
    file_format, found = read_tensors(tmp_path / "theirs")
    assert file_format == "params"
    np.testing.assert_array_equal(float32(found.pop("bfloat16")), COUNT)
    assert_equal(found, tensors)


def params_bytes(*head, key=b"weight"):
    """Write `COUNT` behind the header fields that MXNet's versions differ in."""
    tail = struct.pack("<iii", 1, 0, 0) + COUNT.tobytes()
    keys = struct.pack("<QQ", 1, len(key)) + key
    return struct.pack("<QQQ", 0x112, 0, 1) + b"".join(head) + tail + keys


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<III", 2, 3, 4),
        struct.pack("<Iiqq", 0xF993FAC8, 2, 3, 4),
        struct.pack("<Iiiqq", 0xF993FAC9, 0, 2, 3, 4),
        struct.pack("<Iiiqq", 0xF993FACA, 0, 2, 3, 4),
    ],
    ids=["before 0.12", "dense", "with storage types", "NumPy shapes"],
)
def test_params_of_every_mxnet_version_are_read(head, tmp_path):
    path = tmp_path / "theirs.params"
    path.write_bytes(params_bytes(head))
    assert_equal(read_tensors(path)[1], {"weight": COUNT})
    with mx.util.np_shape(struct.pack("<I", 0xF993FACA) in head):
        theirs = mx.nd.load(str(path))["weight"].asnumpy()
    np.testing.assert_array_equal(theirs, COUNT)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zipped_params_are_read(method, tmp_path):
    path = tmp_path / "resnet-01234567.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(
            "resnet-01234567.params", params_bytes(struct.pack("<III", 2, 3, 4))
        )
    file_format, tensors = read_tensors(path)
    assert file_format == "params"
    assert_equal(tensors, {"weight": COUNT})


def field(number, value):
    """Encode a field of a protocol buffer: a whole number or bytes."""
    wire_type, body = (2, value) if isinstance(value, bytes) else (0, b"")
    size = len(value) if isinstance(value, bytes) else value
    return varint(number << 3 | wire_type) + varint(size) + body


def varint(number):
    head = b""
    while number > 0x7F:
        head += bytes([number & 0x7F | 0x80])
        number >>= 7
    return head + bytes([number])


def onnx_bytes(*initializers):
    graph = b"".join(field(5, tensor) for tensor in initializers)
    return field(1, 3) + field(2, b"exporter") + field(7, field(2, b"net") + graph)


def tensor_proto(name, array, data_type, data_field, *extra):
    dims = b"".join(field(1, side) for side in array.shape)
    data = field(data_field, array.tobytes())
    return dims + field(2, data_type) + data + field(8, name) + b"".join(extra)


def test_onnx_initializers_are_read_without_whole_numbers(tmp_path):
    path = tmp_path / "theirs.onnx"
    packed_dims = field(1, varint(3) + varint(4)) + field(2, 1)
    path.write_bytes(
        onnx_bytes(
            tensor_proto(b"raw", COUNT, 1, 9),
            tensor_proto(b"floats", COUNT, 1, 4),
            tensor_proto(b"doubles", COUNT.astype("f8"), 11, 10),
            tensor_proto(b"halfs", COUNT.astype("f2"), 10, 9),
            packed_dims + field(8, b"packed") + field(9, COUNT.tobytes()),
            tensor_proto(b"reshape_attr_tensor164", np.array([0, -1]), 7, 9),
        )
    )
    file_format, tensors = read_tensors(path)
    assert file_format == "onnx"
    assert_equal(
        tensors, dict.fromkeys(("raw", "floats", "doubles", "halfs", "packed"), COUNT)
    )


def test_onnx_of_the_library_is_read(tmp_path):
    onnx = pytest.importorskip("onnx")
    tensors = [
        onnx.helper.make_tensor("floats", 1, COUNT.shape, COUNT.ravel()),
        onnx.numpy_helper.from_array(COUNT, "raw"),
    ]
    graph = onnx.helper.make_graph([], "net", [], [], initializer=tensors)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "theirs.onnx")
    _, found = read_tensors(tmp_path / "theirs.onnx")
    assert_equal(found, {"floats": COUNT, "raw": COUNT})


# Damaged files


def write_each_format(folder):
    """Write `COUNT` under two keys in each format; return the paths."""
    tensors = {"conv1.weight": COUNT, "fc.bias": COUNT[0]}
    save_file(tensors, folder / "a.safetensors")
    mx.nd.save(str(folder / "a.params"), {k: mx.nd.array(tensors[k]) for k in tensors})
    write_torch(folder / "zip.pth", {"state_dict": tensors}, is_zip=True)
    write_torch(folder / "legacy.pth", {"state_dict": tensors}, is_zip=False)
    protos = [tensor_proto(key.encode(), tensors[key], 1, 9) for key in tensors]
    (folder / "a.onnx").write_bytes(onnx_bytes(*protos))
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "a.params", "a.params")
    return sorted(folder.iterdir())


def test_a_file_cut_anywhere_is_refused_in_one_line(tmp_path):
    for path in write_each_format(tmp_path):
        whole = path.read_bytes()
        for length in range(0, len(whole), 7):
            path.write_bytes(whole[:length])
            # Not a read error: an ONNX file may end after any of its fields.
            try:
                _, tensors = read_tensors(path)
            except InputError as error:
                assert "\n" not in str(error)
                assert str(error).startswith(str(path))
            else:
                assert path.suffix == ".onnx"
                assert len(tensors) < 2


def test_flipped_bits_never_end_in_another_error(tmp_path):
    generator = np.random.default_rng(0)
    for path in write_each_format(tmp_path):
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(300):
            damaged = whole.copy()
            positions = generator.integers(0, len(whole), 3)
            damaged[positions] ^= generator.integers(1, 256, 3).astype(np.uint8)
            path.write_bytes(damaged.tobytes())
            try:
                read_tensors(path)
            except InputError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "is a pointer of Git LFS; `git",
        ),
        (b"<!DOCTYPE html><html>", "is a web page or another XML file; download"),
        (b"secret" * 9, r"it is no weights file; \.params, \.safetensors, \.pth and"),
        (b'{"secret": 1}', "is JSON, but no index of weights in parts"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file of Keras"),
        (struct.pack("<Q", 2**63) + b'{"a": 1}', "is damaged"),
        (params_bytes(struct.pack("<Iiiqq", 0xF993FAC9, 1, 2, 3, 4)), "sparse"),
        (struct.pack("<QQQ", 0x112, 0, 2**60), "is damaged"),
        (params_bytes(struct.pack("<III", 2, 2**31, 2**31)), "is damaged"),
        (params_bytes(struct.pack("<I", 31)), "is damaged"),
        (params_bytes(struct.pack("<III", 2, 3, 4)) + b"more", "end at byte"),
    ],
)
def test_what_is_no_weights_file_is_refused(content, message, tmp_path):
    path = tmp_path / "download.params"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_tensors(path)
    assert "secret" not in str(caught.value)


def test_a_missing_file_or_a_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.params: No such file"):
        read_tensors(tmp_path / "nothing.params")
    with pytest.raises(InputError, match="Is a directory"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 44]},
        {"dtype": "F32", "shape": [3, 4], "data_offsets": [4, 52]},
        {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 48]},
        {"dtype": "F32", "shape": [-3, -4], "data_offsets": [0, 48]},
        {"dtype": "F32", "shape": [3, 4], "data_offsets": [-48, 0]},
        {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
        {"dtype": "F32", "shape": "34", "data_offsets": [0, 48]},
        {"dtype": "F32"},
        7,
    ],
)
def test_a_lying_safetensors_header_is_refused(entry, tmp_path):
    header = json.dumps({"weight": entry}).encode()
    path = tmp_path / "lies.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + COUNT.tobytes())
    with pytest.raises(InputError, match="is damaged"):
        read_tensors(path)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "C64", "F4", "x" * 500])
def test_dtype_that_is_not_read_is_named_and_not_called_damage(dtype, tmp_path):
    entry = {"dtype": dtype, "shape": [5, 2], "data_offsets": [0, 10]}
    header = json.dumps({"fc.weight": entry}).encode()
    path = tmp_path / "other.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(10))
    shown = dtype if len(dtype) < 80 else "x" * 77 + "..."
    with pytest.raises(InputError) as caught:
        read_tensors(path)
    assert str(caught.value) == (
        f"{path}: fc.weight has the dtype {shown}, which is not read; save it as F32, "
        "F16 or BF16"
    )


def external(location, *more):
    """A tensor whose values are in another file."""
    entries = [(b"location", location), *more]
    return tensor_proto(
        b"conv0_weight",
        COUNT[:0],
        1,
        9,
        field(1, 3) + field(1, 4),
        *(field(13, field(1, key) + field(2, value)) for key, value in entries),
        field(14, 1),
    )[len(field(1, 0) + field(1, 4)) :]


def write_in_parts(folder, tensors):
    """Write each tensor to a file of its own, and return the path of their index."""
    parts = {}
    for number, (key, value) in enumerate(tensors.items(), 1):
        parts[key] = f"model-{number:05}-of-{len(tensors):05}.safetensors"
        save_file({key: value}, folder / parts[key])
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    return index


def test_parts_are_read_by_their_index(tmp_path):
    index = write_in_parts(tmp_path, {"a": COUNT, "b": COUNT[0]})
    assert read_tensors(index)[0] == "safetensors"
    assert_equal(read_tensors(index)[1], {"a": COUNT, "b": COUNT[0]})


def test_part_that_is_missing_is_named(tmp_path):
    index = write_in_parts(tmp_path, {"a": COUNT, "b": COUNT[0]})
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError) as failure:
        read_tensors(index)
    assert str(failure.value) == (
        f"{index}: its part model-00002-of-00002.safetensors is not beside it; fetch "
        "that, too"
    )


@pytest.mark.parametrize(
    "content", ["{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', '{"a"']
)
def test_json_that_is_no_index_is_not_called_damage(content, tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(content)
    with pytest.raises(InputError) as failure:
        read_tensors(path)
    assert str(failure.value) == (
        f"{path}: it is JSON, but no index of weights in parts; give a weights file"
    )


def test_part_outside_the_folder_is_refused(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"weight_map": {"a": "../secret"}}')
    with pytest.raises(
        InputError, match=r"\.\./secret, which is not in its own folder"
    ):
        read_tensors(path)


def test_onnx_weights_in_a_file_beside_it_are_read(tmp_path):
    (tmp_path / "theirs.onnx.data").write_bytes(bytes(8) + COUNT.tobytes())
    place = (b"offset", b"8"), (b"length", b"48")
    proto = external(b"theirs.onnx.data", *place)
    (tmp_path / "theirs.onnx").write_bytes(onnx_bytes(proto))
    assert_equal(read_tensors(tmp_path / "theirs.onnx")[1], {"conv0_weight": COUNT})
    (tmp_path / "theirs.onnx.data").write_bytes(bytes(50))
    with pytest.raises(InputError, match="damaged: an array has 48 bytes where 42 are"):
        read_tensors(tmp_path / "theirs.onnx")
    (tmp_path / "theirs.onnx.data").unlink()
    with pytest.raises(InputError) as caught:
        read_tensors(tmp_path / "theirs.onnx")
    assert str(caught.value) == (
        f"{tmp_path / 'theirs.onnx'}: its weights are in theirs.onnx.data beside it, "
        "which cannot be read: No such file or directory; keep both files in one folder"
    )


@pytest.mark.parametrize(
    "location", ["../w.bin", "/etc/x", "a/w.bin", "..", "a\\b", ""]
)
def test_onnx_weights_in_other_folders_are_refused(location, tmp_path):
    proto = external(location.encode())
    (tmp_path / "theirs.onnx").write_bytes(onnx_bytes(proto))
    with pytest.raises(InputError) as caught:
        read_tensors(tmp_path / "theirs.onnx")
    assert str(caught.value) == (
        f"{tmp_path / 'theirs.onnx'}: it keeps conv0_weight in {location}, which is "
        "not in its own folder and is not opened; save the model with its weights "
        "inside"
    )


# Hostile files


class Attack:
    """Pickles to a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def pickled_zip(path, program):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)


TOUCH = b"X\x05\x00\x00\x00touch"
# A tuple in a tuple in a tuple ...: its hash would overflow the interpreter's stack.
DEEP = b")" + b"\x85" * 300_000
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    "program, message",
    [
        (b"\x80\x02cos\nsystem\n" + TOUCH + b"\x85R.", r"calls os\.system"),
        (b"\x80\x02cposix\nsystem\n" + TOUCH + b"\x85R.", r"calls posix\.system"),
        (b"\x80\x02c__builtin__\neval\n" + TOUCH + b"\x85R.", r"__builtin__\.eval"),
        (b"\x80\x02ctorch\nload\n" + TOUCH + b"\x85R.", r"calls torch\.load"),
        (
            b"\x80\x04\x8c\x02os\x8c\x06system\x93" + TOUCH + b"\x85R.",
            "calls os.system",
        ),
        (b"(" + TOUCH + b"ios\nsystem\n.", "instruction INST os system"),
        (b"cos\nsystem\n" + TOUCH + b"\x85\x81.", r"calls os\.system"),
        (b"(cos\nsystem\n" + TOUCH + b"o.", r"calls os\.system"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"Pevil\n.", "instruction PERSID"),
        (pickle.dumps(Attack(print, "ran"), 2), "calls __builtin__.print"),
        (pickle.dumps(Attack(print, "ran"), 5), "calls builtins.print"),
        (pickle.dumps(Attack(exec, "raise SystemExit"), 0), "INST|GLOBAL|calls"),
        # A function's attributes, and calls of what is no function.
        (TENSOR + b"}X\x0c\x00\x00\x00__defaults__K\x01sb.", "something else and no"),
        (TENSOR + b"K\x01R.", "is damaged"),
        (b"K\x01)R.", "is damaged"),
        (b"0.", "instruction POP"),
        (b"\x80\x02.", "is damaged"),
        (b"\x80\x02K\x01.", "holds something else and no dictionary of tensors"),
        (b"\x80\x02].", r"holds a list and no dictionary .* network's state_dict\(\)"),
        (b"\x80\x02).", "holds a tuple and no dictionary of tensors"),
        (b"Vsecret\n.", "instruction UNICODE, which torch does not"),
        (b"\x80\x02}.", "no tensors by name"),
        (b"\x80\x02" + b"(" * 100_000 + b".", "is damaged"),
        (b"\x80\x02h\x05.", "is damaged"),
        (b"}" + DEEP + b"K\x01s.", "a key that is a tuple"),
        (b"}(" + DEEP + b"K\x01u.", "a key that is a tuple"),
        (b"(\x8c\x01actorch\nIntStorage\n" + DEEP + b"tQ.", "a key that is a tuple"),
        (b"ccollections\nOrderedDict\n" + DEEP + b"R.", "is damaged"),
        (b"X\xff\xff\xff\xffa.", "is damaged"),
        (b"\x8b\xff\xff\xff\x7fa.", "is damaged"),
    ],
)
def test_a_hostile_pickle_is_refused_and_never_run(program, message, tmp_path, capsys):
    path = tmp_path / "hostile.pth"
    pickled_zip(path, program)
    with pytest.raises(InputError, match=message) as failure:
        read_tensors(path)
    assert "\n" not in str(failure.value)
    assert capsys.readouterr().out == ""

    write_torch(path, {}, is_zip=False)
    head = io.BytesIO(path.read_bytes())
    for _ in range(3):
        pickle.load(head)
    path.write_bytes(head.getvalue()[: head.tell()] + program + pickle.dumps([], 2))
    with pytest.raises(InputError, match=message):
        read_tensors(path)


def test_what_training_scripts_save_beside_the_weights_is_skipped(tmp_path):
    write_torch(tmp_path / "plain.pth", {"state_dict": {"a": COUNT}}, is_zip=True)
    with zipfile.ZipFile(tmp_path / "plain.pth") as archive:
        program = archive.read("archive/data.pkl")
        stored = archive.read("archive/data/0")
    arguments = b"cargparse\nNamespace\n)\x81}b"
    # Before the last instructions, which fill the outer dictionary.
    program = program[:-2] + b"X\x04\x00\x00\x00args" + arguments + program[-2:]
    with zipfile.ZipFile(tmp_path / "full.pth", "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", stored)
    assert_equal(read_tensors(tmp_path / "full.pth")[1], {"a": COUNT})


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    "wrapped",
    [
        lambda weights, old: weights,
        lambda weights, old: {"state_dict": weights, "meta": {"epoch": 3}},
        lambda weights, old: {"model": weights, "optimizer": {"state": {"0": old}}},
        lambda weights, old: {"state_dict": {"a": old}, "state_dict_ema": weights},
    ],
    ids=["bare", "OpenMMLab", "torchvision", "averaged"],
)
def test_weights_are_found_where_scripts_put_them(wrapped, is_zip, tmp_path):
    content = wrapped({"a": COUNT, "b": COUNT[0]}, -COUNT)
    write_torch(tmp_path / "theirs.pth", content, is_zip=is_zip)
    assert_equal(read_tensors(tmp_path / "theirs.pth")[1], {"a": COUNT, "b": COUNT[0]})


def write_bomb(path):
    """Write a zipped .params that unpacks to more than 1 GiB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("bomb.params", "w", force_zip64=True) as member:
            for _ in range(1025):
                member.write(bytes(2**20))


@pytest.mark.slow
def test_a_zip_bomb_is_not_unpacked(tmp_path):
    write_bomb(tmp_path / "bomb.zip")
    with pytest.raises(InputError, match="would take 1074790400 bytes"):
        read_tensors(tmp_path / "bomb.zip")


def test_a_claimed_size_is_never_allocated(tmp_path):
    write_torch(tmp_path / "huge.pth", {"conv1.weight": COUNT}, is_zip=True)
    with zipfile.ZipFile(tmp_path / "huge.pth") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    # A million rows and columns that are all one stored value: strides of zero.
    program = members["archive/data.pkl"]
    for sides, others in (((3, 4), (10**6, 10**6)), ((4, 1), (0, 0))):
        old, new = (struct.pack("<BiBi", 74, a, 74, b) for a, b in (sides, others))
        assert program.count(old) == 1
        program = program.replace(old, new)
    members["archive/data.pkl"] = program
    with zipfile.ZipFile(tmp_path / "huge.pth", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    net = tiny()
    tracemalloc.start()
    with pytest.raises(InputError, match=r"conv1\.weight: \(1000000, 1000000\)"):
        load_weights(net, tmp_path / "huge.pth")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


# Loading


def expected(tensors, layout):
    """Return what is loaded: the variance makes up for the gallery's epsilon, 2e-5."""
    more = 1e-5 if layout is layouts.mxnet_gallery else 0
    return {
        name: np.float32(value + np.float64(more * name.endswith("running_var")))
        for name, value in tensors.items()
    }


def test_every_layout_loads_under_every_prefix(tmp_path):
    prefixes = {
        "own": ("", "module."),
        "torchvision": ("", "module.", "_orig_mod.", "module._orig_mod."),
        "openmmlab": ("", "module."),
        "gluoncv_attributes": ("",),
        "gluon_features": ("",),
        "gluon_symbol": ("", "resnetv17_", "resnest_", "arg:resnetv1d0_", "mine"),
        "mxnet_gallery": ("", "arg:"),
    }
    assert {layout.__name__ for layout in layouts.LAYOUTS} == prefixes.keys()
    covered = set()
    for family in ("v1b", "v1d", "v2"):
        net = tiny(family)
        tensors = drawn(net)
        for layout in layouts.LAYOUTS:
            if layout(net.spec, list(tensors)) is None:
                continue
            keyed = named(layout.__name__, net, tensors)
            for prefix in prefixes[layout.__name__]:
                save_file({prefix + k: keyed[k] for k in keyed}, tmp_path / "theirs")
                net = tiny(family)
                report = load_weights(net, tmp_path / "theirs")
                assert report.layout == layout.__name__
                assert report.loaded == len(tensors)
                assert_equal(values(net), expected(tensors, layout))
                covered.add(layout.__name__)
    assert covered == prefixes.keys()


@pytest.mark.parametrize("model", list_models())
def test_no_two_layouts_give_a_key_to_different_parameters(model):
    spec = model_spec(model)
    names = list(resnet(spec)._collect_params_with_prefix())
    owners = {}
    for layout in layouts.LAYOUTS:
        keys = layout(spec, names) or {}
        assert len(set(keys.values())) == len(keys)
        for name, key in keys.items():
            assert owners.setdefault(key, name) == name


@pytest.mark.parametrize("model", GOLDEN["state_dicts"])
def test_keys_shapes_and_dtypes_are_timms(model):
    digest = verify_layouts.state_dict_digest(verify_layouts.state_dict_shapes(model))
    assert digest == GOLDEN["state_dicts"][model], REGENERATE


def exported(net, folder):
    net.hybridize()
    net(mx.nd.array(draw_images((1, 3, 33, 33))))
    net.export(str(folder / "net"))
    return folder / "net-0000.params"


@pytest.mark.parametrize("family", ["v1b", "v1d", "v2"])
def test_our_own_exported_symbols_load(family, tmp_path):
    net = tiny(family)
    tensors = drawn(net)
    for name, parameter in net._collect_params_with_prefix().items():
        parameter.set_data(mx.nd.array(tensors[name]))
    again = tiny(family)
    assert load_weights(again, exported(net, tmp_path)).layout == "exported"
    assert_equal(values(again), tensors)


def test_a_net_that_has_run_loads(tmp_path):
    net = tiny()
    tensors = drawn(net)
    save_file(tensors, tmp_path / "ours")
    net(mx.nd.array(draw_images((1, 3, 33, 33)))).wait_to_read()
    load_weights(net, tmp_path / "ours")
    assert_equal(values(net), tensors)


def spoiled(tensors, **changes):
    """Return a torchvision state_dict with some keys changed, None to leave out."""
    keyed = {**tensors, **{k.replace("__", "."): v for k, v in changes.items()}}
    return {key: value for key, value in keyed.items() if value is not None}


def test_all_that_does_not_fit_is_listed_and_the_net_kept(tmp_path):
    net = tiny()
    before = values(net)
    tensors = named("torchvision", net, drawn(net))
    save_file(
        spoiled(
            tensors,
            bn1__weight=None,
            layer2__0__bn2__bias=None,
            extra__weight=COUNT,
            fc__weight=np.zeros((1000, 16), np.float32),
            fc__bias=np.zeros(1000, np.float32),
        ),
        tmp_path / "theirs",
    )
    with pytest.raises(InputError) as failure:
        load_weights(net, tmp_path / "theirs")
    assert str(failure.value) == (
        f"{tmp_path / 'theirs'} does not fit resnet18_v1b, read as torchvision: "
        "missing: bn1.weight, layer2.0.bn2.bias; unexpected: extra.weight; "
        "wrong shape (file, network): fc.weight: (1000, 16), (3, 16), "
        "fc.bias: (1000,), (3,); check the model's name, its number of classes and its "
        "channels"
    )
    assert_equal(values(net), before)

    report = load_weights(net, tmp_path / "theirs", strict=False)
    assert report.missing == ("bn1.weight", "layer2.0.bn2.bias")
    assert report.unexpected == ("extra.weight",)
    assert len(report.wrong_shape) == 2
    assert report.loaded == len(tensors) - 4
    np.testing.assert_array_equal(
        net.stem.conv1.weight.data().asnumpy(), tensors["conv1.weight"]
    )


def test_many_offenders_are_counted(tmp_path):
    net = tiny()
    tensors = named("torchvision", net, drawn(net))
    tensors.update({f"extra{i}": COUNT for i in range(30)})
    save_file(tensors, tmp_path / "theirs")
    with pytest.raises(
        InputError, match=r"extra0, .* and 20 more; all that this network"
    ):
        load_weights(net, tmp_path / "theirs")


def test_a_file_of_something_else_shows_its_keys(tmp_path):
    save_file({"encoder.weight": COUNT}, tmp_path / "theirs")
    for strict in (True, False):
        with pytest.raises(InputError, match=r"its keys are encoder\.weight; check"):
            load_weights(tiny(), tmp_path / "theirs", strict=strict)


def test_two_sets_of_weights_in_a_file_are_refused(tmp_path):
    save_file({"fc.bias": COUNT[0], "module.fc.bias": COUNT[1]}, tmp_path / "theirs")
    with pytest.raises(InputError, match=r"holds fc\.bias more than once"):
        load_weights(tiny(), tmp_path / "theirs")


def under(prefix, tensors):
    return {prefix + key: value for key, value in tensors.items()}


@pytest.mark.parametrize("average", ["model_ema.module.", "averaged.", "swa_model."])
def test_average_goes_before_the_last_step(average, tmp_path):
    net = tiny()
    tensors = drawn(net)
    keyed = named("torchvision", net, tensors)
    last = {key: 2 * value for key, value in keyed.items()}
    save_file({**under("model.", last), **under(average, keyed)}, tmp_path / "theirs")
    load_weights(net, tmp_path / "theirs")
    assert_equal(values(net), tensors)


def test_two_whole_sets_are_refused_where_none_is_an_average(tmp_path):
    net = tiny()
    keyed = named("torchvision", net, drawn(net))
    path = tmp_path / "theirs"
    save_file({**under("student.", keyed), **under("teacher.", keyed)}, path)
    with pytest.raises(InputError) as failure:
        load_weights(net, path)
    assert str(failure.value) == (
        f"{path} holds two sets of weights, whose keys begin with 'student.' and "
        "'teacher.'; keep one set"
    )


def test_what_stands_beside_the_network_is_left_out_and_told(tmp_path, caplog):
    net = tiny()
    tensors = drawn(net)
    keyed = under("model.", named("torchvision", net, tensors))
    save_file({**keyed, "criterion.weight": COUNT[0]}, tmp_path / "theirs")
    assert load_weights(net, tmp_path / "theirs").unexpected == ()
    assert_equal(values(net), tensors)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warning == (
        f"{tmp_path / 'theirs'}: left out what is not under model.: criterion.weight"
    )


REASONS = {
    "auxiliary head": (
        {"aux__weight": COUNT},
        (
            " does not fit resnet18_v1b, read as torchvision: unexpected: aux.weight; "
            "all that this network needs is there: name a deeper network, or save the "
            "file without the rest"
        ),
    ),
    "no bias": (
        {"fc__bias": None},
        (
            " does not fit resnet18_v1b, read as torchvision: missing: fc.bias; its "
            "classifier has no bias: add one of zeros to the file"
        ),
    ),
    "two dense layers": (
        {"fc__weight": None, "fc__0__weight": COUNT, "fc__3__weight": COUNT},
        (
            " has no classifier (fc.weight), read as torchvision, but fc.0.weight, "
            "fc.3.weight; check the model's name, and give a file of a whole net with "
            "one such layer"
        ),
    ),
}


@pytest.mark.parametrize(("changes", "message"), REASONS.values(), ids=REASONS)
def test_reason_why_a_file_does_not_fit_is_the_true_one(changes, message, tmp_path):
    net = tiny()
    tensors = spoiled(named("torchvision", net, drawn(net)), **changes)
    save_file(tensors, tmp_path / "theirs")
    with pytest.raises(InputError) as failure:
        load.net_of(net.spec, tmp_path / "theirs")
    assert str(failure.value) == f"{tmp_path / 'theirs'}{message}"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_the_net_kept(value, tmp_path):
    net = tiny()
    before = values(net)
    tensors = named("torchvision", net, drawn(net))
    tensors["fc.weight"][1, 2] = value
    save_file(tensors, tmp_path / "theirs")
    with pytest.raises(InputError, match=r"fc\.weight holds NaN or infinity"):
        load_weights(net, tmp_path / "theirs")
    assert_equal(values(net), before)


def test_large_finite_values_are_no_infinity(tmp_path):
    net = tiny()
    tensors = named("torchvision", net, drawn(net))
    tensors["fc.bias"][:] = 3e38
    save_file(tensors, tmp_path / "theirs")
    load_weights(net, tmp_path / "theirs")
    assert (net.fc.bias.data().asnumpy() == np.float32(3e38)).all()


@pytest.mark.parametrize(
    "dtype, name",
    [("float16", "float16"), (BFLOAT16, "bfloat16"), ("float64", "float64")],
)
def test_other_precisions_are_converted_and_said(dtype, name, tmp_path):
    net = tiny()
    tensors = drawn(net)
    arrays = {k: mx.nd.array(v).astype(dtype) for k, v in tensors.items()}
    rounded = {k: v.astype("float32").asnumpy() for k, v in arrays.items()}
    mx.nd.save(str(tmp_path / "theirs"), arrays)
    assert load_weights(net, tmp_path / "theirs").converted == (name,)
    assert_equal(values(net), rounded)


def test_doubles_beyond_float32_and_whole_numbers_are_refused(tmp_path):
    net = tiny()
    tensors = named("torchvision", net, drawn(net))
    for bias, message in (
        (np.full(3, 1e39), "fc.bias holds NaN or infinity"),
        (np.zeros(3, np.int8), "fc.bias holds int8, not float32"),
    ):
        save_file({**tensors, "fc.bias": bias}, tmp_path / "theirs")
        with pytest.raises(InputError, match=message):
            load_weights(net, tmp_path / "theirs")


def test_counters_of_torch_are_ignored(tmp_path):
    net = tiny()
    tensors = named("torchvision", net, drawn(net))
    tensors["bn1.num_batches_tracked"] = np.array(7)
    save_file(tensors, tmp_path / "theirs")
    assert load_weights(net, tmp_path / "theirs").unexpected == ()


def test_v2s_input_scale_is_one_as_mxnet_computes(tmp_path):
    net = tiny("v2")
    tensors = drawn(net)
    tensors["stem.bn0.gamma"][:] = 2
    save_file(tensors, tmp_path / "scaled.safetensors")
    images = mx.nd.array(draw_images((1, 3, 33, 33)))
    load_weights(net, tmp_path / "scaled.safetensors")
    scaled = net(images).asnumpy()
    assert (net.stem.bn0.gamma.data().asnumpy() == 1).all()
    # Twice the scale is twice what the first convolution sees.
    halved = tensors | {
        "stem.bn0.gamma": np.ones(3, np.float32),
        "stem.bn0.beta": tensors["stem.bn0.beta"] / 2,
        "stem.conv1.weight": 2 * tensors["stem.conv1.weight"],
    }
    save_file(halved, tmp_path / "doubled.safetensors")
    load_weights(net, tmp_path / "doubled.safetensors")
    np.testing.assert_allclose(net(images).asnumpy(), scaled, rtol=1e-4, atol=1e-5)

    tensors["stem.bn0.gamma"][1] = -2
    save_file(tensors, tmp_path / "scaled.safetensors")
    with pytest.raises(InputError, match=r"positive numbers \(stem\.bn0\.gamma\), as"):
        load_weights(net, tmp_path / "scaled.safetensors")

    arrays = {k: mx.nd.array(v) for k, v in tensors.items()}
    mx.nd.save(str(tmp_path / "scaled.params"), arrays)
    load_weights(net, tmp_path / "scaled.params")
    assert (net.stem.bn0.gamma.data().asnumpy() == 1).all()
    answer = net(images).asnumpy()
    net.load_parameters(str(tmp_path / "scaled.params"))
    np.testing.assert_array_equal(net(images).asnumpy(), answer)


# Saving


@pytest.mark.parametrize("suffix", ["params", "safetensors"])
@pytest.mark.parametrize("family", ["v1b", "v1d", "v2"])
def test_saved_weights_come_back_equal(family, suffix, tmp_path):
    net = tiny(family)
    tensors = drawn(net)
    save_file(tensors, tmp_path / "ours")
    load_weights(net, tmp_path / "ours")
    path = save_weights(net, tmp_path / "new folder" / f"net.{suffix}")
    again = tiny(family)
    assert load_weights(again, path).format == suffix
    assert_equal(values(again), tensors)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_safetensors_have_the_names_of_torchvision(tmp_path):
    net = tiny()
    path = save_weights(net, tmp_path / "net.safetensors")
    tensors = named("torchvision", net, values(net))
    assert_equal(load_file(path), tensors)
    v2 = save_weights(tiny("v2"), tmp_path / "v2.safetensors")
    assert "stage1.0.body.conv1.weight" in load_file(v2)


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"end the name in \.params or \.safetensors"):
        save_weights(tiny(), tmp_path / "net.onnx")
    (tmp_path / "net.params").write_text("old")

    def fail(net, path):
        Path(path).write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(mx.gluon.Block, "save_parameters", fail)
    with pytest.raises(OSError, match="No space"):
        save_weights(tiny(), tmp_path / "net.params")
    assert [path.name for path in tmp_path.iterdir()] == ["net.params"]
    assert (tmp_path / "net.params").read_text() == "old"


# Proofs of the published rows' layouts


def test_rows_are_proven_against_gluoncv():
    proofs = list(verify_layouts.verify_layouts("cifar_resnet20*"))
    assert [proof.name for proof in proofs] == [
        "cifar_resnet20_v1.fashion_mnist",
        "cifar_resnet20_v1.gluoncv",
        "cifar_resnet20_v2.gluoncv",
    ]
    for proof in proofs:
        assert proof.passed, proof
        assert "GluonCV 0.8.0" in proof.how


@pytest.mark.slow
@pytest.mark.parametrize(
    "pattern, formats",
    [
        ("resnest14d.*", 3),
        ("resnet50_v1d.openmmlab*", 1),
        ("cifar_resnet18.*", 1),
        ("resnet50_v1b.*in21k", 1),
    ],
)
def test_rows_are_proven_against_timm(pattern, formats):
    proofs = list(verify_layouts.verify_layouts(pattern))
    assert len(proofs) == formats
    for proof in proofs:
        assert proof.passed, proof


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18_v1", "resnet18_v2"])
def test_rows_are_proven_against_onnx_runtime(model):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    for proof in verify_layouts.verify_layouts(f"{model}.onnx*"):
        assert proof.passed, proof


def test_a_wrong_layout_is_not_proven(monkeypatch):
    def swapped(spec, names):
        keys = layouts.gluon_features(spec, names)
        first, second = "stage1.0.body.bn1.gamma", "stage1.0.body.bn2.gamma"
        return {**keys, first: keys[second], second: keys[first]}

    swapped.__name__ = "gluon_features"
    monkeypatch.setattr(load, "LAYOUTS", (swapped,))
    load._layouts.cache_clear()
    (proof,) = verify_layouts.verify_layouts("cifar_resnet20_v1.gluoncv")
    load._layouts.cache_clear()
    assert not proof.passed
    assert "NOT PROVEN" in str(proof)
