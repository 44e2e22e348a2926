# SPDX-License-Identifier: Apache-2.0
"""README.md is short, and the commands of all pages are commands that there are."""

import importlib
import itertools
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *ROOT.glob("*/README.md"),
    *(ROOT / "gluon_resnet").glob("*/README.md"),
    *sorted((ROOT / "docs").glob("*.md")),
]
MAX_BYTES = 12_000
_SHELL = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"(?:^|&& )(?:\S*python -m|gluon-resnet) .*")
MODULES = ("gluon_resnet", "imagenet_prep")


def commands():
    """(page, command as words) of each command of this project in a shell block."""
    for page in PAGES:
        for block in _SHELL.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                if match := _COMMAND.search(line):
                    words = shlex.split(match[0].removeprefix("&& "), comments=True)
                    words = list(itertools.takewhile(lambda w: w not in ">|", words))
                    if words[0] == "gluon-resnet":
                        words = ["python", "-m", f"gluon_resnet.{words[1]}", *words[2:]]
                    if words[2].partition(".")[0] in MODULES:
                        yield page.relative_to(ROOT), words[2:]


def test_first_command_prints_what_stands_below_it(run_command, monkeypatch):
    from gluon_resnet import infer

    text = PAGES[0].read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.endswith("--topk 1"))
    words = shlex.split(line.rpartition("gluon_resnet.infer ")[2])
    shown = re.search(
        r"The first one prints:\n\n```\n(.*?)\.\.\.\n```", text, re.DOTALL
    )
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("GLUON_RESNET_OFFLINE", "1")
    done = run_command(infer, *words)
    seconds = re.compile(r"\d+\.\d+ s")
    assert done.code == 0
    assert seconds.sub("", done.out).startswith(seconds.sub("", shown[1]))


def test_readme_can_be_read_in_ten_minutes():
    assert (ROOT / "README.md").stat().st_size <= MAX_BYTES


@pytest.mark.parametrize(
    "page, words", commands(), ids=lambda value: str(value).replace("/", "-")[:60]
)
def test_command_of_a_page_is_understood(page, words, monkeypatch):
    module, *arguments = words
    found = importlib.import_module(module)
    if not hasattr(found, "parser"):  # a folder of its own: python -m runs its __main__
        found = importlib.import_module(f"{module}.__main__")
    monkeypatch.chdir(ROOT)
    found.parser().parse_args(arguments)  # SystemExit where it is not understood
