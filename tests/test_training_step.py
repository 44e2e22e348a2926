# SPDX-License-Identifier: Apache-2.0
"""The training step against plain Gluon, against itself on other devices, and torch."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon
from mxnet.gluon.contrib.nn import SyncBatchNorm

from gluon_resnet.create import create_model
from gluon_resnet.errors import InputError
from gluon_resnet.models import set_drop_block
from gluon_resnet.preprocess import Protocol
from gluon_resnet.training.recipe import Recipe
from gluon_resnet.training.step import LossScale, TrainingStep

GOLDEN = json.loads(
    Path(__file__).with_name("golden").joinpath("training.json").read_text()
)
RECIPE = Recipe(
    model="cifar_resnet20_v1",
    protocol=Protocol(),
    source="this test",
    num_classes=4,
    batch_size=12,
    optimizer="nag",
    weight_decay=5e-4,
)
TWO = [mx.cpu(0), mx.cpu(1)]
ONE = TWO[:1]
FIXED = {"norm_options": {"use_global_stats": True}}
# Sums over the batch in another order, five steps long, of values up to 1.
ROUNDING = 1e-5
cpuinfo = Path("/proc/cpuinfo")
needs_avx512 = pytest.mark.skipif(
    not cpuinfo.exists() or "avx512bw" not in cpuinfo.read_text(),
    reason="bf16 needs AVX-512",
)


def batch(count=12, size=8):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, count)
    images = rng.normal(0, 1, (count, 3, size, size)) + labels[:, None, None, None]
    return images.astype(np.float32), np.eye(4, dtype=np.float32)[labels]


def make_step(recipe=RECIPE, contexts=ONE, **options):
    mx.random.seed(0)
    net = create_model(recipe.model, num_classes=4, ctx=contexts, **options)
    return TrainingStep(net, recipe, contexts)


def run(step, count=5):
    return [step(*batch(), learning_rate=0.02 * (i + 1)).loss for i in range(count)]


def values_of(arrays):
    return {name: array.asnumpy() for name, array in arrays.items()}


def assert_equal(ours, theirs):
    """Bit for bit."""
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.tobytes() == theirs[name].tobytes(), name


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_allclose(
            array, theirs[name], atol=ROUNDING, rtol=ROUNDING, err_msg=name
        )


def error_of(function, *arguments, **options):
    with pytest.raises(InputError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def in_process(function, **environment):
    """Call a function of this module in a process of its own; returns its output."""
    program = f"import gluon_resnet, test_training_step as t; t.{function}()"
    folder = Path(__file__).parent
    paths = f"{folder}:{folder.parent}"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_steps_are_those_of_a_gluon_trainer_bit_for_bit():
    step = make_step()
    mx.random.seed(0)
    net = create_model(RECIPE.model, num_classes=4)
    net.pool = type(step.net.pool)()
    net.hybridize(static_alloc=True, static_shape=True)
    trainer = gluon.Trainer(
        net.collect_params(), "nag", {"momentum": 0.9, "wd": 5e-4}, kvstore=None
    )
    loss_function = gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)
    images, targets = batch()
    for rate in (0.1, 0.1, 0.3, 0.2):
        answer = step(images, targets, learning_rate=rate)
        trainer.set_learning_rate(rate)
        with autograd.record():
            logits = net(mx.nd.array(images))
            losses = loss_function(logits, mx.nd.array(targets))
        losses.backward()
        trainer.step(len(images))
        assert answer.loss == float(losses.mean().asscalar())
        assert (answer.logits == logits.asnumpy()).all()
    mx.nd.waitall()
    theirs = {n: p.data() for n, p in net._collect_params_with_prefix().items()}
    assert_equal(values_of(step.evaluated_parameters()), values_of(theirs))


@pytest.mark.parametrize("contexts", [ONE, TWO])
@pytest.mark.parametrize("optimizer", ["sgd", "nag", "lamb"])
def test_restored_step_goes_on_bit_for_bit(tmp_path, optimizer, contexts):
    recipe = replace(RECIPE, optimizer=optimizer, ema=0.9, clip_norm=1.0)
    whole = make_step(recipe, contexts)
    run(whole)
    mx.nd.save(str(tmp_path / "state"), whole.arrays())
    whole.net.save_parameters(str(tmp_path / "net"))
    expected = run(whole, 3)

    resumed = make_step(recipe, contexts)
    run(resumed, 1)
    resumed.net.load_parameters(str(tmp_path / "net"), ctx=contexts)
    resumed.restore(mx.nd.load(str(tmp_path / "state")))
    assert run(resumed, 3) == expected
    assert_equal(values_of(resumed.arrays()), values_of(whole.arrays()))
    assert_equal(
        values_of(resumed.evaluated_parameters()),
        values_of(whole.evaluated_parameters()),
    )


def test_state_of_another_recipe_is_refused():
    arrays = make_step(replace(RECIPE, optimizer="lamb")).arrays()
    error = error_of(make_step().restore, arrays)
    assert error.startswith("the training state does not fit: optimizer.1.fc.bias and ")


def test_state_of_another_precision_is_taken():
    """The arrays are fp32 in all; fp16 alone has a loss scale."""
    scaled = make_step()
    scaled.loss_scale = LossScale(2.0**10)
    run(scaled, 1)
    arrays = {name: array.copy() for name, array in scaled.arrays().items()}
    plain = make_step()
    plain.restore(dict(arrays))
    assert plain.count == 1
    del arrays["loss_scale"]
    scaled.restore(arrays)
    assert scaled.loss_scale.value == 2.0**10


def test_logits_of_passes_and_devices_are_in_the_order_of_the_images():
    whole = make_step(**FIXED)(*batch(), learning_rate=0.1)
    parts = make_step(replace(RECIPE, accumulate=3), TWO, **FIXED)
    answer = parts(*batch(), learning_rate=0.1)
    np.testing.assert_allclose(answer.logits, whole.logits, atol=ROUNDING)
    assert answer.loss == pytest.approx(whole.loss, rel=ROUNDING)


def test_passes_add_up_to_one_batch():
    whole, parts = (
        make_step(replace(RECIPE, accumulate=count), **FIXED) for count in (1, 3)
    )
    np.testing.assert_allclose(run(parts), run(whole), rtol=ROUNDING)
    assert_close(
        values_of(parts.evaluated_parameters()), values_of(whole.evaluated_parameters())
    )


def test_two_devices_do_what_one_does():
    one, two = (make_step(contexts=contexts, **FIXED) for contexts in (ONE, TWO))
    np.testing.assert_allclose(run(two), run(one), rtol=ROUNDING)
    assert_close(
        values_of(two.evaluated_parameters()), values_of(one.evaluated_parameters())
    )
    for parameter in two.parameters.values():
        first, second = parameter.list_data()
        assert (first.asnumpy() == second.asnumpy()).all()


def compare_synchronised_norm():
    # Twice, since the keys of a second net must not be those of the first.
    for _ in range(2):
        one = make_step()
        two = make_step(
            contexts=TWO, norm_layer=SyncBatchNorm, norm_options={"num_devices": 2}
        )
        np.testing.assert_allclose(run(two), run(one), rtol=ROUNDING)
        assert_close(
            values_of(two.evaluated_parameters()), values_of(one.evaluated_parameters())
        )


@pytest.mark.slow
def test_synchronised_norm_makes_two_devices_one():
    done = in_process("compare_synchronised_norm", MXNET_CPU_TEMP_COPY="4096")
    assert done.returncode == 0, done.stderr


def test_synchronised_norm_that_would_hang_is_refused(monkeypatch):
    monkeypatch.delenv("MXNET_CPU_TEMP_COPY", raising=False)
    options = {"norm_layer": SyncBatchNorm, "norm_options": {"num_devices": 2}}
    assert error_of(make_step, contexts=TWO, **options) == (
        "MXNET_CPU_TEMP_COPY is 4: synchronised BatchNorm on several CPU contexts "
        "would wait for ever; set it to 4096 before Python starts"
    )


def test_batch_that_does_not_split_is_refused():
    step = make_step(replace(RECIPE, accumulate=3), TWO)
    assert error_of(step, *batch(16), learning_rate=0.1) == (
        "a batch of 16 images does not split evenly into 2 devices x 3 passes: choose "
        "a batch size that is a multiple of 6"
    )


def test_averages_cover_parameters_and_statistics():
    step = make_step(replace(RECIPE, ema=0.75))
    before = values_of(step.evaluated_parameters())
    run(step, 1)
    after = {n: p.data().asnumpy() for n, p in step.parameters.items()}
    expected = {n: 0.75 * before[n] + 0.25 * after[n] for n in before}
    assert_close(values_of(step.evaluated_parameters()), expected)
    assert (before["stem.bn1.running_mean"] != after["stem.bn1.running_mean"]).all()


def test_norm_and_bias_are_spared_from_decay_where_the_recipe_says_so():
    plain = replace(RECIPE, weight_decay=0.0)
    spared = replace(RECIPE, weight_decay=0.5, decay_norm_and_bias=False)
    all_decay = replace(spared, decay_norm_and_bias=True)
    plain, spared, all_decay = (make_step(each) for each in (plain, spared, all_decay))
    for step in (plain, spared, all_decay):
        run(step, 1)

    def differing(step):
        ours, theirs = (
            values_of(each.evaluated_parameters()) for each in (step, plain)
        )
        return {n for n in ours if ours[n].tobytes() != theirs[n].tobytes()}

    weights = {name for name in plain.trained if name.endswith("weight")}
    gammas = {name for name in plain.trained if name.endswith("gamma")}
    assert differing(spared) == weights
    assert differing(all_decay) == weights | gammas  # all biases are 0 at the start


def test_clipped_step_has_the_norm_of_the_recipe():
    recipe = replace(RECIPE, optimizer="sgd", weight_decay=0.0, clip_norm=0.25)
    step = make_step(recipe, **FIXED)
    before = values_of(step.evaluated_parameters())
    step(*batch(), learning_rate=2.0)
    after = values_of(step.evaluated_parameters())
    squares = sum(np.square(after[n] - before[n], dtype="d").sum() for n in before)
    assert squares**0.5 == pytest.approx(2 * 0.25, rel=1e-4)


def test_loss_scale_moves_as_torchs(monkeypatch):
    golden = GOLDEN["loss_scale"]
    monkeypatch.setattr(LossScale, "GROWTH_INTERVAL", golden["growth_interval"])
    scale = LossScale(golden["start"])
    for is_finite, expected in zip(golden["finite"], golden["scales"]):
        scale.update(is_finite=is_finite)
        assert scale.value == expected


def test_loss_scale_that_vanishes_is_an_error():
    scale = LossScale(1.0)
    error = error_of(scale.update, is_finite=False)
    assert error.startswith(
        "the loss scale fell to 0.5 because fp16 gradients overflow"
    )


def test_scaled_loss_gives_the_same_step():
    plain, scaled = make_step(), make_step()
    scaled.loss_scale = LossScale()  # a power of 2 rounds nothing
    assert run(scaled) == run(plain)
    assert_equal(
        values_of(scaled.evaluated_parameters()),
        values_of(plain.evaluated_parameters()),
    )


def test_step_whose_gradient_overflows_is_left_out():
    step = make_step(**FIXED)
    step.loss_scale = LossScale(2.0**127)
    before = values_of(step.evaluated_parameters())
    assert np.isfinite(run(step, 1)).all()
    assert_equal(values_of(step.evaluated_parameters()), before)
    assert step.loss_scale.value == 2.0**126
    assert step.count == 0


def test_precision_that_a_device_lacks_is_refused():
    assert error_of(make_step, replace(RECIPE, precision="fp16")) == (
        "precision fp16 trains on a GPU, and cpu(0) is none: choose mixed, which is "
        "what a device has, or fp32"
    )
    net, recipe = make_step().net, replace(RECIPE, precision="bf16")
    assert error_of(TrainingStep, net, recipe, [mx.gpu(0)]) == (
        "precision bf16 trains on a CPU, and gpu(0) is none: choose mixed, which is "
        "what a device has, or fp32"
    )


def train_in_bf16():
    step = make_step(replace(RECIPE, precision="bf16"))
    losses = [step(*batch(64), learning_rate=0.05).loss for _ in range(30)]
    assert losses[-1] < 0.1 < losses[0]
    for value in step.evaluated_parameters().values():
        assert value.dtype == np.float32


@needs_avx512
@pytest.mark.slow
def test_bf16_trains_with_bf16_convolutions_but_for_that_of_the_image():
    done = in_process("train_in_bf16", DNNL_VERBOSE="1")
    assert done.returncode == 0, done.stderr
    convolutions = [
        line for line in done.stdout.splitlines() if ",convolution," in line
    ]
    directions = ("forward_training", "backward_data", "backward_weights")
    for direction in directions:
        assert any(direction in line for line in convolutions)
    assert any("_ic3oc" in line for line in convolutions)
    for line in convolutions:
        assert ("src_f32" if "_ic3oc" in line else "src_bf16") in line


@pytest.mark.slow
def test_bf16_on_a_processor_without_avx512_is_refused():
    done = in_process("train_in_bf16", DNNL_MAX_CPU_ISA="AVX2")
    assert done.stderr.splitlines()[-1] == (
        "gluon_resnet.errors.InputError: precision is bf16 and this processor has no "
        "AVX-512: choose fp32"
    )


@needs_avx512
@pytest.mark.parametrize("model", ["resnet50_v1d", "resnest14d", "cifar_resnet20_v2"])
def test_bf16_fits_nets_that_drop(model):
    drops = {"dropout": 0.1, "drop_path": 0.1}
    if model == "resnest14d":
        drops["drop_block"] = 0.1
    step = make_step(replace(RECIPE, model=model, precision="bf16"), **drops)
    assert np.isfinite(step(*batch(2, 64), learning_rate=0.01).loss)
    if model == "resnest14d":  # traced anew
        set_drop_block(step.net, 0.05)
        assert np.isfinite(step(*batch(2, 64), learning_rate=0.01).loss)
