"""The languages that contexts run, each a record: what its kernel is started with, and what that takes.

A kernel is a program of its own, run by the template's interpreter of that language. Adding a language means
a folder `<language>_kernel` beside this file, which speaks the protocol of docs/kernels.md, and a record.
"""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KERNELS = "{kernels}"
_JUPYTER_NAME = re.compile(r"[a-z0-9._][a-z0-9._-]{0,63}")


class Language(NamedTuple):
    """One language that contexts run.

    Attributes:
        name: Normalised, as contexts show it.
        command: What starts its kernel: a program, looked for on PATH of the sandbox's variables, and its
            arguments; `{kernels}` stands for the folder of our kernel programs. The number of the
            descriptor that leads to the agent is added at the end.
        needs: What the template has to have, for the user whose template has it not: "code in X needs ...".
        aliases: Further names that requests may use.
        is_listed_at_boot: Whether its default context is shown before anybody has used it, as E2B does.
    """

    name: str
    command: tuple[str, ...]
    needs: str
    aliases: tuple[str, ...] = ()
    is_listed_at_boot: bool = False

    def argv(self, kernels: str, descriptor: int) -> list[str]:
        """The command that starts a kernel; `kernels` is the folder of kernel programs as seen from here."""
        return [*(word.replace(_KERNELS, kernels) for word in self.command), str(descriptor)]

    def is_there(self, env: Mapping[str, str]) -> bool:
        """Whether the template has the program that runs it."""
        path = env.get("PATH") or os.environ.get("PATH", DEFAULT_PATH)
        return shutil.which(self.command[0], path=path) is not None


PYTHON = Language(
    "python",
    ("python3", f"{_KERNELS}/python_kernel"),
    "code in Python needs python3 and IPython >= 8 (add `pip install ipython` to the template)",
    ("py", "python3"),
    is_listed_at_boot=True,
)

_NODE = ("node", "--expose-internals", f"{_KERNELS}/javascript_kernel/main.js")
"""Node's own parser is among its internal modules."""

JAVASCRIPT = Language(
    "javascript",
    (*_NODE, "javascript"),
    "code in JavaScript needs Node.js >= 18 in the template",
    ("js",),
    is_listed_at_boot=True,
)
TYPESCRIPT = Language(
    "typescript",
    (*_NODE, "typescript"),
    "code in TypeScript needs Node.js in the template: >= 22.13, or >= 18 and the npm package "
    "@swc/wasm-typescript, installed globally",
    ("ts",),
)

_DRIVEN = f"{_KERNELS}/driven_kernel"
_POLYGLOT = "(the template polyglot has all of it)"

BASH = Language("bash", ("python3", _DRIVEN, "bash"), "code in bash needs bash and python3", ("sh", "shell"))
R = Language(
    "r",
    ("python3", _DRIVEN, "jupyter", "ir"),
    f"code in R needs R, IRkernel, and python3 with jupyter_client {_POLYGLOT}",
)
JAVA = Language(
    "java",
    ("python3", _DRIVEN, "jupyter", "java"),
    f"code in Java needs a JDK, and python3 with jjava and jupyter_client {_POLYGLOT}",
)
RUBY = Language(
    "ruby", ("ruby", f"{_KERNELS}/ruby_kernel/kernel.rb"), f"code in Ruby needs ruby {_POLYGLOT}", ("rb",)
)
CPP = Language(
    "cpp", ("python3", _DRIVEN, "cpp"), f"code in C++ needs g++ and python3 {_POLYGLOT}", ("c++", "cxx")
)

LANGUAGES = (PYTHON, JAVASCRIPT, TYPESCRIPT, BASH, R, JAVA, RUBY, CPP)

_BY_NAME = {name: language for language in LANGUAGES for name in (language.name, *language.aliases)}


def find_language(name: str | None) -> Language | None:
    """The language that a request names; Python where it names none. None: that can be no name.

    Any name that is not ours is taken for that of a Jupyter kernel, which the template may have or not.
    """
    name = normalised(name)
    if (known := _BY_NAME.get(name)) is not None or not _JUPYTER_NAME.fullmatch(name):
        return known
    needs = f"'{name}' is none of {', '.join(language.name for language in LANGUAGES)}; a Jupyter kernel of "
    needs += f"that name needs itself, and python3 with jupyter_client {_POLYGLOT}"
    return Language(name, ("python3", _DRIVEN, "jupyter", name), needs)


def normalised(name: str | None) -> str:
    """A name as the table has it."""
    return (name or PYTHON.name).lower().strip()
