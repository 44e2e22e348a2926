# SPDX-License-Identifier: Apache-2.0
import hashlib

import numpy as np
import pytest

from gluon_resnet.errors import InputError
from gluon_resnet.postprocess import _CLASSES_DIR, load_class_names, postprocess

# Of synset.txt in the ONNX Model Zoo's validated/vision/classification.
SYNSET_SHA256 = "acf75ef0abe89694b19056e0796401068b459c457baa30335f240c7692857355"
NAMES = ("a", "b", "c", "d")


def test_imagenet_names_are_the_model_zoo_file():
    content = (_CLASSES_DIR / "imagenet.txt").read_bytes()
    assert hashlib.sha256(content).hexdigest() == SYNSET_SHA256
    names = load_class_names("imagenet")
    assert len(names) == 1000
    assert (names[0], names[1], names[999]) == ("tench", "goldfish", "toilet tissue")


def test_imagenet_21k_is_labelled_by_sorted_wordnet_ids():
    lines = (_CLASSES_DIR / "imagenet21k_miil.txt").read_text().splitlines()
    ids = [line.partition(" ")[0] for line in lines]
    assert len(ids) == 11_221
    assert ids == sorted(set(ids))
    names = load_class_names("imagenet21k_miil")
    assert (names[0], names[ids.index("n01440764")], names[-1]) == (
        "benthos",
        "tench",
        "knothole",
    )


def test_both_imagenets_name_their_common_classes_alike():
    small, large = (
        dict(
            line.split(" ", 1)
            for line in (_CLASSES_DIR / f"{name}.txt").read_text().splitlines()
        )
        for name in ("imagenet", "imagenet21k_miil")
    )
    common = small.keys() & large.keys()
    assert len(common) == 991
    assert all(small[wordnet_id] == large[wordnet_id] for wordnet_id in common)


@pytest.mark.parametrize(
    ("dataset", "count", "first", "last"),
    [
        ("fashion_mnist", 10, "T-shirt/top", "Ankle boot"),
        ("cifar10", 10, "airplane", "truck"),
        ("cifar100", 100, "apple", "worm"),
        ("cub200", 200, "Black_footed_Albatross", "Common_Yellowthroat"),
    ],
)
def test_class_names_are_in_label_order(dataset, count, first, last):
    names = load_class_names(dataset)
    assert (len(set(names)), names[0], names[-1]) == (count, first, last)


def test_unknown_data_set_is_refused():
    known = (
        "cifar10 or cifar100 or cub200 or fashion_mnist or imagenet or imagenet21k_miil"
    )
    with pytest.raises(InputError, match=f"^data set 'svhn' is unknown; use {known}$"):
        load_class_names("svhn")


def test_best_classes_come_first_with_softmax_probabilities():
    predictions = postprocess(np.log([0.1, 0.6, 0.3]), k=2, class_names=NAMES[:3])
    assert [p[:2] for p in predictions] == [(1, "b"), (2, "c")]
    assert [p[2] for p in predictions] == pytest.approx([0.6, 0.3], rel=1e-12)
    assert [type(value) for value in predictions[0]] == [int, str, float]


def test_imagenet_names_are_the_default():
    logits = np.zeros(1000, np.float32)
    logits[[207, 151]] = 5, 4
    predictions = postprocess(logits)
    assert [p[:2] for p in predictions] == [
        (207, "golden retriever"),
        (151, "Chihuahua"),
        (0, "tench"),
        (1, "goldfish"),
        (2, "great white shark"),
    ]


def test_huge_logits_do_not_overflow():
    predictions = postprocess(
        np.float32([3e38, 3e38, -3e38, 0]), k=4, class_names=NAMES
    )
    assert predictions == [(0, "a", 0.5), (1, "b", 0.5), (3, "d", 0.0), (2, "c", 0.0)]


def test_ties_give_the_lower_label_first():
    predictions = postprocess(np.float16([1, 2, 1, 2]), class_names=NAMES)
    assert [label for label, _, _ in predictions] == [1, 3, 0, 2]


def test_k_above_the_number_of_classes_gives_all():
    assert len(postprocess([1.0, 2.0, 3.0, 4.0], k=99, class_names=NAMES)) == 4


def test_batch_gives_a_list_for_each_row():
    logits = np.random.default_rng(0).normal(size=(3, 4))
    expected = [postprocess(row, 2, class_names=NAMES) for row in logits]
    assert postprocess(logits, 2, class_names=NAMES) == expected


def test_ndarray_is_taken():
    mx = pytest.importorskip("mxnet")
    predictions = postprocess(mx.nd.array([1, 9, 3, 4]), 1, class_names=NAMES)
    assert predictions[0][:2] == (1, "b")


NOT_FINITE = "a logit is NaN or infinite; check the weights and the input"
WRONG_COUNT = (
    "there are 2 logits but 4 class names; "
    "give class_names of the data set that the net was trained on"
)


@pytest.mark.parametrize(
    ("logits", "k", "message"),
    [
        ([1.0, np.nan, 0.0, 0.0], 5, NOT_FINITE),
        ([[1.0, np.inf, 0.0, 0.0]], 5, NOT_FINITE),
        ([1.0, 0.0, 0.0, 0.0], 0, "k is 0; ask for at least 1 class"),
        (1.0, 5, "logits have shape (); give (C,) or (N, C)"),
        ([1.0, 2.0], 5, WRONG_COUNT),
    ],
)
def test_unusable_logits_are_refused(logits, k, message):
    with pytest.raises(InputError) as error:
        postprocess(logits, k, class_names=NAMES)
    assert str(error.value) == message
