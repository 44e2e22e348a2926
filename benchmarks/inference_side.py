# SPDX-License-Identifier: Apache-2.0
"""The process of one side of inference.py: it loads, answers and times when told to.

Its arguments are the name of the side, the folder of a model and the number of threads.
Each line on standard input is a command, each answer a line of JSON:

    load BATCH      seconds to the first logits, peak memory in MB until then, logits
    time SECONDS    seconds of each call, of as many as fill SECONDS
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Run = Callable[[], np.ndarray]
# Takes the model's folder, images and threads; gives what maps these images to logits.
Load = Callable[[Path, np.ndarray, int], Run]


def main(sides: dict[str, Load]) -> None:
    """Answer until standard input ends."""
    side, folder, threads = sys.argv[1:]
    # Only answers may go to standard output, whatever the libraries print.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    images = np.load(Path(folder, "images.npy"))
    run = None
    for line in sys.stdin:
        command, argument = line.split()
        if command == "load":
            run = None  # Its memory is free before the next is made.
            started = time.perf_counter()
            batch = np.resize(images, (int(argument), *images.shape[1:]))
            run = sides[side](Path(folder), batch, int(threads))
            logits = run()
            seconds = time.perf_counter() - started
            answer = {"seconds": seconds, "peak_mb": peak_mb()}
            answer["logits"] = logits.tolist()
        else:
            answer = call_times(run, float(argument))
        print(json.dumps(answer), file=answers, flush=True)


def call_times(run: Run, seconds: float) -> list[float]:
    """The seconds of each call, of as many as fill `seconds`.

    The first does not count, for the caches are those of others, but where it fills
    the time alone: what it has to fetch anew is little of that.
    """
    first = call_time(run)
    if first > seconds:
        return [first]
    # Nothing but this between two calls: it would cost the small networks dearly.
    stamps = [time.perf_counter()]
    while stamps[-1] < stamps[0] + seconds:
        run()
        stamps.append(time.perf_counter())
    return np.diff(stamps).tolist()


def call_time(run: Run) -> float:
    """The seconds of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def peak_mb() -> float:
    """The largest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
