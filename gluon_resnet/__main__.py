# SPDX-License-Identifier: Apache-2.0
"""`gluon-resnet VERB ...` and `python -m gluon_resnet VERB ...`: all commands."""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NoReturn, Optional

from gluon_resnet import __version__, command, interrupt
from gluon_resnet.nearest import nearest

VERBS = {
    "infer": "classify images",
    "models": "list all models with their parameters and FLOPs",
    "weights": "list, download and verify published weights",
    "convert": "convert a weights file to another format",
    "export": "write a model as an ONNX file, or check one",
    "quantize": "make an int8 model of a model and images",
    "train": "train a model from record files",
    "benchmark": "measure a model's speed on this machine",
    "validate": "measure top-1 and top-5 on a record file",
}
_COMPLETION = """\
In Bash and Zsh, TAB completes verbs, options and files after
  eval "$(register-python-argcomplete gluon-resnet)"
"""


def parser(verbs: Iterable[str] = ()) -> command.Parser:
    """Return the parser of what comes before a verb, and of what follows `verbs`."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {what}" for verb, what in VERBS.items()]
    parser = command.Parser(
        prog=_prog(),
        usage="%(prog)s VERB [--help]",
        description="\n".join(
            ["ResNets in Apache MXNet Gluon. The verbs:", "", *lines]
        ),
        epilog=_COMPLETION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="store_true", help="print versions and instructions"
    )
    if verbs:
        subparsers = parser.add_subparsers()
        for verb in verbs:
            subparsers.add_parser(
                verb,
                help=VERBS[verb],
                parents=[module_of(verb).parser()],
                conflict_handler="resolve",
            )
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Print the versions or the list of verbs."""
    if arguments.version:
        print("\n".join(_versions()))
    else:
        parser().print_help()


def start(argv: Optional[Sequence[str]] = None) -> NoReturn:
    """Run the verb that the command line begins with."""
    interrupt.end_at_once(_prog())
    argv = sys.argv[1:] if argv is None else list(argv)
    if "_ARGCOMPLETE" in os.environ:  # a shell asks, and reads no standard output
        import argcomplete

        argcomplete.autocomplete(parser(VERBS))
    verb = argv[0] if argv else "--help"
    if verb.startswith("-"):
        command.run(main, parser(), argv)
    if verb not in VERBS:
        parser().error(f"unknown verb {verb!r}; {nearest(verb, VERBS)}")
    module = module_of(verb)
    verb_parser = module.parser()
    verb_parser.prog = f"{_prog()} {verb}"
    # As if the verb had been called by itself: it may look there.
    sys.argv = [verb_parser.prog, *argv[1:]]
    command.run(module.main, verb_parser)


def module_of(verb: str) -> ModuleType:
    """Return the module that has a verb's `parser` and `main`."""
    name = f"gluon_resnet.{verb}"
    spec = find_spec(name)
    is_package = spec is not None and spec.submodule_search_locations is not None
    return import_module(f"{name}.__main__" if is_package else name)


def _prog() -> str:
    path = Path(sys.argv[0])
    return "python -m gluon_resnet" if path.name == "__main__.py" else path.name


def _versions() -> list[str]:
    """Return lines on all that decides which numbers come out, and how fast."""
    import mxnet as mx
    import numpy as np

    from gluon_resnet import _before_mxnet
    from gluon_resnet.cpu import allowed_cpus, physical_cores
    from gluon_resnet.inference import onednn

    python = ".".join(map(str, sys.version_info[:3]))
    inference = "none, MXNet's operators run"
    if onednn.is_available():
        inference = f"{onednn.version()}, {onednn.instructions()}"
    return [
        f"gluon-resnet {__version__}",
        f"MXNet {mx.__version__}, NumPy {np.__version__}, Python {python}",
        f"oneDNN for inference: {inference}",
        f"oneDNN for training: MXNet's 2.4, {_before_mxnet.AMX}",
        f"cores: {physical_cores(allowed_cpus())}, GPUs: {mx.context.num_gpus()}",
    ]


if __name__ == "__main__":
    start()
