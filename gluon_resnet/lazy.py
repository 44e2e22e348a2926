# SPDX-License-Identifier: Apache-2.0
"""Packages whose public names are loaded on first use.

`import mxnet` takes seconds, and a process that only decodes images or prints help
never needs it. What a package offers stands in the stub beside it, `__init__.pyi`,
which type checkers and editors read, too.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import lazy_loader


class _Package(ModuleType):
    """A package in which a function keeps its name from the module it comes from.

    `preprocess` is both. Whenever a module is imported, Python gives its name in the
    package to it, which would take that name from the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and name in self.__all__:
            value = getattr(value, name)
        super().__setattr__(name, value)


def attach(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package.

    package, file: its `__name__` and `__file__`.
    """
    sys.modules[package].__class__ = _Package
    return lazy_loader.attach_stub(package, file)
