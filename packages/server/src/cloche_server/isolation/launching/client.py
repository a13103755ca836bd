"""The driver's end of its launcher: the process, and one question at a time per caller."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from typing import NamedTuple

from cloche_server.isolation.launching.server import MAX_DESCRIPTORS
from cloche_server.readiness import until_readable, until_writable
from cloche_wire.errors import Internal, InUse, InvalidArgument

_ANSWER_TIMEOUT_S = 45.0
_ANSWER_BYTES = 65_536


class Answer(NamedTuple):
    """What came back; the descriptors are the caller's."""

    pid: int
    descriptors: list[int]


class Launcher:
    """A launcher, started again where it has ended."""

    def __init__(self, module: str, *arguments: str) -> None:
        """Start that module, which calls `server.serve`, with these arguments after the descriptor."""
        self._module = module
        self._arguments = arguments
        self._sending = asyncio.Lock()
        self._control, self._process = self._start()

    def _start(self) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            # SAFETY: the launcher gets this one descriptor only, and nothing of our environment: sandboxes
            # are forks of it. It ends when our end is closed, however that happens.
            process = subprocess.Popen(
                [sys.executable, "-I", "-m", self._module, str(theirs.fileno()), *self._arguments],
                pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, env={"LANG": "C.UTF-8"},
            )  # fmt: skip
        return ours, process

    async def ask(self, packet: bytes, descriptors: list[int]) -> Answer:
        """Have one request done.

        Raises:
            Internal: A step failed, the launcher ended over it, or no answer came in time.
            InvalidArgument: A shared mount's path is none for a folder in this template.
            InUse: Programs of the sandbox use what has to be free.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with ours:
            try:
                async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                    with theirs:
                        await self._send(packet, [theirs.fileno(), *descriptors])
                    text, made = await _receive(ours)
            except TimeoutError as error:
                raise Internal(f"no answer in {_ANSWER_TIMEOUT_S:.0f} s") from error
        if not text:
            raise Internal("the launcher ended", hint="see the node's log")
        answer = json.loads(text)
        if "bad_path" in answer:
            raise InvalidArgument(answer["bad_path"], hint="mount the volume at a folder of its own")
        if "in_use" in answer:
            raise InUse(answer["in_use"], hint="close it, leave the folder or end the program, and try again")
        if "error" in answer:
            raise Internal(answer["error"])
        return Answer(int(answer.get("pid", 0)), made)

    async def _send(self, packet: bytes, descriptors: list[int]) -> None:
        async with self._sending:
            while True:
                try:
                    socket.send_fds(self._control, [packet], descriptors)
                except BlockingIOError:
                    # Some 30 requests wait in the socket already, for it has not been given the processor.
                    await until_writable(self._control.fileno())
                except (BrokenPipeError, ConnectionError):
                    # It was killed. What it had taken is answered by a child of its, or by nobody.
                    self.close()
                    self._control, self._process = self._start()
                else:
                    return

    def close(self) -> None:
        """End it. Sandboxes that it has started go on."""
        self._control.close()
        self._process.wait()


async def _receive(answers: socket.socket) -> tuple[bytes, list[int]]:
    while True:
        try:
            text, made, _, _ = socket.recv_fds(answers, _ANSWER_BYTES, MAX_DESCRIPTORS)
        except BlockingIOError:
            await until_readable(answers.fileno())
        except ConnectionError:
            return b"", []
        else:
            for descriptor in made:
                os.set_inheritable(descriptor, False)
            return text, made
