# SPDX-License-Identifier: Apache-2.0
"""Kill a training with kill -9 at random moments, resume it each time, compare.

    python tests/kill_training.py [--kills 20] [--epochs 20] [--seed N]

The training is a smoke run with all that has a state or is drawn: momentum, average,
mixup, dropout, stochastic depth. Its parameters at the end must equal those of
a run without a break, bit for bit, and so must losses and accuracies of all epochs.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = "cifar_resnet20_v1"
SETTINGS = ("ema=0.9", "mixup=0.2", "dropout=0.1", "drop_path=0.1")
# Every step, so that many kills hit the writing, or after several steps.
CHECKPOINT_MINUTES = ("0", "0.002")
# Far more than the imports of a run take.
START_TIMEOUT_S = 120


def begin(out: Path, *, epochs: int, checkpoint_minutes: str = "10"):
    """Start or resume the training; returns its process once it trains."""
    command = [sys.executable, "-m", "gluon_resnet.train", "--recipe", "fashion_mnist"]
    run = ["--out", out, "--resume", "--checkpoint-every", checkpoint_minutes]
    log = out / "log.jsonl"
    before = log.stat().st_ino if log.exists() else None
    process = subprocess.Popen(
        [*command, "--smoke", *run, "--set", f"epochs={epochs}", *SETTINGS],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + START_TIMEOUT_S
    # A run replaces the log before its first step.
    while not log.exists() or log.stat().st_ino == before:
        assert process.poll() is None, f"the training ended with {process.returncode}"
        assert time.monotonic() < deadline, "the training does not begin"
        time.sleep(0.001)
    return process


def finish(out: Path, *, epochs: int) -> float:
    """Train to the end; returns the seconds that took."""
    process = begin(out, epochs=epochs)
    started = time.monotonic()
    assert process.wait() == 0, f"the training ended with {process.returncode}"
    return time.monotonic() - started


def kill_at_random(out: Path, *, kills: int, epochs: int, seconds: float, rng) -> int:
    """Kill the training so often, within `seconds` in all; returns how often it was."""
    for count in range(kills):
        every = rng.choice(CHECKPOINT_MINUTES)
        process = begin(out, epochs=epochs, checkpoint_minutes=every)
        time.sleep(rng.uniform(0, seconds / kills))
        process.kill()
        if process.wait() != -signal.SIGKILL:
            return count
    return kills


def outcome(out: Path) -> tuple[bytes, list[tuple[float, ...]]]:
    """The weights' file, and loss, top-1 and top-5 of each epoch."""
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return (
        (out / f"{MODEL}.params").read_bytes(),
        [(e["loss"], e["top1"], e["top5"]) for e in lines if "top1" in e],
    )


def compare(folder: Path, *, kills: int, epochs: int, seed: int) -> int:
    """Train in `folder` with and without kills; returns how many kills there were.

    Raises AssertionError where the outcomes differ.
    """
    seconds = finish(folder / "whole", epochs=epochs)
    killed = folder / "killed"
    count = kill_at_random(
        killed, kills=kills, epochs=epochs, seconds=seconds, rng=random.Random(seed)
    )
    finish(killed, epochs=epochs)
    assert outcome(killed) == outcome(folder / "whole"), f"seed {seed}: they differ"
    assert len(outcome(killed)[1]) == epochs
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=os.getpid())
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        count = compare(Path(scratch), **vars(arguments))
    print(f"killed {count} times (seed {arguments.seed}): the outcome is bit-equal")
    sys.exit(count != arguments.kills)
