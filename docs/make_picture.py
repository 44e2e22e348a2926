# SPDX-License-Identifier: Apache-2.0
"""Draw docs/images/answers.png: `python docs/make_picture.py`.

Above the sample images, below the evidence for each answer over the image.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gluon_resnet import bundled, init_model, preprocess_batch  # noqa: E402
from gluon_resnet.cam import class_activation, save_overlay  # noqa: E402
from gluon_resnet.models import last_map  # noqa: E402
from gluon_resnet.postprocess import postprocess  # noqa: E402

FOLDER = ROOT / "docs" / "images"


def main() -> None:
    """Classify, draw, and leave one file."""
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    model = init_model(bundled.NAME)
    paths = sorted(bundled.IMAGES.glob("*.png"))
    images = preprocess_batch(paths, model.protocol)
    maps = last_map(model.net, model.to_device(images)).asnumpy()
    weights = model.net.fc.weight.data().asnumpy()
    answers = postprocess(model(images), 1, class_names=model.class_names)

    figure = Figure(figsize=(10, 2.6), dpi=80, layout="constrained")
    axes = figure.subplots(2, len(paths))
    for column, (path, ((label, name, probability),)) in enumerate(zip(paths, answers)):
        overlay = FOLDER / f".{path.name}"
        activation = class_activation(maps[column], weights[label])
        save_overlay(overlay, images[column], activation, model.protocol)
        axes[0, column].imshow(imread(path), cmap="gray")
        axes[0, column].set_title(f"{name}\n{probability:.0%}", fontsize=9)
        axes[1, column].imshow(imread(overlay))
        overlay.unlink()
    for axis in axes.flat:
        axis.axis("off")
    # Without the version and the date that Matplotlib would note.
    figure.savefig(FOLDER / "answers.png", metadata={"Software": None})


if __name__ == "__main__":
    main()
