# SPDX-License-Identifier: Apache-2.0
"""The process of one side of training_step.py.

Each line on standard input is a command, each answer a line of JSON:

    step FILE       the loss of one step; the parameters after it are written to FILE
    time SECONDS    seconds of each step, of as many as fill SECONDS, after one more
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4


def answer_commands(step: Callable[[], float], save: Callable[[Path], None]) -> None:
    """Answer until standard input ends.

    step: does one step to its end and returns the loss; save: writes the parameters.
    """
    # Only answers may go to standard output, whatever the libraries print.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        command, argument = line.split()
        if command == "step":
            answer = step()
            save(Path(argument))
        else:
            answer = step_times(step, float(argument))
        print(json.dumps(answer), file=answers, flush=True)


def step_times(step: Callable[[], float], seconds: float) -> list[float]:
    """The seconds of each step."""
    step()  # Others ran meanwhile: the caches are theirs.
    times = []
    while sum(times) < seconds:
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return times
