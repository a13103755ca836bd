"""Telling a Python kernel, also in the middle of a cell, to renew what siblings of a checkpoint would share.

Over a connection of its own, read by a thread of its own in the kernel: what the cell does at that moment is
not disturbed. A signal would end system calls of libraries that do not expect it, meet the handlers and masks
of the user's code, and run its handler inside a call of numpy that holds the very lock which reseeding takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

_PATIENCE_S = 0.3
"""For the answer. A call that holds the interpreter's lock delays it; the thread is then the next to run."""


class Renewal:
    """Both ends of that connection; theirs is to be handed to the kernel, and closed here."""

    def __init__(self) -> None:
        """Make the connection."""
        self._ours, self.theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._asked = 0

    async def ask(self) -> bool:
        """Have the kernel renew itself; whether it has said in time that it has done so."""
        self._asked = (self._asked + 1) % 256
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # TimeoutError is one; and a kernel that has ended renews nothing
            self._ours.send(bytes([self._asked]))
            async with asyncio.timeout(_PATIENCE_S):
                while answers := await loop.sock_recv(self._ours, 256):
                    if answers[-1] == self._asked:  # not that to an earlier question, which came late
                        return True
        return False

    def close(self) -> None:
        """Close what is open; the kernel's thread ends."""
        self._ours.close()
        self.theirs.close()
