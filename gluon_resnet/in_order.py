# SPDX-License-Identifier: Apache-2.0
"""`in_order`: the results of threads, in the order of what they work on.

Threads, because reading, decoding, resizing and encoding images leave Python's lock
alone, and a killed run leaves no process behind.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Optional, TypeVar

from gluon_resnet.cpu import allowed_cpus
from gluon_resnet.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: Optional[int] = None,
    ahead: int = 0,
) -> Iterator[Result]:
    """The results of `function`, computed by threads, in the order of `items`.

    workers: threads; by default as many as this process may use processors.
    ahead: items beyond the one asked for that are begun meanwhile, so that memory stays
    bounded; at least four a thread. What is begun when the caller stops is finished.
    """
    if workers is None:
        workers = len(allowed_cpus())
    if workers < 1:
        raise InputError(f"{workers} workers do no work: give at least 1")
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= max(ahead, 4 * workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
