# SPDX-License-Identifier: Apache-2.0
"""The small matrices of Winograd's convolution F(m x m, 3 x 3).

A tile of m x m outputs depends on n x n inputs, n = m + 2. Directly it takes 9 m m
multiplications for each pair of an input and an output channel, by

    Y = A' [ (G g G') * (B' d B) ] A

only n n: d are the inputs, g the 3 x 3 weights, ' is the transpose, and * multiplies
element by element and sums over the input channels (A. Lavin and S. Gray, Fast
Algorithms for Convolutional Neural Networks, arXiv:1509.09308).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod, sqrt
from typing import Any

import numpy as np

_TAPS = 3


@dataclass(frozen=True)
class Tile:
    """F(m x m, 3 x 3) with its n points: 0, pairs of p and -p, and infinity."""

    pairs: tuple[float, ...]
    """The p of each pair."""

    @property
    def points(self) -> int:
        """n, the side of a tile's inputs."""
        return 2 + 2 * len(self.pairs)

    @property
    def outputs(self) -> int:
        """m, the side of a tile's outputs."""
        return self.points - _TAPS + 1

    @property
    def name(self) -> str:
        """Such as F(4x4,3x3)."""
        return f"F({self.outputs}x{self.outputs},3x3)"

    def count(self, height: int, width: int) -> int:
        """Return how many tiles cover a map."""
        return -(-height // self.outputs) * -(-width // self.outputs)

    @property
    def input(self) -> np.ndarray:
        """B' (n, n), float64."""
        return self._matrices[0]

    @property
    def weights(self) -> np.ndarray:
        """G (n, 3), float64."""
        return self._matrices[1]

    @property
    def output(self) -> np.ndarray:
        """A' (m, n), float64."""
        return self._matrices[2]

    @cached_property
    def _matrices(self) -> tuple[np.ndarray, ...]:
        finite = [0.0, *(sign * p for p in self.pairs for sign in (1, -1))]
        return tuple(np.array(rows) for rows in matrices(finite, 1.0))


def matrices(finite: Sequence[Any], one: Any) -> tuple[list, list, list]:
    """Return the rows of B', G and A' for the points `finite` and infinity.

    By Toom and Cook: a polynomial with n coefficients is known by its values at n
    points, where that at infinity is the coefficient of the highest power. The product
    of two polynomials has the products of their values, and Lagrange's interpolation
    leads back. To convolve as networks do is the transpose of that: what interpolates
    transforms the inputs here, and what evaluates gathers the outputs.

    finite: n - 1 different points, in any numbers that can be added, multiplied and
    divided. one: 1 among these numbers.
    """
    zero = one - one
    n = len(finite) + 1
    others = [[q for q in finite if q is not p] for p in finite]
    scales = [prod((p - q for q in rest), start=one) for p, rest in zip(finite, others)]
    # Of each point the polynomial that is 0 at the others; of infinity at all.
    input_ = [[*_from_roots(rest, one), zero] for rest in others]
    input_.append(_from_roots(finite, one))
    weights = [
        [power / scale for power in _powers(p, _TAPS, one)]
        for p, scale in zip(finite, scales)
    ]
    weights.append([zero, zero, one])
    m = n - _TAPS + 1
    columns = [_powers(p, m, one) for p in finite]
    columns.append([*[zero] * (m - 1), one])
    return input_, weights, [list(row) for row in zip(*columns)]


def _from_roots(roots: Iterable[Any], one: Any) -> list:
    """The coefficients of the product of all (x - root), the lowest power first."""
    zero = one - one
    product = [one]
    for root in roots:
        product = [
            lower - root * same
            for lower, same in zip([zero, *product], [*product, zero])
        ]
    return product


def _powers(p: Any, count: int, one: Any) -> list:
    """The first powers of p: 1, p, p * p, ..."""
    powers = [one]
    while len(powers) < count:
        powers.append(powers[-1] * p)
    return powers


F2 = Tile(pairs=(1.0,))
"""Its input and output transforms only add: exact enough for bfloat16."""
F4 = Tile(pairs=(sqrt(1 / 2), sqrt(2)))
"""The points have powers near 1, which lose few digits: with 0, 1, -1, 2, -2, as Lavin
and Gray have them, the error is twice as large. As the product of the pairs is 1, so
are many coefficients."""
