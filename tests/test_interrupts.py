# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C waits for a step's end."""

import os
import signal

import pytest

from gluon_resnet.training.interrupts import (
    Interrupted,
    interrupts_held,
    sigterm_as_ctrl_c,
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_waits_until_it_is_asked_for(number):
    before = signal.getsignal(number)
    with interrupts_held() as raise_held:
        raise_held()
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted):
            raise_held()
    assert signal.getsignal(number) == before


def test_second_ctrl_c_does_not_wait():
    with interrupts_held():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt) as error:
            os.kill(os.getpid(), signal.SIGINT)
    assert error.type is not Interrupted


def test_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_held() as raise_held:
            os.kill(os.getpid(), signal.SIGINT)
            raise_held()
    finally:
        signal.signal(signal.SIGINT, before)


def test_first_ctrl_c_says_that_it_was_heard(caplog):
    with caplog.at_level("INFO"), interrupts_held():
        os.kill(os.getpid(), signal.SIGINT)
    assert caplog.messages == ["stopping after this step; once more stops at once"]


def test_sigterm_raises_as_ctrl_c_does():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), sigterm_as_ctrl_c():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
