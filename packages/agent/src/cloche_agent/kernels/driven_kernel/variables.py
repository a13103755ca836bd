# ruff: noqa: UP045 - runs on Python 3.9
"""Environment variables inside a Jupyter kernel, set by code of its own language, run silently."""

from __future__ import annotations

import json
from functools import partial
from typing import Optional, Protocol

# JSON's strings are strings of R and of Java too, but for pairs of surrogates.
_text = partial(json.dumps, ensure_ascii=False)


class Assignments(Protocol):
    """How one language does it."""

    has_environment: bool
    """Whether the kernel starts with the variables of its process, or has to be told."""

    def assign(self, variables: dict[str, Optional[str]]) -> str:
        """Code that sets variables for good; None takes one away."""
        ...

    def borrow(self, variables: dict[str, str]) -> str:
        """Code that sets variables and remembers what was there."""
        ...

    def give_back(self, variables: dict[str, str]) -> str:
        """Code that puts back what `borrow` remembered."""
        ...


class _R:
    has_environment = True

    def assign(self, variables: dict[str, Optional[str]]) -> str:
        names = [name for name, value in variables.items() if value is None]
        gone = f"Sys.unsetenv(c({', '.join(map(_text, names))}))\n" if names else ""
        return gone + self._set({name: value for name, value in variables.items() if value is not None})

    def borrow(self, variables: dict[str, str]) -> str:
        names = ", ".join(map(_text, variables))
        return f"options(cloche.before = Sys.getenv(c({names}), unset = NA, names = TRUE))\n" + self._set(
            variables
        )

    def give_back(self, variables: dict[str, str]) -> str:
        return """local({
            before <- getOption("cloche.before")
            for (name in names(before)) {
                if (is.na(before[[name]])) Sys.unsetenv(name)
                else do.call(Sys.setenv, setNames(list(before[[name]]), name))
            }
            options(cloche.before = NULL)
        })"""

    def _set(self, variables: dict[str, str]) -> str:
        if not variables:
            return ""
        values, names = ", ".join(map(_text, variables.values())), ", ".join(map(_text, variables))
        return f"do.call(Sys.setenv, setNames(list({values}), c({names})))"


class _Java:
    """System properties, as in E2B: the environment of a Java program cannot be changed.

    Each is one block, which JShell compiles at once, and which leaves no `$1` behind.
    """

    has_environment = False

    def assign(self, variables: dict[str, Optional[str]]) -> str:
        return "{" + "".join(self._set(name, value) for name, value in variables.items()) + "}"

    def borrow(self, variables: dict[str, str]) -> str:
        steps = [
            f"if (System.getProperty({_text(name)}) != null) "
            f"System.setProperty({_text(_kept(name))}, System.getProperty({_text(name)}));"
            f"{self._set(name, value)}"
            for name, value in variables.items()
        ]
        return "{" + "".join(steps) + "}"

    def give_back(self, variables: dict[str, str]) -> str:
        steps = [
            f"if (System.getProperty({_text(_kept(name))}) == null) System.clearProperty({_text(name)});"
            f"else System.setProperty({_text(name)}, System.clearProperty({_text(_kept(name))}));"
            for name in variables
        ]
        return "{" + "".join(steps) + "}"

    def _set(self, name: str, value: Optional[str]) -> str:
        if value is None:
            return f"System.clearProperty({_text(name)});"
        return f"System.setProperty({_text(name)}, {_text(value)});"


def _kept(name: str) -> str:
    return f"cloche.before.{name}"


LANGUAGES: dict[str, Assignments] = {"r": _R(), "java": _Java()}
"""By the language that a kernelspec names, in lower case."""
