# SPDX-License-Identifier: Apache-2.0
"""Threads that compute parts of a call, each on cores of its own.

`concurrent.futures` would leave its threads at work when Ctrl-C ends a call, on memory
that the call then frees, and shuts them down while threads that still call are running.
"""

import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from queue import SimpleQueue
from typing import Optional

from gluon_resnet.inference import openmp


class Workers:
    """Threads that start on first use and end with the last reference to this.

    One caller at a time; a process that was forked needs new ones.
    """

    def __init__(self, places: Sequence[Iterable[int]]):
        """places: of each thread the CPUs that it stays on; empty: wherever it is."""
        self._places = places
        self._threads: list[threading.Thread] = []
        self._calls: SimpleQueue[Optional[_Call]] = SimpleQueue()
        self._last: Optional[_Call] = None

    @property
    def are_busy(self) -> bool:
        """Whether tasks of the last `run` have not ended: signals drove it out."""
        return self._last is not None and not self._last.has_ended

    def __len__(self) -> int:
        return len(self._places)

    def run(
        self, tasks: Iterable[Callable[[], None]], cancel: Callable[[], object]
    ) -> None:
        """Do `tasks`, each in one of the threads, and return when all have ended.

        It does not return before, whatever happens: tasks work on the memory of others.
        cancel: called when a task raises or a signal's handler does in this thread; it
        makes the tasks that are left end early. Raises then what was raised first.
        """
        if not self._threads:
            self._start()
        call = self._last = _Call(tasks, cancel)
        try:
            for _ in self._threads:
                self._calls.put(call)
            call.wait()
        except BaseException:
            cancel()
            self._calls.put(call)  # perhaps nobody has it yet
            call.wait_patiently()
            raise
        if call.error:
            # Not kept in `_last`: it holds on to all that the task worked on.
            error, call.error = call.error, None
            raise error

    def end(self) -> None:
        """Let all threads end, after what they do, and wait for it."""
        _end(self._calls, len(self._threads))
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _start(self) -> None:
        calls: SimpleQueue[Optional[_Call]] = SimpleQueue()
        # Daemons: threads of the user's may call while the interpreter waits for them.
        threads = [
            threading.Thread(
                target=_work, args=(calls, place), name="gluon_resnet", daemon=True
            )
            for place in self._places
        ]
        weakref.finalize(self, _end, calls, len(threads)).atexit = False  # type: ignore[misc]
        for thread in threads:
            thread.start()
        self._calls, self._threads = calls, threads


class _Call:
    """Tasks that are waited for together."""

    def __init__(
        self, tasks: Iterable[Callable[[], None]], cancel: Callable[[], object]
    ):
        self.error: Optional[BaseException] = None
        self._waiting = deque(tasks)
        self._count = len(self._waiting)
        self._ended: list[None] = []
        self._signal: SimpleQueue[None] = SimpleQueue()
        self._cancel = cancel

    @property
    def has_ended(self) -> bool:
        """Whether all tasks have."""
        return len(self._ended) == self._count

    def work(self) -> None:
        """Do one task after the other, until there is none."""
        # The handler of a signal may raise between any two lines of the caller's, but
        # not in this thread. So all is counted here, by operations of C that other
        # threads cannot interrupt.
        while True:
            try:
                task = self._waiting.popleft()
            except IndexError:
                return
            try:
                task()
            except BaseException as error:
                self.error = self.error or error
                self._cancel()
            self._ended.append(None)
            if self.has_ended:
                self._signal.put(None)

    def wait(self) -> None:
        """Return when all tasks have ended."""
        while not self.has_ended:
            self._signal.get()

    def wait_patiently(self) -> None:
        """Wait even where one signal follows the other."""
        while not self.has_ended:
            with contextlib.suppress(BaseException):
                self.wait()


def _work(calls: "SimpleQueue[Optional[_Call]]", place: Iterable[int]) -> None:
    """Do the tasks of calls, until there is None instead of one."""
    openmp.compute_alone()
    # A container's CPUs may have become fewer: then wherever this thread is.
    with contextlib.suppress(OSError):
        if place:
            os.sched_setaffinity(0, place)
    while call := calls.get():
        call.work()
        del call  # Its images and logits are free while this waits.


def _end(calls: "SimpleQueue[Optional[_Call]]", threads: int) -> None:
    for _ in range(threads):
        calls.put(None)
