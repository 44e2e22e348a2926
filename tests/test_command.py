# SPDX-License-Identifier: Apache-2.0
"""How every command is called, fails and stops."""

import argparse
import ast
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gluon_resnet
from gluon_resnet import __main__ as program
from gluon_resnet import command, interrupt
from gluon_resnet.errors import InputError

PACKAGE = Path(gluon_resnet.__file__).parent
PREPARATIONS = ["cifar", "cub", "fashion_mnist", "folder", "imagenet", "make_sample"]


@pytest.fixture(autouse=True)
def process(monkeypatch, capfd):
    """Let a command's end be no end of the tests, and leave nothing behind."""

    left = []

    def leave(code):
        left.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    before = signal.getsignal(signal.SIGINT)
    for name in ("stdout", "excepthook", "unraisablehook"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    yield left
    signal.signal(signal.SIGINT, before)


def parser():
    parser = command.Parser(prog="verb")
    parser.add_argument("--count", type=int, default=1)
    return parser


def run(main, capfd, *arguments):
    """Exit code, standard output and standard error of `command.run`."""
    with pytest.raises(SystemExit) as stop:
        command.run(main, parser(), arguments)
    return stop.value.code, *capfd.readouterr()


def start(capfd, *arguments):
    """The same of `gluon-resnet` with these arguments."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sys, "argv", ["/usr/bin/gluon-resnet", *arguments])
        program.start()
    return stop.value.code, *capfd.readouterr()


def test_success_is_0_and_what_main_returns_is_the_code(capfd):
    assert run(lambda _: None, capfd)[0] == 0
    assert run(lambda _: 1, capfd)[0] == 1


@pytest.mark.parametrize(
    "error, line",
    [
        (InputError("a is b"), "a is b"),
        (OSError("a is b"), "a is b"),
        (FileNotFoundError(2, "No such file", "x\ny"), r"x\ny: No such file"),
    ],
)
def test_users_mistake_is_one_line_and_1(error, line, capfd):
    def main(_):
        raise error

    assert run(main, capfd) == (1, "", f"verb: {line}\n")


def test_error_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        command.run(lambda _: 1 / 0, parser(), [])


@pytest.mark.parametrize(
    "arguments, mistake",
    [
        (["--count", "x"], "argument --count: invalid int value: 'x'"),
        (["--cuont", "1"], "unrecognized arguments: --cuont 1; nearest: --count"),
        (["a\x1b[2J\n"], r"unrecognized arguments: a\x1b[2J\n"),
    ],
)
def test_wrong_usage_is_one_line_and_2(arguments, mistake, capfd):
    code, _, error = run(lambda _: None, capfd, *arguments)
    assert (code, error) == (2, f"verb: {mistake}; see verb --help\n")


def test_option_says_itself_what_is_wrong_with_its_value(capfd):
    def colour(text):
        raise InputError(f"{text} is no colour; use red")

    verb = parser()
    verb.add_argument("--colour", type=colour)
    with pytest.raises(SystemExit):
        verb.parse_args(["--colour", "five"])
    assert capfd.readouterr().err == (
        "verb: argument --colour: five is no colour; use red; see verb --help\n"
    )


def test_interrupt_is_one_line_and_130(capfd):
    def main(_):
        print("an answer")
        signal.raise_signal(signal.SIGINT)
        time.sleep(60)

    assert run(main, capfd) == (130, "an answer\n", "verb: stopped by Ctrl-C\n")


def test_first_interrupt_lets_go_of_what_is_open_and_a_second_ends_at_once(capfd):
    def main(_):
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            print("closing")
            signal.raise_signal(signal.SIGINT)
            print("never")

    assert run(main, capfd) == (130, "closing\n", "verb: stopped by Ctrl-C\n")


def test_interrupt_that_c_code_swallows_ends_all_the_same(process, capfd):
    class Closing:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    interrupt.raise_once("verb")
    closing = Closing()
    del closing
    assert process == [130]
    assert capfd.readouterr().err.splitlines()[0] == "verb: stopped by Ctrl-C"


def test_interrupt_that_an_import_would_swallow_ends_it(process, capfd, tmp_path):
    (tmp_path / "swallows.py").write_text(
        "import signal\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    pass\n"
    )

    def main(_):
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(tmp_path)
            import swallows  # noqa: F401

    assert run(main, capfd) == (130, "", "verb: stopped by Ctrl-C\n")
    assert process == [130]


# Ctrl-C when a module is about to be imported.
INTERRUPTED_IMPORT = """
import runpy, signal, sys

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupter())
sys.argv = ["benchmark", "cifar_resnet20_v1"]
runpy.run_module("gluon_resnet.benchmark", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["tqdm", "numpy", "numpy.random", "mxnet", "mxnet.symbol", "mxnet.gluon"]
)
def test_interrupt_while_modules_are_imported_is_one_line_and_130(name):
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT.format(name=name)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr == "python -m gluon_resnet.benchmark: stopped by Ctrl-C\n"


def test_interrupt_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupt.raise_once("verb")
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize(
    "argv, words, is_guarded",
    [
        (["-m"], ["python", "-X", "dev", "-m", "gluon_resnet.infer", "x.png"], True),
        (["-m"], ["python", "-m", "imagenet_prep.folder"], True),
        (["/venv/bin/gluon-resnet", "infer"], ["python", "gluon-resnet"], True),
        (["-m"], ["python", "-m", "theirs.program", "gluon_resnet"], False),
        (["-c"], ["python", "-c", "import gluon_resnet"], False),
        ([""], ["python"], False),
    ],
)
def test_only_our_commands_are_guarded_from_their_start(
    argv, words, is_guarded, monkeypatch
):
    guarded = []
    monkeypatch.setattr(interrupt, "end_at_once", guarded.append)
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", words, raising=False)
    interrupt.guard_start()
    assert bool(guarded) == is_guarded


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


def test_other_broken_pipe_is_a_failure(capfd):
    def main(_):
        raise BrokenPipeError(32, "Broken pipe")

    assert run(main, capfd) == (1, "", "verb: [Errno 32] Broken pipe\n")


class FullDisk(io.RawIOBase):
    """A file that takes nothing, until there is room."""

    is_full = True

    def writable(self):
        return True

    def write(self, content):
        if self.is_full:
            raise OSError(28, "No space left on device")
        return len(content)

    def fileno(self):
        return os.open(os.devnull, os.O_RDWR)


@pytest.mark.parametrize("lines", [1, 100_000])
def test_output_that_cannot_be_written_is_one_line(lines, capfd, monkeypatch):
    disk = FullDisk()
    out = io.TextIOWrapper(io.BufferedWriter(disk))
    monkeypatch.setattr(sys, "stdout", out)
    code, _, error = run(lambda _: print("line\n" * lines), capfd)
    assert code == 1
    assert error == (
        "verb: standard output cannot be written (No space left on device): what came "
        "before is there; make room and run it again\n"
    )
    disk.is_full = False  # or the end of the tests would fail, too


def test_other_full_disk_is_not_that_of_standard_output(capfd):
    def main(_):
        raise OSError(28, "No space left on device", "x.npz")

    assert run(main, capfd) == (1, "", "verb: x.npz: No space left on device\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has none")
def test_full_disk_behind_standard_output_is_one_line():
    result = subprocess.run(
        [sys.executable, "-m", "gluon_resnet"],
        stdout=os.open("/dev/full", os.O_WRONLY),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == (
        "python -m gluon_resnet: standard output cannot be written (No space left on "
        "device): what came before is there; make room and run it again\n"
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_text_can_be_printed(encoding, capfd, monkeypatch):
    written = io.BytesIO()
    out = io.TextIOWrapper(written, encoding, errors="strict", write_through=True)
    monkeypatch.setattr(sys, "stdout", out)
    assert run(lambda _: print("é \udce9 \u2192"), capfd)[0] == 0
    expected = {
        "ascii": rb"\xe9 \udce9 \u2192",
        "latin-1": b"\xe9 " + rb"\udce9 \u2192",
        "utf-8": "é ".encode() + rb"\udce9 " + "\u2192".encode(),
    }
    assert written.getvalue() == expected[encoding] + b"\n"


def test_closed_streams_do_no_harm():
    line = f"{sys.executable} -m gluon_resnet >&- 2>&-; echo $?"
    result = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=True
    )
    assert (result.stdout, result.stderr) == ("0\n", "")


def verbs_that_are_there():
    for path in [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__main__.py")]:
        functions = {
            node.name
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef)
        }
        if {"main", "parser"} <= functions and path.parent / path.stem != (
            PACKAGE / "__main__"
        ):
            yield path.stem if path.parent == PACKAGE else path.parent.name


def test_verbs_are_the_modules_with_a_parser_and_a_main():
    assert sorted(program.VERBS) == sorted(verbs_that_are_there())


@pytest.mark.parametrize("verb", program.VERBS)
def test_verb_parses_and_names_itself(verb):
    verb_parser = program.module_of(verb).parser()
    assert verb_parser.prog == f"python -m gluon_resnet.{verb}"
    assert verb_parser.description
    for action in verb_parser._actions:
        assert action.help, action.option_strings


def test_help_of_every_verb_needs_nothing_heavy():
    code = (
        "import sys, importlib\n"
        "from gluon_resnet.__main__ import VERBS, module_of\n"
        "for verb in VERBS:\n"
        "    module_of(verb).parser().format_help()\n"
        "heavy = {'mxnet', 'numpy', 'cv2', 'PIL', 'matplotlib', 'requests', 'tqdm'}\n"
        "print(*heavy & set(sys.modules))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "\n"


def test_program_without_a_verb_lists_them(capfd):
    code, out, _ = start(capfd)
    assert code == 0
    for verb, what in program.VERBS.items():
        assert f"\n  {verb:9}  {what}\n" in out
    assert start(capfd, "--help")[:2] == (0, out)


def test_unknown_verb_is_told_with_the_nearest(capfd):
    code, out, error = start(capfd, "trian")
    assert (code, out) == (2, "")
    assert error == (
        "gluon-resnet: unknown verb 'trian'; nearest: train, infer; see gluon-resnet "
        "--help\n"
    )


def test_verb_gets_what_follows_it(capfd, monkeypatch):
    seen = []
    module = program.module_of("convert")
    monkeypatch.setattr(module, "main", lambda given: seen.append((given, sys.argv)))
    code, _, _ = start(capfd, "convert", "a.pth", "b.params", "--model", "resnet18")
    (given, argv), *_ = seen
    assert code == 0
    assert (given.source, given.destination, given.model) == (
        "a.pth",
        "b.params",
        "resnet18",
    )
    assert argv == ["gluon-resnet convert", *sys_argv_of(given)]


def sys_argv_of(given):
    return [given.source, given.destination, "--model", given.model]


def test_verb_is_told_by_the_name_it_was_called_by(capfd):
    code, _, error = start(capfd, "convert", "a.pth")
    assert code == 2
    assert error == (
        "gluon-resnet convert: the following arguments are required: DST; see "
        "gluon-resnet convert --help\n"
    )


def test_version_tells_all_that_decides_numbers_and_speed(capfd):
    import mxnet as mx
    import numpy as np

    code, out, _ = start(capfd, "--version")
    first, second, *others = out.splitlines()
    assert (code, first) == (0, f"gluon-resnet {gluon_resnet.__version__}")
    assert second.startswith(f"MXNet {mx.__version__}, NumPy {np.__version__}, Python ")
    assert [line.partition(":")[0] for line in others] == [
        "oneDNN for inference",
        "oneDNN for training",
        "cores",
    ]


def test_every_verb_and_option_can_be_completed():
    whole = program.parser(program.VERBS)
    (verbs,) = [
        action.choices
        for action in whole._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    for verb in program.VERBS:
        alone = program.module_of(verb).parser()
        assert set(alone._option_string_actions) == set(
            verbs[verb]._option_string_actions
        )


@pytest.mark.parametrize(
    "line, completed",
    [
        ("gluon-resnet val", "validate "),
        ("gluon-resnet validate --conf", "--confusion "),
        ("gluon-resnet infer --precision bf", "bf16 "),
    ],
)
def test_shell_completes(line, completed, tmp_path):
    answer = tmp_path / "answer"
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    code = "from gluon_resnet.__main__ import start; start()"
    subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert answer.read_text() == completed


@pytest.mark.parametrize("name", PREPARATIONS)
def test_preparation_parses(name):
    module = pytest.importorskip(f"imagenet_prep.{name}")
    assert module.parser().prog == f"python -m imagenet_prep.{name}"
