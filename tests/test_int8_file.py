# SPDX-License-Identifier: Apache-2.0
"""int8 files that are whole as archives, but not what `quantize` writes."""

import copy
import json
import random
import zipfile
from dataclasses import asdict

import mxnet as mx
import numpy as np
import pytest
from draw import draw_images

from gluon_resnet import bundled, init_model
from gluon_resnet.errors import InputError
from gluon_resnet.inference import plan
from gluon_resnet.inference.int8 import load_int8
from gluon_resnet.inference.packing import SCALE, aligned
from gluon_resnet.quantize import quantize

GUARD = 2**16  # bytes on each side of a plan's memory


class Archive:
    """The content of an int8 file, to change and to write."""

    def __init__(self, model):
        fields = asdict(model.card) | {"calibration": asdict(model.calibration)}
        self.card = json.loads(json.dumps(fields))
        self.graph = json.loads(model.symbol.tojson())
        self.arrays = dict(model.arrays)

    def changed(self):
        archive = copy.copy(self)
        archive.card = copy.deepcopy(self.card)
        archive.graph = copy.deepcopy(self.graph)
        archive.arrays = dict(self.arrays)
        return archive

    @property
    def operators(self):
        """All operators, those within others, too."""
        nodes = self.graph["nodes"]
        inner = [
            n for node in nodes for g in node.get("subgraphs", ()) for n in g["nodes"]
        ]
        return [node for node in (*nodes, *inner) if node["op"] != "null"]

    @property
    def convolutions(self):
        return [node for node in self.operators if node["op"] == "Convolution"]

    def write(self, path):
        params = path.with_suffix(".params")
        arrays = {n: mx.nd.array(a, dtype=a.dtype) for n, a in self.arrays.items()}
        mx.nd.save(str(params), arrays)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("card.json", json.dumps(self.card))
            archive.writestr("symbol.json", json.dumps(self.graph))
            archive.write(params, "int8.params")
        return path


@pytest.fixture(scope="module")
def whole():
    model = init_model(bundled.NAME)
    return Archive(quantize(model, bundled.TRAIN_REC, images=8))


@pytest.fixture
def guards(monkeypatch):
    """Bytes before and after the memory of each plan, which no kernel may write."""
    found = []

    def guarded(nbytes):
        memory = aligned(nbytes + 2 * GUARD)
        for guard in (memory[:GUARD], memory[GUARD + nbytes :]):
            guard[:] = 0xA5
            found.append(guard)
        return memory[GUARD : GUARD + nbytes]

    monkeypatch.setattr(plan, "aligned", guarded)
    return found


def answer(path):
    return load_int8(path).form()(mx.nd.array(draw_images((3, 3, 28, 28)))).asnumpy()


def test_whole_file_is_taken(whole, guards, tmp_path):
    logits = answer(whole.write(tmp_path / "net.int8"))
    assert logits.shape == (3, 10)
    assert guards and all((guard == 0xA5).all() for guard in guards)


def test_logits_do_not_depend_on_the_shapes_before(whole, tmp_path):
    model = load_int8(whole.write(tmp_path / "net.int8"))
    images = mx.nd.array(draw_images((3, 3, 28, 28)))
    form = model.form()
    for shape in ((1, 3, 64, 64), (5, 3, 32, 28)):
        form(mx.nd.array(draw_images(shape)))
    np.testing.assert_array_equal(
        form(images).asnumpy(), model.form()(images).asnumpy()
    )


def refused(archive, tmp_path):
    """The reason, in the words that all reasons stand in."""
    path = archive.write(tmp_path / "net.int8")
    with pytest.raises(InputError) as error:
        load_int8(path)
    before = f"{path} is no int8 model or a damaged one ("
    after = "); write it again with `python -m gluon_resnet.quantize`"
    message = str(error.value)
    assert message.startswith(before) and message.endswith(after), message
    assert "\n" not in message
    return message[len(before) : -len(after)]


@pytest.mark.parametrize(
    "attribute, value",
    [
        ("stride", "(2, 2)"),
        ("kernel", "(1, 1)"),
        ("pad", "(0, 0)"),
        ("num_filter", "8"),
        ("num_group", "2"),
        ("dilate", "(2, 2)"),
    ],
)
def test_another_graph_is_refused(whole, tmp_path, attribute, value):
    archive = whole.changed()
    archive.convolutions[3]["attrs"][attribute] = value
    assert refused(archive, tmp_path) == (
        "its graph is not that of cifar_resnet20_v1 with 10 classes"
    )


@pytest.mark.parametrize(
    "low, high", [(0, 0), ("nan", 1), (0, "inf"), (1, -1), (1, 2), (0, 1e-40)]
)
def test_senseless_ranges_are_refused(whole, tmp_path, low, high):
    archive = whole.changed()
    node = next(n for n in archive.operators if n["op"] == "_sg_mkldnn_conv")
    node["attrs"].update(min_calib_range=str(low), max_calib_range=str(high))
    reason = refused(archive, tmp_path)
    assert reason == f"the range {low} to {high} is none of a layer's"


def name_of(archive, suffix):
    return next(name for name in archive.arrays if name.endswith(suffix))


@pytest.mark.parametrize(
    "suffix, change, reason",
    [
        ("conv2.bias", lambda a: a[:-1], "its graph is not that of cifar_resnet20"),
        ("conv2.weight", lambda a: a[:-1], "a scale of its weights is out of range"),
        ("conv2.weight", lambda a: a.astype("f4"), "its arrays are not those of its g"),
        ("conv2.weight", lambda a: a.astype("i4"), "its arrays are not those of its g"),
        ("conv2.bias", lambda a: a.astype("i4"), "its arrays are neither float32 nor"),
        ("conv2.bias", lambda a: a * np.nan, "a number of its arrays is out of range"),
        (f"conv2.weight{SCALE}", lambda a: a * 0, "a scale of its weights is out of"),
        (f"conv2.weight{SCALE}", lambda a: a[1:], "a scale of its weights is out of"),
    ],
)
def test_other_arrays_are_refused(whole, tmp_path, suffix, change, reason):
    archive = whole.changed()
    name = name_of(archive, suffix)
    archive.arrays[name] = change(archive.arrays[name])
    assert refused(archive, tmp_path).startswith(reason)


def test_classes_without_logits_are_refused(whole, tmp_path):
    archive = whole.changed()
    archive.card["classes"].append("one more")
    assert refused(archive, tmp_path) == (
        "its graph is not that of cifar_resnet20_v1 with 11 classes"
    )


def change_attribute(archive, draw):
    node = draw.choice([n for n in archive.operators if n.get("attrs")])
    name = draw.choice(list(node["attrs"]))
    values = ["(2, 2)", "(0, 0)", "(9, 9)", "(1, 1)", "0", "1", "3", "-1", "True"]
    values += ["False", "", "None", "max", "relu", "(1,)", "1e9", str(2**40)]
    node["attrs"][name] = draw.choice(values)


def drop_attribute(archive, draw):
    node = draw.choice([n for n in archive.operators if n.get("attrs")])
    del node["attrs"][draw.choice(list(node["attrs"]))]


def double_attribute(archive, draw):
    node = draw.choice([n for n in archive.operators if n.get("attrs")])
    value = draw.choice(list(node["attrs"].values()))
    names = ["stride", "with_act", "with_sum", "min_calib_range", "__note__"]
    node["attrs"][draw.choice(names)] = value


def change_name(archive, draw):
    nodes = archive.graph["nodes"]
    names = [draw.choice(nodes)["name"], "data", "", "x" * 10**5, f"a{SCALE}"]
    draw.choice(nodes)["name"] = draw.choice(names)


def change_operator(archive, draw):
    operators = archive.operators
    names = [draw.choice(operators)["op"], "null", "Dropout", "elemwise_add", "none"]
    draw.choice(operators)["op"] = draw.choice(names)


def change_input(archive, draw):
    nodes = archive.graph["nodes"]
    inputs = draw.choice([n for n in nodes if n["inputs"]])["inputs"]
    entry = draw.choice(inputs)
    choices = [
        lambda: entry.__setitem__(0, draw.randrange(-2, len(nodes) + 2)),
        lambda: entry.__setitem__(1, draw.randrange(-2, 5)),
        lambda: inputs.remove(entry),
        lambda: inputs.append(list(entry)),
        lambda: draw.shuffle(inputs),
        lambda: entry.clear(),
    ]
    draw.choice(choices)()


def change_nodes(archive, draw):
    nodes = archive.graph["nodes"]
    place = draw.randrange(len(nodes))
    other = draw.randrange(len(nodes))
    choices = [
        lambda: nodes.pop(place),
        lambda: nodes.insert(place, copy.deepcopy(nodes[other])),
        lambda: nodes[place].update(copy.deepcopy(nodes[other])),
        lambda: nodes[place].pop("subgraphs", None),
        lambda: nodes.clear(),
    ]
    draw.choice(choices)()


def change_heads(archive, draw):
    nodes = archive.graph["nodes"]
    head = [draw.randrange(len(nodes)), draw.randrange(3), 0]
    archive.graph["heads"] = draw.choice([[head], [], [head, head], [[]], "heads"])


def change_range(archive, draw):
    nodes = [n for n in archive.operators if "max_calib_range" in n.get("attrs", {})]
    values = [0, "nan", "inf", "-inf", -1, 1, 1e-45, 1e38, "abc", 1e-3, 5, -5]
    draw.choice(nodes)["attrs"].update(
        min_calib_range=str(draw.choice(values)),
        max_calib_range=str(draw.choice(values)),
    )


def change_array(archive, draw):
    arrays = archive.arrays
    name, other = draw.sample(sorted(arrays), 2)
    array = arrays[name]
    choices = [
        lambda: arrays.pop(name),
        lambda: arrays.update({name: arrays[other]}),
        lambda: arrays.update({"more": array}),
        lambda: arrays.update({name: array[: len(array) // 2]}),
        lambda: arrays.update({name: np.concatenate([array, array])}),
        lambda: arrays.update({name: array.reshape(-1)}),
        lambda: arrays.update({name: array.swapaxes(0, array.ndim - 1)}),
        lambda: arrays.update({name: array.astype(draw.choice(["f8", "i4", "u1"]))}),
        lambda: arrays.update({name: array.astype(draw.choice(["f4", "i1", "f2"]))}),
        lambda: arrays.update({name: array * draw.choice([0, -1, 3])}),
        lambda: arrays.update({name: array * np.float32(np.nan)}),
    ]
    with np.errstate(all="ignore"):
        draw.choice(choices)()


def change_card(archive, draw):
    card = archive.card
    values = [None, 0, "resnet50_v1", "cifar_resnet20_v2", [], {}, ["a"] * 10, "words"]
    card[draw.choice(list(card))] = draw.choice(values)


CHANGES = [
    *(change_attribute, drop_attribute, double_attribute, change_name),
    *(change_operator, change_input, change_nodes, change_heads, change_range),
    *(change_array, change_card),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.filterwarnings("ignore")  # of NumPy's, for senseless numbers
def test_changed_files_are_refused_or_answer(whole, guards, tmp_path, change):
    outcomes = []
    for seed in range(25):
        archive = whole.changed()
        change(archive, random.Random(f"{change.__name__} {seed}"))
        path = archive.write(tmp_path / "net.int8")
        try:
            logits = answer(path)
        except InputError as error:
            message = str(error)
            assert "\n" not in message and len(message) < 500, message
            assert message.startswith(f"{path} is no int8 model or a damaged one (")
            outcomes.append("refused")
        else:
            assert logits.shape == (3, 10) and np.isfinite(logits).all()
            assert all((guard == 0xA5).all() for guard in guards)
            outcomes.append("taken")
        guards.clear()
    assert "refused" in outcomes
