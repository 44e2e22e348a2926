# SPDX-License-Identifier: Apache-2.0
"""The one exception that stands for a user's mistake."""

import re

# Control characters, other ends of a line, and what stands for bytes that are no UTF-8.
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def one_line(text: str) -> str:
    """Escape what a line of text cannot show: in a file's name anything may stand."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


class InputError(ValueError):
    """What the user gave breaks a rule; the message is one line.

    It names the value given, the rule it broke and the remedy. The commands print
    it on standard error without a traceback and exit with code 1.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))
