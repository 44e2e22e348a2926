# SPDX-License-Identifier: Apache-2.0
"""No two uses of a seed draw the same numbers."""

from itertools import product

import numpy as np

from gluon_resnet.random_streams import Use, mxnet_seed, stream


def first(*arguments):
    return tuple(stream(*arguments).integers(2**63, size=4).tolist())


def test_stream_follows_from_seed_use_and_position():
    assert first(3, Use.STEP, 7) == first(3, Use.STEP, 7)


def test_streams_differ_in_seed_use_position_and_length():
    positions = [(), (0,), (1,), (0, 0), (0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0)]
    keys = list(product(range(3), Use, positions))
    assert len({first(seed, use, *position) for seed, use, position in keys}) == len(
        keys
    )


def test_numpy_alone_gives_two_positions_one_stream():
    """The reason for the module."""
    one, other = (np.random.default_rng(key).random() for key in ((5, 3), (5, 3, 0, 0)))
    assert one == other
    assert first(5, Use.ORDER, 3) != first(5, Use.AUGMENTATION, 3, 0, 0)


def test_keys_beyond_32_bits_have_streams_of_their_own():
    keys = [0, 1, 2**32, 2**32 + 1, 2**63]
    assert len({first(0, Use.AUGMENTATION, 0, key, 0) for key in keys}) == len(keys)


def test_seed_of_mxnet_is_never_negative_there():
    draws = [mxnet_seed(stream(0, Use.STEP, step)) for step in range(1000)]
    assert 0 <= min(draws) and max(draws) < 2**31
    assert len(set(draws)) == 1000
