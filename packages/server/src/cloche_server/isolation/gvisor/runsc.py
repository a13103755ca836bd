"""The program runsc: where it is, which version, and how it is called."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from cloche_wire.errors import Unavailable

MINIMUM = "20240729"
"""Release (YYYYMMDD) of the oldest that is tested: older ones checkpoint neither quickly nor into files of
their own for pages."""
_HINT = "run tools/setup, or put runsc of gvisor.dev on PATH"


class Runsc(NamedTuple):
    """The program to run."""

    path: str
    version: str
    """As it says itself, such as `20240729.0`: an image of one version is not read by another."""

    @property
    def release(self) -> str:
        """The day in it; empty where there is none."""
        return _release(self.version)

    def command(self, root: Path, *arguments: str) -> list[str]:
        """One call, for sandboxes whose state lies in `root`."""
        since = [flag for release, flag in _FLAGS_SINCE if self.release >= release]
        return [self.path, *_FLAGS, *since, f"--root={root}", *arguments]


_FLAGS = (
    "--platform=systrap",
    "--network=sandbox",
    # The gofer opens files for the sentry, whose own filter then has no call that opens any (ADR 0016).
    "--directfs=false",
    "--host-uds=none",
    "--file-access=exclusive",
    # The groups are made and entered before runsc runs.
    "--ignore-cgroups",
    # A connection to outside would refuse the checkpoint; it is reset instead.
    "--net-disconnect-ok",
)
_FLAGS_SINCE = (
    # sudo and su work inside; before, programs with the setuid bit run as whoever starts them.
    ("20250812", "--allow-suid"),
)


def find(tools: Path) -> Runsc:
    """The newer one of that on PATH and of that which the set-up has laid into `tools`.

    Raises:
        Unavailable: There is none, or it is too old.
    """
    candidates = [shutil.which("runsc"), str(tools / "runsc")]
    found = [Runsc(path, _version(path)) for path in candidates if path and os.access(path, os.X_OK)]
    if not found:
        raise Unavailable("runsc is not installed", hint=_HINT)
    newest = max(found, key=lambda one: one.release)
    if newest.release < MINIMUM:
        raise Unavailable(f"runsc is older than {MINIMUM}: {newest.version} at {newest.path}", hint=_HINT)
    return newest


def _version(path: str) -> str:
    """What comes after `runsc version`: `release-20240729.0`, or Debian's `0.0~20240729.0`.

    Raises:
        Unavailable: It does not run.
    """
    try:
        text = subprocess.run(
            [path, "--version"], check=True, capture_output=True, text=True, timeout=10
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"runsc does not run: {path}: {error}", hint=_HINT) from error
    return text.partition("runsc version ")[2].partition("\n")[0].strip()


def _release(version: str) -> str:
    """The day in a version; empty where there is none."""
    found = re.search(r"\d{8}", version)
    return found.group() if found else ""
