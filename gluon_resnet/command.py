# SPDX-License-Identifier: Apache-2.0
"""What all commands share: how they parse, fail and stop.

A command is a module with `parser()` and `main(arguments)` that ends in

    if __name__ == "__main__":
        command.run(main, parser())

Nothing heavy is imported before `main` runs, so that --help, wrong usage and Ctrl-C are
answered at once.
"""

import argparse
import difflib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Optional, cast

from gluon_resnet import interrupt
from gluon_resnet.errors import InputError, one_line

FAILED, WRONG_USAGE = 1, 2

Main = Callable[[argparse.Namespace], Optional[int]]


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but not that an option is off when it is not given."""

    def _get_help_string(self, action: argparse.Action) -> Optional[str]:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that shows defaults and answers a mistake with one line.

    A function given as `type` may raise InputError, whose message is shown as it is.
    """

    def __init__(self, **options: Any):
        options.setdefault("formatter_class", _Formatter)
        super().__init__(**options)
        self.add_argument(
            "-v", "--verbose", action="store_true", help="say what is chosen and why"
        )

    def parse_args(self, args=None, namespace=None):
        """Parse; an option that is not known is answered with the nearest one."""
        # Of words that may all be missing some may stand before options, some behind.
        mixed = any(each.nargs == "*" for each in self._get_positional_actions())
        parse = self.parse_known_intermixed_args if mixed else self.parse_known_args
        arguments, unknown = parse(args, namespace)
        if unknown:
            self.error(
                f"unrecognized arguments: {' '.join(unknown)}{self._near(unknown)}"
            )
        return arguments

    def error(self, message: str) -> NoReturn:
        """Print the mistake on standard error and exit with code 2."""
        line = f"{self.prog}: {message}; see {self.prog} --help"
        self.exit(WRONG_USAGE, f"{one_line(line)}\n")

    def _near(self, unknown: Sequence[str]) -> str:
        options = [word.partition("=")[0] for word in unknown if word[:2] == "--"]
        known = [name for name in self._option_string_actions if name[:2] == "--"]
        near = [
            name
            for option in options
            for name in difflib.get_close_matches(option, known, n=1)
        ]
        return f"; nearest: {', '.join(near)}" if near else ""

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            if isinstance(error.__context__, InputError):
                message = str(error.__context__)
                raise argparse.ArgumentError(action, message) from None
            raise


def run(
    main: Main, parser: argparse.ArgumentParser, argv: Optional[Sequence[str]] = None
) -> NoReturn:
    """Parse the command line (`argv`, or the process's), call `main`, exit.

    The exit code is what `main` returns, 0 for None. A user's mistake or a file that
    cannot be read or written is one line on standard error and exit code 1; Ctrl-C is
    exit code 130; a reader of standard output that went away (`| head`) is no failure.
    """
    interrupt.end_at_once(parser.prog)
    output = _opened_output()
    arguments = parser.parse_args(argv)
    _start_log(verbose=arguments.verbose)
    code = _outcome(main, arguments, parser.prog, output)
    interrupt.end_at_once(parser.prog)  # Python may take a second to end.
    sys.exit(code)


class _Output(io.TextIOWrapper):
    """Standard output that prints any text, and remembers why it could not.

    What the encoding, or UTF-8, has no character for is shown by its number.
    """

    fault: Optional[OSError] = None

    def __init__(self, stream: io.TextIOWrapper):
        super().__init__(
            stream.buffer,
            stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self._stream = stream  # With its end it would close the file.

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self.fault = error
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self.fault = error
            raise

    def close(self) -> None:
        """Leave the file open: it is the process's."""


def _outcome(
    main: Main, arguments: argparse.Namespace, prog: str, output: _Output
) -> int:
    """Call `main` and return the exit code; tell why it failed."""
    reason = ""
    try:
        interrupt.raise_once(prog)
        code = main(arguments) or 0
        output.flush()
        if output.fault is None:  # argparse prints help and swallows it
            return code
    except (InputError, OSError) as error:
        reason = str(error)
        if isinstance(error, OSError) and error.filename and error.strerror:
            reason = f"{error.filename}: {error.strerror}"
    except KeyboardInterrupt:
        interrupt.end(prog)
    if output.fault is not None:
        # Python would try once more when it ends: the rest goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
        if isinstance(output.fault, BrokenPipeError):
            return 0
        reason = (
            f"standard output cannot be written ({output.fault.strerror}): what came "
            "before is there; make room and run it again"
        )
    print(one_line(f"{prog}: {reason}"), file=sys.stderr)
    return FAILED


def _opened_output() -> _Output:
    """Return the new standard output, which goes nowhere where it is closed (`>&-`)."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")
    stream = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")
    sys.stdout = output = _Output(cast(io.TextIOWrapper, stream))
    return output


def _start_log(*, verbose: bool) -> None:
    """Show warnings, and with `verbose` what the package chooses."""
    import logging

    from gluon_resnet.progress import LogLines

    logging.basicConfig(format="%(message)s", handlers=[LogLines()])
    logging.captureWarnings(True)
    if verbose:
        logging.getLogger("gluon_resnet").setLevel(logging.INFO)
