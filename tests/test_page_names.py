# SPDX-License-Identifier: Apache-2.0
"""`init_model` with the names, configurations and URLs of the three pages."""

from pathlib import Path

import numpy as np
import pytest

from gluon_resnet import (
    classifier,
    create_model,
    inference_model,
    init_model,
    save_weights,
)
from gluon_resnet.errors import InputError
from gluon_resnet.models.catalog import model_spec
from gluon_resnet.models.resnet import empty_resnet
from gluon_resnet.weights import checkpoint

OPENMMLAB = "https://download.openmmlab.com/mmclassification/v0/resnet"
HUB = "https://huggingface.co/onnxmodelzoo"
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype("uint8")


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """The rows that were fetched; each gets a file of zeros."""
    rows = []

    def fetch(row, accept_licence):
        rows.append(row)
        net = empty_resnet(model_spec(row.model), num_classes=row.num_classes)
        return save_weights(net, tmp_path / f"{row.name}.params")

    monkeypatch.setattr(classifier, "fetch", fetch)
    return rows


# Of the CIFAR nets, which are quick: name, URL or None, the row that is meant.
@pytest.mark.parametrize(
    ("name", "weights", "row"),
    [
        (
            "configs/resnet/resnet18_8xb16_cifar10.py",
            f"{OPENMMLAB}/resnet18_b16x8_cifar10_20210528-bd6371c8.pth",
            "cifar_resnet18.openmmlab_8xb16_cifar10",
        ),
        (
            "cifar_resnet18",
            f"{OPENMMLAB}/resnet18_b16x8_cifar10_20210528-bd6371c8.pth?download=1",
            "cifar_resnet18.openmmlab_8xb16_cifar10",
        ),
        ("resnet18_8xb16_cifar10", None, "cifar_resnet18.openmmlab_8xb16_cifar10"),
        (
            "resnet50_8xb16_cifar10",
            Path(f"{OPENMMLAB}/resnet50_b16x8_cifar100_20210528-67b58a1b.pth"),
            "cifar_resnet50.openmmlab_8xb16_cifar100",
        ),
        ("resnet50_8xb16_cifar100", None, "cifar_resnet50.openmmlab_8xb16_cifar100"),
        ("resnet18-v1-7", None, "resnet18_v1.onnx_zoo"),
        (
            "resnet18-v1-7",
            f"{HUB}/resnet18-v1-7/resolve/main/resnet18-v1-7.onnx",
            "resnet18_v1.onnx_zoo",
        ),
        (
            "resnet18",
            "https://download.pytorch.org/models/resnet18-f37072fd.pth",
            "resnet18_v1b.tv_in1k_f37072fd",
        ),
    ],
)
def test_name_and_url_mean_one_published_file(fetched, name, weights, row):
    model = init_model(name, weights, "cpu")
    assert [r.name for r in fetched] == [row]
    assert (model.name, model.protocol) == (row, checkpoint(row).protocol)
    answer = inference_model(model, IMAGE)
    assert answer["pred_class"] == model.class_names[0]  # zeros: the first of equals


def test_class_names_are_those_of_the_row(fetched):
    names = init_model("resnet50_8xb8_cub").class_names
    assert (len(names), names[0]) == (200, "Black_footed_Albatross")
    names = init_model("ResNet-50-mill").class_names
    assert (len(names), names[0]) == (11_221, "benthos")


def test_test_command_of_openmmlabs_page_pairs_two_networks(fetched):
    url = f"{OPENMMLAB}/resnet50_b16x8_cifar10_20210528-f54bfad9.pth"
    with pytest.raises(InputError) as caught:
        init_model("configs/resnet/resnet50_8xb32_in1k.py", url)
    assert str(caught.value) == (
        f"{url} is cifar_resnet50.openmmlab_8xb16_cifar10, not weights of "
        "configs/resnet/resnet50_8xb32_in1k.py: give a name and a file of the same "
        "network"
    )
    assert not fetched


def test_url_of_no_row_is_not_downloaded(fetched):
    with pytest.raises(InputError) as caught:
        init_model("resnet50", "https://example.org/mine.pth")
    assert str(caught.value) == (
        "https://example.org/mine.pth is in no table of weights: download it and give "
        "the file's path"
    )
    assert not fetched


def test_file_without_a_card_is_prepared_as_the_name_says(tmp_path):
    path = save_weights(create_model("cifar_resnet18"), tmp_path / "mine.params")
    named = "configs/resnet/resnet18_8xb16_cifar10.py"
    assert init_model(named, path).protocol == checkpoint(named).protocol


@pytest.mark.parametrize("device", ["cpu", "cpu(0)"])
def test_device_may_be_text(fetched, device):
    assert init_model("cifar_resnet18", None, device).ctx.device_type == "cpu"


def test_device_that_is_none_or_not_there_is_named():
    with pytest.raises(InputError) as caught:
        init_model("resnet50", None, "tpu")
    assert str(caught.value) == "'tpu' is no device; use cpu, gpu(0), gpu(1), ..."
    with pytest.raises(InputError) as caught:
        init_model("resnet50", None, "cuda:99")
    assert str(caught.value).startswith("gpu(99) is not there: MXNet sees ")
