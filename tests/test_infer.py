# SPDX-License-Identifier: Apache-2.0
"""Classifying images: the function, the two calls of OpenMMLab, the command."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from gluon_resnet import bundled, inference_model, init_model, postprocess, preprocess
from gluon_resnet.errors import InputError
from gluon_resnet.infer import infer

SAMPLES = sorted(bundled.IMAGES.glob("*.png"))
LABELS = [int(path.name.partition("-")[0]) for path in SAMPLES]


@pytest.fixture(scope="module")
def model():
    return init_model(bundled.NAME)


@pytest.fixture
def folder(tmp_path):
    """Two good images, one that is none, and a text file that is not asked."""
    (tmp_path / "b" / "c").mkdir(parents=True)
    shutil.copy(SAMPLES[0], tmp_path / "b" / "c" / "second.PNG")
    shutil.copy(SAMPLES[1], tmp_path / "b" / "first.png")
    (tmp_path / "b" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "b" / "notes.txt").write_text("text")
    return tmp_path / "b"


def run(*arguments, **environment):
    """Run the command as a user without a network would."""
    return subprocess.run(
        [sys.executable, "-m", "gluon_resnet.infer", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ".", "GLUON_RESNET_OFFLINE": "1", **environment},
    )


def test_nine_of_ten_samples_are_right(model):
    answers = list(infer(model, SAMPLES, batch_size=10))
    best = [answer["predictions"][0]["label"] for answer in answers]
    assert len(SAMPLES) == 10
    assert sum(map(int.__eq__, best, LABELS)) >= 9


def test_answers_are_preprocess_net_postprocess(model):
    (answer,) = infer(model, SAMPLES[:1], k=3)
    images = preprocess(SAMPLES[0], **asdict(model.protocol))[None]
    expected = postprocess(model(images)[0], 3, class_names=model.class_names)
    assert answer.pop("seconds") > 0
    assert answer == {
        "image": str(SAMPLES[0]),
        "model": "cifar_resnet20_v1.fashion_mnist",
        "predictions": [
            {"label": label, "class": name, "score": score}
            for label, name, score in expected
        ],
    }


@pytest.mark.parametrize("batch_size", [2, 3, 16])
def test_batches_answer_as_single_images_do(model, batch_size):
    singly = list(infer(model, SAMPLES))
    together = list(infer(model, SAMPLES, batch_size=batch_size))
    for one, other in zip(singly, together):
        assert one["image"] == other["image"]
        for a, b in zip(one["predictions"], other["predictions"]):
            assert a["score"] == pytest.approx(b["score"], abs=1e-6)


def test_folders_are_searched_and_errors_stay_in_their_place(model, folder):
    answers = list(infer(model, [folder, SAMPLES[2]], batch_size=2))
    names = [Path(answer["image"]).name for answer in answers]
    assert names == ["broken.jpg", "second.PNG", "first.png", SAMPLES[2].name]
    assert "not an image" in answers[0]["error"]
    assert ["error" in answer for answer in answers] == [True, False, False, False]


def test_folder_without_images_is_an_answer(model, tmp_path):
    (answer,) = infer(model, [tmp_path])
    assert answer["error"].startswith(f"{tmp_path}: a folder without images; give")


def test_features_are_the_pooled_vectors(model, tmp_path, folder):
    out = tmp_path / "new" / "features.npz"
    answers = list(infer(model, [folder, *SAMPLES], batch_size=4, features=out))
    stored = np.load(out)
    readable = [answer for answer in answers if "error" not in answer]
    assert list(stored["images"]) == [answer["image"] for answer in readable]
    head = model.net.fc
    weight, bias = (p.data().asnumpy() for p in (head.weight, head.bias))
    logits = stored["features"] @ weight.T + bias
    best = [answer["predictions"][0]["label"] for answer in readable]
    assert list(logits.argmax(axis=1)) == best


def test_cams_are_pictures_of_the_input_size(model, tmp_path):
    list(infer(model, SAMPLES[:2], cam=tmp_path))
    pictures = sorted(tmp_path.iterdir())
    assert len(pictures) == 2
    assert all(cv2.imread(str(path)).shape == (28, 28, 3) for path in pictures)


def test_bf16_answers_the_same_classes():
    half = init_model(bundled.NAME, precision="bf16")
    best = [answer["predictions"][0]["label"] for answer in infer(half, SAMPLES)]
    assert best == [
        answer["predictions"][0]["label"]
        for answer in infer(init_model(bundled.NAME), SAMPLES)
    ]


def test_features_and_cam_need_fp32(tmp_path):
    half = init_model(bundled.NAME, precision="bf16")
    with pytest.raises(InputError) as error:
        list(infer(half, SAMPLES, features=tmp_path / "features.npz"))
    assert str(error.value) == (
        "features and cam need precision fp32; the model is bf16"
    )


@pytest.mark.parametrize("option", [{"k": 0}, {"batch_size": 0}])
def test_option_below_1_is_named(model, option):
    with pytest.raises(InputError, match=r"is 0; it must be at least 1$"):
        list(infer(model, SAMPLES, **option))


def test_inference_model_returns_what_openmmlabs_does(model):
    answer = inference_model(model, SAMPLES[0])
    assert set(answer) == {"pred_label", "pred_class", "pred_score", "pred_scores"}
    assert answer["pred_class"] == model.class_names[answer["pred_label"]]
    assert answer["pred_scores"][answer["pred_label"]] == answer["pred_score"]
    assert sum(answer["pred_scores"]) == pytest.approx(1)


def test_own_weights_decide_the_number_of_classes(model):
    own = init_model("cifar_resnet20_v1", weights=bundled.weights())
    assert own.name == "cifar_resnet20_v1"
    assert own.net.fc.weight.shape == (10, 64)


def test_weights_of_another_net_are_refused_with_the_keys(tmp_path):
    weights = shutil.copy(bundled.weights(), tmp_path / "no_card.params")
    message = r"does not fit cifar_resnet56_v1, .* missing: .*stage1\.3\.body\.conv1"
    with pytest.raises(InputError, match=message):
        init_model("cifar_resnet56_v1", weights)


def test_command_answers_every_image_as_json_and_fails_at_the_end(folder):
    result = run(folder, "--model", bundled.NAME, "--json", "--topk", 2)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert (result.returncode, result.stderr) == (1, "")
    assert [len(answer.get("predictions", [])) for answer in answers] == [0, 2, 2]


def test_command_prints_classes_for_a_person():
    result = run(SAMPLES[0], "--model", bundled.NAME)
    assert (result.returncode, result.stderr) == (0, "")
    image, *classes = result.stdout.splitlines()
    assert image.startswith(f"{SAMPLES[0]}  ({bundled.NAME}, ")
    assert len(classes) == 5


def test_default_model_that_cannot_be_had_is_replaced_and_said(tmp_path):
    result = run(SAMPLES[0], "--json", GLUON_RESNET_CACHE=str(tmp_path))
    (answer,) = map(json.loads, result.stdout.splitlines())
    assert result.returncode == 0
    assert answer["model"] == bundled.NAME
    reason, replacement = result.stderr.splitlines()
    assert "GLUON_RESNET_OFFLINE" in reason
    assert "T-shirt" in replacement


def test_model_asked_for_by_name_is_never_replaced(tmp_path):
    name = "resnet50_v1b"
    result = run(SAMPLES[0], "--model", name, GLUON_RESNET_CACHE=str(tmp_path))
    assert (result.returncode, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["x.png", "--model", "resnet5"], 1, "unknown model 'resnet5'; nearest: "),
        (["x.png", "--weights", "w"], 1, "--weights w without --model; name the"),
        (["x.png", "--ctx", "tpu"], 2, "'tpu' is no device; use cpu, gpu(0)"),
        (["x.png", "--precision", "fp8"], 2, "invalid choice: 'fp8' (choose from"),
        (["x.png", "--model", bundled.NAME, "--precision", "int8"], 1, "int8 needs a"),
        (["x.png", "--model", bundled.NAME, "--batch-size", 10**8], 1, "GB are free"),
        ([], 2, "the following arguments are required: IMAGE; see"),
    ],
)
def test_users_mistake_is_one_line(arguments, code, message):
    result = run(*arguments)
    assert result.returncode == code
    (line,) = result.stderr.splitlines()
    assert message in line
