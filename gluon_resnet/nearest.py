# SPDX-License-Identifier: Apache-2.0
"""The names that someone who mistyped one may have meant."""

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str:
    """Return the names most like `name`, as part of a message."""
    matches = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.4)
    return f"nearest: {', '.join(matches)}" if matches else "no name is near"
