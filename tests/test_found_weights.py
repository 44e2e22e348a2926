# SPDX-License-Identifier: Apache-2.0
"""Weights as people have them: exported, wrapped, averaged, in parts, of a gallery."""

import dataclasses
import json
import struct
import zipfile

import gluoncv
import mxnet as mx
import numpy as np
import pytest
from draw import draw_images, draw_tensor, fill_gluon
from mxnet.gluon import nn
from mxnet.gluon.model_zoo import vision
from safetensors.numpy import save_file
from torch_files import write_torch

from gluon_resnet import (
    create_model,
    init_model,
    load_weights,
    model_spec,
    save_weights,
)
from gluon_resnet.errors import InputError
from gluon_resnet.models.resnet import resnet
from gluon_resnet.weights import classes_of, layouts
from gluon_resnet.weights.card import card_path
from gluon_resnet.weights.load import net_of, read_weights
from gluon_resnet.weights.usage import usage_of

TOLERANCE = 1e-5  # relative to the largest; the same operators in the same order
IMAGES = mx.nd.array(draw_images((2, 3, 64, 64)))


def tiny(name="resnet18_v1b"):
    channels = (8, 16, 24, 32) if "18" in name else (16, 16, 32, 32)
    return dataclasses.replace(model_spec(name), blocks=(1,) * 4, channels=channels)


def drawn(spec, num_classes=3):
    """A network with drawn values, and these by torchvision's keys."""
    net = resnet(spec, num_classes=num_classes)
    net.initialize()
    fill_gluon(net)
    parameters = net._collect_params_with_prefix()
    keys = layouts.torchvision(spec, list(parameters))
    return net, {keys[n]: p.data().asnumpy() for n, p in parameters.items()}


def answers(net):
    return net(IMAGES).asnumpy()


def assert_close(found, expected):
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


# Gluon's exports


def gluon_net(name, **options):
    if name.endswith(("_v1", "_v2")) and "cifar" not in name:  # as small as `tiny`
        version = name[-1]
        block = getattr(vision, f"BasicBlockV{version}")
        make = getattr(vision, f"ResNetV{version}")
        net = make(block, [1] * 4, [64, 8, 16, 24, 32], **options)
    else:
        net = gluoncv.model_zoo.get_model(name, **options)
    net.initialize()
    net(IMAGES)
    return net


def with_head(net, attribute, **options):
    with net.name_scope():
        setattr(net, attribute, nn.Dense(5, **options))
    getattr(net, attribute).initialize()
    return net


def without_scope(net, attribute):
    setattr(net, attribute, nn.Dense(5))
    getattr(net, attribute).initialize()
    return net


EXPORTED = {
    "as it was": ("resnet18_v1", lambda net: net, {}),
    "other classes": ("resnet18_v1", lambda net: net, {"classes": 5}),
    "no prefix": ("resnet18_v1", lambda net: net, {"prefix": ""}),
    "a prefix of one's own": ("resnet18_v1", lambda net: net, {"prefix": "mine"}),
    "a layer's name as prefix": ("resnet18_v2", lambda net: net, {"prefix": "conv0_"}),
    "new head": ("resnet18_v1", lambda net: with_head(net, "output"), {}),
    "new head, v2": ("resnet18_v2", lambda net: with_head(net, "output"), {}),
    "new head, v1b": ("resnet18_v1b", lambda net: with_head(net, "fc"), {}),
    "new head, ResNeSt": ("resnest14", lambda net: with_head(net, "fc"), {}),
    "new head, CIFAR": ("cifar_resnet20_v1", lambda net: with_head(net, "output"), {}),
    "twice": (
        "resnet18_v1",
        lambda net: with_head(with_head(net, "output"), "output"),
        {},
    ),
    "without scope": ("resnet18_v1", lambda net: without_scope(net, "output"), {}),
    "own prefix of the head": (
        "resnet18_v1",
        lambda net: with_head(net, "output", prefix="flowers_"),
        {},
    ),
    "no bias": (
        "resnet18_v1",
        lambda net: with_head(net, "output", use_bias=False),
        {},
    ),
}


@pytest.mark.parametrize("case", EXPORTED)
def test_exported_gluon_nets_load(case, tmp_path):
    name, change, options = EXPORTED[case]
    net = change(gluon_net(name, **options))
    net(IMAGES)
    fill_gluon(net)
    net.hybridize()
    expected = answers(net)
    net.export(str(tmp_path / "net"))
    path = tmp_path / "net-0000.params"
    is_small = "_v1b" not in name and "18" in name
    spec = tiny(name) if is_small else model_spec(name)
    if case == "no bias":
        with pytest.raises(InputError, match=r"missing: resnetv1\d+_dense1_bias; "):
            net_of(spec, path)
        return
    ours, report = net_of(spec, path)
    assert report.layout == "gluon_symbol"
    assert classes_of(path) == expected.shape[1] == ours.fc.weight.shape[0]
    assert_close(answers(ours), expected)
    (tmp_path / "net-symbol.json").unlink()  # which is not needed
    assert_close(answers(net_of(spec, path)[0]), expected)


def test_epsilon_and_fixed_scales_of_the_symbol_count(tmp_path):
    net = gluon_net("resnet18_v1", classes=4)
    for block in modules(net):
        if isinstance(block, nn.BatchNorm):
            block._kwargs["eps"] = 1e-2
    first = net.features[1]
    first._kwargs["fix_gamma"] = True
    fill_gluon(net)
    net.hybridize()
    expected = answers(net)
    net.export(str(tmp_path / "net"))
    ours, _ = net_of(tiny("resnet18_v1"), tmp_path / "net-0000.params")
    assert_close(answers(ours), expected)
    assert (ours.stem.bn1.gamma.data().asnumpy() == 1).all()

    (tmp_path / "net-symbol.json").write_text("{")
    with pytest.raises(InputError) as caught:
        net_of(tiny("resnet18_v1"), tmp_path / "net-0000.params")
    assert str(caught.value) == (
        f"{tmp_path / 'net-symbol.json'} beside net-0000.params is no symbol of MXNet; "
        "remove it, or fetch it again"
    )


def modules(block):
    for child in block._children.values():
        yield child
        yield from modules(child)


def test_gluoncvs_preprocessing_is_left_out_and_said(tmp_path, caplog):
    net = gluoncv.model_zoo.get_model("cifar_resnet20_v1", classes=7)
    net.initialize()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("f4")
    mean = np.float32([123.675, 116.28, 103.53])
    deviation = np.float32([58.395, 57.12, 57.375])
    prepared = ((pixels - mean) / deviation).transpose(0, 3, 1, 2)
    net(mx.nd.array(prepared))
    fill_gluon(net)
    prefix = str(tmp_path / "net")
    gluoncv.utils.export_block(prefix, net, data_shape=(32, 32, 3))
    exported = nn.SymbolBlock.imports(f"{prefix}-symbol.json", ["data"])
    exported.load_parameters(f"{prefix}-0000.params", ignore_extra=True)
    expected = exported(mx.nd.array(pixels)).asnumpy()

    path = tmp_path / "net-0000.params"
    caplog.set_level("INFO")
    model = init_model("cifar_resnet20_v1", path)
    assert_close(model.net(mx.nd.array(prepared)).asnumpy(), expected)
    assert f"{path}: its preprocessing layer is left out" in caplog.messages
    np.testing.assert_allclose(np.multiply(model.protocol.mean, 255), mean, rtol=1e-6)
    np.testing.assert_allclose(
        np.multiply(model.protocol.std, 255), deviation, rtol=1e-6
    )
    assert "mean 0.485 0.456 0.406, std 0.229 0.224 0.225" in caplog.text


# MXNet's gallery


def gallery_symbol(units, filters, num_classes, *, is_bottleneck):
    """MXNet's example/image-classification/symbols/resnet.py, for ImageNet."""
    sym = mx.sym

    def norm(data, name, fix_gamma=False):
        return sym.BatchNorm(data, fix_gamma=fix_gamma, eps=2e-5, name=name)

    def conv(data, count, kernel, stride, name):
        return sym.Convolution(
            data,
            num_filter=count,
            kernel=(kernel, kernel),
            stride=(stride, stride),
            pad=(kernel // 2, kernel // 2),
            no_bias=True,
            name=name,
        )

    def relu(data):
        return sym.Activation(data, act_type="relu")

    def unit(data, count, stride, name, *, matches):
        first = relu(norm(data, f"{name}_bn1"))
        if is_bottleneck:
            body = conv(first, count // 4, 1, 1, f"{name}_conv1")
            body = relu(norm(body, f"{name}_bn2"))
            body = conv(body, count // 4, 3, stride, f"{name}_conv2")
            body = relu(norm(body, f"{name}_bn3"))
            body = conv(body, count, 1, 1, f"{name}_conv3")
        else:
            body = conv(first, count, 3, stride, f"{name}_conv1")
            body = relu(norm(body, f"{name}_bn2"))
            body = conv(body, count, 3, 1, f"{name}_conv2")
        return body + (data if matches else conv(first, count, 1, stride, f"{name}_sc"))

    body = norm(sym.Variable("data"), "bn_data", fix_gamma=True)
    body = relu(norm(conv(body, 64, 7, 2, "conv0"), "bn0"))
    body = sym.Pooling(body, kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="max")
    for stage, (count, depth) in enumerate(zip(filters, units), 1):
        for number in range(1, depth + 1):
            stride = 2 if stage > 1 and number == 1 else 1
            name = f"stage{stage}_unit{number}"
            body = unit(body, count, stride, name, matches=number > 1)
    body = relu(norm(body, "bn1"))
    body = sym.Pooling(body, global_pool=True, kernel=(7, 7), pool_type="avg")
    body = sym.FullyConnected(sym.Flatten(body), num_hidden=num_classes, name="fc1")
    return sym.SoftmaxOutput(body, name="softmax")


def gallery_file(folder, symbol):
    """Save drawn values as Module does; returns the path and the logits."""
    shapes, _, aux_shapes = symbol.infer_shape(data=IMAGES.shape)
    arrays = {}
    for kind, names, sizes in (
        ("arg", symbol.list_arguments(), shapes),
        ("aux", symbol.list_auxiliary_states(), aux_shapes),
    ):
        for name, shape in zip(names, sizes):
            if name not in ("data", "softmax_label"):
                key = name.replace("gamma", "weight").replace("moving_", "running_")
                arrays[f"{kind}:{name}"] = mx.nd.array(draw_tensor(key, shape))
    path = folder / "resnet-50-0000.params"
    mx.nd.save(str(path), arrays)
    symbol.save(str(folder / "resnet-50-symbol.json"))
    logits = symbol.get_internals()["fc1_output"]
    net = mx.gluon.SymbolBlock(logits, mx.sym.var("data", dtype="float32"))
    net.load_parameters(str(path), ignore_extra=True)
    return path, net(IMAGES).asnumpy()


@pytest.mark.parametrize("num_classes", [3, 11221])
def test_mxnets_gallery_is_v2(num_classes, tmp_path):
    spec = dataclasses.replace(tiny("resnet50_v2"), blocks=(1, 2, 1, 1))
    symbol = gallery_symbol(spec.blocks, spec.channels, num_classes, is_bottleneck=True)
    path, expected = gallery_file(tmp_path, symbol)
    for _ in range(2):  # with the symbol and without it: the layout has its epsilon
        net, report = net_of(spec, path)
        assert report.layout == "mxnet_gallery"
        assert classes_of(path) == num_classes
        assert_close(answers(net), expected)
        (tmp_path / "resnet-50-symbol.json").unlink(missing_ok=True)


def test_pixels_of_mxnets_gallery_are_as_they_are(tmp_path):
    net = create_model("resnet18_v2")
    keys = layouts.mxnet_gallery(net.spec, list(net._collect_params_with_prefix()))
    arrays = {
        f"{'aux' if 'moving' in keys[n] else 'arg'}:{keys[n]}": p.data()
        for n, p in net._collect_params_with_prefix().items()
    }
    mx.nd.save(str(tmp_path / "resnet-18-0000.params"), arrays)
    usage = usage_of(read_weights(tmp_path / "resnet-18-0000.params"), "resnet18_v2")
    assert usage.card.protocol.mean == (0, 0, 0)
    assert usage.card.protocol.std == (1 / 255,) * 3
    assert "mean 0 0 0, std 0.00392 0.00392 0.00392" in usage.guess


def test_gallerys_small_nets_are_refused_with_the_reason(tmp_path):
    symbol = gallery_symbol((1,) * 4, (64, 16, 24, 32), 3, is_bottleneck=False)
    path, _ = gallery_file(tmp_path, symbol)
    spec = dataclasses.replace(tiny("resnet18_v2"), channels=(64, 16, 24, 32))
    with pytest.raises(InputError) as caught:
        net_of(spec, path)
    assert str(caught.value) == (
        f"{path} does not fit resnet18_v2, read as mxnet_gallery: unexpected: "
        "stage1_unit1_sc_weight; the gallery's ResNet-18 and -34 project the shortcut "
        "of stage 1, which no network of this package does"
    )


# PyTorch's wrappers


def prefixed(prefix):
    return lambda tensors: {prefix + key: value for key, value in tensors.items()}


def inside(part):
    """As torch.compile of parts of a network names them."""
    return lambda tensors: {
        key.replace("layer1.", f"layer1.{part}."): value
        for key, value in tensors.items()
    }


def with_counters(tensors):
    counters = {
        key.replace("running_var", "num_batches_tracked"): np.array(7, np.int64)
        for key in tensors
        if key.endswith("running_var")
    }
    return tensors | counters


def averaged(tensors):
    return prefixed("module.")(tensors) | {"n_averaged": np.array(7, np.int64)}


def with_ema_hook(tensors):
    """mmcv's EMAHook: the average is under the plain keys, the buffers are left."""
    openmmlab = {
        f"{'head' if key.startswith('fc') else 'backbone'}.{key}": value
        for key, value in tensors.items()
    }
    return openmmlab | {
        "ema_" + key.replace(".", "_"): -value
        for key, value in openmmlab.items()
        if "running" not in key
    }


def dropout_head(tensors):
    return {key.replace("fc.", "fc.1."): value for key, value in tensors.items()}


def renamed_head(tensors):
    return {key.replace("fc.", "classifier."): value for key, value in tensors.items()}


def ema_beside(tensors):
    """As a LightningModule with an average of its own."""
    return prefixed("ema_model.")(tensors) | {
        f"model.{key}": -value for key, value in tensors.items()
    }


def ema_pytorch(tensors):
    return (
        prefixed("ema_model.")(tensors)
        | {f"online_model.{key}": -value for key, value in tensors.items()}
        | {"initted": np.array([True]), "step": np.array([12], np.int64)}
    )


WRAPPED = {
    "DataParallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "compiled and parallel": prefixed("module._orig_mod."),
    "compiled parts": inside("_orig_mod"),
    "FSDP": inside("_fsdp_wrapped_module"),
    "checkpointed activations": inside("_checkpoint_wrapped_module"),
    "AveragedModel": averaged,
    "AveragedModel of DDP": lambda t: averaged(prefixed("module.")(t)),
    "Lightning, model": prefixed("model."),
    "Lightning, net": prefixed("net."),
    "Lightning of DDP": prefixed("model.module."),
    "any attribute": prefixed("classifier.encoder."),
    "EMAHook": with_ema_hook,
    "Dropout and Linear": dropout_head,
    "another name of the head": renamed_head,
    "Lightning with dropout": lambda t: prefixed("net.")(dropout_head(t)),
    "average beside": ema_beside,
    "average of dropout beside": lambda t: ema_beside(dropout_head(t)),
    "ema-pytorch": ema_pytorch,
}


FORMS = ("zip", "legacy")


@pytest.mark.parametrize(
    ("case", "form"),
    [
        *((case, "safetensors") for case in WRAPPED),
        *((case, form) for case in ("AveragedModel", "EMAHook") for form in FORMS),
    ],
)
def test_wrapped_state_dicts_load(case, form, tmp_path):
    net, tensors = drawn(tiny())
    wrapped = WRAPPED[case](with_counters(tensors))
    path = tmp_path / f"theirs.{form}"
    if form == "safetensors":
        save_file({k: np.ascontiguousarray(v) for k, v in wrapped.items()}, path)
    else:
        write_torch(path, {"state_dict": wrapped, "epoch": 3}, is_zip=form == "zip")
    again, report = net_of(tiny(), path)
    assert report.unexpected == report.missing == ()
    assert classes_of(path) == 3
    np.testing.assert_array_equal(answers(again), answers(net))


@pytest.mark.parametrize(
    "nested",
    [
        lambda ema, raw: {"model": raw, "model_ema": averaged(ema), "epoch": 1},
        lambda ema, raw: {"model": raw, "ema": ema},
        lambda ema, raw: {"model": raw, "ema": {"module": ema, "decay": "0.99"}},
        lambda ema, raw: {"state_dict": raw, "state_dict_ema": ema},
        lambda ema, raw: {"net": ema, "acc": 93, "epoch": 200},
        lambda ema, raw: {"model_state_dict": ema, "optimizer_state_dict": {"a": raw}},
        # mmengine exchanges: the average is in state_dict.
        lambda ema, raw: {"state_dict": ema, "ema_state_dict": averaged(raw)},
    ],
)
def test_averaged_weights_of_a_checkpoint_are_taken(nested, tmp_path):
    net, tensors = drawn(tiny())
    raw = {key: -value for key, value in tensors.items()}
    path = tmp_path / "checkpoint.pth"
    write_torch(path, nested(tensors, raw), is_zip=True)
    again, _ = net_of(tiny(), path)
    np.testing.assert_array_equal(answers(again), answers(net))


def test_lightnings_checkpoint_loads(tmp_path):
    """What it saves beside the weights is skipped: options, paths, callbacks."""
    net, tensors = drawn(tiny())
    path = tmp_path / "last.ckpt"
    write_torch(path, {"state_dict": prefixed("model.")(tensors)}, is_zip=True)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    text = lambda t: b"X" + struct.pack("<I", len(t)) + t  # noqa: E731
    options = (
        text(b"hyper_parameters")
        + b"clightning.fabric.utilities.data\nAttributeDict\n)\x81("
        + text(b"folder")
        + b"cpathlib\nPosixPath\n("
        + text(b"data")
        + b"tRu"
        + text(b"counts")
        + b"ccollections\ndefaultdict\nc__builtin__\nint\n\x85R("
        + text(b"a")
        + b"K\x01u"
    )
    program = members["archive/data.pkl"]
    members["archive/data.pkl"] = program[:-2] + options + program[-2:]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    again, _ = net_of(tiny(), path)
    np.testing.assert_array_equal(answers(again), answers(net))


# In parts


@pytest.mark.parametrize("count", [1, 3])
def test_weights_in_parts_load_by_their_index(count, tmp_path):
    net, tensors = drawn(tiny())
    index = write_parts(tmp_path, tensors, count)
    again, report = net_of(tiny(), index)
    assert report.format == "safetensors"
    np.testing.assert_array_equal(answers(again), answers(net))


def write_parts(folder, tensors, count):
    weight_map = {}
    for number in range(count):
        name = f"model-{number + 1:05}-of-{count:05}.safetensors"
        part = {key: tensors[key] for key in list(tensors)[number::count]}
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = folder / "model.safetensors.index.json"
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    index.write_text(json.dumps(content))
    return index


def test_card_of_weights_in_parts_is_beside_their_index(tmp_path):
    _, tensors = drawn(model_spec("resnet18_v1b"))
    index = write_parts(tmp_path, tensors, 2)
    card = {"model": "resnet18_v1b", "protocol": {}, "classes": ["a", "b", "c"]}
    card_path(index).write_text(json.dumps(card))
    assert init_model(None, index).class_names == ("a", "b", "c")


def test_mistakes_with_parts_are_told(tmp_path):
    _, tensors = drawn(tiny())
    index = write_parts(tmp_path, tensors, 2)
    part = tmp_path / "model-00002-of-00002.safetensors"
    with pytest.raises(InputError) as caught:
        net, _ = drawn(tiny())
        load_weights(net, part)
    assert str(caught.value).endswith(
        "; this is part 2 of several: give their index, NAME.safetensors.index.json"
    )
    content = json.loads(index.read_text())
    key = next(iter(content["weight_map"]))
    for place in ("../x.safetensors", "/etc/passwd", "", index.name):
        content["weight_map"][key] = place
        index.write_text(json.dumps(content))
        with pytest.raises(InputError) as caught:
            read_weights(index)
        assert str(caught.value) == (
            f"{index}: it names the part {place}, which is not in its own folder; only "
            "files beside it are read"
        )
    content["weight_map"][key] = part.name
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"damaged: {part.name} does not hold {key}; "):
        read_weights(index)
    part.unlink()
    with pytest.raises(InputError, match=f"its part {part.name} is not beside it; "):
        read_weights(index)


# What cannot be loaded


def refusal(tensors, folder, spec=None):
    path = folder / "theirs.safetensors"
    save_file(tensors, path)
    with pytest.raises(InputError) as caught:
        net_of(spec or tiny(), path)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "FILE")


def test_backbone_without_classifier_says_so(tmp_path):
    _, tensors = drawn(tiny())
    backbone = {k: v for k, v in tensors.items() if not k.startswith("fc.")}
    assert refusal(backbone, tmp_path) == (
        "FILE has no classifier (fc.weight), read as torchvision; check the model's "
        "name, and give a file of a whole net with one such layer"
    )


def test_head_of_two_dense_layers_is_named(tmp_path):
    _, tensors = drawn(tiny())
    tensors["fc.0.weight"] = np.zeros((4, 16), np.float32)
    tensors["fc.2.weight"] = tensors.pop("fc.weight")[:, :4].copy()
    path = tmp_path / "two.safetensors"
    save_file(tensors, path)
    with pytest.raises(InputError) as caught:
        classes_of(path)
    assert str(caught.value) == (
        f"{path} has more than one dense layer (fc.0.weight, fc.2.weight); give a file "
        "of a whole net with one"
    )
    assert "FILE has no classifier (fc.weight)" in refusal(tensors, tmp_path)


def test_names_in_messages_are_short_and_on_one_line(tmp_path):
    _, tensors = drawn(tiny())
    extra = {"x\ny" * 5000: np.zeros(3, np.float32)}
    message = refusal(tensors | extra, tmp_path)
    assert "unexpected: x?yx?y" in message
    assert len(message) < 500


@pytest.mark.parametrize("suffix", ["params", "safetensors"])
def test_our_own_files_of_other_channels_say_what_differs(suffix, tmp_path):
    path = save_weights(
        create_model("cifar_resnet20_v1", in_channels=1), tmp_path / f"one.{suffix}"
    )
    net = create_model("cifar_resnet20_v1")
    with pytest.raises(InputError) as caught:
        load_weights(net, path)
    assert str(caught.value) == (
        f"{path} does not fit cifar_resnet20_v1, read as own: wrong shape (file, "
        "network): stem.conv1.weight: (16, 1, 3, 3), (16, 3, 3, 3); check the model's "
        "name, its number of classes and its channels"
    )


def test_a_storage_that_many_tensors_share_is_checked_once(tmp_path, monkeypatch):
    shared = np.zeros((64, 3, 7, 7), np.float32)
    path = tmp_path / "shared.pth"
    write_torch(path, {f"key{n}": shared for n in range(1)}, is_zip=True)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    # The one tensor of the pickle, 300 times: key0 to key299.
    program = members["archive/data.pkl"]
    start, end = program.index(b"X\x04\x00\x00\x00key0"), program.rindex(b"u")
    item = program[start:end]
    items = b"".join(
        item.replace(b"X\x04\x00\x00\x00key0", b"X\x04\x00\x00\x00" + b"%04d" % n)
        for n in range(300)
    )
    members["archive/data.pkl"] = program[:start] + items + program[end:]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    checked = []
    from gluon_resnet.weights import torch_format

    crc32 = torch_format.zlib.crc32
    monkeypatch.setattr(
        torch_format.zlib,
        "crc32",
        lambda data: checked.append(len(data)) or crc32(data),
    )
    assert len(read_weights(path).tensors) == 300
    assert checked.count(shared.nbytes) == 1


def test_saved_file_is_read_once(tmp_path, monkeypatch):
    path = save_weights(create_model("cifar_resnet20_v1"), tmp_path / "mine.params")
    seen = []
    from gluon_resnet.weights import load

    read_content = load.read_content
    monkeypatch.setattr(
        load, "read_content", lambda path: seen.append(path) or read_content(path)
    )
    init_model("cifar_resnet20_v1", path)
    create_model("cifar_resnet20_v1", pretrained=path)
    assert seen == [path, path]
