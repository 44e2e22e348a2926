# SPDX-License-Identifier: Apache-2.0
"""The table of models: the only list of their own names; `names` has all others.

Depths, widths and variants: arXiv:1512.03385 (v1), arXiv:1603.05027 (v2),
arXiv:1605.07146 (wide), arXiv:1812.01187 (c, d), arXiv:2004.08955 (ResNeSt). "v1b" is
torchvision's stride on the 3x3; "s" is GluonCV's wide deep stem.
"""

import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from gluon_resnet.errors import InputError
from gluon_resnet.models import blocks, stems
from gluon_resnet.models.names import ALIASES, aliases_of, resolve
from gluon_resnet.nearest import nearest

_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
_BASIC_CHANNELS = (64, 128, 256, 512)
_BOTTLENECK_CHANNELS = (256, 512, 1024, 2048)


@dataclass(frozen=True)
class ModelSpec:
    """One row of the table: a network as its parts."""

    name: str
    family: str
    """v1, v1b, v1c, v1d, v1s, v2, wide, cifar, cifar_v1, cifar_v2 or resnest."""
    stem: Callable
    block: Callable
    blocks: tuple[int, ...]
    """Blocks of each stage; the first keeps the resolution, the others halve it."""
    channels: tuple[int, ...]
    """Output channels of each stage."""
    preactivated: bool = False
    """Whether BN and ReLU follow the last stage (v2)."""
    size: int = 224
    """Side of the square test image in pixels."""
    num_classes: int = 1000

    @property
    def aliases(self) -> tuple[str, ...]:
        """What other projects call the network or its weights."""
        return tuple(aliases_of(self.name))


def _imagenet_family(
    name, family, stem, basic, bottleneck, depths, **fields
) -> Iterator[ModelSpec]:
    """Rows of one family by depth, which is {} in `name`."""
    for depth in depths:
        is_basic = depth < 50
        yield ModelSpec(
            name.format(depth),
            family,
            stem,
            basic if is_basic else bottleneck,
            _BLOCKS[depth],
            _BASIC_CHANNELS if is_basic else _BOTTLENECK_CHANNELS,
            **fields,
        )


def _cifar_family(name, family, stem, block, **fields) -> Iterator[ModelSpec]:
    """He et al.'s CIFAR nets, depth 6n + 2 (arXiv:1512.03385, section 4.2)."""
    for depth in (20, 56, 110):
        yield ModelSpec(
            name.format(depth),
            family,
            stem,
            block,
            ((depth - 2) // 6,) * 3,
            (16, 32, 64),
            size=32,
            num_classes=10,
            **fields,
        )


def _resnest(name, stage_blocks, *, stem_width=32, size=224, **block_fields):
    """One ResNeSt row: deep stem, average-pool shortcuts, split attention."""
    return ModelSpec(
        name,
        "resnest",
        partial(stems.deep_stem, width=stem_width),
        partial(blocks.split_attention_bottleneck, **block_fields),
        stage_blocks,
        _BOTTLENECK_CHANNELS,
        size=size,
    )


def _fast_resnest(radix, cardinality, base_width):
    """The authors' "fast" ablation: pooling before the attention (their table 3)."""
    variant = f"{radix}s{cardinality}x{base_width}d"
    return _resnest(
        f"resnest50d_{variant}",
        _BLOCKS[50],
        radix=radix,
        cardinality=cardinality,
        base_width=base_width,
        pool_first=True,
    )


_ALL, _DEEP = (18, 34, 50, 101, 152), (50, 101, 152)
_BASIC_D = partial(blocks.basic, shortcut=blocks.pool_shortcut)
_BOTTLENECK_D = partial(blocks.bottleneck, shortcut=blocks.pool_shortcut)
_WIDE = partial(blocks.bottleneck, expansion=2)
_WIDE_STEM = partial(stems.deep_stem, width=64)

_ROWS = (
    *_imagenet_family(
        "resnet{}_v1",
        "v1",
        stems.imagenet_stem,
        blocks.basic,
        blocks.bottleneck_v1,
        _ALL,
    ),
    *_imagenet_family(
        "resnet{}_v1b",
        "v1b",
        stems.imagenet_stem,
        blocks.basic,
        blocks.bottleneck,
        _ALL,
    ),
    *_imagenet_family(
        "resnet{}_v1c",
        "v1c",
        stems.deep_stem,
        None,
        blocks.bottleneck,
        _DEEP,
    ),
    *_imagenet_family(
        "resnet{}_v1d",
        "v1d",
        stems.deep_stem,
        _BASIC_D,
        _BOTTLENECK_D,
        _ALL,
    ),
    *_imagenet_family(
        "resnet{}_v1s",
        "v1s",
        _WIDE_STEM,
        None,
        blocks.bottleneck,
        _DEEP,
    ),
    *_imagenet_family(
        "resnet{}_v2",
        "v2",
        stems.input_norm_stem,
        blocks.basic_v2,
        blocks.bottleneck_v2,
        _ALL,
        preactivated=True,
    ),
    *_imagenet_family(
        "wide_resnet{}_2",
        "wide",
        stems.imagenet_stem,
        None,
        _WIDE,
        (50, 101),
    ),
    *_imagenet_family(
        "cifar_resnet{}",
        "cifar",
        stems.small_stem,
        blocks.basic,
        blocks.bottleneck,
        _ALL,
        size=32,
        num_classes=10,
    ),
    *_cifar_family("cifar_resnet{}_v1", "cifar_v1", stems.cifar_v1_stem, blocks.basic),
    *_cifar_family(
        "cifar_resnet{}_v2",
        "cifar_v2",
        stems.cifar_v2_stem,
        blocks.cifar_basic_v2,
        preactivated=True,
    ),
    _resnest("resnest14d", (1, 1, 1, 1)),
    _resnest("resnest26d", (2, 2, 2, 2)),
    _resnest("resnest50d", (3, 4, 6, 3)),
    _resnest("resnest101e", (3, 4, 23, 3), stem_width=64, size=256),
    _resnest("resnest200e", (3, 24, 36, 3), stem_width=64, size=320),
    _resnest("resnest269e", (3, 30, 48, 8), stem_width=64, size=416),
    _fast_resnest(1, 4, 24),
    _fast_resnest(4, 2, 40),
    _fast_resnest(1, 1, 64),
    _fast_resnest(2, 1, 64),
    _fast_resnest(4, 1, 64),
    _fast_resnest(1, 2, 40),
    _fast_resnest(2, 2, 40),
)

CATALOG = {spec.name: spec for spec in _ROWS}


def list_models(pattern: str = "*") -> list[str]:
    """Return the models whose name or alias `pattern` finds, in the table's order.

    pattern: a part of the name, as in "resnet50", or with wildcards, as in "resnest*",
    a shell pattern of all of it; in any case.
    Raises InputError with the nearest names where nothing is found.
    """
    text = pattern.lower()
    shell = text if any(c in text for c in "*?[") else f"*{text}*"
    found = [
        spec.name
        for spec in _ROWS
        if any(fnmatch.fnmatchcase(n, shell) for n in (spec.name, *spec.aliases))
    ]
    if not found:
        raise InputError(f"no model matches {pattern!r}; {_nearest(text)}")
    return found


def model_spec(name: str) -> ModelSpec:
    """Return the row of a model name or of one of its aliases, in any case.

    A tag in the name, or the one that the alias has, is not looked at: MODEL.TAG is
    MODEL's network.
    Raises InputError with the nearest names where there is no such model, and with the
    reason for weights that are known and cannot be loaded.
    """
    model, _ = resolve(name)
    if model not in CATALOG:
        raise InputError(f"unknown model {model!r}; {_nearest(model)}")
    return CATALOG[model]


def _nearest(text: str) -> str:
    found = nearest(text, [*CATALOG, *ALIASES])
    return f"{found}; `python -m gluon_resnet.models` lists all names"
