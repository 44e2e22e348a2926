# SPDX-License-Identifier: Apache-2.0
"""What a training run tells: a JSON-lines log, TensorBoard events and a picture."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gluon_resnet.files import replacing
from gluon_resnet.training.run_state import RunState


@contextmanager
def journal(out: Path, state: RunState) -> Iterator[Callable[[dict], None]]:
    """Give a function that records an entry, a dict of numbers.

    An entry has "epoch" and "step", counted from 1, and "top1" if it is of a finished
    epoch. It becomes a line of out/log.jsonl and, number by number, TensorBoard's in
    out/tensorboard. What stands there of later than `state`, from a run that broke off,
    is dropped. Raises InputError where `out` cannot be written.
    """
    from tensorboardX import SummaryWriter  # takes half a second

    def is_done(entry: dict) -> bool:
        if "top1" in entry:
            return entry["epoch"] <= state.epoch
        return entry["step"] <= state.steps

    path = out / "log.jsonl"
    done = [line for line in _whole_lines(path) if is_done(json.loads(line))]
    with replacing(path) as part:
        part.write_text("".join(done))
    events = SummaryWriter(
        str(out / "tensorboard"),
        purge_step=state.steps + 1,
        filename_suffix=f".{state.steps}",  # the name has but the second, else
    )
    with path.open("a") as lines, events:

        def record(entry: dict) -> None:
            print(json.dumps(entry), file=lines, flush=True)
            group = "epoch" if "top1" in entry else "step"
            for name in entry.keys() - {"epoch", "step"}:
                events.add_scalar(f"{group}/{name}", entry[name], entry["step"])
            events.flush()

        yield record


def _whole_lines(path: Path) -> list[str]:
    """The lines of a log but for a last one that a killed run wrote half."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


def draw_curves(path: Path, history: Sequence[dict]) -> None:
    """Write a PNG of loss and accuracy, from the entries of finished epochs."""
    from matplotlib.figure import Figure  # takes a second

    epochs = [entry["epoch"] for entry in history]
    figure = Figure(figsize=(8, 3), dpi=80, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [entry["loss"] for entry in history], ".-")
    left.set(xlabel="epoch", ylabel="training loss")
    for name in ("top1", "top5"):
        right.plot(epochs, [entry[name] for entry in history], ".-", label=name)
    right.set(xlabel="epoch", ylabel="validation accuracy, %")
    right.legend()
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    with replacing(path) as part:
        figure.savefig(part)
