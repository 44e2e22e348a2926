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
from dataclasses import dataclass
from itertools import chain
from typing import Optional

import numpy as np

from gluon_resnet.errors import InputError
from gluon_resnet.preprocess import Protocol, preprocess, ten_crop
from gluon_resnet.random_streams import Use, stream

log = logging.getLogger(__name__)

Read = Callable[[int], tuple[int, np.ndarray]]
Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Batch = tuple[np.ndarray, np.ndarray]
OnDamaged = Callable[[InputError], None]

# Batches in preparation while one is in use.
AHEAD = 2


def _at_least(lowest: int, **values: int) -> None:
    for name, value in values.items():
        if value < lowest:
            raise InputError(f"{name} is {value}; it must be at least {lowest}")


@dataclass(frozen=True)
class Share:
    """The part of the images that one of several processes works on: its `rank`.

    Raises InputError for a rank that is not in 0, ..., world - 1.
    """

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        _at_least(1, world=self.world)
        if not 0 <= self.rank < self.world:
            raise InputError(
                f"rank is {self.rank} in a world of {self.world}: give a number from 0 "
                f"to {self.world - 1}"
            )

    def of(self, positions: range) -> range:
        """Return position `rank` of each `world` in a row."""
        return positions[self.rank :: self.world]


ALL = Share()


def refuse(error: InputError) -> None:
    """Stop at the first record that cannot be read."""
    raise error


class Skip:
    """Go on without the records that cannot be read, as long as they are few.

    The first are told in warnings, the others with -v. `count` have been left out of
    `num_images`; InputError, with the first, when they are more than `MOST` of these
    and more than one.
    """

    MOST = 0.01
    NAMED = 3

    def __init__(self, num_images: int, *, count: int = 0):
        self.num_images, self.count = num_images, count
        self.first: list[str] = []

    def __call__(self, error: InputError) -> None:
        """Take note of a record that cannot be read."""
        self.count += 1
        is_named = len(self.first) < self.NAMED
        log.log(logging.WARNING if is_named else logging.INFO, "left out: %s", error)
        if is_named:
            self.first.append(str(error))
        if self.count > max(1, self.MOST * self.num_images):
            raise InputError(
                f"{self.count} damaged records in {self.num_images} images are more "
                f"than the {self.MOST:.0%} that are left out, the first: "
                f"{' | '.join(self.first)}"
            )


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
    share: Share = ALL,
    workers: Optional[int] = None,
    on_damaged: OnDamaged = refuse,
) -> "Batches":
    """One epoch of permuted and augmented images, in whole batches only.

    read: gives label and uint8 RGB image (H, W, 3) of a key, from any thread:
        `RecordFile.read` or `decoded_once`.
    transforms: done one after the other (see augment.py).
    protocol: how the images that they end with are prepared. With a crop_pct of 1 it
        leaves those of its own size as they are, but for the normalisation.
    repeats: so many differently augmented copies of an image stand side by side, and
        the epoch, no longer for it, ends early: repeated augmentation as in DeiT.
    start_batch: the batches before it are left out, without reading them.
    share: this process' images. The batches with the same number in all processes are,
        together, the one batch of a single process.
    workers: threads; 0 for none, by default one per core.
    on_damaged: called with the error of each record that cannot be read; `refuse`, or
        an object of `Skip`. If it returns, the next image of the epoch takes the place
        (as in timm), so that all batches have their full size.

    The order follows from (seed, epoch), what is drawn for an image from (seed, epoch,
    key, copy); neither from the rest. Raises InputError for an argument out of range.
    """
    order = permutation(keys, seed=seed, epoch=epoch)

    def prepare(position: int) -> tuple[int, np.ndarray]:
        key, copy = int(order[position // repeats]), position % repeats
        label, image = read(key)
        rng = stream(seed, Use.AUGMENTATION, epoch, key, copy)
        for transform in transforms:
            image = transform(image, rng)
        return label, preprocess(image, protocol)

    def next_whole(position: int) -> tuple[int, np.ndarray]:
        for other in chain(range(position + 1, len(order)), range(position)):
            try:
                return prepare(other)
            except InputError:  # told in its own place
                continue
        raise InputError("no record can be read: write the file again")

    def replace_damaged(batch: Batch, positions: range, damaged: list[int]) -> Batch:
        images, labels = batch
        for index in damaged:
            labels[index], images[index] = next_whole(positions[index])
        return batch

    _at_least(1, batch_size=batch_size, repeats=repeats)
    count = steps_per_epoch(len(order), batch_size, share)
    if not count:
        raise InputError(
            f"{len(order)} images fill no batch of {batch_size} in each of "
            f"{share.world} processes: lower the batch size or give more images"
        )
    step = share.world * batch_size
    return _batches(
        [share.of(range(step * index, step * (index + 1))) for index in range(count)],
        prepare,
        (3, protocol.size, protocol.size),
        start_batch=start_batch,
        workers=workers,
        on_damaged=on_damaged,
        mend=replace_damaged,
    )


def validation_batches(
    keys: Sequence[int],
    read: Read,
    *,
    batch_size: int,
    protocol: Protocol,
    crops: int = 1,
    start_batch: int = 0,
    share: Share = ALL,
    workers: Optional[int] = None,
    on_damaged: OnDamaged = refuse,
) -> "Batches":
    """Every image once, in the order of `keys`, prepared by `protocol`.

    crops: 1, the centre, or 10, `ten_crop`'s: images are (N, 10, 3, size, size) then.
    The last batch may be smaller, shares may differ by an image, and a batch goes
    without a record that cannot be read where `on_damaged` returns. The rest is as in
    `training_batches`.
    """
    prepare_image = ten_crop if crops == 10 else preprocess

    def prepare(position: int) -> tuple[int, np.ndarray]:
        label, image = read(keys[position])
        return label, prepare_image(image, protocol)

    def leave_out(batch: Batch, positions: range, damaged: list[int]) -> Batch:
        images, labels = batch
        return np.delete(images, damaged, axis=0), np.delete(labels, damaged)

    if crops not in (1, 10):
        raise InputError(f"crops is {crops}; use 1 (the centre) or 10")
    _at_least(1, batch_size=batch_size)
    mine = share.of(range(len(keys)))
    shape = (3, protocol.size, protocol.size)
    return _batches(
        [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)],
        prepare,
        shape if crops == 1 else (crops, *shape),
        start_batch=start_batch,
        workers=workers,
        on_damaged=on_damaged,
        mend=leave_out,
    )


def permutation(keys: Sequence[int], *, seed: int, epoch: int) -> np.ndarray:
    """All keys, each once, in an order that `seed` and `epoch` alone decide."""
    return stream(seed, Use.ORDER, epoch).permutation(np.array(keys))


def steps_per_epoch(num_images: int, batch_size: int, share: Share = ALL) -> int:
    """How many batches `training_batches` gives: whole ones only."""
    return num_images // (share.world * batch_size)


@dataclass(frozen=True)
class Batches:
    """An iterable of images, float32 (N, *shape), and labels, int64 (N,).

    Each pass starts anew; one that is broken off, by an error or Ctrl-C, too, stops its
    threads. `positions` are the places in the epoch of each batch's images, `prepare`
    gives label and image of a place.

    A record that cannot be read is an InputError. They go to `on_damaged` in the order
    of their places; then `mend` gives the batch without them, for the batch, its
    positions and the damaged ones' indices in it. An empty batch is left out.
    """

    positions: Sequence[range]
    prepare: Callable[[int], tuple[int, np.ndarray]]
    shape: tuple[int, ...]
    workers: int
    on_damaged: OnDamaged
    mend: Callable[[Batch, range, list[int]], Batch]

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(max(1, self.workers))
        ahead, submit = (AHEAD, pool.submit) if self.workers else (0, _run_now)
        begun: deque[tuple[range, Batch, list[Future]]] = deque()
        try:
            for positions in self.positions:
                begun.append((positions, *self._begin(positions, submit)))
                if len(begun) > ahead:
                    yield from self._end(*begun.popleft())
            while begun:
                yield from self._end(*begun.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _begin(
        self, positions: range, submit: Callable[..., Future]
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

    def _end(
        self, positions: range, batch: Batch, fillings: list[Future]
    ) -> Iterator[Batch]:
        """The batch once it is filled, without the records that cannot be read."""
        errors: dict[int, InputError] = {}
        for filling in fillings:
            errors.update(filling.result())
        damaged = sorted(errors)
        for index in damaged:
            self.on_damaged(errors[index])
        if damaged:
            batch = self.mend(batch, positions, damaged)
        if len(batch[1]):
            yield batch


def _run_now(function: Callable[[range], dict], indices: range) -> Future:
    future: Future = Future()
    future.set_result(function(indices))
    return future


def _batches(
    positions: Sequence[range],
    prepare: Callable[[int], tuple[int, np.ndarray]],
    shape: tuple[int, ...],
    *,
    start_batch: int,
    workers: Optional[int],
    on_damaged: OnDamaged,
    mend: Callable[[Batch, range, list[int]], Batch],
) -> Batches:
    """Check what both functions take alike and leave out what was done before."""
    workers = _cores() if workers is None else workers
    _at_least(0, workers=workers)
    if not 0 <= start_batch <= len(positions):
        raise InputError(
            f"start_batch is {start_batch}, but there are {len(positions)} batches: "
            f"give a number from 0 to {len(positions)}"
        )
    return Batches(positions[start_batch:], prepare, shape, workers, on_damaged, mend)


def _cores() -> int:
    """Those that this process may use, where Linux tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
