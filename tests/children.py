# SPDX-License-Identifier: Apache-2.0
"""Processes of their own, for what is decided once in each."""

import os
import subprocess
import sys


def python(code, **environment):
    """The lines that Python prints for `code`, which must not fail."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ".", **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()
