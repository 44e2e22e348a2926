# SPDX-License-Identifier: Apache-2.0
"""ONNX files: written, proven, described, archived, and read back."""

import hashlib
import json
import re
import tarfile
from collections import Counter

import mxnet as mx
import numpy as np
import onnx
import onnxruntime
import pytest
from draw import draw_images, fill_gluon
from onnx import numpy_helper

from gluon_resnet import bundled, create_model
from gluon_resnet.classifier import inference_model, init_model
from gluon_resnet.data.loader import validation_batches
from gluon_resnet.data.records import RecordFile
from gluon_resnet.errors import InputError
from gluon_resnet.export import export_zoo_archive, main, parser
from gluon_resnet.models import model_spec
from gluon_resnet.onnx_export.archive import zoo_model
from gluon_resnet.onnx_export.check import check, runner
from gluon_resnet.onnx_export.exported import exported
from gluon_resnet.onnx_export.int8 import _weight_scale, exported_int8
from gluon_resnet.onnx_export.names import ZOO_PREFIXES
from gluon_resnet.onnx_export.outputs import Answers, available_outputs
from gluon_resnet.onnx_export.pixels import distance, pixels_alone
from gluon_resnet.onnx_export.writer import OPSETS
from gluon_resnet.preprocess import Protocol, preprocess, read_image
from gluon_resnet.weights import load_weights
from gluon_resnet.weights.card import read_card

# resnest14d's poolings and attention are in the test of opsets.
SMALL = ("cifar_resnet20_v1", "cifar_resnet20_v2")
# Of each the shallowest: deeper ones repeat the blocks.
STRUCTURES = (
    *("resnet18_v1", "resnet50_v1", "resnet18_v1b", "resnet50_v1b", "resnet50_v1c"),
    *("resnet18_v1d", "resnet50_v1d", "resnet50_v1s", "resnet18_v2", "resnet50_v2"),
    *("wide_resnet50_2", "cifar_resnet18", "cifar_resnet50", "resnest26d"),
    *("resnest50d_1s4x24d", "resnest50d_4s2x40d"),
)
NAME = bundled.NAME


def drawn(model, num_classes=10):
    net = create_model(model, num_classes=num_classes)
    fill_gluon(net)
    return net


def reference(net, outputs=("logits",)):
    answers = Answers(net, outputs)
    return lambda images: [a.asnumpy() for a in answers(mx.nd.array(images))]


def saved(path, model):
    path.write_bytes(model.SerializeToString())
    return path


def command(*words):
    main(parser().parse_args([str(word) for word in words]))


@pytest.fixture(scope="module")
def resnest():
    return drawn("resnest14d")


@pytest.fixture(scope="module")
def small():
    return drawn("cifar_resnet20_v2")


@pytest.mark.parametrize("model", SMALL)
def test_model_answers_as_its_network(model, tmp_path):
    net = drawn(model)
    # Batches, odd sizes and ONNX Runtime's optimisations are the proof's to vary.
    for opset, keep_norms in ((7, True), (OPSETS[-1], False)):
        file = exported(net, opset=opset, keep_norms=keep_norms)
        proof = check(saved(tmp_path / "net.onnx", file), reference(net))
        assert proof.opset == opset
        assert proof.reference < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("model", STRUCTURES)
def test_each_structure_answers_as_its_network(model):
    net = drawn(model)
    images = draw_images((2, 3, 33, 33))
    found = runner(exported(net), "logits")(images)
    expected = net(mx.nd.array(images)).asnumpy()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("opset", OPSETS)
def test_each_opset_has_the_operators_that_are_written(
    opset, resnest, tmp_path, monkeypatch
):
    monkeypatch.setattr("gluon_resnet.onnx_export.check.BATCHES", (2,))
    monkeypatch.setattr("gluon_resnet.onnx_export.check._FREE_SIDES", ((65, 97),))
    outputs = available_outputs(resnest)
    for keep_norms in (False, True):
        model = exported(resnest, opset=opset, keep_norms=keep_norms, outputs=outputs)
        path = saved(tmp_path / "net.onnx", model)
        assert check(path, reference(resnest, outputs)).opset == opset


def test_outputs_are_named_and_have_their_shapes(resnest):
    outputs = available_outputs(resnest)
    graph = exported(resnest, outputs=outputs, size=64).graph
    dims = {
        output.name: [
            d.dim_param or d.dim_value for d in output.type.tensor_type.shape.dim
        ]
        for output in graph.output
    }
    assert dims == {
        "logits": ["N", 10],
        "probabilities": ["N", 10],
        "features": ["N", 2048],
        "stage1": ["N", 256, 16, 16],
        "stage2": ["N", 512, 8, 8],
        "stage3": ["N", 1024, 4, 4],
        "stage4": ["N", 2048, 2, 2],
        "cam": ["N", 10, 2, 2],
    }


def test_the_mean_of_an_activation_map_is_the_logit_without_bias(resnest):
    images = draw_images((2, 3, 64, 64))
    logits, cam = reference(resnest, ("logits", "cam"))(images)
    evidence = cam.mean(axis=(2, 3)) + resnest.fc.bias.data().asnumpy()
    np.testing.assert_allclose(evidence, logits, atol=1e-5)


def test_the_oldest_opset_lists_arrays_as_inputs_and_the_newest_does_not(small):
    old, new = exported(small, opset=7), exported(small)
    arrays = [tensor.name for tensor in old.graph.initializer]
    assert (old.ir_version, new.ir_version) == (3, 10)
    assert [each.name for each in old.graph.input] == ["data", *arrays]
    assert [each.name for each in new.graph.input] == ["data"]


def test_a_gamma_that_mxnet_does_not_look_at_is_written_as_ones(small):
    gamma = small.stem.bn0.gamma
    stored = gamma.data().asnumpy()
    gamma.set_data(mx.nd.array(stored + 1))
    try:
        model = exported(small, keep_norms=True)
    finally:
        gamma.set_data(mx.nd.array(stored))
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    np.testing.assert_array_equal(arrays["stem.bn0.gamma"], np.ones(3))


def test_equal_networks_give_equal_bytes(small):
    first = exported(small, outputs=("probabilities", "cam"))
    second = exported(drawn("cifar_resnet20_v2"), outputs=("probabilities", "cam"))
    assert first.SerializeToString() == second.SerializeToString()


@pytest.mark.parametrize("keep_norms", [False, True])
@pytest.mark.parametrize("model", ["cifar_resnet20_v2", "resnest14d"])
def test_an_exported_file_loads_back(model, keep_norms, small, resnest, tmp_path):
    net = {"cifar_resnet20_v2": small, "resnest14d": resnest}[model]
    outputs = available_outputs(net)
    path = tmp_path / "net.onnx"
    saved(path, exported(net, keep_norms=keep_norms, outputs=outputs))
    loaded = create_model(model, num_classes=10)
    assert load_weights(loaded, path).layout == ("own" if keep_norms else "by place")
    images = mx.nd.array(draw_images((2, 3, 64, 64)))
    difference = np.abs((loaded(images) - net(images)).asnumpy()).max()
    assert difference == 0 if keep_norms else difference < 1e-5


def test_other_weights_are_told_from_the_networks(small, tmp_path):
    model = exported(small)
    (bias,) = (t for t in model.graph.initializer if t.name == "fc.bias")
    values = numpy_helper.to_array(bias).copy()
    values[3] += 10
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    path = saved(tmp_path / "net.onnx", model)
    assert check(path).reference is None
    with pytest.raises(InputError) as raised:
        check(path, reference(small))
    told = re.sub(r"by \S+ of", "by X of", str(raised.value))
    assert told == (
        f"{path}: on images 1x3x64x64 the output logits differs by X of its range "
        "from that of the net; 1e-04 is allowed"
    )


def test_what_is_no_onnx_file_is_told(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(InputError) as raised:
        command("--check", path)
    assert str(raised.value) == (
        f"{path} cannot be read (it is no ONNX file); give an .onnx file"
    )


def test_a_file_that_is_not_well_formed_is_told(small, tmp_path):
    model = exported(small)
    del model.graph.node[3]
    path = saved(tmp_path / "net.onnx", model)
    with pytest.raises(InputError, match=r"is not well formed .*export it again"):
        check(path)


def test_a_file_of_a_fixed_batch_is_checked_with_that_batch(small, tmp_path):
    model = exported(small, size=32)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    proof = check(saved(tmp_path / "net.onnx", model), reference(small))
    assert proof.shapes == ((2, 3, 32, 32),)


def test_the_command_writes_a_file_that_classifies(tmp_path, capsys):
    path = tmp_path / "deep" / "net.onnx"
    command(NAME, path)
    assert capsys.readouterr().out == f"{path}\n"
    classifier, original = init_model(weights=path), init_model(NAME)
    assert classifier.card.protocol == original.card.protocol
    assert classifier.class_names == original.class_names
    images = draw_images((4, 3, 28, 28))
    difference = classifier(images).asnumpy() - original(images).asnumpy()
    assert np.abs(difference).max() < 1e-4


def test_the_metadata_tell_how_to_use_the_file(tmp_path):
    path = tmp_path / "net.onnx"
    command(NAME, path)
    texts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    inside = json.loads(texts["gluon_resnet.card"])
    beside = json.loads((tmp_path / "net.json").read_text())
    weights = bundled.weights()
    assert inside["weights"] == {
        "name": weights.name,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    assert beside["weights"] == {
        "name": "net.onnx",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    assert beside["parent"] == weights.name
    for key in ("model", "protocol", "classes", "metrics", "licence"):
        assert inside[key] == beside[key] is not None
    labels = (tmp_path / "labels.txt").read_text().splitlines()
    assert labels == inside["classes"]
    export = json.loads(texts["gluon_resnet.export"])
    assert export["accuracy"]["top1"] == inside["metrics"]["top1"]
    assert export["accuracy"]["measured_by"]
    assert export["exporter"].startswith("gluon_resnet ")


def test_the_same_command_gives_the_same_bytes(tmp_path):
    command(NAME, tmp_path / "first.onnx", "--outputs", "logits,cam")
    command(NAME, tmp_path / "second.onnx", "--outputs", "logits,cam")
    first = (tmp_path / "first.onnx").read_bytes()
    assert first == (tmp_path / "second.onnx").read_bytes()


def test_check_compares_with_the_model_that_is_named(tmp_path, capsys):
    path = tmp_path / "net.onnx"
    command(NAME, "--opset", 7, path, "--size", 28)
    capsys.readouterr()
    command("--check", path, "--model", NAME)
    told = capsys.readouterr().out
    assert told.startswith(
        "opset 7, IR version 3, well formed; images 1x3x28x28, 3x3x28x28, 16x3x28x28: "
    )
    assert told.endswith(f", same top 5\ncompared with {NAME}\n")
    weights = tmp_path / "other.params"
    net = drawn("cifar_resnet20_v1")
    net.save_parameters(str(weights))
    with pytest.raises(InputError, match=r"differs by .* of its range from that of"):
        command("--check", path, "--model", "cifar_resnet20_v1", "--weights", weights)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            [NAME, "net.onnx", "--opset", "6"],
            "opset 6 is not supported; choose from 7 (the ONNX Model Zoo's) to 21",
        ),
        (
            [NAME, "net.onnx", "--opset", "22"],
            "opset 22 is not supported; choose from 7 (the ONNX Model Zoo's) to 21",
        ),
        (
            [NAME, "net.onnx", "--size", "0"],
            "size is 0; the side of an image is 1 or more pixels",
        ),
        (
            [NAME, "net.onnx", "--outputs", "logits,stage4"],
            (
                "cifar_resnet20_v1 has no output 'stage4'; choose from logits, "
                "probabilities, features, stage1, stage2, stage3, cam"
            ),
        ),
        (
            [NAME, "net.onnx", "--outputs", "cam,cam"],
            "the outputs are cam, cam; name one or more, each once",
        ),
        ([NAME, "net.pb"], "cannot write net.pb; end the name in .onnx"),
        (
            [NAME],
            (
                "export takes a model and the file to write, not 1 words; as in "
                "`export resnet50_v1 resnet50.onnx`"
            ),
        ),
        (
            ["net.onnx", "--model", NAME],
            (
                f"--model {NAME} goes with --check; name the model to export before "
                "the file to write"
            ),
        ),
        (
            [NAME, "--check", "net.onnx"],
            (
                f"--check takes one file, and {NAME} is one more; give a network to "
                "compare with as --model"
            ),
        ),
        (["--zoo-archive"], "--zoo-archive needs a folder to write into; name it last"),
        (
            ["--zoo-archive", NAME, "folder"],
            "cifar_resnet20_v1 is not on the ONNX Model Zoo's page; its networks are "
            + ", ".join(ZOO_PREFIXES),
        ),
        (
            ["--zoo-archive", "folder", "--opset", "13"],
            "--zoo-archive writes the Model Zoo's form; leave out --opset",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_no_file(
    words, reason, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as raised:
        command(*words)
    assert str(raised.value) == reason
    assert not list(tmp_path.iterdir())


def test_weights_of_another_network_are_not_exported(tmp_path):
    with pytest.raises(InputError, match="weights of cifar_resnet20_v1, not of"):
        command("resnet18_v1", tmp_path / "n.onnx", "--weights", bundled.weights())
    assert not list(tmp_path.iterdir())


def test_a_target_that_cannot_be_written_is_told_first(tmp_path):
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "net.onnx"
    with pytest.raises(InputError) as raised:
        command(NAME, target)
    assert str(raised.value) == (
        f"cannot write {target}: File exists; choose a path in a folder that you may "
        "write to"
    )


def test_a_file_that_fails_its_proof_keeps_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"before")
    monkeypatch.setattr("gluon_resnet.onnx_export.check.TOLERANCE", -1.0)
    with pytest.raises(InputError, match=f"^{path}: on images .* is allowed$"):
        command(NAME, path)
    assert [each.name for each in tmp_path.iterdir()] == ["net.onnx"]
    assert path.read_bytes() == b"before"


def test_labels_of_other_classes_are_not_overwritten(tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    with pytest.raises(InputError) as raised:
        command(NAME, tmp_path / "net.onnx")
    assert str(raised.value) == (
        f"{tmp_path / 'labels.txt'} names other classes than those of "
        "cifar_resnet20_v1; export into another folder, or remove it"
    )


def test_int8_is_integers_from_the_first_convolution_to_the_last_layer(tmp_path):
    path, optimised = tmp_path / "net.onnx", tmp_path / "optimised.onnx"
    rec = bundled.TRAIN_REC
    command(NAME, path, "--precision", "int8", "--rec", rec, "--images", 100)
    onnxruntime_session(path, optimised)
    counts = Counter(node.op_type for node in onnx.load(optimised).graph.node)
    # 19 convolutions, 2 shortcuts, 9 sums; the ReLUs are gone.
    assert (counts["QLinearConv"], counts["QLinearAdd"], counts["QGemm"]) == (21, 9, 1)
    assert not counts.keys() & {"Conv", "FusedConv", "Add", "Relu", "Gemm"}
    assert counts["QuantizeLinear"] + counts["DequantizeLinear"] <= 3
    model = onnx.load(path)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert types["stem.conv1.weight_quantized"] == onnx.TensorProto.INT8
    assert types["stem.conv1.bias_quantized"] == onnx.TensorProto.INT32
    zero_points = [
        (tensor.name, numpy_helper.to_array(tensor))
        for tensor in model.graph.initializer
        if tensor.name.startswith("relu") and tensor.name.endswith("_zero_point")
    ]
    assert len(zero_points) == 18
    for _, zero in zero_points:
        assert zero.dtype == np.uint8 and zero == 0


@pytest.mark.parametrize(
    "calibration", ["naive", pytest.param("entropy", marks=pytest.mark.slow)]
)
def test_int8_is_about_as_accurate_as_float(calibration, tmp_path, capsys):
    path = tmp_path / "net.onnx"
    command(
        *(NAME, path, "--precision", "int8", "--rec", bundled.TRAIN_REC),
        *("--images", 200, "--calibration", calibration),
    )
    assert "int8: the same class as float on " in capsys.readouterr().err
    original, session = init_model(NAME), onnxruntime_session(path)
    records = RecordFile.open(bundled.VAL_REC, num_classes=10)
    batches = validation_batches(
        list(records.offsets),
        records.read,
        batch_size=100,
        protocol=original.protocol,
    )
    right = Counter()
    for images, labels in batches:
        images, labels = np.asarray(images), np.asarray(labels)
        floats = original.net(mx.nd.array(images)).asnumpy()
        (found,) = session.run(None, {"data": images})
        right["float"] += (floats.argmax(1) == labels).sum()
        right["int8"] += (found.argmax(1) == labels).sum()
    assert right["int8"] >= right["float"] - 4  # of 500


def test_an_int8_file_is_not_compared_with_its_network(tmp_path, capsys):
    path, rec = tmp_path / "net.onnx", bundled.TRAIN_REC
    command(NAME, path, "--precision", "int8", "--rec", rec, "--images", 20)
    assert read_card(path).metrics == {}  # They were measured of the float weights.
    command("--check", path)
    assert capsys.readouterr().out.endswith(
        "\nthere is nothing to compare its answers with\n"
    )
    with pytest.raises(InputError) as raised:
        command("--check", path, "--model", NAME)
    assert str(raised.value) == (
        f"{path} is quantized and answers about as its network only; leave out "
        "--model and --weights, and measure its accuracy"
    )


def test_split_attention_stays_float_and_is_listed_with_reasons(resnest, tmp_path):
    images = [draw_images((4, 3, 64, 64))]
    model, floats = exported_int8(resnest, lambda: images)
    assert floats["stage1.0.body.conv2.fc1"].startswith("attention of 1x1 maps")
    convolutions = {node.name for node in model.graph.node if node.op_type == "Conv"}
    assert {name for name in floats if name in convolutions} == {
        f"stage{stage}.0.body.conv2.fc{number}"
        for stage in (1, 2, 3, 4)
        for number in (1, 2)
    }
    assert check(saved(tmp_path / "net.onnx", model))


def test_a_channel_of_tiny_weights_keeps_its_bias():
    weight = np.array([[[[1e-12]]], [[[0.0]]], [[[0.5]]]], np.float32)
    bias = np.array([3.0, -2.0, 1.0], np.float32)
    scale = _weight_scale(weight, bias, np.float32(0.02)) * np.float64(0.02)
    steps = np.rint(bias / scale)
    assert np.abs(steps).max() < 2**31
    np.testing.assert_allclose(steps * scale, bias, rtol=0.01)


@pytest.mark.parametrize("library", ["cv2", "mmcv", "pil", "onnx_zoo"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", ["short", "warp"])
def test_pixels_in_the_graph_are_those_of_preprocess(library, interpolation, resize):
    protocol = Protocol(
        size=64, interpolation=interpolation, resize=resize, library=library
    )
    prepare = runner(pixels_alone(protocol, OPSETS[-1]), "data")
    largest, mean = distance(prepare, protocol)
    assert largest < 1.5
    # OpenCV's bilinear sums are rounded in quarters on the way.
    assert mean < (0.15 if protocol.library in ("cv2", "mmcv") else 0.01)
    photograph = np.asarray(read_image(next(bundled.IMAGES.glob("*.png"))))
    found, expected = prepare(photograph)[0], preprocess(photograph, protocol)
    assert np.abs(found - expected).max() < 1.5 / 255 / min(protocol.std)


def test_a_file_with_pixels_answers_to_a_photograph_as_the_classifier(tmp_path, capsys):
    path = tmp_path / "net.onnx"
    outputs = ("--outputs", "probabilities,cam")
    command(NAME, path, "--pixels", "in-graph", *outputs)
    told = capsys.readouterr().err
    assert "pixels in the graph (cv2, bilinear, short): at most 1 of 255 from" in told
    classifier, session = init_model(NAME), onnxruntime_session(path)
    for file in bundled.IMAGES.glob("*.png"):
        pixels = np.asarray(read_image(file))
        probabilities, cam = session.run(None, {"image": pixels})
        expected = inference_model(classifier, file)
        assert probabilities.argmax() == expected["pred_label"]
        assert probabilities.max() == pytest.approx(expected["pred_score"], abs=0.01)
        assert cam.shape == (1, 10, 7, 7)
    command("--check", path)  # Its card tells the weights.
    told = capsys.readouterr().out
    assert "images 64x64x3, 65x97x3: " in told
    assert told.endswith(f", same top 5\ncompared with {NAME}\n")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            ["--pixels", "in-graph", "--opset", "17"],
            (
                "opset 17 has no Resize that antialiases; pixels in the graph need 18 "
                "to 21"
            ),
        ),
        (
            ["--precision", "int8"],
            (
                "--precision int8 needs --rec, images to calibrate on, and --rec is "
                "for int8 alone; give both or none"
            ),
        ),
        (
            ["--precision", "int8", "--rec", bundled.TRAIN_REC, "--opset", "12"],
            "opset 12 has no int8 by channel; choose from 13 to 21",
        ),
        (
            ["--precision", "int8", "--rec", bundled.TRAIN_REC, "--keep-norms"],
            "int8 has no norms to keep; leave out --keep-norms",
        ),
    ],
)
def test_forms_that_do_not_go_together_are_one_line(options, reason, tmp_path):
    with pytest.raises(InputError) as raised:
        command(NAME, tmp_path / "net.onnx", *options)
    assert str(raised.value) == reason
    assert not list(tmp_path.iterdir())


def test_the_zoos_form_has_the_zoos_names():
    for model, features in (
        ("resnet18_v1", "resnetv15_pool1_fwd"),
        ("resnet18_v2", "resnetv22_pool1_fwd"),
    ):
        net = drawn(model, num_classes=1000)
        graph = zoo_model(net).graph
        prefix = ZOO_PREFIXES[model]
        assert graph.input[0].name == "data"
        assert [output.name for output in graph.output] == [f"{prefix}dense0_fwd"]
        names = {tensor.name for tensor in graph.initializer}
        assert {
            *(f"{prefix}conv0_weight", f"{prefix}batchnorm0_running_var"),
            *(f"{prefix}stage2_conv2_weight", f"{prefix}stage4_batchnorm1_gamma"),
            *(f"{prefix}dense0_weight", f"{prefix}dense0_bias"),
        } <= names
        assert len(names) == len(net._collect_params_with_prefix())
        nodes = {node.name: node for node in graph.node}
        assert len(nodes) == len(graph.node)
        assert features in nodes
        assert {f"{prefix}pool0_fwd", f"{prefix}stage1__plus0"} <= nodes.keys()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18_v1", "resnet18_v2"])
def test_an_archive_holds_a_file_and_answers_to_it(model, tmp_path):
    net = drawn(model, num_classes=model_spec(model).num_classes)
    weights = tmp_path / "drawn.params"
    net.save_parameters(str(weights))
    classifier = init_model(model, weights)
    paths = export_zoo_archive(classifier, weights, tmp_path / "zoo")
    again = export_zoo_archive(classifier, weights, tmp_path / "again")
    archive, *digests = paths
    assert archive.read_bytes() == again[0].read_bytes()
    for path, kind in zip(digests, ("sha256", "md5")):
        digest = hashlib.new(kind, archive.read_bytes()).hexdigest()
        assert path.read_text() == f"{digest}  {archive.name}\n"
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    name = f"{model.replace('_', '-')}-7"
    folder = tmp_path / name
    session = onnxruntime_session(folder / f"{name}.onnx")
    for number in range(3):
        data = folder / f"test_data_set_{number}"
        images, answers = (
            numpy_helper.to_array(onnx.load_tensor(str(data / f"{kind}_0.pb")))
            for kind in ("input", "output")
        )
        (found,) = session.run(None, {"data": images})
        np.testing.assert_allclose(found, answers, atol=1e-4 * np.ptp(answers))
    # As a file of the Model Zoo: found by its names, norms and all.
    loaded = create_model(model)
    report = load_weights(loaded, folder / f"{name}.onnx")
    assert report.layout == "gluon_symbol"


def onnxruntime_session(path, optimised=None):
    options = onnxruntime.SessionOptions()
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options)
