# SPDX-License-Identifier: Apache-2.0
"""Runs of a function that are killed at a chosen moment.

The moments are those at which Python opens, renames, removes or makes a file or folder
below a folder: what is on the disk changes there or has just changed. An
audit hook counts them. It can never be taken off again, so every run has a process of
its own, forked from a server that has imported what all need.
"""

import multiprocessing
import os
import random
import signal
import sys

from imagenet_prep import record_writer

MOMENTS = {"open", "os.mkdir", "os.rename", "os.remove", "shutil.rmtree"}
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["imagenet_prep.imagenet", "scipy.io"])


def _child(function, arguments, folder, kill_at, connection):
    record_writer.SYNC_BYTES = 1  # a point to go on from after every record
    moments = 0

    def count(event, details):
        nonlocal moments
        if event in MOMENTS and str(details[0]).startswith(str(folder)):
            moments += 1
            if moments == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    function(**arguments)
    connection.send(moments)


def run(function, arguments, folder, *, kill_at=None):
    """How many moments `folder` had; None if the run was killed at `kill_at`."""
    receiver, sender = _context.Pipe(duplex=False)
    process = _context.Process(
        target=_child, args=(function, arguments, folder, kill_at, sender)
    )
    process.start()
    sender.close()
    process.join()
    try:
        moments, exit_code = receiver.recv(), 0
    except EOFError:
        moments, exit_code = None, -signal.SIGKILL
    assert process.exitcode == exit_code
    receiver.close()
    process.close()
    return moments


def moments_to_try(total, *, count):
    """So many of the moments 1 to `total`, drawn without choice, first and last too."""
    drawn = random.Random(0).sample(range(1, total + 1), min(count, total))
    return sorted({1, total, *drawn})


def files_below(folder):
    """Content of every file, by its path in `folder`."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
