"""Speak to the kernel of a sandbox that runs, without a program of runsc between.

runsc's own program needs 15 ms of a quiet machine to start before it asks the same. The sentry listens on a
Unix socket: a call is one JSON object with a method and its argument, and descriptors beside; the answer is
another. Nothing says where an object ends but the object itself.

See: gvisor, pkg/urpc/urpc.go and runsc/boot/controller.go, at the releases that are named here.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from cloche_server.isolation.gvisor import open_files
from cloche_server.isolation.launching.server import FilesInUse

RELEASES = frozenset({"20240729"})
"""Whose calls are known here, by reading and by the tests; others are asked by their own program."""
Verb = Literal["freeze", "thaw", "save"]
_METHODS: dict[Verb, str] = {
    "freeze": "containerManager.Pause",
    "thaw": "containerManager.Resume",
    "save": "containerManager.Checkpoint",
}
_FILES = ("checkpoint.img", "pages_meta.img", "pages.img")
"""Of an image that is not compressed, in the order in which it gets their descriptors."""
_LOOK = "containerManager.ProcfsDump"
_ANSWER_BYTES = 65_536
_LOOK_BYTES = 16 << 20
"""Of all processes' descriptors, mappings and variables: some KiB each."""


def act(
    verb: Verb, path: str, mark: Path, image: str, *, shared: Sequence[str] = (), timeout_s: float
) -> None:
    """Have the kernel that listens at `path` do something. Blocks.

    What is to be saved must use nothing below the paths of `shared` mounts, but their roots.

    `mark` exists as long as the sandbox is frozen: its kernel counts, and ends itself when it is thawed more
    often than frozen. So the calling process must be one that a death of the node does not interrupt.

    Raises:
        FilesInUse: It does; nothing was saved.
        OSError: It refuses, does not answer in time, or is not there; or the disk is full.
    """
    if mark.exists() is not (verb != "freeze"):
        raise OSError("it stands still already" if verb == "freeze" else "it does not stand still")
    if shared and verb == "save":
        # It stands still: nothing more is opened before it is saved.
        dump = _call(path, _LOOK, None, [], timeout_s, answer_bytes=_LOOK_BYTES)
        if found := open_files.users(dump, shared):
            raise FilesInUse(f"files of a volume are in use: {open_files.told(found)}")
    argument = None
    with ExitStack() as stack:
        descriptors: list[int] = []
        if verb == "save":
            argument = _SAVE
            for name in _FILES:
                descriptors.append(_new_file(Path(image, name)))
                stack.callback(os.close, descriptors[-1])
        _call(path, _METHODS[verb], argument, descriptors, timeout_s)
    if verb == "freeze":
        mark.touch(mode=0o600)
    elif verb == "thaw":
        mark.unlink()


_SAVE: dict[str, Any] = {
    "metadata": {"compression": "none"},
    "MemoryFileSaveOpts": {"ExcludeCommittedZeroPages": True},
    "have_pages_file": True,
    # The sandbox is not ended by it, whatever comes of it.
    "Resume": True,
}


def _new_file(path: Path) -> int:
    # SAFETY: it can only be written to: what the kernel of a sandbox gets is no way to read anything.
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _call(
    path: str, method: str, argument: dict[str, Any] | None, descriptors: Sequence[int], timeout_s: float,
    *, answer_bytes: int = _ANSWER_BYTES,
) -> object:  # fmt: skip
    """One call, and what it answers.

    Raises:
        OSError: As for `act`.
    """
    deadline_s = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(timeout_s)
        connection.connect(path)
        call = json.dumps({"method": method, "arg": argument}).encode()
        sent = socket.send_fds(connection, [call], descriptors)
        if sent < len(call):
            connection.sendall(call[sent:])
        answer = _answer(connection, deadline_s, answer_bytes)
    if answer.get("success") is not True:
        raise OSError(str(answer.get("err") or "it refuses")[:2000])
    return answer.get("result")


def _answer(connection: socket.socket, deadline_s: float, most_bytes: int) -> dict[str, Any]:
    """What comes back. Who says it may be in the hands of the sandbox: bounded, and descriptors are lost."""
    text = bytearray()
    while len(text) < most_bytes:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("no answer in time")
        connection.settimeout(left_s)
        part = connection.recv(_ANSWER_BYTES)
        if not part:
            raise ConnectionResetError("the kernel of the sandbox ended")
        text += part
        if not part.endswith((b"}", b"}\n")):
            continue  # no end of an object: it need not be read to see that
        try:
            answer = json.loads(text)
        except ValueError:
            continue
        except RecursionError:
            break
        if isinstance(answer, dict):
            return answer  # pyright: ignore[reportUnknownVariableType]
        break
    raise OSError("no answer that could be read")
