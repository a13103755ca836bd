"""Python modules that a build adds to what its sandboxes have imported before anybody asks for them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cloche_server.templates import trial
from cloche_server.templates.workshop import Command, Setting, Workshop

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST = 64
_MODULE = re.compile(r"[A-Za-z_]\w{0,99}(\.[A-Za-z_]\w{0,99}){0,9}\Z", re.ASCII)


def problem(modules: Sequence[str]) -> str:
    """What is wrong with a list of modules; empty when nothing is."""
    if len(modules) > MOST:
        return f"too many modules to preload: {len(modules)} of at most {MOST}"
    bad = [name for name in modules if not _MODULE.match(name)]
    return f"not the name of a module: {bad[0][:80]!r}" if bad else ""


def joined(base: Sequence[str], added: Sequence[str]) -> tuple[str, ...]:
    """All of them, each once, those of the base first."""
    return tuple(dict.fromkeys((*base, *added)))


async def warnings(
    workshop: Workshop, setting: Setting, variables: dict[str, str], modules: Sequence[str]
) -> list[str]:
    """Import them in a sandbox of the finished layers; what the owner should know, a sentence each.

    Raises:
        ClocheError: As `Workshop.bench` and `Bench.run`.
    """
    said: list[str] = []

    async def on_line(stream: str, line: str) -> None:
        if stream == "stdout":
            said.append(line)

    argv = trial.command(modules, is_named=True)
    async with workshop.bench(setting) as bench:
        await bench.run(Command(argv, "root", "/", variables | trial.VARIABLES), on_line)
    return trial.warnings("\n".join(said))
