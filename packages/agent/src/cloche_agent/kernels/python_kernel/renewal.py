"""The agent's word that this process was restored from a checkpoint, and may have siblings by now."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading

from .renew import renew


def answer_on(descriptor: int) -> None:
    """Renew this process whenever a byte comes over the socket `descriptor`, and send it back afterwards.

    On a thread: the main one may be in a cell. That waits meanwhile, where it runs Python, for the
    interpreter's lock.
    """
    sock = socket.socket(fileno=descriptor)
    # Handed over by exec as inheritable; the programs that cells start must not hold it.
    sock.set_inheritable(False)
    threading.Thread(target=_answer, args=(sock,), name="cloche-renewal", daemon=True).start()


def _answer(sock: socket.socket) -> None:
    # Signals belong to the main thread.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    with contextlib.suppress(OSError):  # the agent is gone
        while asked := sock.recv(256):
            with contextlib.suppress(
                Exception
            ):  # a cell has put something of its own in the place of a module's
                renew()
            sock.send(asked[-1:])
