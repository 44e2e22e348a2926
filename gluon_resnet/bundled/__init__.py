# SPDX-License-Identifier: Apache-2.0
"""The data and the checkpoint that come with the package; README.md describes them."""

from pathlib import Path

FOLDER = Path(__file__).parent
IMAGES = FOLDER / "images"
TRAIN_REC = FOLDER / "fashion_mnist_train.rec"
VAL_REC = FOLDER / "fashion_mnist_val.rec"

MODEL = "cifar_resnet20_v1"
NAME = f"{MODEL}.fashion_mnist"


def weights() -> Path:
    """Return the file of the checkpoint."""
    return next(FOLDER.glob(f"{NAME}-*.params"))
