# SPDX-License-Identifier: Apache-2.0
"""Counting top-1 and top-5."""

import json
import subprocess
import sys
from dataclasses import asdict
from types import SimpleNamespace

import mxnet as mx
import numpy as np
import pytest

from gluon_resnet import bundled
from gluon_resnet.errors import InputError
from gluon_resnet.loader import validation_batches
from gluon_resnet.preprocess import Protocol
from gluon_resnet.records import RecordFile
from gluon_resnet.validate import Accuracy, validate, validate_file


def logits_as_images(logits, labels, *, batch_size):
    """Batches whose images (N, 3, 1, C) carry the logits in their first channel."""
    images = np.repeat(np.float32(logits)[:, None, None, :], 3, axis=1)
    for start in range(0, len(labels), batch_size):
        yield (
            images[start : start + batch_size],
            np.array(labels[start : start + batch_size]),
        )


def first_channel(images):
    return images[:, 0, 0]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 10])
def test_each_image_counts_once_whatever_the_batch_size(batch_size):
    # Image i has rank i of its label among ten classes; there are seven images.
    logits = -np.arange(10) * np.ones((7, 1))
    batches = logits_as_images(logits, range(7), batch_size=batch_size)
    assert validate(first_channel, batches) == Accuracy(100 / 7, 500 / 7, 7)


def test_fewer_than_five_classes_are_all_in_the_top_five():
    batches = logits_as_images([[0, 1, 2]] * 3, [0, 1, 2], batch_size=2)
    assert validate(first_channel, batches) == Accuracy(100 / 3, 100.0, 3)


def test_equal_logits_favour_the_lower_class():
    batches = logits_as_images(np.zeros((10, 10)), range(10), batch_size=4)
    assert validate(first_channel, batches) == Accuracy(10.0, 50.0, 10)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(value):
    batches = logits_as_images([[0, value]], [1], batch_size=1)
    with pytest.raises(InputError) as error:
        validate(first_channel, batches)
    assert str(error.value) == (
        "the network answers with logits that are not finite: its weights are damaged "
        "or its training diverged"
    )


def test_no_image_is_no_accuracy():
    with pytest.raises(InputError) as error:
        validate(first_channel, [])
    assert str(error.value) == (
        "there is no image to validate on: give a filled record file"
    )


@pytest.fixture
def model():
    """A stand-in for what `init_model` returns; it always answers class 0."""
    return SimpleNamespace(
        name="model.tag",
        net=lambda images: mx.nd.one_hot(mx.nd.zeros(len(images)), 10),
        protocol=Protocol(size=28, crop_pct=1),
        class_names=("class",) * 10,
        ctx=mx.cpu(),
    )


@pytest.mark.parametrize("batch_size", [7, 500, 1000])
def test_file_is_scored_once_an_image_with_the_models_protocol(model, batch_size):
    outcome = validate_file(model, bundled.VAL_REC, batch_size=batch_size)
    assert outcome.pop("images_per_second") > 0
    assert outcome == {
        "model": "model.tag",
        "top1": 10.0,  # 50 images of each of the 10 classes
        "top5": 50.0,
        "count": 500,
        "crops": 1,
        "precision": "fp32",
    }


def test_file_with_a_label_beyond_the_models_classes_is_refused(model):
    model.class_names = ("class",) * 3
    with pytest.raises(InputError, match=r"its label \d\.0 is none of 3 classes"):
        validate_file(model, bundled.VAL_REC)


def test_batch_size_below_one_is_refused(model):
    with pytest.raises(InputError) as error:
        validate_file(model, bundled.VAL_REC, batch_size=0)
    assert str(error.value) == "batch-size is 0; it must be at least 1"


def test_command_answers_wrong_usage_with_one_line():
    result = subprocess.run(
        [sys.executable, "-m", "gluon_resnet.validate", "--rec", "a.rec"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "python -m gluon_resnet.validate: the following arguments are required: "
        "--model; see python -m gluon_resnet.validate --help\n"
    )


@pytest.mark.slow
def test_command_prints_what_the_bundled_checkpoint_scores_on_the_bundled_sample():
    from gluon_resnet.classifier import init_model

    model = init_model(bundled.NAME)
    records = RecordFile.open(bundled.VAL_REC, num_classes=10)
    batches = validation_batches(
        list(records.offsets), records.read, batch_size=64, protocol=model.protocol
    )
    expected = validate(model.net, batches)
    assert expected.count == 500
    command = [sys.executable, "-m", "gluon_resnet.validate", "--json"]
    result = subprocess.run(
        [*command, "--model", bundled.NAME, "--rec", str(bundled.VAL_REC)],
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(result.stdout)
    assert answer.pop("images_per_second") > 0
    assert answer == {
        "model": bundled.NAME,
        **asdict(expected),
        "crops": 1,
        "precision": "fp32",
    }
