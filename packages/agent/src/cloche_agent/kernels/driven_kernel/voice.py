"""What a driven kernel says to the agent, by its main thread only."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..python_kernel.frames import LARGEST_FRAME_BYTES, encode  # noqa: TID252 - as in driver.py

if TYPE_CHECKING:
    import socket

_PIECE_CHARACTERS = 64 * 1024
_LARGEST_TRACEBACK = 1 << 20
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


class Failure(Exception):  # noqa: N818 - not an error of the program
    """A kernel cannot start; `kind` and `message` as docs/kernels.md lists them."""

    def __init__(self, kind: str, message: str) -> None:
        """Keep both for the agent."""
        super().__init__(message)
        self.kind = kind
        self.message = message


class Voice:
    """The frames of one run after another."""

    def __init__(self, sock: socket.socket) -> None:
        """Send on this socket; a send waits while the agent does not read."""
        self._socket = sock

    def say(self, message: dict[str, Any]) -> None:
        """Send one frame."""
        self._socket.sendall(encode(message))

    def text(self, stream: str, text: str) -> None:
        """Send what a cell has printed; `stream` is stdout or stderr."""
        for start in range(0, len(text), _PIECE_CHARACTERS):
            self.say({"type": stream, "text": text[start : start + _PIECE_CHARACTERS]})

    def result(self, bundle: dict[str, Any], *, is_main: bool) -> None:
        """Send a value; of one that is too large, say so and send what fits."""
        bundle = dict(bundle)
        while True:
            frame = encode({"type": "result", "main": is_main, "bundle": bundle})
            if len(frame) <= LARGEST_FRAME_BYTES:
                self._socket.sendall(frame)
                return
            mime = max(bundle, key=lambda name: len(str(bundle[name])))
            del bundle[mime]
            self.text("stderr", f"{mime} of a result left out: larger than {LARGEST_FRAME_BYTES >> 20} MiB\n")

    def error(self, name: str, value: str, traceback: str) -> None:
        """Send why the cell failed, without the colours of a terminal."""
        text = _ESCAPES.sub("", traceback)
        if len(text) > _LARGEST_TRACEBACK:
            text = f"{text[: _LARGEST_TRACEBACK // 2]}\n...\n{text[-_LARGEST_TRACEBACK // 2 :]}"
        value = _ESCAPES.sub("", value)[:_LARGEST_TRACEBACK]
        self.say({"type": "error", "name": name, "value": value, "traceback": text})
