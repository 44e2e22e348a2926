# SPDX-License-Identifier: Apache-2.0
"""What all tests need before the first of them is imported."""

import signal
import sys
from pathlib import Path

import gluon_resnet  # noqa: F401  (several tests import mxnet, which must come after)

# Both sides of a parity draw their parameters with golden/draw.py.
sys.path.insert(0, str(Path(__file__).parent / "golden"))
# A test run in the background ignores Ctrl-C, and so would the processes it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
