# SPDX-License-Identifier: Apache-2.0
"""The card beside a weights file."""

import logging
import shutil

import pytest

from gluon_resnet import Protocol, bundled, init_model
from gluon_resnet.errors import InputError
from gluon_resnet.weights.card import Card, card_path, read_card, write_card

CARD = Card(bundled.MODEL, Protocol(size=28, crop_pct=1, library="pil"), "cifar10")


@pytest.fixture
def weights(tmp_path):
    """The bundled weights without a card."""
    return shutil.copy(bundled.weights(), tmp_path / "mine.params")


def test_what_is_written_is_read(weights):
    write_card(weights, CARD)
    assert card_path(weights).name == "mine.json"
    assert read_card(weights) == CARD


def test_card_decides_pixels_and_class_names(weights):
    write_card(weights, CARD)
    model = init_model(bundled.MODEL, weights)
    assert model.protocol == CARD.protocol
    assert model.class_names[0] == "airplane"


def test_without_a_card_the_models_published_pixels_are_taken(weights, caplog):
    with caplog.at_level(logging.WARNING):
        model = init_model(bundled.MODEL, weights)
    assert model.protocol.size == 32
    assert not caplog.records  # ten classes, as the published weights have


def test_pixels_of_weights_with_other_classes_are_told(tmp_path, caplog):
    from gluon_resnet import create_model

    net = create_model("cifar_resnet20_v1", num_classes=3)
    net.save_parameters(str(tmp_path / "three.params"))
    model = init_model("cifar_resnet20_v1", tmp_path / "three.params")
    (record,) = caplog.records
    assert record.getMessage().endswith(
        "three.params has no card three.json: its images are prepared as those of "
        "cifar_resnet20_v1.gluoncv"
    )
    assert model.class_names == ("class 0", "class 1", "class 2")


def test_card_of_another_model_is_refused(weights):
    write_card(weights, Card("cifar_resnet56_v1", Protocol()))
    message = (
        r"mine\.json says that these are weights of cifar_resnet56_v1, not of "
        r"cifar_resnet20_v1; give --model cifar_resnet56_v1$"
    )
    with pytest.raises(InputError, match=message):
        init_model(bundled.MODEL, weights)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"model": "m", "protocol": {"size": 0}}', "\xff"]
)
def test_file_that_is_no_card_is_one_line(weights, text):
    card_path(weights).write_bytes(text.encode("latin-1"))
    with pytest.raises(
        InputError, match=r"mine\.json is no card of weights .*: mend or"
    ):
        read_card(weights)
