"""Try in a finished root what sandboxes have imported before anybody asks for them.

A module that fails there costs a sandbox nothing but time, so that is told, and is no failure of the build.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

DEADLINE_S = 60.0
"""As long as a zygote is given."""
VARIABLES = {"HOME": "/dev/shm", "TMPDIR": "/dev/shm", "PYTHONDONTWRITEBYTECODE": "1"}  # noqa: S108
"""What modules write at their first import goes with the trial."""
_PROGRAM = Path(__file__).with_name("trial_program.py")


def command(modules: Sequence[str], python: str = "python3", *, is_named: bool = False) -> list[str]:
    """What is run in the root; its output is for `warnings`.

    With `is_named` somebody has asked for these, so one that is not there is told too.
    """
    return [python, "-c", _PROGRAM.read_text(), str(DEADLINE_S), "named" if is_named else "usual", *modules]


def warnings(output: str) -> list[str]:
    """What the template's owner should know, a sentence each."""
    try:
        return msgspec.json.decode(output, type=list[str])
    except msgspec.DecodeError:
        return [f"the modules of sandboxes could not be tried: {output.strip()[-500:]}"]
