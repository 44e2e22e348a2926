# SPDX-License-Identifier: Apache-2.0
"""Counting top-1 and top-5, for all images and class by class."""

import csv
import json
from collections import Counter
from dataclasses import asdict
from types import SimpleNamespace

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

from gluon_resnet import bundled
from gluon_resnet import validate as validate_module
from gluon_resnet.data.loader import validation_batches
from gluon_resnet.data.records import RecordFile
from gluon_resnet.errors import InputError
from gluon_resnet.predictions import (
    MOST_NAMED_CLASSES,
    Accuracy,
    Predictions,
    accuracy,
    confusion_matrix,
    draw_confusion,
    per_class,
    predict,
    validate,
    write_per_class,
)
from gluon_resnet.preprocess import Protocol
from gluon_resnet.validate import published_row, validate_file
from gluon_resnet.weights import checkpoint


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


@pytest.mark.parametrize("label", [-1, 3])
def test_label_that_is_no_class_of_the_net_is_refused(label):
    batches = logits_as_images([[0, 1, 2]] * 2, [0, label], batch_size=2)
    low, high = sorted([0, label])
    with pytest.raises(InputError) as error:
        validate(first_channel, batches)
    assert str(error.value) == (
        f"labels from {low} to {high} for a network of 3 classes: give the images that "
        "it was trained for"
    )


def test_ten_crops_are_ranked_by_their_mean_probability():
    # The short side is the resize side already, so that the resize changes no pixel.
    size, side, num_images, num_classes = 6, 8, 40, 10
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_images, side, 11, 3), np.uint8)
    labels = rng.integers(0, num_classes, num_images)
    weights = np.float32(rng.normal(0, 0.3, (3 * size * size, num_classes)))

    def plain_ranks(mean_of):
        ranks = []
        for image in (np.float64(images) / 255 - 0.5) / 0.25:
            views = []
            for view in (image, image[:, ::-1]):
                views += [view[:6, :6], view[:6, 5:], view[2:, :6], view[2:, 5:]]
                views += [view[1:7, 2:8]]
            pixels = np.stack([view.transpose(2, 0, 1).ravel() for view in views])
            scores = mean_of(pixels @ weights)
            ranks.append(sorted(range(num_classes), key=lambda c: -scores[c])[:5])
        return ranks

    def mean_probability(logits):
        return sum(np.exp(row) / np.exp(row).sum() for row in logits) / 10

    predictions = predict(
        lambda images: mx.nd.dot(images.flatten(), mx.nd.array(weights)),
        validation_batches(
            range(num_images),
            lambda key: (labels[key], images[key]),
            batch_size=16,
            protocol=Protocol(size, crop_pct=0.75, mean=(0.5,) * 3, std=(0.25,) * 3),
            crops=10,
        ),
    )
    assert predictions.ranked.tolist() == plain_ranks(mean_probability)
    assert predictions.ranked.tolist() != plain_ranks(lambda logits: logits.mean(0))
    assert predictions.labels.tolist() == labels.tolist()


CLASS_NAMES = ("tench", "crane, the bird", 'the "crane"', "naïve", "none", "right")


@pytest.fixture
def predictions():
    """Answers for 200 images of six classes: none of class 4, class 5 always right."""
    rng = np.random.default_rng(1)
    labels = rng.choice([0, 1, 2, 3, 5], 200)
    ranked = np.array([rng.permutation(6)[:5] for _ in labels])
    ranked[labels == 5] = [5, 0, 1, 2, 3]
    return Predictions(labels, ranked, 6)


def test_counts_are_those_of_a_plain_count(predictions):
    images = [*zip(predictions.labels.tolist(), predictions.ranked.tolist())]
    assert accuracy(predictions) == Accuracy(
        100 * sum(label == ranked[0] for label, ranked in images) / 200,
        100 * sum(label in ranked for label, ranked in images) / 200,
        200,
    )
    pairs = Counter((label, ranked[0]) for label, ranked in images)
    matrix = confusion_matrix(predictions)
    assert {cell: matrix[cell] for cell in np.ndindex(6, 6) if matrix[cell]} == pairs

    rows = per_class(predictions, CLASS_NAMES)
    for row in rows[:4]:
        own = [ranked for label, ranked in images if label == row["label"]]
        wrong = Counter(ranked[0] for ranked in own if ranked[0] != row["label"])
        most = max(wrong.values())
        worst = min(label for label in wrong if wrong[label] == most)
        assert row == {
            "label": row["label"],
            "class": CLASS_NAMES[row["label"]],
            "count": len(own),
            "top1": 100 * sum(r[0] == row["label"] for r in own) / len(own),
            "top5": 100 * sum(row["label"] in r for r in own) / len(own),
            "wrong_label": worst,
            "wrong_class": CLASS_NAMES[worst],
            "wrong_count": most,
        }
    count = sum(label == 5 for label, _ in images)
    assert [tuple(row.values()) for row in rows[4:]] == [
        (4, "none", 0, None, None, None, None, None),
        (5, "right", count, 100, 100, None, None, None),
    ]


def test_table_of_classes_reads_back(predictions, tmp_path):
    rows = per_class(predictions, CLASS_NAMES)
    write_per_class(tmp_path / "table.csv", rows)
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert read == [
        {key: "" if value is None else str(value) for key, value in row.items()}
        for row in rows
    ]


@pytest.mark.parametrize("num_classes", [2, MOST_NAMED_CLASSES, 200])
def test_picture_of_the_confusion_shows_each_mistake(tmp_path, num_classes):
    names = [f"class {label}" for label in range(num_classes)]
    right = 50 * np.eye(num_classes, dtype=int)
    wrong = right.copy()
    wrong[1, :2] = 1, 49
    pictures = []
    for matrix in (right, wrong):
        draw_confusion(tmp_path / "picture.png", matrix, names)
        with Image.open(tmp_path / "picture.png") as image:
            assert image.format == "PNG"
            pictures.append(np.asarray(image.convert("L"), dtype=int))
    # A light cell for the mistake, and a change that an eye can tell.
    assert np.ptp(pictures[0] - pictures[1]) > 20


@pytest.fixture
def model():
    """A stand-in for what `init_model` returns; it always answers class 0."""
    return SimpleNamespace(
        name="model.tag",
        forward=lambda images: mx.nd.one_hot(mx.nd.zeros(len(images)), 10),
        protocol=Protocol(size=28, crop_pct=1),
        class_names=("class",) * 10,
        precision="fp32",
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
        "published_top1": None,
        "published_top5": None,
    }


def test_table_and_picture_are_those_of_the_file(model, tmp_path):
    table, picture = tmp_path / "new" / "table.csv", tmp_path / "picture"
    validate_file(model, bundled.VAL_REC, per_class_csv=table, confusion_png=picture)
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["count"] for row in rows] == ["50"] * 10
    assert [row["top1"] for row in rows] == ["100.0"] + ["0.0"] * 9
    assert [row["wrong_label"] for row in rows] == [""] + ["0"] * 9
    with Image.open(picture) as image:
        assert image.format == "PNG"
    assert sorted(tmp_path.rglob("*")) == [table.parent, table, picture]


@pytest.mark.parametrize("option", ["per_class_csv", "confusion_png"])
def test_output_that_cannot_be_written_fails_before_the_work(model, tmp_path, option):
    model.forward = None  # would fail, had the work begun
    (tmp_path / "file").touch()
    for path, reason in ((tmp_path / "file" / "x", "File exists"), (tmp_path, "Is a")):
        with pytest.raises(InputError, match=f"cannot write {path}: {reason}"):
            validate_file(model, bundled.VAL_REC, **{option: path})


def test_work_that_fails_leaves_no_file(model, tmp_path):
    model.class_names = ("class",) * 3
    with pytest.raises(InputError, match="none of 3 classes"):
        validate_file(model, bundled.VAL_REC, per_class_csv=tmp_path / "table.csv")
    assert list(tmp_path.iterdir()) == []


def test_ten_crops_without_a_margin_are_warned_of(model, caplog):
    assert validate_file(model, bundled.VAL_REC, crops=10)["crops"] == 10
    (warning,) = caplog.messages
    assert warning == (
        "warning: model.tag is evaluated without a margin to crop: ten crops of a "
        "square image are it and its mirror image, five times each"
    )


def test_other_crops_than_one_and_ten_are_refused(model):
    with pytest.raises(InputError) as error:
        validate_file(model, bundled.VAL_REC, crops=3)
    assert str(error.value) == "crops is 3; use 1 (the centre) or 10"


@pytest.fixture
def published(model):
    """A stand-in for published weights for ten classes, OpenMMLab's."""
    row = checkpoint("cifar_resnet18")
    assert (row.num_classes, row.top1, row.top5) == (10, 94.82, 99.87)
    model.name, model.protocol = row.name, row.protocol
    return model


def test_published_values_stand_beside_the_measured_ones(published):
    outcome = validate_file(published, bundled.VAL_REC)
    assert (outcome["published_top1"], outcome["published_top5"]) == (94.82, 99.87)


def test_published_values_are_for_one_crop_whatever_is_measured(published):
    outcome = validate_file(published, bundled.VAL_REC, crops=10)
    assert (outcome["published_top1"], outcome["published_top5"]) == (94.82, 99.87)


def test_published_values_hold_for_their_weights_and_pixels_only(published):
    own_file = SimpleNamespace(name="cifar_resnet18", protocol=published.protocol)
    assert published_row(own_file) is None
    assert published_row(published) == checkpoint("cifar_resnet18")
    published.protocol = Protocol(size=32)
    assert published_row(published) is None


def run(*arguments):
    """What the command returns."""
    parser = validate_module.parser()
    return validate_module.main(parser.parse_args([*map(str, arguments)]))


@pytest.mark.parametrize(
    "crops, ends", [(1, ""), (10, ", with one crop of each")], ids=["one", "ten"]
)
def test_command_prints_the_published_values_below(
    crops, ends, published, monkeypatch, capsys
):
    monkeypatch.setattr(validate_module, "load_model", lambda _: published)
    run("--rec", bundled.VAL_REC, "--model", published.name, "--crops", crops)
    measured, below = capsys.readouterr().out.splitlines()
    assert measured.startswith(
        f"{published.name}: top-1 10.00 %, top-5 50.00 % of 500 images (fp32, crops: "
        f"{crops},"
    )
    assert below == (
        f"published: top-1 94.82 %, top-5 99.87 % of all validation images{ends}"
    )


def test_batch_beyond_memory_is_refused_before_it_is_made(model):
    with pytest.raises(InputError, match=r"^a batch of 1000000000 images of 28x28"):
        validate_file(model, bundled.VAL_REC, batch_size=10**9)


def test_device_that_is_not_there_is_refused():
    with pytest.raises(InputError) as error:
        run("--rec", "a.rec", "--model", bundled.NAME, "--ctx", "gpu(99)")
    assert str(error.value).startswith("gpu(99) is not there: MXNet sees ")


def test_file_with_a_label_beyond_the_models_classes_is_refused(model):
    model.class_names = ("class",) * 3
    with pytest.raises(InputError, match=r"its label \d is none of 3 classes"):
        validate_file(model, bundled.VAL_REC)


def test_batch_size_below_one_is_refused(model):
    with pytest.raises(InputError) as error:
        validate_file(model, bundled.VAL_REC, batch_size=0)
    assert str(error.value) == "batch-size is 0; it must be at least 1"


@pytest.mark.parametrize(
    ("options", "mistake"),
    [
        (
            ["--model", "resnet50"],
            "the following arguments are required: --rec",
        ),
        (
            ["--rec", "a.rec", "--model", "resnet50", "--crops", "3"],
            "argument --crops: invalid choice: 3 (choose from 1, 10)",
        ),
    ],
)
def test_command_answers_wrong_usage_with_one_line(options, mistake, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*options)
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"python -m gluon_resnet.validate: {mistake}; "
        "see python -m gluon_resnet.validate --help\n"
    )


def test_command_without_a_model_says_how_to_name_one():
    with pytest.raises(InputError) as error:
        run("--rec", bundled.VAL_REC)
    assert str(error.value) == (
        "no model is named: give --model NAME (`gluon-resnet models` lists them), or "
        "--weights FILE that tells its network"
    )


@pytest.mark.slow
def test_command_prints_what_the_bundled_checkpoint_scores_on_its_sample(capsys):
    from gluon_resnet.classifier import init_model

    model = init_model(bundled.NAME)
    records = RecordFile.open(bundled.VAL_REC, num_classes=10)
    batches = validation_batches(
        list(records.offsets), records.read, batch_size=64, protocol=model.protocol
    )
    expected = validate(model.net, batches)
    assert expected.count == 500
    run("--json", "--model", bundled.NAME, "--rec", bundled.VAL_REC)
    answer = json.loads(capsys.readouterr().out)
    assert answer.pop("images_per_second") > 0
    assert answer == {
        "model": bundled.NAME,
        **asdict(expected),
        "crops": 1,
        "precision": "fp32",
        "published_top1": 94.79,
        "published_top5": 99.93,
    }
