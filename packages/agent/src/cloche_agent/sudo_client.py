"""`sudo` as programs call it where the setuid bit means nothing: a client of the agent (`sudo.py`).

It has no right of its own. It hands over what it was called with and waits for the end, and is run by the
runtime tree's Python: whatever is imported here, every `sudo` waits for.

A request is its length, and then texts that null bytes part: name of the program, `terminal` or nothing,
folder, number of arguments, arguments, variables. The three standard streams come with its first bytes. Each
byte that follows is the number of a signal; the answer is `exit N`, `signal N` or `error TEXT`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import termios
import tty
from typing import NoReturn

SOCKET = "/run/cloche/sudo.sock"
FOLDER = "/usr/lib/cloche"
"""Where the real program lies, under each of its names."""
NAMES = ("sudo", "sudoedit")
LENGTH = struct.Struct("!I")
ON_TERMINAL = "terminal"
"""The first stream is a terminal that nobody has yet for their own."""
SIGNALS = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
    signal.SIGTERM, signal.SIGCONT,
)  # fmt: skip
"""Those that are passed on."""
_READ_BYTES = 64 * 1024
_WINDOW_SIZE = struct.Struct("4H")


def main() -> NoReturn:
    """Be `sudo`: the arguments are those of the program, the first is its name."""
    _open_missing_streams()
    name = os.path.basename(sys.argv[1])  # noqa: PTH119 - pathlib is not imported for this
    name = name if name in NAMES else NAMES[0]
    connection = None if os.geteuid() == 0 else _connect()
    if connection is None:
        # Root needs no help; and without an agent the real one finds the words.
        os.execv(f"{FOLDER}/{name}", [name, *sys.argv[2:]])  # noqa: S606
    terminal = _Terminal() if _is_in_foreground() else None
    streams = (0, 1, 2) if terminal is None else terminal.streams
    try:
        wakes = _take_signals()
        _ask(connection, request(name, sys.argv[2:], on_terminal=terminal is not None), streams)
        answer = _wait(connection, wakes, terminal)
    finally:
        if terminal is not None:
            terminal.restore()
    _end(name, answer)


def request(name: str, arguments: list[str], *, on_terminal: bool) -> bytes:
    """What is asked for, with this process's folder and variables."""
    try:
        folder = os.getcwd()  # noqa: PTH109
    except OSError:
        folder = "/"  # it has been removed
    kind = ON_TERMINAL if on_terminal else ""
    variables = [f"{variable}={value}" for variable, value in os.environ.items()]
    texts = [name, kind, folder, str(len(arguments)), *arguments, *variables]
    body = os.fsencode("\0".join(texts))
    return LENGTH.pack(len(body)) + body


def _open_missing_streams() -> None:
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number, which is this one


def _connect() -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(SOCKET)
    except OSError:
        connection.close()
        return None
    return connection


def _ask(connection: socket.socket, asked: bytes, streams: tuple[int, ...]) -> None:
    # The agent may refuse before it has read all; its answer says so.
    with contextlib.suppress(ConnectionError):
        # SAFETY: only the streams that `sudo` would have got from this process anyway.
        sent = socket.send_fds(connection, [asked], streams)
        connection.sendall(asked[sent:])


def _take_signals() -> int:
    """Descriptor that the numbers of the signals are read from; what is ignored stays ignored."""
    wakes, wake = os.pipe()
    for descriptor in (wakes, wake):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in (*SIGNALS, signal.SIGWINCH):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _wake)
    return wakes


def _wake(number: int, frame: object) -> None:
    """Have the number written to the pipe."""


def _wait(connection: socket.socket, wakes: int, terminal: _Terminal | None) -> bytes:
    """The answer; meanwhile signals are passed on, and what is typed and shown."""
    answer = b""
    while True:
        watched = [connection.fileno(), wakes]
        watched += terminal.sources() if terminal is not None else []
        writing = [terminal.ours] if terminal is not None and terminal.typed else []
        ready, writable, _ = select.select(watched, writing, [])
        if terminal is not None:
            terminal.carry(ready, writable)
        if wakes in ready:
            _pass_on(connection, os.read(wakes, _READ_BYTES), terminal)
        if connection.fileno() in ready:
            piece = _receive(connection)
            if not piece:
                return answer
            answer += piece


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(_READ_BYTES)
    except ConnectionError:
        return b""


def _pass_on(connection: socket.socket, numbers: bytes, terminal: _Terminal | None) -> None:
    if signal.SIGWINCH in numbers and terminal is not None:
        terminal.take_size()
    with contextlib.suppress(ConnectionError):
        connection.send(bytes(number for number in numbers if number in SIGNALS))


def _end(name: str, answer: bytes) -> NoReturn:
    kind, _, text = answer.decode("utf-8", "replace").partition(" ")
    if kind == "signal":
        with contextlib.suppress(OSError):  # SIGKILL has no handler to take away
            signal.signal(int(text), signal.SIG_DFL)
        os.kill(os.getpid(), int(text))
    if kind == "exit":
        os._exit(int(text))
    os.write(2, f"{name}: {text or 'the agent does not answer'}\n".encode())
    os._exit(1)


def _is_in_foreground() -> bool:
    """Whether we may read what is typed: else a background job would be stopped."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False  # no terminal, or another session's


class _Terminal:
    """A terminal for the program to have as its own: nothing that is started elsewhere can have ours."""

    def __init__(self) -> None:
        """Make it like ours, which from here on passes every byte."""
        # Ours of the other end stays open: without any, ours of this one would be ready for ever.
        self.ours, self._theirs = os.openpty()
        self._before = termios.tcgetattr(0)
        termios.tcsetattr(self._theirs, termios.TCSANOW, self._before)
        self.take_size()
        self.typed = b""
        """What the program's terminal has not taken yet."""
        shown = [number for number in (1, 2, 0) if os.isatty(number)]
        self._shown = shown[0]
        self.streams = tuple(self._theirs if number in shown else number for number in range(3))
        self._is_typing = True
        os.set_blocking(self.ours, False)
        tty.setraw(0)

    def take_size(self) -> None:
        """Make it as large as ours."""
        empty = bytes(_WINDOW_SIZE.size)
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, empty))

    def sources(self) -> list[int]:
        """What to read from now."""
        return [self.ours, 0] if self._is_typing and not self.typed else [self.ours]

    def carry(self, ready: list[int], writable: list[int]) -> None:
        """Carry bytes from and to what is ready."""
        if 0 in ready:
            self.typed = os.read(0, _READ_BYTES)
            self._is_typing = bool(self.typed)
        if self.ours in writable:
            with contextlib.suppress(OSError):
                self.typed = self.typed[os.write(self.ours, self.typed) :]
        if self.ours in ready:
            self._show()

    def restore(self) -> None:
        """Show what is left, and give our terminal back as it was."""
        while self._show():
            pass
        termios.tcsetattr(0, termios.TCSADRAIN, self._before)

    def _show(self) -> bool:
        try:
            shown = os.read(self.ours, _READ_BYTES)
        except OSError:  # nothing more for now
            return False
        while shown:
            shown = shown[os.write(self._shown, shown) :]
        return True
