# SPDX-License-Identifier: Apache-2.0
import random
import threading
import time

import pytest

from gluon_resnet.errors import InputError
from gluon_resnet.in_order import in_order


def test_results_come_in_order_and_few_are_taken_ahead():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    def slow(item):
        time.sleep(random.random() / 500)
        return item

    for place, result in enumerate(in_order(slow, items(), workers=2)):
        assert result == place
        assert len(taken) <= place + 8
    assert len(taken) == 100


def test_no_thread_is_left_after_an_error():
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda item: 1 // (5 - item), range(100), workers=2))
    assert threading.active_count() == before


def test_no_workers_are_refused():
    with pytest.raises(InputError, match=r"^0 workers do no work: give at least 1$"):
        list(in_order(str, range(3), workers=0))


def test_so_many_are_begun_ahead_as_are_asked_for():
    begun = []
    results = in_order(begun.append, range(100), workers=1, ahead=20)
    next(results)
    deadline = time.monotonic() + 5
    while len(begun) < 20 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert begun == [*range(20)]
    results.close()
