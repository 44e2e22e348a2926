# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: log, TensorBoard's events, curves, how it was started."""

import json
import logging
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

from gluon_resnet.files import replacing
from gluon_resnet.training.run_state import RunState, told_in_one_line

log = logging.getLogger(__name__)


@contextmanager
def journal(out: Path, state: RunState) -> Iterator[Callable[[dict], None]]:
    """Give a function that records an entry, a dict of numbers.

    An entry has "epoch" and "step", counted from 1, and "top1" if it is of a finished
    epoch. It becomes a line of out/log.jsonl and, number by number, TensorBoard's in
    out/tensorboard. What stands there of later than `state`, from a run that broke off,
    is dropped, and so are, with a warning, lines that are no entries; an epoch of
    `state` that is not there is recorded.
    Raises InputError where `out` cannot be written.
    """
    path, folder = out / "log.jsonl", out / "tensorboard"
    logged = _entries(path)
    steps = [e for e in logged if "top1" not in e and e["step"] <= state.steps]
    # An epoch's line follows the line of its last step.
    kept = sorted([*steps, *state.history], key=lambda e: (e["step"], "top1" in e))
    with told_in_one_line(path, out), replacing(path) as part:
        part.write_text("".join(f"{json.dumps(entry)}\n" for entry in kept))
    with _tensorboard(folder, out, from_step=state.steps) as add:
        for entry in state.history:
            if entry not in logged:
                add(entry)

        def record(entry: dict) -> None:
            # Opened anew: a file that could not be written fails once more when closed.
            with told_in_one_line(path, out), path.open("a") as lines:
                lines.write(f"{json.dumps(entry)}\n")
            add(entry)

        yield record


def _entries(path: Path) -> list[dict]:
    """The entries of a log, without lines that a killed run or others left there."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    entries, dropped = [], []
    for number, line in enumerate(text.splitlines(), 1):
        entry = _entry(line)
        if entry is None:
            dropped.append(number)
        else:
            entries.append(entry)
    if dropped:
        log.warning(
            "%s: left out %d lines that are no entries, the first is line %d",
            path,
            len(dropped),
            dropped[0],
        )
    return entries


def _entry(line: str) -> Optional[dict]:
    try:
        entry = json.loads(line)
        numbers = [entry["epoch"], entry["step"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return entry if all(type(number) is int for number in numbers) else None


@contextmanager
def _tensorboard(
    folder: Path, out: Path, *, from_step: int
) -> Iterator[Callable[[dict], None]]:
    """Give a function that writes the numbers of an entry as TensorBoard's events.

    Not by tensorboardX's SummaryWriter: its thread dies of a full disk, and then the
    training waits for the thread.
    """
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import RecordWriter
    from tensorboardX.summary import scalar

    name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{from_step}"

    def write(file: RecordWriter, **fields: Any) -> None:
        file.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def add(entry: dict) -> None:
        group = "epoch" if "top1" in entry else "step"
        with told_in_one_line(folder, out):
            for name in entry.keys() - {"epoch", "step"}:
                summary = scalar(f"{group}/{name}", entry[name])
                write(file, step=entry["step"], summary=summary)
            file.flush()

    with told_in_one_line(folder, out):
        folder.mkdir(parents=True, exist_ok=True)
        file = RecordWriter(str(folder / name))
    try:
        with told_in_one_line(folder, out):
            write(file, file_version="brain.Event:2")
            # What other files have from this step on counts no longer.
            start = SessionLog(status=SessionLog.START)
            write(file, step=from_step + 1, session_log=start)
        yield add
    finally:
        with told_in_one_line(folder, out):
            file.close()


def write_json(path: Path, content: Any) -> None:
    """Write a file of the run folder that `path` is in."""
    with told_in_one_line(path, path.parent), replacing(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def note_start(out: Path, facts: dict) -> None:
    """Add to out/run.json, a list, when and by which command the run went on."""
    path = out / "run.json"
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    start = {"started": now, "command": shlex.join(sys.argv), **facts}
    try:
        starts = json.loads(path.read_bytes()) if path.exists() else []
    except ValueError:
        starts = None
    if not isinstance(starts, list):
        log.warning("%s is no list of starts: writing it anew", path)
        starts = []
    write_json(path, [*starts, start])


def draw_curves(path: Path, history: Sequence[dict]) -> None:
    """Write a PNG of loss and accuracy, from the entries of finished epochs."""
    from matplotlib.figure import Figure  # takes a second

    epochs = [entry["epoch"] for entry in history]
    figure = Figure(figsize=(8, 3), dpi=80, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [entry["loss"] for entry in history], ".-")
    left.set(xlabel="epoch", ylabel="training loss")
    for name, label in (
        ("top1", "top-1"),
        ("top5", "top-5"),
        ("train_top1", "top-1, training"),
    ):
        if all(name in entry for entry in history):
            right.plot(epochs, [entry[name] for entry in history], ".-", label=label)
    right.set(xlabel="epoch", ylabel="accuracy, %")
    right.legend()
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    with told_in_one_line(path, path.parent), replacing(path) as part:
        figure.savefig(part)
