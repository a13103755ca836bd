"""Where the public test trees lie, and a copy of each to run in: the originals are never written to."""

import shutil
from pathlib import Path
from typing import NamedTuple

_SDK_MARK = "packages/python-sdk/tests"
_INTERPRETER_MARK = "python/tests/charts"


class Trees(NamedTuple):
    """Checkouts of the two public repositories."""

    sdk: Path
    """e2b-dev/E2B: both core SDKs and the command line."""
    interpreter: Path
    """e2b-dev/code-interpreter."""


def find(folder: Path) -> Trees:
    """Return the checkouts in the folder, whatever they are called.

    Raises:
        SystemExit: One of them is not there.
    """
    candidates = [path for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []

    def holding(mark: str) -> Path:
        found = next((path for path in candidates if (path / mark).is_dir()), None)
        if found is None:
            raise SystemExit(
                f"error: no folder in {folder} holds {mark}\nhint: clone the public repository into it"
            )
        return found.resolve()

    return Trees(holding(_SDK_MARK), holding(_INTERPRETER_MARK))


def copy(source: Path, target: Path, names: tuple[str, ...]) -> None:
    """Replace the target by a copy of these entries of the source."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in names:
        entry = source / name
        if entry.is_dir():
            shutil.copytree(entry, target / name, symlinks=True)
        else:
            shutil.copy2(entry, target / name)
