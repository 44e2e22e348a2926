# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training run, complete and atomic, and Ctrl-C between two steps.

A checkpoint is a zip file, OUT/step-NNNNNNNN.npz: state.json and an array a member, as
numpy.savez writes them. Zip has a CRC-32 for each member and its table of contents at
the end, so one that was cut short or changed is found out. The newest two are kept.
"""

import json
import logging
import os
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Optional

import numpy as np

from gluon_resnet.data.loader import steps_per_epoch
from gluon_resnet.errors import InputError
from gluon_resnet.files import replacing

log = logging.getLogger(__name__)

# What a recipe says of itself; it decides nothing.
_REMARKS = ("source", "published_top1")


@dataclass(frozen=True)
class RunState:
    """Where a run stands between two steps, all but the arrays.

    There is no random state in it: what is drawn follows from the recipe's seed and
    the position.
    """

    recipe: dict
    """As `recipe.described` gives it."""
    num_images: int
    """Of the training file."""
    versions: dict[str, str]
    epoch: int = 0
    """Epochs that are finished, validation included."""
    batch: int = 0
    """Batches that are done since."""
    loss_sum: float = 0.0
    """Of these batches."""
    history: tuple[dict, ...] = ()
    """The log's entries of the finished epochs."""

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of the training file."""
        return steps_per_epoch(self.num_images, self.recipe["batch_size"])

    @property
    def steps(self) -> int:
        """Steps that are done."""
        return self.epoch * self.steps_per_epoch + self.batch

    def after_epoch(self, entry: dict) -> "RunState":
        """The state at the begin of the next epoch."""
        return replace(
            self,
            epoch=self.epoch + 1,
            batch=0,
            loss_sum=0.0,
            history=(*self.history, entry),
        )


def checkpoints(out: Path) -> list[Path]:
    """Return the checkpoints in a folder, the oldest first."""
    return sorted(out.glob("step-*.npz"))


def save_state(out: Path, state: RunState, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write a checkpoint and, once it is on the disk, drop all but the newest two.

    Raises InputError where it cannot be written or a value is not finite, which no
    later step would mend; the older ones then stay.
    """
    path = out / f"step-{state.steps:08d}.npz"
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise InputError(
                f"{name} is not finite after step {state.steps}: lower the learning "
                f"rate; {newest_kept(out)}"
            )
    try:
        with replacing(path) as part, part.open("wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("state.json", json.dumps(asdict(state), indent=1))
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; mend that and go on with "
            f"--resume; {newest_kept(out)}"
        ) from None
    for older in checkpoints(out)[:-2]:
        older.unlink()
    return path


def load_state(out: Path) -> Optional[tuple[RunState, dict[str, np.ndarray]]]:
    """Read the newest whole checkpoint; None where there is no checkpoint.

    A warning tells each that is damaged. Raises InputError where all are.
    """
    for path in reversed(checkpoints(out)):
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            log.warning("%s is damaged (%s): taking the one before it", path, error)
    if checkpoints(out):
        raise InputError(
            f"no checkpoint in {out} is whole: give another --out to begin anew"
        )
    return None


def _read(path: Path) -> tuple[RunState, dict[str, np.ndarray]]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        fields = json.loads(archive.read("state.json"))
        for name in archive.namelist():
            if name.endswith(".npy"):
                with archive.open(name) as member:
                    array = np.lib.format.read_array(member, allow_pickle=False)
                arrays[name[: -len(".npy")]] = array
    fields["history"] = tuple(fields["history"])
    return RunState(**fields), arrays


def check_same_run(saved: RunState, started: RunState, out: Path) -> None:
    """Compare a checkpoint with the run that shall go on from it.

    Raises InputError where recipe or training file is another; other versions, with
    which the outcome may differ in the last bits, are a warning.
    """
    keys = [key for key in started.recipe if key not in _REMARKS]
    differing = [k for k in keys if saved.recipe.get(k) != started.recipe[k]]
    if differing:
        raise InputError(
            f"{out} was trained by another recipe ({', '.join(differing)} differs): "
            "resume with the same one or give another --out"
        )
    if saved.num_images != started.num_images:
        raise InputError(
            f"{out} was trained on {saved.num_images} images, the file now has "
            f"{started.num_images}: resume with the same file or give another --out"
        )
    if saved.versions != started.versions:
        log.warning(
            "the run began with %s and goes on with %s: the last bits may differ",
            saved.versions,
            started.versions,
        )


def newest_kept(out: Path) -> str:
    """What there is to go on from, for a message."""
    newest = max(checkpoints(out), default=None)
    return f"{newest.name} is kept" if newest else "there is no checkpoint yet"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, raised between two steps."""


@contextmanager
def interrupts_held() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C and SIGTERM back; give a function that raises Interrupted for them.

    So no step is broken off half done. A second signal is not held back. Ignored ones
    stay ignored; beside the main thread, which alone gets signals, nothing is done.
    """
    came, previous = [], {}

    def hold(number: int, frame: object) -> None:
        came.append(number)
        put_back()

    def put_back() -> None:
        while previous:
            signal.signal(*previous.popitem())

    def check() -> None:
        if came:
            raise Interrupted

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, hold)
    try:
        yield check
    finally:
        put_back()
