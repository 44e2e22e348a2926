# SPDX-License-Identifier: Apache-2.0
"""What an exported network answers with: logits, and more on request."""

from collections.abc import Sequence
from typing import Any

from mxnet.gluon import HybridBlock

from gluon_resnet.errors import InputError
from gluon_resnet.models.features import MAP, POOLED, taps

LOGITS, PROBABILITIES, FEATURES, CAM = "logits", "probabilities", "features", "cam"


def available_outputs(net: HybridBlock) -> tuple[str, ...]:
    """Return the names of what `net` can answer with.

    "logits" and "probabilities": (N, classes); "features": what the classifier sees,
    (N, channels); "stage1", ...: maps (N, channels, h, w); "cam": class activation maps
    (N, classes, h, w), each class's evidence by place (`cam.class_activation`).
    """
    stages = (f"stage{index}" for index in range(1, len(net.spec.blocks) + 1))
    return (LOGITS, PROBABILITIES, FEATURES, *stages, CAM)


class Answers(HybridBlock):
    """A network that answers with several of its values.

    float32 images (N, C, H, W) -> a list of what `outputs` names, in that order.
    Raises InputError for an output that the network has not, twice the same, or none.
    """

    def __init__(self, net: HybridBlock, outputs: Sequence[str]):
        super().__init__(prefix="")  # whose names are the network's own
        available = available_outputs(net)
        for name in outputs:
            if name not in available:
                raise InputError(
                    f"{net.spec.name} has no output {name!r}; choose from "
                    f"{', '.join(available)}"
                )
        if not outputs or len(set(outputs)) < len(outputs):
            raise InputError(
                f"the outputs are {', '.join(outputs) or 'none'}; name one or more, "
                "each once"
            )
        self.net, self.outputs = net, tuple(outputs)
        self.fc_weight = net.fc.weight

    def _collect_params_with_prefix(self, prefix: str = "") -> dict:
        """Name the arrays as the network does: its files and its graph do so."""
        return self.net._collect_params_with_prefix(prefix)

    def hybrid_forward(self, F: Any, x: Any, fc_weight: Any) -> list:
        """Run layer by layer."""
        tapped = dict(taps(self.net, x))
        features, last_map = tapped.pop(POOLED), tapped.pop(MAP)
        logits = self.net.fc(features)  # a Dropout before it acts in training alone
        found = {f"stage{index}": value for index, value in tapped.items()}
        found |= {FEATURES: features, LOGITS: logits}
        if PROBABILITIES in self.outputs:
            found[PROBABILITIES] = F.softmax(logits, axis=1, name=PROBABILITIES)
        if CAM in self.outputs:
            kernel = F.reshape(fc_weight, shape=(0, 0, 1, 1), name=f"{CAM}_kernel")
            found[CAM] = F.Convolution(
                last_map,
                kernel,
                kernel=(1, 1),
                num_filter=self.net.fc.weight.shape[0],
                no_bias=True,
                name=CAM,
            )
        return [found[name] for name in self.outputs]
