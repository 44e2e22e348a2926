# SPDX-License-Identifier: Apache-2.0
"""The one exception that stands for a user's mistake."""


class InputError(ValueError):
    """What the user gave breaks a rule; the message is one line.

    It names the value given, the rule it broke and the remedy. The commands print
    it on standard error without a traceback and exit with code 1.
    """
