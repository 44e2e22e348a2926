# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training run, complete and atomic.

A checkpoint is a zip file, OUT/step-NNNNNNNN.npz: state.json and an array a member, as
numpy.savez writes them. Zip has a CRC-32 for each member and its table of contents at
the end, so one that was cut short or changed is found out. The newest two are kept.
"""

import json
import logging
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Optional

import mxnet as mx
import numpy as np

from gluon_resnet.data.loader import steps_per_epoch
from gluon_resnet.errors import InputError
from gluon_resnet.files import DiskFull, replacing

log = logging.getLogger(__name__)

_NAME = re.compile(r"step-\d+\.npz")
# What a recipe says of itself; it decides nothing.
_REMARKS = ("source", "published_top1")


@dataclass(frozen=True)
class Sums:
    """What an epoch has come to so far, over its batches."""

    batches: int = 0
    loss: float = 0.0
    """Sum of the batches' mean losses."""
    top1: int = 0
    """Images whose label was the net's first answer in training."""
    top5: int = 0
    """Or among its first five."""
    damaged: int = 0
    """Images that could not be read and were left out."""


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
    precision: str
    """What it computes in: "fp32", "bf16" or "fp16"."""
    versions: dict[str, str]
    epoch: int = 0
    """Epochs that are finished, validation included."""
    sums: Sums = Sums()
    """Of the batches that are done since."""
    history: tuple[dict, ...] = ()
    """The log's entries of the finished epochs."""

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of the training file."""
        return steps_per_epoch(self.num_images, self.recipe["batch_size"])

    @property
    def steps(self) -> int:
        """Steps that are done."""
        return self.epoch * self.steps_per_epoch + self.sums.batches

    def after_epoch(self, entry: dict) -> "RunState":
        """The state at the begin of the next epoch."""
        return replace(
            self,
            epoch=self.epoch + 1,
            sums=Sums(),
            history=(*self.history, entry),
        )


def checkpoints(out: Path) -> list[Path]:
    """Return the checkpoints in a folder, the oldest first."""
    return sorted(filter(lambda p: _NAME.fullmatch(p.name), out.glob("*")), key=_step)


def _step(path: Path) -> int:
    """The steps that were done when a checkpoint was written."""
    return int(path.stem.partition("-")[2])


def save_state(out: Path, state: RunState, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write a checkpoint and, once it is on the disk, drop all but the newest two.

    Those of later steps are dropped before: `state` went on from an earlier one
    because they are damaged. Raises InputError where it cannot be written or a value is
    not finite, which no later step would mend; the older ones then stay.
    """
    path = out / f"step-{state.steps:08d}.npz"
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            kept = [f"{path.name} is kept" for path in checkpoints(out)]
            raise InputError(
                f"{name} is not finite after step {state.steps}: lower the learning "
                f"rate; {kept[-1] if kept else 'there is no checkpoint yet'}"
            )
    with told_in_one_line(path, out):
        for other in checkpoints(out):
            if _step(other) > state.steps:
                other.unlink()
        with replacing(path) as part, part.open("wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("state.json", json.dumps(asdict(state), indent=1))
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(out)
        for older in checkpoints(out)[:-2]:
            older.unlink()
    return path


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, too: a loss of power keeps them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def told_in_one_line(path: Path, out: Path) -> Iterator[None]:
    """Make an InputError of what a full disk makes of writing `path`.

    It says what there is in the run's folder `out` to go on from.
    """
    try:
        yield
    except DiskFull as error:
        raise InputError(f"{error}; {_how_to_go_on(out)}") from None
    except (OSError, mx.base.MXNetError) as error:
        # MXNet says it in the last of several lines.
        reason = getattr(error, "strerror", None) or str(error).strip().split("\n")[-1]
        raise InputError(
            f"cannot write {path}: {reason}; mend that; {_how_to_go_on(out)}"
        ) from None


def _how_to_go_on(out: Path) -> str:
    kept = checkpoints(out)
    if not kept:
        return "then begin again"
    return f"then go on with --resume, {kept[-1].name} is kept"


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
    fields["sums"] = Sums(**fields["sums"])
    return RunState(**fields), arrays


def check_same_run(saved: RunState, started: RunState, out: Path) -> None:
    """Compare a checkpoint with the run that shall go on from it.

    Raises InputError where recipe or training file is another. Another precision or
    version, with which the outcome may differ, is a warning.
    """
    keys = [key for key in started.recipe if key not in _REMARKS]
    differing = [k for k in keys if saved.recipe.get(k) != started.recipe[k]]
    if differing == ["epochs"]:
        before, now = saved.recipe["epochs"], started.recipe["epochs"]
        weights = out / f"{started.recipe['model']}.best.params"
        raise InputError(
            f"{out} is a run of {before} epochs, and its learning rate ends with them: "
            f"resume with epochs={before}, or train its weights on in a new run, with "
            f"--set epochs={now} initial_weights={weights} and another --out"
        )
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
    for name in ("precision", "versions"):
        before, now = getattr(saved, name), getattr(started, name)
        if before != now:
            log.warning(
                "the run began with %s %s and goes on with %s: the outcome may differ",
                name,
                before,
                now,
            )
