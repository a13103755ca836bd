# ruff: noqa: ANN401 - IPython is untyped
"""sys.stdout and sys.stderr of a kernel, and the pipes behind descriptors 1 and 2."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import io
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .outbox import Outbox

_PIPE_BYTES = 1 << 20
_READ_BYTES = 64 * 1024


class OutputStream(io.TextIOBase):
    """Text stream whose text goes to the agent; in a forked child it goes to the descriptor instead."""

    errors = "replace"
    newlines = None

    def __init__(self, outbox: Outbox, name: str, descriptor: int) -> None:
        """`name` is stdout or stderr, `descriptor` its number, which child processes inherit."""
        super().__init__()
        self._outbox = outbox
        self._stream = name
        self._descriptor = descriptor
        self._is_direct = False
        self._unfinished = ""
        self.name = f"<{name}>"
        self.mode = "w"
        self.buffer = _Bytes(self)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Always UTF-8."""
        return "utf-8"

    def write(self, text: str) -> int:
        """Queue `text`; waits while the agent does not read."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if not self._is_direct:
            self._outbox.put_text(self._stream, text)
            return len(text)
        # Whole lines, so that those of several children do not mix.
        self._unfinished += text
        if "\n" in text:
            self.flush()
        return len(text)

    def write_bytes(self, data: bytes) -> None:
        """Write past the queue, into the pipe; what Python wrote before is ahead of it in the queue."""
        while data:
            data = data[os.write(self._descriptor, data) :]

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]
        """Queue every one of `lines`."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Send what is queued without waiting for more to come."""
        if not self._is_direct:
            self._outbox.flush()
        elif self._unfinished:
            text, self._unfinished = self._unfinished, ""
            self.write_bytes(text.encode("utf-8", "replace"))

    def fileno(self) -> int:
        """The descriptor child processes get when this stream is passed to them."""
        return self._descriptor

    def isatty(self) -> bool:
        """Never a terminal."""
        return False

    def writable(self) -> bool:
        """Always."""
        return True

    def reconfigure(self, **options: Any) -> None:
        """Accepted for programs that ask their stdout for UTF-8, which it speaks."""

    def close(self) -> None:
        """Stay open: a cell that closes its stdout must not silence the next one."""

    def go_direct(self) -> None:
        """From here on write to the descriptor: in a forked child, which has no queue."""
        self._is_direct = True


class _Bytes(io.RawIOBase):
    """`sys.stdout.buffer`."""

    def __init__(self, stream: OutputStream) -> None:
        super().__init__()
        self._stream = stream

    def write(self, data: Any) -> int:
        raw = bytes(data)
        self._stream.write_bytes(raw)
        return len(raw)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def close(self) -> None:
        return


def replace_standard_streams(outbox: Outbox) -> None:
    """Put our streams into `sys`, and pipes behind descriptors 1 and 2 for child processes and C code.

    A C extension that writes more than the pipe takes (1 MiB) without giving up the interpreter's lock blocks
    for good, since the thread that reads needs that lock; a restart of the context ends it.
    """
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = OutputStream(outbox, name, descriptor)
        _redirect(outbox, name, descriptor)
        # Kept by the interpreter for its last words, and used by programs that distrust sys.stdout.
        original = io.TextIOWrapper(
            open(descriptor, "wb", 0, closefd=False),  # noqa: SIM115 - lives as long as the process
            encoding="utf-8", errors="replace", write_through=True,
        )  # fmt: skip
        setattr(sys, f"__{name}__", original)
        setattr(sys, name, stream)
        os.register_at_fork(after_in_child=stream.go_direct)
    os.register_at_fork(after_in_child=outbox.abandon)


def _redirect(outbox: Outbox, name: str, descriptor: int) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    # Fails when the user's budget of pipe memory is spent: the default size does too.
    with contextlib.suppress(OSError):
        fcntl.fcntl(writer, getattr(fcntl, "F_SETPIPE_SZ", 1031), _PIPE_BYTES)
    # SAFETY: dup2 makes an inheritable 1 or 2, as programs expect; the original ends stay close-on-exec.
    os.dup2(writer, descriptor)
    os.close(writer)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def absorb() -> bool:
        try:
            data = os.read(reader, _READ_BYTES)
        except BlockingIOError:
            return True  # another thread was quicker
        outbox.append_text(name, decoder.decode(data))
        return bool(data)  # empty: the program has closed its descriptor

    outbox.add_source(reader, absorb)
