"""Change the root of a build's sandbox by a program of ours, whatever programs the image has."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import msgspec

from cloche_server.link import Event
from cloche_server.node import builds, root_changes
from cloche_server.node.build_messages import BuildExited, BuildLine, ChangeRoot, RootChanged
from cloche_server.node.build_programs import Program
from cloche_server.node.machine import Live, Machine
from cloche_server.node.pulling.messages import PrepareBase, Prepared
from cloche_wire.errors import InvalidArgument

_PROGRAM = Path(root_changes.__file__).read_text()
_TIMEOUT_S = 900.0
_OUTPUT_BYTES = 64 << 20


async def change(machine: Machine, request: ChangeRoot) -> RootChanged:
    """Do one of the things of `root_changes`.

    Raises:
        ClocheError: See `build_messages`.
    """
    live = builds.find(machine, request.sandbox_id)
    async with aclosing(_run(machine, live, request.words, _TIMEOUT_S)) as lines:
        said = [line async for line in lines]
    return RootChanged(said[-1] if said else "")


async def prepare(machine: Machine, request: PrepareBase) -> AsyncGenerator[Event]:
    """Give a root what every template has; the lines of its programs, and what came of it.

    Raises:
        ClocheError: See `pulling.messages`.
    """
    live = builds.find(machine, request.sandbox_id)
    last = ""
    words = ("prepare", str(request.timeout_s / 2))
    async with aclosing(_run(machine, live, words, request.timeout_s)) as lines:
        async for line in lines:
            if last:
                yield Event("line", BuildLine("stdout", last))
            last = line
    try:
        yield Event("prepared", msgspec.json.decode(last, type=Prepared))
    except msgspec.DecodeError as error:
        raise InvalidArgument("the image cannot be the base of a template: it said nothing") from error


async def _run(
    machine: Machine, live: Live, words: tuple[str, ...], timeout_s: float
) -> AsyncGenerator[str, None]:
    """What it writes, line by line.

    Raises:
        InvalidArgument: It has failed, for the reason that it has written last.
    """
    argv = (*machine.tree.python(), "-c", _PROGRAM, *words)
    last = ""
    async with aclosing(
        builds.lines(machine, live, Program(argv, "root", "/", {}, timeout_s), _OUTPUT_BYTES)
    ) as events:
        async for event in events:
            match event.data:
                case BuildLine(text=text):
                    last = text
                    yield text
                case BuildExited(status=status) if status != 0:
                    raise InvalidArgument(last[:1000] or f"exit status {status}")
                case _:
                    continue
