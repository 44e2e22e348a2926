# SPDX-License-Identifier: Apache-2.0
"""Every net that timm has gives timm's values, layer by layer."""

import json
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from draw import draw_images, draw_tensor, sample

from gluon_resnet import create_model, extract_feat, list_models
from gluon_resnet.weights.layouts import torchvision

ANSWERS = json.loads(
    Path(__file__).with_name("golden").joinpath("timm.json").read_text()
)
REGENERATE = "python tests/golden/make_timm.py, see its docstring"
# Both sides sum in float32 in orders of their own; the issue is a wrong layer.
TOLERANCE = 1e-4


def test_goldens_cover_every_model_that_timm_can_build():
    ours = [
        name
        for pattern in ("*_v1[bcds]", "wide*", "resnest*", "cifar_resnet*[0-9]")
        for name in list_models(pattern)
        if not name.endswith(("_v1", "_v2"))
    ]
    assert set(ours) == set(ANSWERS), REGENERATE


@pytest.mark.parametrize("model", ANSWERS)
def test_layers_equal_timms(model):
    answers = ANSWERS[model]
    net = drawn(model)
    side = 32 if model.startswith("cifar") else (65, 97)
    images = mx.nd.array(draw_images((2, 3, *np.broadcast_to(side, 2))))
    maps = extract_feat(net, images)
    found = dict(zip(("stage1", "stage2", "stage3", "stage4", "pooled"), maps))
    found |= {"stem": net.stem(images), "logits": net(images)}
    for layer, answer in answers.items():
        ours = found[layer].asnumpy()
        assert list(ours.shape) == answer["shape"], layer
        *_, largest = answer["values"]
        error = np.abs(np.subtract(sample(ours), answer["values"])).max()
        assert error <= TOLERANCE * largest, f"{layer}: {error / largest}"

    net.hybridize(static_alloc=True, static_shape=True)
    np.testing.assert_allclose(
        net(images).asnumpy(),
        found["logits"].asnumpy(),
        atol=1e-5 * answers["logits"]["values"][-1],  # kernels differ by memory layout
        rtol=0,
    )


def drawn(model):
    """Build our net with the parameters that the torch key of each one draws."""
    net = create_model(model)
    parameters = net._collect_params_with_prefix()
    keys = torchvision(net.spec, list(parameters))
    for name, parameter in parameters.items():
        parameter.set_data(mx.nd.array(draw_tensor(keys[name], parameter.shape)))
    return net
