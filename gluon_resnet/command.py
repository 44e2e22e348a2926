# SPDX-License-Identifier: Apache-2.0
"""What all commands share: how they parse, fail and stop."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from typing import Optional

from gluon_resnet.errors import InputError

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but not that an option is off when it is not given."""

    def _get_help_string(self, action: argparse.Action) -> Optional[str]:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that shows defaults and answers a mistake with one line."""

    def __init__(self, **options):
        options.setdefault("formatter_class", _Formatter)
        super().__init__(**options)
        self.add_argument(
            "-v", "--verbose", action="store_true", help="say what is chosen and why"
        )

    def error(self, message: str) -> None:
        """Print the mistake on standard error and exit with code 2."""
        self.exit(WRONG_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def run(
    main: Callable[[argparse.Namespace], Optional[int]], parser: argparse.ArgumentParser
) -> None:
    """Parse the command line, call `main`, exit.

    The exit code is what `main` returns, 0 for None. A user's mistake or a file that
    cannot be read or written is one line on standard error and exit code 1; Ctrl-C is
    exit code 130; a reader that went away (`| head`) is no failure.
    """
    arguments = parser.parse_args()
    if arguments.verbose:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("gluon_resnet").setLevel(logging.INFO)
    try:
        code = main(arguments) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes standard output once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (InputError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        code = FAILED
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped by Ctrl-C", file=sys.stderr)
        code = INTERRUPTED
    sys.exit(code)
