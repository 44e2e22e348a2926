# SPDX-License-Identifier: Apache-2.0
"""With other parameters in their one cell the notebooks run on ImageNet's layout."""

from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from gluon_resnet.postprocess import synsets
from imagenet_prep.folder import convert

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
TIMEOUT_S = 300


def run(name, parameters):
    """Execute a notebook with another parameters cell; returns what it printed."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    assert "parameters" in notebook.cells[1].metadata.tags
    notebook.cells[1].source = parameters
    folder = {"metadata": {"path": str(NOTEBOOKS)}}
    NotebookClient(notebook, timeout=TIMEOUT_S, resources=folder).execute()
    outputs = [o for c in notebook.cells for o in c.get("outputs", ())]
    return "".join(o.text for o in outputs if o.get("name") == "stdout")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A record file of a thousand classes, of which every tenth has an image."""
    folder = tmp_path_factory.mktemp("imagenet")
    pixels = np.random.default_rng(0)
    for label, (wnid, _) in enumerate(synsets("imagenet")):
        (folder / "photos" / wnid).mkdir(parents=True)
        if label % 10 == 0:
            image = pixels.integers(0, 256, (40, 50, 3), np.uint8)
            path = folder / "photos" / wnid / f"{wnid}_1.JPEG"
            Image.fromarray(image).save(path, quality=90)
    convert(folder / "photos", folder / "val")
    return folder


@pytest.mark.slow
def test_notebooks_run_on_a_thousand_classes(imagenet, monkeypatch):
    monkeypatch.setenv("GLUON_RESNET_OFFLINE", "1")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    records, out = imagenet / "val.rec", imagenet / "run"
    printed = run(
        "imagenet_training",
        "from pathlib import Path\n"
        "from gluon_resnet import bundled\n"
        'RECIPE = "resnet18_v1.onnx_zoo"\n'
        'SETTINGS = ["epochs=1", "batch_size=20", "train_size=32"]\n'
        f"TRAIN_REC = VAL_REC = Path({str(records)!r})\n"
        f"OUT = Path({str(out)!r})\n"
        'DEVICES = ["cpu"]\n',
    )
    assert "epoch 1/1: loss " in printed

    weights = out / "resnet18_v1.params"
    own = f"MODEL, WEIGHTS, DEVICE = None, {str(weights)!r}, 'cpu'\n"
    printed = run(
        "imagenet_validation",
        "from pathlib import Path\n"
        "from gluon_resnet import bundled\n"
        f"{own}REC, OUT = {str(records)!r}, Path({str(imagenet)!r})\n"
        "CROPS, BATCH_SIZE = 1, 32\n",
    )
    assert "answers with 1000 classes" in printed
    assert "100 images, fp32, crops: 1" in printed

    photo = next((imagenet / "photos").rglob("*.JPEG"))
    printed = run(
        "imagenet_inference",
        f"from gluon_resnet import bundled\n{own}IMAGES = [{str(photo)!r}]\n",
    )
    assert "(1, 3, 224, 224) -> (1, 1000)" in printed
    assert "tench, goldfish" in printed
