"""What runs the lines that clients send: bash, or `sh` where the template has no bash, as Alpine's images."""

from __future__ import annotations

import os

BASH, SH = "/bin/bash", "/bin/sh"
_BY_CLIENTS = (["-l", "-c"], ["-i", "-l"])
"""How E2B's clients and ours start it for a command and for a terminal, whatever the template has."""


def shell() -> str:
    """The shell of this template."""
    return SH if not os.access(BASH, os.X_OK) and os.access(SH, os.X_OK) else BASH


def settled(argv: list[str]) -> list[str]:
    """The same command, by a shell that is there where a client's line asks for bash.

    Who calls bash in another way means bash, and hears that there is none.
    """
    return [shell(), *argv[1:]] if argv[0] == BASH and argv[1:3] in _BY_CLIENTS else argv
