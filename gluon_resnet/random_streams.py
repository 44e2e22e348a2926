# SPDX-License-Identifier: Apache-2.0
"""The random streams of a training: one seed, a stream of its own for each use.

What is drawn follows from the seed, the use and a position alone, so no state is kept:
a training that goes on from its middle draws what it would have drawn.

NumPy fills up short seeds with zeros: `default_rng((seed, 3))` is the same generator as
`default_rng((seed, 3, 0, 0))`. A spawn key is not filled up.
"""

from enum import IntEnum

import numpy as np


class Use(IntEnum):
    """What is drawn from a stream, and the position that it takes."""

    ORDER = 0
    """The order of an epoch's images: (epoch)."""
    AUGMENTATION = 1
    """Of one image: (epoch, key, copy)."""
    STEP = 2
    """Mixup, CutMix, dropout and all else within a step: (step)."""
    INITIALISATION = 3
    """Of fresh parameters: ()."""


def stream(seed: int, use: Use, *position: int) -> np.random.Generator:
    """Return the generator of a use at a position; all are whole numbers from 0."""
    key = (int(use), *position)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def mxnet_seed(generator: np.random.Generator) -> int:
    """Draw a seed for `mx.random.seed`, which takes 31 bits."""
    return int(generator.integers(2**31))
