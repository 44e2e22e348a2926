# SPDX-License-Identifier: Apache-2.0
"""Write timm.json: what timm's networks answer to drawn parameters and images.

In an environment of its own:

    pip install torch==2.13.0 numpy pyyaml huggingface_hub safetensors
    pip install --no-deps timm==1.0.31 torchvision==0.28.0
    python tests/golden/make_timm.py
"""

import json
from pathlib import Path

import cpu_torchvision  # noqa: F401
import timm
import torch
from draw import draw_images, draw_tensor, sample
from timm.models.resnest import ResNestBottleneck
from timm.models.resnet import ResNet

IMAGE_SHAPE = (2, 3, 65, 97)  # odd sides: pooling with and without ceil mode differ
SMALL_IMAGE_SHAPE = (2, 3, 32, 32)


def main() -> None:
    """Write one entry a model: layer name -> shape and sampled values."""
    goldens = {name: golden(net, IMAGE_SHAPE) for name, net in imagenet_nets()}
    goldens |= {name: golden(net, SMALL_IMAGE_SHAPE) for name, net in cifar_nets()}
    lines = [f"{json.dumps(name)}: {json.dumps(goldens[name])}" for name in goldens]
    path = Path(__file__).with_name("timm.json")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def imagenet_nets():
    """timm's nets by our name, and the authors' other fast ResNeSts."""
    for depth in (18, 34, 50, 101, 152):
        yield f"resnet{depth}_v1b", timm.create_model(f"resnet{depth}")
        for variant in "cds" if depth >= 50 else "d":
            theirs = f"resnet{depth}{variant}"
            yield f"resnet{depth}_v1{variant}", timm.create_model(theirs)
    for name in ("wide_resnet50_2", "wide_resnet101_2", *timm.list_models("resnest*")):
        yield name, timm.create_model(name)
    for radix, cardinality, width in (
        (1, 1, 64),
        (2, 1, 64),
        (4, 1, 64),
        (1, 2, 40),
        (2, 2, 40),
    ):
        yield (
            f"resnest50d_{radix}s{cardinality}x{width}d",
            ResNet(
                ResNestBottleneck,
                [3, 4, 6, 3],
                stem_type="deep",
                stem_width=32,
                avg_down=True,
                base_width=width,
                cardinality=cardinality,
                block_args={"radix": radix, "avd": True, "avd_first": True},
            ),
        )


def cifar_nets():
    """timm's ResNets with the stem of OpenMMLab's ResNet_CIFAR."""
    for depth in (18, 34, 50, 101, 152):
        net = timm.create_model(f"resnet{depth}", num_classes=10)
        net.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        net.maxpool = torch.nn.Identity()
        yield f"cifar_resnet{depth}", net


def golden(net: torch.nn.Module, image_shape: tuple[int, ...]) -> dict:
    """Sample the stem, each stage, the pooled vector and the logits."""
    net.load_state_dict(
        {
            key: torch.from_numpy(draw_tensor(key, tuple(value.shape)))
            for key, value in net.state_dict().items()
            if not key.endswith("num_batches_tracked")
        },
        strict=False,
    )
    net.eval()
    maps = {}
    names = {
        "maxpool": "stem",
        **{f"layer{i}": f"stage{i}" for i in range(1, 5)},
        "global_pool": "pooled",
        "fc": "logits",
    }
    for module, name in names.items():
        net.get_submodule(module).register_forward_hook(
            lambda module, inputs, output, name=name: maps.update({name: output})
        )
    with torch.inference_mode():
        net(torch.from_numpy(draw_images(image_shape)))
    return {
        name: {"shape": list(value.shape), "values": sample(value.numpy())}
        for name, value in maps.items()
    }


if __name__ == "__main__":
    main()
