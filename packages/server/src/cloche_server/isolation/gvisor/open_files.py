"""What a sandbox has in use of mounts that others have too.

An image holds such a file by its name: where somebody else has removed it meanwhile, nothing goes on from
the image; where another file has that name, its programs read that one instead. So nothing is saved while a
program has something of the kind. The root of a shared mount is no such thing: it is always there.

The kernel of the sandbox tells what its programs have. What it keeps beside that, such as folders that are
watched, its gofer has open too, and with it some that were let go of a moment ago: what an image may need.

See: gvisor, runsc/boot/procfs/dump.go and pkg/sentry/fsimpl/gofer/save_restore.go, at `control.RELEASES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from stat import S_ISDIR
from typing import Any

MOST_NAMED = 3
_DELETED = " (deleted)"
_GOFER = b"runsc-gofer"
_GOFER_ROOT = "/root"
"""Where a gofer has put together all that it serves."""


def users(dump: object, shared: Sequence[str]) -> list[str]:
    """Say which programs have what in use below `shared`, absolute and normal paths: a line for each file.

    What the kernel says is as little to be believed as the sandbox: what has no form is passed over, which
    costs nobody but this sandbox.

    Raises:
        ValueError: It names no program at all, and there is one.
    """
    if not any(_objects(dump)):
        raise ValueError("the kernel of the sandbox does not say what its programs use")
    found: dict[tuple[str, str], None] = {}
    for process in _objects(dump):
        status = next(_objects([process.get("status")]), process)
        who = f"{_text(status.get('comm')) or 'a program'} (pid {_text(status.get('pid'))})"
        root = _text(process.get("root")).rstrip("/")
        for path in ("", *_paths(process)):
            # Which root a name counts from, the program's or that of all, is not said.
            for seen in (path, f"{root}{path}".rstrip("/")):
                if any(seen.startswith(f"{mount}/") for mount in shared):
                    found[who, seen.removesuffix(_DELETED)] = None
    return [f"{path} by {who}" for who, path in found]


def told(found: Sequence[str]) -> str:
    """The first of them, and how many there are."""
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return ", ".join(line[:300] for line in found[:MOST_NAMED]) + more


def _paths(process: dict[str, Any]) -> Iterator[str]:
    """What one process has, but for its root: its program and folder, what is open, what is in its memory."""
    yield _text(process.get("exe"))
    yield _text(process.get("cwd"))
    for entry in _objects(process.get("fdlist")):
        yield _text(entry.get("path"))
    for entry in _objects(process.get("maps")):
        yield _text(entry.get("pathname"))


def _objects(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        for one in value:  # pyright: ignore[reportUnknownVariableType]
            if isinstance(one, dict):
                yield one


def _text(value: object) -> str:
    return str(value) if isinstance(value, str | int) else ""


def kept(pids: set[int], shared: Sequence[str]) -> list[str]:
    """Return what the gofer among `pids` has open below `shared`; folders end with a slash.

    What has been removed since is not among them.
    """
    found: set[str] = set()
    for pid in pids:
        # SAFETY: looked at by name and kind, and not opened; the gofer is a process of ours.
        with suppress(OSError):  # it has ended, or closed one
            if not Path(f"/proc/{pid}/cmdline").read_bytes().startswith(_GOFER):
                continue
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    path = str(entry.readlink()).removeprefix(_GOFER_ROOT)
                    if any(path.startswith(f"{mount}/") for mount in shared) and not path.endswith(_DELETED):
                        found.add(f"{path}/" if S_ISDIR(entry.stat().st_mode) else path)
    return sorted(found)
