# SPDX-License-Identifier: Apache-2.0
"""How every command fails and stops."""

import subprocess
import sys

import pytest

from gluon_resnet import command
from gluon_resnet.errors import InputError


def run(main, capsys, arguments=()):
    """Exit code, standard output and standard error of `command.run`."""
    parser = command.Parser(prog="verb")
    parser.add_argument("--count", type=int, default=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["verb", *arguments])
        with pytest.raises(SystemExit) as stop:
            command.run(main, parser)
    return stop.value.code, *capsys.readouterr()


def test_success_is_0_and_what_main_returns_is_the_code(capsys):
    assert run(lambda _: None, capsys)[0] == 0
    assert run(lambda _: 1, capsys)[0] == 1


@pytest.mark.parametrize("error", [InputError("a is b"), OSError("a is b")])
def test_users_mistake_is_one_line_and_1(error, capsys):
    def main(_):
        raise error

    assert run(main, capsys) == (1, "", "verb: a is b\n")


def test_error_of_the_program_keeps_its_traceback():
    parser = command.Parser(prog="verb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["verb"])
        with pytest.raises(ZeroDivisionError):
            command.run(lambda _: 1 / 0, parser)


def test_wrong_usage_is_one_line_and_2(capsys):
    code, _, error = run(lambda _: None, capsys, ["--count", "x"])
    assert code == 2
    assert error == (
        "verb: argument --count: invalid int value: 'x'; see verb --help\n"
    )


def test_interrupt_is_one_line_and_130(capsys):
    def main(_):
        raise KeyboardInterrupt

    assert run(main, capsys) == (130, "", "verb: stopped by Ctrl-C\n")


def test_reader_that_goes_away_is_no_failure():
    program = (
        "from gluon_resnet import command\n"
        "def main(_):\n"
        "    for _ in range(100_000): print('line')\n"
        "command.run(main, command.Parser(prog='verb'))\n"
    )
    pipeline = f'{sys.executable} -c "$PROGRAM" | head -n 1; echo ${{PIPESTATUS[0]}}'
    result = subprocess.run(
        ["bash", "-c", pipeline],
        env={"PROGRAM": program, "PATH": "/usr/bin:/bin", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (result.stdout, result.stderr) == ("line\n0\n", "")


def test_list_of_verbs_matches_the_modules():
    result = subprocess.run(
        [sys.executable, "-m", "gluon_resnet"],
        capture_output=True,
        text=True,
        check=True,
    )
    from gluon_resnet.__main__ import VERBS

    for verb in VERBS:
        assert f"\n{verb}" in result.stdout
