"""Reads a template that a Python file describes: it is run in a Python of its own, as whoever calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from cloche_server.cli import template_program
from cloche_server.templates.dockerfile.translate import Translated
from cloche_server.templates.steps import Description
from cloche_wire.build_context import Context, pack_steps
from cloche_wire.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMEOUT_S = 120.0


class Described(msgspec.Struct, frozen=True):
    """What the program prints."""

    description: dict[str, Any]
    context: str
    ignored: list[str] = []
    name: str = ""
    cpu_count: int | None = None
    memory_mib: int | None = None


class FromPython(NamedTuple):
    """A template as its file describes it."""

    translated: Translated
    described: Described


def read(path: Path, scratch: Path, python: str = "") -> FromPython:
    """Run the file and pack what its template copies; `python` is the interpreter that has its packages.

    Raises:
        InvalidArgument: The file fails, or describes no template; what it has printed is on standard error.
    """
    described = _decoded(_run([python or sys.executable, template_program.__file__, str(path)]), path)
    try:
        context = Context(Path(described.context), scratch, described.ignored)
        steps, archives = pack_steps(described.description.get("steps", []), context)
        description = msgspec.convert({**described.description, "steps": steps}, Description)
    except FileNotFoundError as error:
        raise InvalidArgument(f"no such file in {described.context}: {error}") from error
    except (ValueError, msgspec.ValidationError, LookupError) as error:
        raise InvalidArgument(f"cannot build what {path} describes: {error}") from error
    return FromPython(Translated(description, tuple(archives)), described)


def _run(argv: Sequence[str]) -> bytes:
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=TIMEOUT_S, check=False
        )
    except OSError as error:
        raise InvalidArgument(f"cannot run {argv[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise InvalidArgument(f"{argv[-1]} did not end in {TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        hint = "--python names an interpreter that has the packages of the file"
        raise InvalidArgument(f"{argv[-1]} ended with status {done.returncode}", hint=hint)
    return done.stdout


def _decoded(answer: bytes, path: Path) -> Described:
    try:
        return msgspec.json.decode(answer, type=Described)
    except msgspec.DecodeError as error:
        raise InvalidArgument(f"cannot read what {path} describes: {error}") from error
