# SPDX-License-Identifier: Apache-2.0
"""What all tests need before the first of them is imported, and what many share."""

import logging
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import gluon_resnet  # noqa: F401  (several tests import mxnet, which must come after)
from gluon_resnet import command, interrupt

# Both sides of a parity draw their parameters with golden/draw.py.
sys.path.insert(0, str(Path(__file__).parent / "golden"))
# A test run in the background ignores Ctrl-C, and so would the processes it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def run_command(capfd):
    """Run a command's module in this process, which spares the seconds of a start.

    The function takes the module and its arguments and returns `code`, `out` and `err`,
    with what MXNet's own code writes in them. Ctrl-C stays pytest's: how a command
    answers it is for a process of its own to show.
    """

    def run(module, *arguments):
        package = logging.getLogger("gluon_resnet")
        level, capfd_before = package.level, capfd.readouterr()
        assert capfd_before == ("", ""), "what came before would be lost"
        try:
            with (
                pytest.MonkeyPatch.context() as patch,
                pytest.raises(SystemExit) as end,
            ):
                patch.setattr(interrupt, "end_at_once", lambda prog: None)
                patch.setattr(interrupt, "raise_once", lambda prog: None)
                patch.setattr(interrupt, "end", _raise_again)
                patch.setattr(sys, "stdout", sys.stdout)
                # Beside pytest's handlers the command would not add its own.
                patch.setattr(logging.root, "handlers", [])
                command.run(
                    module.main, module.parser(), [str(word) for word in arguments]
                )
        finally:
            package.setLevel(level)
            logging.captureWarnings(False)
        written = capfd.readouterr()
        return SimpleNamespace(code=end.value.code, out=written.out, err=written.err)

    return run


def _raise_again(prog):
    raise KeyboardInterrupt
