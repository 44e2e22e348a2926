# SPDX-License-Identifier: Apache-2.0
"""int8 models: the graph they are made of, their accuracy, their file, the verb."""

import zipfile
from collections import Counter
from dataclasses import replace

import mxnet as mx
import numpy as np
import pytest
from draw import draw_images, fill_gluon

from gluon_resnet import bundled, create_model
from gluon_resnet import quantize as command
from gluon_resnet.classifier import Classifier, init_model
from gluon_resnet.data.loader import validation_batches
from gluon_resnet.data.records import RecordFile
from gluon_resnet.errors import InputError
from gluon_resnet.graph import Graph
from gluon_resnet.inference.int8 import is_int8, load_int8, save_int8
from gluon_resnet.inference.rewrites import inference_graph
from gluon_resnet.precision import needs_quantizing
from gluon_resnet.preprocess import Protocol
from gluon_resnet.quantize import quantize
from gluon_resnet.weights.card import Card

# Rounding of float32 through tens of layers; a wrong rewrite differs by whole units.
TOLERANCE = 2e-6
# Of 500 images: 0.3 points are 1.5, and one more may lie exactly on the border.
MOST_LOST = 2
LEAST_AGREEMENT = 0.98
# Drawn weights are harder on int8 than trained ones; a fault gives 1 or more.
LARGEST_DISTANCE = 0.3


def batches(model, rec=bundled.VAL_REC):
    records = RecordFile.open(rec, num_classes=10)
    keys = list(records.offsets)
    return validation_batches(
        keys, records.read, batch_size=100, protocol=model.protocol
    )


def answers(net, images):
    return net(mx.nd.array(images)).asnumpy()


def operators(symbol):
    return Counter(node.op for node in Graph.of(symbol).nodes)


def fp32_arrays(symbol):
    """Names of the arrays of convolutions and the classifier that stay fp32."""
    return {
        value.node.name
        for node in Graph.of(symbol).nodes
        if node.op in ("_sg_mkldnn_conv", "_sg_mkldnn_fully_connected", "BatchNorm")
        and not node.attributes.get("quantized")
        for value in node.inputs
    }


def drawn(name, size, num_classes=10):
    """A model with drawn weights."""
    net = create_model(name, num_classes=num_classes)
    fill_gluon(net)
    card = Card(name, Protocol(size=size, crop_pct=1))
    return Classifier(name, net, card, ("class",) * num_classes, mx.cpu())


@pytest.fixture(scope="module")
def model():
    return init_model(bundled.NAME)


@pytest.fixture(scope="module")
def quantized(model):
    return quantize(model, bundled.TRAIN_REC, images=100)


@pytest.fixture(scope="module")
def validation(model):
    """Batches of images, their labels, and the classes that fp32 answers."""
    return [
        (images, labels, answers(model.net, images).argmax(1))
        for images, labels in batches(model)
    ]


@pytest.fixture(scope="module")
def images(validation):
    return validation[0][0]


@pytest.fixture(scope="module")
def resnest14d():
    return drawn("resnest14d", 64)


@pytest.fixture(scope="module")
def quantized_resnest14d(resnest14d):
    return quantize(resnest14d, bundled.TRAIN_REC, images=40)


@pytest.fixture(scope="module")
def resnet18_v2():
    return drawn("resnet18_v2", 64)


@pytest.fixture(scope="module")
def quantized_resnet18_v2(resnet18_v2):
    return quantize(resnet18_v2, bundled.TRAIN_REC, images=40)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18_v1d",
        "resnet50_v2",
        "cifar_resnet20_v2",  # its stem's norm has a branch before it
        "resnest14d",
        # Radix 4, cardinality 2, pooling before the attention; radix 1.
        pytest.param("resnest50d_4s2x40d", marks=pytest.mark.slow),
        pytest.param("resnest50d_1s1x64d", marks=pytest.mark.slow),
    ],
)
def test_rewritten_graph_answers_as_the_net_does(name):
    net = create_model(name)
    fill_gluon(net)
    size = 32 if name.startswith("cifar") else 64
    images = mx.nd.array(draw_images((2, 3, size, size)))
    expected = net(images).asnumpy()
    graph, arrays = inference_graph(net)
    symbol = graph.symbol()
    arguments = {name: mx.nd.array(array) for name, array in arrays.items()}
    states = {name: arguments.pop(name) for name in symbol.list_auxiliary_states()}
    for fused in (symbol, symbol.get_backend_symbol("MKLDNN")):
        executor = fused.bind(
            mx.cpu(), {"data": images, **arguments}, aux_states=states
        )
        found = executor.forward()[0].asnumpy()
        np.testing.assert_allclose(
            found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max()
        )


@pytest.mark.parametrize(
    "calibration", ["naive", pytest.param("entropy", marks=pytest.mark.slow)]
)
def test_bundled_checkpoint_keeps_its_accuracy(model, validation, calibration):
    net = quantize(model, bundled.TRAIN_REC, images=500, calibration=calibration).form()
    hits, fp32_hits, agreed = 0, 0, 0
    for images, labels, expected in validation:
        found = answers(net, images).argmax(1)
        hits += (found == labels).sum()
        fp32_hits += (expected == labels).sum()
        agreed += (found == expected).sum()
    assert fp32_hits - hits <= MOST_LOST
    assert agreed >= LEAST_AGREEMENT * 500


def test_v1_runs_in_int8_from_the_first_convolution_to_the_classifier(quantized):
    count = operators(quantized.symbol)
    assert count["_contrib_quantize_v2"] == 1
    assert count["_contrib_dequantize"] == 0
    assert not fp32_arrays(quantized.symbol)
    assert quantized.calibration.excluded == {}


def test_v2_leaves_int8_at_no_norm_but_the_images():
    quantized = quantize(drawn("cifar_resnet20_v2", 28), bundled.TRAIN_REC, images=8)
    count = operators(quantized.symbol)
    assert (count["_contrib_quantize_v2"], count["_contrib_dequantize"]) == (1, 0)
    assert count["BatchNorm"] == 1
    assert list(quantized.calibration.excluded) == ["stem.bn0"]


def test_resnest_leaves_int8_for_the_attention_alone(quantized_resnest14d):
    quantized = quantized_resnest14d
    count = operators(quantized.symbol)
    # The image and what each block's attention answers; nothing in between.
    assert count["_contrib_quantize_v2"] == 1 + 4
    assert count["_contrib_dequantize"] == 2 * 4
    assert "_contrib_quantized_elemwise_add" not in count
    assert list(quantized.calibration.excluded) == [
        f"stage{stage}.0.body.conv2.fc{fc}" for stage in (1, 2, 3, 4) for fc in (1, 2)
    ]
    assert len(fp32_arrays(quantized.symbol)) == 3 * 8  # input, weight and bias of each


def kernels(quantized, size):
    """How many kernels an int8 model runs, by primitive."""
    images = mx.nd.zeros((1, 3, size, size))
    return Counter(k["primitive"] for k in quantized.form().kernels(images, rounds=1))


def test_int8_maps_become_float_in_the_convolution_before_the_attention(
    quantized_resnest14d,
):
    # The image alone is turned into another type by a kernel of its own.
    assert kernels(quantized_resnest14d, 64)["reorder"] == 1


def test_int8_norms_of_many_channels_are_products(quantized_resnet18_v2):
    # The image's norm, and those of the two stages with 256 channels or more.
    assert kernels(quantized_resnet18_v2, 64)["binary"] == 1 + 4


@pytest.fixture(scope="module")
def half_quantized_resnet18_v2(resnet18_v2):
    """With int8 norms before fp32 convolutions."""
    exclude = ["stage4.*.conv1"]
    return quantize(resnet18_v2, bundled.TRAIN_REC, images=40, exclude=exclude)


@pytest.mark.parametrize(
    "name, quantized",
    [
        ("resnet18_v2", "quantized_resnet18_v2"),
        ("resnet18_v2", "half_quantized_resnet18_v2"),
        ("resnest14d", "quantized_resnest14d"),
    ],
)
def test_drawn_nets_answer_much_as_in_fp32(name, quantized, request):
    model = request.getfixturevalue(name)
    images = next(iter(batches(model)))[0][:20]
    expected = answers(model.net, images)
    found = answers(request.getfixturevalue(quantized).form(), images)
    distance = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 0 < distance < LARGEST_DISTANCE


@pytest.mark.parametrize(
    "quantized", ["half_quantized_resnet18_v2", "quantized_resnest14d"]
)
def test_int8_logits_do_not_depend_on_the_shapes_before(quantized, request):
    quantized = request.getfixturevalue(quantized)
    images = draw_images((1, 3, 32, 32))  # whose last maps are one pixel
    form = quantized.form()
    for shape in ((1, 3, 64, 64), (4, 3, 96, 64)):
        answers(form, draw_images(shape))
    np.testing.assert_array_equal(
        answers(form, images), answers(quantized.form(), images)
    )


def test_excluded_layers_stay_fp32_and_are_told(model):
    quantized = quantize(
        model, bundled.TRAIN_REC, images=8, exclude=["stem.conv1", "stage3.*"]
    )
    excluded = quantized.calibration.excluded
    assert set(excluded.values()) == {"excluded by the user"}
    assert {"stem.conv1", "stage3.0.body.conv1", "stage3.2.body.conv2"} < set(excluded)
    fp32 = {name for name in fp32_arrays(quantized.symbol) if name.endswith("weight")}
    weights = {f"{layer}.weight" for layer in excluded}
    assert fp32 == weights & model.net._collect_params_with_prefix().keys()


def test_file_answers_bit_for_bit_as_before_at_any_batch_size(
    quantized, images, tmp_path
):
    expected = answers(quantized.form(), images)
    path = save_int8(tmp_path / "new" / "net.int8", quantized)
    assert list(path.parent.iterdir()) == [path]
    assert is_int8(path)
    loaded = load_int8(path)
    assert loaded.card == quantized.card
    assert loaded.calibration == quantized.calibration
    assert loaded.spec.name == bundled.MODEL
    net = loaded.form()
    for count in (1, 7, 100, 3):
        np.testing.assert_array_equal(answers(net, images[:count]), expected[:count])


def test_weights_take_a_byte_each_in_the_file(quantized, tmp_path):
    path = save_int8(tmp_path / "net.int8", quantized)
    assert path.stat().st_size < 0.4 * bundled.weights().stat().st_size


def test_calibrating_again_gives_the_same_model(model, quantized):
    again = quantize(model, bundled.TRAIN_REC, images=100)
    assert again.symbol.tojson() == quantized.symbol.tojson()
    for name, array in again.arrays.items():
        np.testing.assert_array_equal(array, quantized.arrays[name])


def test_other_files_are_no_int8_models(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("card.json", "{}")
    for path in (bundled.weights(), tmp_path / "other.zip", tmp_path / "missing"):
        assert not is_int8(path)
        with pytest.raises(InputError) as error:
            load_int8(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_cut_and_damaged_files_are_refused_in_a_line(quantized, share, tmp_path):
    content = save_int8(tmp_path / "net.int8", quantized).read_bytes()
    place = int(share * len(content))
    flipped = bytes([content[place] ^ 255])
    for name, damaged in (
        ("cut", content[:place]),
        ("flipped", content[:place] + flipped + content[place + 1 :]),
    ):
        path = tmp_path / name
        path.write_bytes(damaged)
        with pytest.raises(InputError) as error:
            load_int8(path)
        assert str(error.value).startswith(f"{path} is no int8 model or a damaged one")
        assert str(error.value).endswith(
            "; write it again with `python -m gluon_resnet.quantize`"
        )
        assert "\n" not in str(error.value)


def test_file_without_one_of_its_arrays_is_refused(quantized, tmp_path):
    for name in quantized.arrays:
        arrays = {n: array for n, array in quantized.arrays.items() if n != name}
        path = save_int8(tmp_path / "net.int8", replace(quantized, arrays=arrays))
        with pytest.raises(InputError, match="is no int8 model or a damaged one"):
            load_int8(path)
        if name == "stage1.0.body.conv1.bias":
            break


@pytest.mark.parametrize(
    "options, message",
    [
        ({"images": 0}, "images is 0; calibration needs at least 1"),
        (
            {"calibration": "kl"},
            "calibration 'kl' is unknown; use naive or entropy",
        ),
        (
            {"exclude": ["stage9.*"]},
            (
                "no layer of cifar_resnet20_v1 is named stage9.*; its layers are named "
                "as stem.conv1, stem.bn1, stage1.0.body.conv1, ..., fc"
            ),
        ),
    ],
)
def test_options_out_of_range_are_refused(model, options, message):
    with pytest.raises(InputError) as error:
        quantize(model, bundled.TRAIN_REC, **options)
    assert str(error.value) == message


def test_model_that_is_int8_already_is_refused(quantized):
    card = quantized.card
    model = Classifier(card.model, quantized, card, card.classes, mx.cpu(), "int8")
    with pytest.raises(InputError) as error:
        quantize(model, bundled.TRAIN_REC)
    assert str(error.value) == (
        "the weights of cifar_resnet20_v1 are int8 already; give those that they were "
        "made from"
    )


def test_record_file_without_images_is_refused(model, tmp_path):
    (tmp_path / "empty.rec").touch()
    (tmp_path / "empty.idx").touch()
    with pytest.raises(InputError) as error:
        quantize(model, tmp_path / "empty.rec")
    assert str(error.value) == f"{tmp_path / 'empty.rec'} is empty: write it again"


def test_labels_of_the_calibration_do_not_matter():
    model = drawn("cifar_resnet20_v1", 28, num_classes=1)
    assert quantize(model, bundled.TRAIN_REC, images=40).calibration.images == 40


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(value):
    model = drawn("cifar_resnet20_v1", 28)
    weight = model.net._collect_params_with_prefix()["stage2.1.body.conv1.weight"]
    damaged = weight.data().asnumpy()
    damaged[3, 2, 1, 0] = value
    weight.set_data(mx.nd.array(damaged))
    with pytest.raises(InputError) as error:
        quantize(model, bundled.TRAIN_REC)
    assert str(error.value) == (
        "stage2.1.body.conv1.weight of cifar_resnet20_v1 holds NaN or infinity: it is "
        "damaged or its training diverged; give other weights"
    )


def test_outputs_that_are_not_finite_are_refused():
    model = drawn("cifar_resnet20_v1", 28)
    for name, parameter in model.net._collect_params_with_prefix().items():
        if name.endswith("gamma"):
            parameter.set_data(mx.nd.full(parameter.shape, 1e30))
    with pytest.raises(InputError, match="is not finite on the images of calibration"):
        quantize(model, bundled.TRAIN_REC, images=8)


def test_layer_that_always_answers_zero_is_quantized(images):
    model = drawn("cifar_resnet20_v1", 28)
    for name, parameter in model.net._collect_params_with_prefix().items():
        if "stage2.1.body.bn2" in name and name.endswith(("gamma", "beta")):
            parameter.set_data(mx.nd.zeros(parameter.shape))
    net = quantize(model, bundled.TRAIN_REC, images=8).form()
    assert np.isfinite(answers(net, images)).all()


def test_what_int8_needs_is_told():
    assert needs_quantizing("resnet18_v1") == (
        "precision int8 needs a quantized file of resnet18_v1; write one with `python "
        "-m gluon_resnet.quantize --model resnet18_v1 --rec IMAGES.rec "
        "resnet18_v1.int8` and give it as --weights"
    )


def test_the_verb_writes_a_file_and_tells_what_stays_fp32(
    images, run_command, tmp_path
):
    options = ["--model", bundled.NAME, "--rec", bundled.TRAIN_REC, "--images", 8]
    path = tmp_path / "net.int8"
    done = run_command(command, path, *options, "--exclude", "fc")
    assert (done.code, done.out) == (0, f"{path}\n")
    assert done.err == (
        "cifar_resnet20_v1, calibrated on 8 images (naive)\n"
        "fp32: fc (excluded by the user)\n"
    )
    net = load_int8(path).form()
    assert answers(net, images).shape == (100, 10)


def test_the_verbs_mistakes_are_one_line(run_command, tmp_path):
    options = ["--model", bundled.NAME, "--rec", tmp_path / "none.rec"]
    done = run_command(command, tmp_path / "net.int8", *options)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"python -m gluon_resnet.quantize: {tmp_path / 'none.rec'} is not there; a "
        "record file is a .rec with its .idx beside it: give the path of the .rec\n"
    )
    assert not (tmp_path / "net.int8").exists()
