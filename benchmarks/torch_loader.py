# SPDX-License-Identifier: Apache-2.0
"""The PyTorch side of data_pipeline.py: a DataLoader with Pillow and torchvision.

Its arguments are a folder of JPEG files, the batch size and the number of workers. For
each line "evaluation" or "training" on standard input it goes once over the images and
answers with the seconds that took. At first it writes the images after the evaluation
transform to evaluation.npy in the folder, and says "ready".
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

# torchvision's wheel on PyPI is built for CUDA; beside a CPU build of torch it misses
# operators whose shapes it declares when it is imported.
if torch.version.cuda is None:
    for name in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{name}", "(Tensor boxes, Tensor scores, float iou) -> Tensor"
        )

from torchvision import transforms

NORMALISE = [
    transforms.ToTensor(),
    transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
]
TRANSFORMS = {
    "evaluation": [transforms.Resize(256), transforms.CenterCrop(224)],
    "training": [
        transforms.RandomResizedCrop(224),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(0.4, 0.4, 0.4),
    ],
}


class Folder(Dataset):
    """JPEG files in the order of their names."""

    def __init__(self, folder, steps):
        self.paths = sorted(folder.glob("*.jpg"))
        self.transform = transforms.Compose([*steps, *NORMALISE])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        """The image, float32 (3, 224, 224)."""
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


def main(folder, batch_size, num_workers):
    """Answer until standard input ends."""
    torch.set_num_threads(1)
    loaders = {
        kind: DataLoader(
            Folder(folder, steps),
            batch_size=batch_size,
            shuffle=kind == "training",
            num_workers=num_workers,
            persistent_workers=True,
        )
        for kind, steps in TRANSFORMS.items()
    }
    batches = [batch.numpy() for batch in loaders["evaluation"]]
    np.save(folder / "evaluation.npy", np.concatenate(batches))
    print("ready", flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        for _ in loaders[line.strip()]:
            pass
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
