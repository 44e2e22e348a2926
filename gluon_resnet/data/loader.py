# SPDX-License-Identifier: Apache-2.0
"""Batches of prepared images, byte for byte the same with any number of workers.

Workers are threads: most of an image's time goes to Pillow, OpenCV and NumPy, which let
other threads run meanwhile. So nothing is pickled, no memory is shared between
processes and none is left behind, and MXNet, whose threads do not survive it, is never
forked.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Optional

import numpy as np

from gluon_resnet.errors import InputError
from gluon_resnet.preprocess import Protocol, preprocess, ten_crop

log = logging.getLogger(__name__)

Read = Callable[[int], tuple[int, np.ndarray]]
Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Batch = tuple[np.ndarray, np.ndarray]

# Batches in preparation while one is in use.
AHEAD = 2


def training_batches(
    keys: Sequence[int],
    read: Read,
    *,
    batch_size: int,
    protocol: Protocol,
    transforms: Sequence[Transform],
    seed: int,
    epoch: int,
    repeats: int = 1,
    start_batch: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: Optional[int] = None,
    on_damaged: str = "raise",
) -> "Batches":
    """One epoch of permuted and augmented images, in whole batches only.

    read: gives label and uint8 RGB image (H, W, 3) of a key, from any thread:
        `RecordFile.read` or `in_memory`.
    transforms: done one after the other (see augment.py); the images they end with
        are fitted to protocol.size, without a crop, and normalised.
    repeats: so many differently augmented copies of an image stand side by side, and
        the epoch, no longer for it, ends early: repeated augmentation as in DeiT.
    start_batch: the batches before it are left out, without reading them.
    rank, world: take image `rank` of each `world` in a row. The batches with the same
        number in all ranks are, together, the one batch of a single rank.
    workers: threads; 0 for none, by default one per core.
    on_damaged: "raise" or "skip"; see `Batches`.

    The order follows from (seed, epoch), what is drawn for an image from (seed, epoch,
    key, copy); neither from the rest. Raises InputError for an argument out of range.
    """
    order = permutation(keys, seed=seed, epoch=epoch)
    step = world * batch_size
    fields = asdict(replace(protocol, crop_pct=1))

    def prepare(position: int) -> tuple[int, np.ndarray]:
        key, copy = int(order[position // repeats]), position % repeats
        label, image = read(key)
        rng = np.random.default_rng((seed, epoch, key, copy))
        for transform in transforms:
            image = transform(image, rng)
        return label, preprocess(image, **fields)

    _at_least(1, batch_size=batch_size, repeats=repeats)
    _check_share(rank=rank, world=world)
    if len(order) < step:
        raise InputError(
            f"{len(order)} images fill no batch of {batch_size} in each of {world} "
            "processes: lower the batch size or give more images"
        )
    positions = [
        range(start + rank, start + step, world)
        for start in range(0, len(order) - step + 1, step)
    ]
    return _batches(
        positions,
        prepare,
        (3, protocol.size, protocol.size),
        start_batch=start_batch,
        workers=workers,
        on_damaged=on_damaged,
    )


def validation_batches(
    keys: Sequence[int],
    read: Read,
    *,
    batch_size: int,
    protocol: Protocol,
    crops: int = 1,
    start_batch: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: Optional[int] = None,
    on_damaged: str = "raise",
) -> "Batches":
    """Every image once, in the order of `keys`, prepared by `protocol`.

    crops: 1, the centre, or 10, `ten_crop`'s: images are (N, 10, 3, size, size) then.
    The last batch may be smaller, and ranks may differ by an image. The rest is as in
    `training_batches`.
    """
    fields = asdict(protocol)
    prepare_image = ten_crop if crops == 10 else preprocess

    def prepare(position: int) -> tuple[int, np.ndarray]:
        label, image = read(keys[position])
        return label, prepare_image(image, **fields)

    if crops not in (1, 10):
        raise InputError(f"crops is {crops}; use 1 (the centre) or 10")
    _at_least(1, batch_size=batch_size)
    _check_share(rank=rank, world=world)
    mine = range(rank, len(keys), world)
    positions = [
        mine[start : start + batch_size] for start in range(0, len(mine), batch_size)
    ]
    shape = (3, protocol.size, protocol.size)
    return _batches(
        positions,
        prepare,
        shape if crops == 1 else (crops, *shape),
        start_batch=start_batch,
        workers=workers,
        on_damaged=on_damaged,
    )


def permutation(keys: Sequence[int], *, seed: int, epoch: int) -> np.ndarray:
    """All keys, each once, in an order that `seed` and `epoch` alone decide."""
    return np.random.default_rng((seed, epoch)).permutation(np.array(keys))


@dataclass(frozen=True)
class Batches:
    """An iterable of images, float32 (N, *shape), and labels, int64 (N,).

    Each pass starts anew; one that is broken off, by an error or Ctrl-C, too, stops its
    threads. `positions` are the places in the epoch of each batch's images, `prepare`
    gives label and image of a place.

    A record that cannot be read is an InputError: that of the first one in the batch.
    With on_damaged="skip" a batch goes without it (and is left out once it is empty);
    a warning is logged and the message kept in `skipped` until the next pass.
    """

    positions: Sequence[Sequence[int]]
    prepare: Callable[[int], tuple[int, np.ndarray]]
    shape: tuple[int, ...]
    workers: int
    on_damaged: str
    # Not the errors themselves: their tracebacks would keep the batches in memory.
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[Batch]:
        self.skipped.clear()
        pool = ThreadPoolExecutor(max(1, self.workers))
        ahead, submit = (AHEAD, pool.submit) if self.workers else (0, _run_now)
        begun = deque()
        try:
            for positions in self.positions:
                begun.append(self._begin(positions, submit))
                if len(begun) > ahead:
                    yield from self._end(*begun.popleft())
            while begun:
                yield from self._end(*begun.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _begin(
        self, positions: Sequence[int], submit: Callable[..., Future]
    ) -> tuple[Batch, list[Future]]:
        """An empty batch, and the workers that fill it in."""
        count = len(positions)
        images = np.empty((count, *self.shape), np.float32)
        labels = np.empty(count, np.int64)

        def fill(indices: range) -> dict[int, InputError]:
            errors = {}
            for index in indices:
                try:
                    labels[index], images[index] = self.prepare(positions[index])
                except InputError as error:
                    errors[index] = error
            return errors

        step = max(1, self.workers)
        return (images, labels), [
            submit(fill, range(first, count, step)) for first in range(step)
        ]

    def _end(self, batch: Batch, fillings: list[Future]) -> Iterator[Batch]:
        """The batch once it is filled, without the records that cannot be read."""
        errors = {}
        for filling in fillings:
            errors.update(filling.result())
        for index in sorted(errors):
            if self.on_damaged == "raise":
                raise errors[index]
            log.warning("left out: %s", errors[index])
            self.skipped.append(str(errors[index]))
        if errors:
            batch = tuple(np.delete(array, list(errors), axis=0) for array in batch)
        if len(batch[1]):
            yield batch


def _run_now(function: Callable[[range], dict], indices: range) -> Future:
    future = Future()
    future.set_result(function(indices))
    return future


def _batches(
    positions: Sequence[Sequence[int]],
    prepare: Callable[[int], tuple[int, np.ndarray]],
    shape: tuple[int, ...],
    *,
    start_batch: int,
    workers: Optional[int],
    on_damaged: str,
) -> Batches:
    """Check what both functions take alike and leave out what was done before."""
    workers = (os.cpu_count() or 1) if workers is None else workers
    _at_least(0, workers=workers)
    if not 0 <= start_batch <= len(positions):
        raise InputError(
            f"start_batch is {start_batch}, but there are {len(positions)} batches: "
            f"give a number from 0 to {len(positions)}"
        )
    if on_damaged not in ("raise", "skip"):
        raise InputError(f"on_damaged {on_damaged!r} is unknown; use raise or skip")
    return Batches(positions[start_batch:], prepare, shape, workers, on_damaged)


def _check_share(*, rank: int, world: int) -> None:
    _at_least(1, world=world)
    if not 0 <= rank < world:
        raise InputError(
            f"rank is {rank} in a world of {world}: give a number from 0 to {world - 1}"
        )


def _at_least(lowest: int, **values: int) -> None:
    for name, value in values.items():
        if value < lowest:
            raise InputError(f"{name} is {value}; it must be at least {lowest}")
