import argparse
import dataclasses
import hashlib
import json
import math
import re
from collections import Counter

import pytest

from gluon_resnet import bundled, list_models
from gluon_resnet.errors import InputError
from gluon_resnet.models.catalog import CATALOG
from gluon_resnet.models.names import ALIASES
from gluon_resnet.models.resnet import resnet
from gluon_resnet.models.spec_pages import SPEC_PAGES
from gluon_resnet.postprocess import load_class_names
from gluon_resnet.weights import layouts, published
from gluon_resnet.weights.__main__ import main, parser
from gluon_resnet.weights.card import (
    card_from_text,
    card_to_text,
    digest_of,
    read_card,
)
from gluon_resnet.weights.download import fetch
from gluon_resnet.weights.published import (
    DEFAULT_WEIGHTS,
    checkpoint,
    list_weights,
    published_file,
    row_of_file,
)

ROWS = [checkpoint(name) for name in list_weights()]

# Bytes that a file has beside the values of its tensors, for each tensor: its name,
# shape, alignment, and the graph or the pickled records. All published sizes have 201
# to 244; a wrong block would leave these bounds by far.
OVERHEAD = 195, 250

COUNTS = {
    "timm hub": 78,
    "timm .pth": 75,
    "authors": 12,
    "openmmlab": 25,
    "onnx_zoo": 32,
    "gluoncv": 39,
    "mxnet": 2,
    "this project": 1,
}


def _project(row):
    if row.bundled:
        return "this project"
    if row.hub:
        return "timm hub"
    zoo = re.match("authors|openmmlab|onnx_zoo|gluoncv|mxnet", row.tag)
    return zoo[0] if zoo else "timm .pth"


def _arguments(**given):
    return argparse.Namespace(**{**vars(parser().parse_args([])), **given})


def test_table_has_every_file_once():
    assert Counter(map(_project, ROWS)) == COUNTS
    assert len({row.name for row in ROWS}) == len(ROWS)
    places = [place for row in ROWS for place in (row.hub, *row.urls) if place]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("page_row", SPEC_PAGES, ids=lambda r: f"{r.page}-{r.name}")
def test_every_row_of_the_openmmlab_and_timm_pages_is_there(page_row):
    project = "openmmlab" if page_row.page.startswith("openmmlab") else "timm hub"
    found = [
        row
        for row in ROWS
        if (row.model, row.num_classes, row.protocol.size)
        == (page_row.model, page_row.num_classes, page_row.size)
        and _project(row) == project
    ]
    twins = [
        twin
        for twin in SPEC_PAGES
        if (twin.page, twin.model) == (page_row.page, page_row.model)
    ]
    assert len(found) == len(twins)


@pytest.mark.parametrize("depth", (18, 34, 50, 101, 152))
@pytest.mark.parametrize("version", ("v1", "v2"))
def test_every_row_of_the_onnx_page_is_there_in_each_generation(version, depth):
    names = list_weights(f"resnet{depth}-{version}-7.onnx_zoo*")
    opset_7 = [checkpoint(name) for name in names if "opset12" not in name]
    assert [bool(row.size) for row in opset_7] == [True, True, False]
    assert len({(row.top1, row.top5) for row in opset_7}) == 1
    newest, of_2020, _ = opset_7
    # The batch dimension became a name, "N", of two bytes more.
    assert newest.size - of_2020.size == 2


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row_is_sound(row):
    assert row.name == row.name.lower()
    assert row.hub or row.urls or row.bundled
    assert row.format in ("params", "safetensors", "onnx", "pth")
    assert getattr(layouts, row.layout)(CATALOG[row.model], []) is not None
    assert re.fullmatch(r"([0-9a-f]{8}|[0-9a-f]{64})?", row.sha256)
    assert re.fullmatch(r"([0-9a-f]{8}|[0-9a-f]{40})?", row.sha1)
    assert not (row.top1 and row.top5) or row.top1 < row.top5 < 100
    assert row.source.startswith("https://") != bool(row.bundled)
    for url in row.urls:
        assert re.fullmatch(r"https://[\w./-]+", url)
        if not url.endswith(".onnx"):  # torch.hub's rule and GluonCV's
            assert url.rpartition("-")[2].partition(".")[0] in (
                row.sha256[:8],
                row.sha1[:8],
            )


def test_a_second_file_of_a_tag_has_its_checksum_in_the_name():
    names = set(list_weights())
    for row in ROWS:
        first, _, digits = row.name.rpartition("_")
        if first in names and digits not in ("opset12", "2018", "gluon"):
            assert digits in (row.sha256[:8], row.sha1[:8])


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.size], ids=lambda row: row.name
)
def test_file_size_fits_the_network(row):
    net = resnet(CATALOG[row.model], num_classes=row.num_classes)
    shapes = [parameter.shape for parameter in net.collect_params().values()]
    beside = row.size - 4 * sum(map(math.prod, shapes))
    low, high = (60, 80) if row.bundled else OVERHEAD  # our own names are short
    assert low < beside / len(shapes) < high


def test_sha1_of_params_is_what_the_installed_zoos_check():
    from gluoncv.model_zoo.model_store import _model_sha1 as gluoncv
    from mxnet.gluon.model_zoo.model_store import _model_sha1 as mxnet

    for row in ROWS:
        if _project(row) in ("gluoncv", "mxnet") and len(row.sha1) == 40:
            name = row.urls[-1].rpartition("/")[2].rpartition("-")[0]
            assert row.sha1 == (mxnet if row.tag == "mxnet" else gluoncv)[name]


def test_licences_are_known_and_only_facebook_forbids_commercial_use():
    assert {row.licence for row in ROWS} == {
        "Apache-2.0",
        "BSD-3-Clause",
        "CC-BY-NC-4.0",
    }
    for row in ROWS:
        assert ("-NC" in row.licence) == row.tag.startswith("fb_")


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet50.openmmlab_8xb256-rsb-a1-600e", 236),
        ("resnet50.openmmlab_8xb8_cub", 600),
        ("resnest200e.gluoncv", 352),
        ("resnest269e.in1k", 448),
        ("cifar_resnet18", 32),
    ],
)
def test_images_are_resized_to_the_published_side(name, side):
    protocol = checkpoint(name).protocol
    assert math.floor(protocol.size / protocol.crop_pct) == side


def test_each_project_has_its_own_pixels():
    libraries = {(_project(row), row.protocol.library) for row in ROWS}
    assert libraries == {
        ("timm hub", "pil"),
        ("timm .pth", "pil"),
        ("authors", "pil"),
        ("authors", "cv2"),
        ("openmmlab", "mmcv"),
        ("openmmlab", "pil"),
        ("onnx_zoo", "cv2"),
        ("gluoncv", "cv2"),
        ("gluoncv", "pil"),  # ResNeSt-200 and -269
        ("mxnet", "cv2"),
        ("this project", "cv2"),
    }


@pytest.mark.parametrize("model", list_models())
def test_every_model_has_a_default_that_all_may_use(model):
    row = checkpoint(model)
    assert row.model == model
    assert "-NC" not in row.licence
    assert row.num_classes == CATALOG[model].num_classes


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("resnet50", "resnet50_v1b.a1_in1k"),  # not the more accurate CC-BY-NC one
        ("resnet50-v2-7", "resnet50_v2.onnx_zoo"),  # not GluonCV's, whose host is gone
        ("resnest50", "resnest50d.in1k"),
        ("cifar_resnet50", "cifar_resnet50.openmmlab_8xb16_cifar10"),
        # Not the bundled one, though its file is there: another data set.
        ("cifar_resnet20_v1", "cifar_resnet20_v1.gluoncv"),
    ],
)
def test_default_follows_its_rule(model, name):
    assert checkpoint(model).name == name


def test_default_imagenet_weights_are_on_the_hub_and_for_all_uses():
    row = checkpoint(DEFAULT_WEIGHTS)
    assert row == checkpoint(row.model)
    assert row.hub == "timm/resnest50d.in1k"
    assert row.num_classes == 1000


PAGE_NAMES = {
    # OpenMMLab's page, its configurations, its files: the in-1k rows' top-1.
    "ResNet-50": 76.55,
    "ResNet-152": 78.48,
    "ResNetV1C-101": 78.3,
    "ResNetV1D-50": 77.54,
    "ResNet-50 (fp16)": 76.3,
    "Wide-ResNet-101": 78.84,
    "ResNet-50 (rsb-a3)": 78.3,
    "configs/resnet/resnet50_8xb32_in1k.py": 76.55,
    "resnetv1d101_8xb32_in1k": 78.93,
    "../wrn/wide-resnet50_8xb32_in1k.py": 78.48,
    "resnet50_8xb8_cub": 88.45,
    "resnet34_8xb16_cifar10": 95.34,
    "resnet50_8xb16_cifar100": 79.9,
    "resnet50_8xb256-rsb-a1-600e_in1k": 80.12,
    "resnet50_8xb32_in1k_20210831-ea4938fc.pth": 76.55,
    # The Model Zoo's files.
    "resnet18-v1-7": 69.93,
    "resnet50-v1-7": 74.93,
    "resnet50v1": 74.93,
    "resnet50-v1-12": 74.97,
    "resnet152-v2-7": 78.2,
    # timm 1.0's.
    "resnest101e": 82.88,
    "tv_resnet50": 76.156,
    "gluon_resnet50_v1b": 77.58,
    "gluon_resnet101_v1s": 80.286,
    "swsl_resnet50": 81.146,
    "resnet50d": 80.548,
}


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_name_of_a_page_stands_for_the_weights_it_has_there(name):
    assert checkpoint(name).top1 == PAGE_NAMES[name]


def test_every_page_row_has_its_name_and_the_zoo_its_files():
    names = [f"ResNet{v}-{d}" for v in ("V1C", "V1D") for d in (50, 101, 152)]
    names += [f"ResNet-{d}" for d in (18, 34, 50, 101, 152)]
    names += [f"ResNet-50 ({v})" for v in ("fp16", "rsb-a1", "rsb-a2", "rsb-a3")]
    names += ["ResNet-50-mill", "Wide-ResNet-50", "Wide-ResNet-101"]
    names += [f"resnet{d}_8xb16_cifar10" for d in (18, 34, 50, 101, 152)]
    names += ["resnet50_8xb16_cifar100", "resnet50_8xb8_cub"]
    openmmlab = {row.name for row in ROWS if row.tag.startswith("openmmlab")}
    assert {checkpoint(name).name for name in names} == openmmlab

    files = [f"resnet{d}-v{v}-7" for d in (18, 34, 50, 101, 152) for v in (1, 2)]
    for file in (*files, "resnet50-v1-12"):
        assert checkpoint(file).urls[0].endswith(f"/{file}.onnx")
        assert list_weights(file) == [checkpoint(file).name]


# The first configuration of each of timm 1.0.31's (`timm/models/resnet.py`).
TIMMS_DEFAULTS = {
    **dict.fromkeys(["resnet18", "resnet34", "resnet50"], "a1_in1k"),
    **dict.fromkeys(["resnet101", "resnet152"], "a1h_in1k"),
    **{f"resnet{depth}d": "ra2_in1k" for depth in (18, 34, 50, 101, 152)},
    **{f"resnet{depth}{v}": "gluon_in1k" for depth in (50, 101, 152) for v in "cs"},
    "wide_resnet50_2": "racm_in1k",
    "wide_resnet101_2": "tv_in1k",
    **{f"resnest{name}": "gluon_in1k" for name in ("14d", "26d")},
    **{f"resnest{name}": "in1k" for name in ("50d", "101e", "200e", "269e")},
    **{f"resnest50d_{name}": "in1k" for name in ("1s4x24d", "4s2x40d")},
}


@pytest.mark.parametrize("name", TIMMS_DEFAULTS)
def test_default_is_timms_where_timm_has_the_network(name):
    assert checkpoint(name).tag == TIMMS_DEFAULTS[name]


def test_every_alias_of_weights_names_a_row():
    for alias, target in ALIASES.items():
        if "." in target:
            assert checkpoint(alias).name == target


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_url_stands_for_its_row(row):
    for url in row.urls:
        assert checkpoint(url) is row
    if row.hub:
        url = f"https://huggingface.co/{row.hub}/resolve/main/model.safetensors"
        assert checkpoint(url) is row


def test_file_name_stands_for_the_newest_file_of_it():
    assert checkpoint("resnet101-v1-7.onnx").name == "resnet101_v1.onnx_zoo"
    assert checkpoint("resnet50v1.onnx").name == "resnet50_v1.onnx_zoo_2018"
    assert checkpoint("resnet50_v1d-117a384e.params").name == "resnet50_v1d.gluoncv"
    assert published_file("model.safetensors") is None


def test_listing_by_a_model_has_all_its_weights_and_by_a_checkpoint_one():
    assert len(list_weights("ResNet50")) == len(list_weights("resnet50_v1b")) == 44
    assert list_weights("ResNetV1D-50") == ["resnet50_v1d.openmmlab_8xb32"]
    assert list_weights("tv_resnet50") == ["resnet50_v1b.tv_in1k"]
    url = "https://download.pytorch.org/models/resnet50-0676ba61.pth"
    assert list_weights(url) == ["resnet50_v1b.tv_in1k_0676ba61"]


def test_row_knows_its_classes():
    for row in ROWS:
        assert len(load_class_names(row.data_set)) == row.num_classes


def test_openmmlabs_training_logs_are_there():
    logs = {row.log for row in ROWS if row.log}
    assert len(logs) == 22
    without = {row.name for row in ROWS if "openmmlab" in row.tag and not row.log}
    assert without == {
        "wide_resnet50_2.openmmlab_8xb32",
        "wide_resnet101_2.openmmlab_8xb32",
        "resnet50_v1b.openmmlab_3rdparty-mill_in21k",
    }
    for row in ROWS:
        assert not row.log or row.log == row.urls[0].replace(".pth", ".log.json")


def test_fields_of_timms_page_are_there():
    for page_row in SPEC_PAGES:
        if page_row.page == "timm/resnest":
            row = checkpoint(page_row.name)
            assert row.training_data == "ImageNet"
            assert row.training_resources == "64x NVIDIA V100 GPUs"
            assert re.search(r"/timm/models/resnest\.py#L\d+$", row.code)
    (note,) = {row.note for row in ROWS if row.name.startswith("resnest200e.in1k")}
    assert "its tensors have 281,682,072 bytes" in note


def test_columns_of_the_onnx_page_are_there():
    for row in ROWS:
        if row.format == "onnx":
            opset, version = (12, "1.7.0") if "opset12" in row.tag else (7, "1.2.1")
            assert (row.opset, row.onnx_version) == (opset, version)
    with_samples = [row for row in ROWS if row.sample_data]
    assert len(with_samples) == 21
    assert all(row.sample_data.endswith(".tar.gz") for row in with_samples)


@pytest.mark.parametrize(
    ("name", "checksum"),
    [
        (
            "resnet50-v1-12",
            "SHA-256 3f03fdef724b22947eed826f1eef1dc5c34151bb4c37d634f1db89dfa2dd1526",
        ),
        ("ResNet-50", "SHA-256 ea4938fc..."),
        (
            "resnet50_v1d.gluoncv",
            "SHA-1 117a384ecf61490eb31ea147eb0e61e6d2b8a449",
        ),
        ("resnest50d", "SHA-256, told by the Hugging Face Hub with the download"),
        (
            "resnet34v1.onnx",
            "none published: the download is not checked",
        ),
    ],
)
def test_row_says_what_its_download_is_checked_against(name, checksum):
    assert checkpoint(name).checksum == checksum


def test_names_work_by_alias_and_in_any_case():
    assert checkpoint("ResNet50.A1_in1k") == checkpoint("resnet50_v1b.a1_in1k")
    assert list_weights("resnest50.IN1K*") == [
        "resnest50d.in1k",
        "resnest50d.in1k_528c19ca",
    ]
    assert list_weights("wide_resnet101_2")[0] == "wide_resnet101_2.tv_in1k"
    assert list_weights("nothing") == []


def test_unknown_names_give_the_nearest():
    with pytest.raises(InputError) as caught:
        checkpoint("resnest50d.gluon")
    assert str(caught.value) == (
        "unknown weights 'resnest50d.gluon'; nearest: resnest50d.gluoncv, "
        "resnest50d.in1k, resnest50d.in1k_528c19ca; "
        "`python -m gluon_resnet.weights resnest50d` lists all of this model"
    )
    with pytest.raises(InputError, match="unknown model 'resnet51'; nearest: "):
        checkpoint("resnet51.a1_in1k")


def test_listing_shows_licence_and_default(capsys):
    assert main(_arguments(pattern="resnet18")) is None
    lines = capsys.readouterr().out.splitlines()
    assert "* what the model's name alone stands for" in lines
    assert [line.split()[0] for line in lines if " * " in line] == [
        "resnet18_v1b.a1_in1k"
    ]
    (restricted,) = (line for line in lines if "fb_swsl_ig1b_ft_in1k " in line)
    assert restricted.split()[1] == "CC-BY-NC-4.0"


def test_name_of_one_row_shows_the_row_whole(capsys):
    main(_arguments(pattern="ResNetV1D-50"))
    shown = capsys.readouterr().out
    row = checkpoint("ResNetV1D-50")
    for value in (row.name, row.licence, row.log, row.checksum, row.data_set):
        assert value in shown
    assert "interpolation bilinear" in shown


def test_json_listing_is_one_complete_object_a_line(capsys):
    main(_arguments(json=True))
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == list_weights()
    assert rows[0]["protocol"]["crop_pct"] == 1


def test_listing_nothing_is_a_mistake():
    with pytest.raises(InputError, match="no published checkpoint matches 'resnot'"):
        main(_arguments(pattern="resnot"))


def test_restricted_weights_are_fetched_only_when_accepted():
    name = "resnet18.fb_ssl_yfcc100m_ft_in1k"
    with pytest.raises(InputError, match=r"CC-BY-NC-4\.0.*--accept-licence"):
        main(_arguments(fetch=[name]))


def test_fetch_prints_where_the_files_are(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("GLUON_RESNET_CACHE", str(tmp_path))
    monkeypatch.setenv("GLUON_RESNET_OFFLINE", "1")
    cached = tmp_path / "resnest50d.in1k.safetensors"
    cached.write_bytes(b"the hub alone knows this file's checksum")
    main(_arguments(fetch=[DEFAULT_WEIGHTS]))
    assert capsys.readouterr().out == f"{cached}\n"


def test_bundled_checkpoint_is_a_row_with_a_file():
    row = checkpoint(bundled.NAME)
    assert list_weights("*fashion*") == [bundled.NAME]
    assert fetch(row) == bundled.weights()
    assert row.size == bundled.weights().stat().st_size
    assert row.sha256 == digest_of(bundled.weights())


def test_bundled_checkpoints_card_says_what_its_row_does():
    card = read_card(bundled.weights())
    assert card == checkpoint(bundled.NAME).card
    assert card.classes == load_class_names("fashion_mnist")


def test_row_has_a_card():
    for row in ROWS:
        card = card_from_text(card_to_text(row.card), row.name)
        assert card == row.card
        assert len(card.classes) == row.num_classes
        assert (card.model, card.protocol) == (row.model, row.protocol)
        assert (card.metrics.get("top1"), card.licence) == (row.top1, row.licence)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row_is_found_by_its_file(row, tmp_path):
    for file in row.files:
        found, by = row_of_file(tmp_path / file)
        # Where two ages of a file have the same name, the name is the newest's.
        assert (found.model, found.protocol) == (row.model, row.protocol)
        assert by == "its name"


def test_file_in_the_hubs_cache_is_known_by_its_folder(tmp_path):
    folder = tmp_path / "hub/models--timm--resnest50d.in1k/snapshots/1f5a"
    row, by = row_of_file(folder / "model.safetensors")
    assert (row.name, by) == ("resnest50d.in1k", "its folder")


def test_file_is_known_by_its_checksum_and_no_other_is(tmp_path, monkeypatch):
    (tmp_path / "any.params").write_bytes(b"published")
    assert row_of_file(tmp_path / "any.params") is None
    sha1 = hashlib.sha1(b"published").hexdigest()
    row = dataclasses.replace(checkpoint("resnet50_v1.gluoncv"), sha1=sha1)
    monkeypatch.setattr(published, "_by_digits", lambda: {sha1[:8]: row})
    assert row_of_file(tmp_path / "any.params") == (row, "its sha1")
    other = dataclasses.replace(row, sha1=sha1[:8] + "0" * 32)
    monkeypatch.setattr(published, "_by_digits", lambda: {sha1[:8]: other})
    assert row_of_file(tmp_path / "any.params") is None


def test_layouts_are_verified_in_a_clone_alone(monkeypatch, tmp_path, capsys):
    assert main(_arguments(pattern=bundled.NAME, verify_layouts=True)) == 0
    assert capsys.readouterr().out.startswith(f"{bundled.NAME}: proven: logits within")
    elsewhere = tmp_path / "gluon_resnet" / "weights" / "__main__.py"
    monkeypatch.setattr("gluon_resnet.weights.__main__.__file__", str(elsewhere))
    with pytest.raises(InputError) as caught:
        main(_arguments(verify_layouts=True))
    assert str(caught.value) == (
        f"there is no {tmp_path}/tests/verify_layouts.py: layouts are verified in a "
        "clone of the repository"
    )
