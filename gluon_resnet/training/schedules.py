# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules: the share of the peak as a pure function of the epochs done.

A schedule takes (done, epochs, warmup): the epochs done so far, a fraction within an
epoch; those of the whole training; those of the warm-up, which is over. So any step's
rate is known without the ones before it, and a resumed training needs no state.

Where upstream projects differ by a step: mmengine and GluonCV reach the peak with the
last step of the warm-up, torch and this module with the one after it. GluonCV counts
steps from 1, so its first one is not at zero.
"""

import math


def linear_warmup(done: float, warmup: float, *, start: float = 0.0) -> float:
    """Rise from `start` to 1 within `warmup` epochs (arXiv:1706.02677, section 2.2)."""
    return start + (1 - start) * done / warmup


def cosine(
    done: float,
    epochs: int,
    warmup: float,
    *,
    low: float = 0.0,
    by_epoch: bool = False,
) -> float:
    """Fall from 1 after the warm-up to `low` at the end (arXiv:1608.03983, eq. 5).

    by_epoch: all steps of an epoch have the rate of its first one, as in OpenMMLab.
    """
    if by_epoch:
        done = max(math.floor(done), warmup)
    share = (done - warmup) / (epochs - warmup)
    return low + (1 - low) * (1 + math.cos(math.pi * share)) / 2


def step_decay(
    done: float,
    epochs: int,
    warmup: float,
    *,
    at: tuple[int, ...],
    factor: float = 0.1,
) -> float:
    """Multiply by `factor` after each of the epochs `at`, counted from the start.

    They stay where they are when a training is made longer or warmed up.
    """
    return factor ** sum(done >= milestone for milestone in at)
