"""What `cloche bench` measures of the data path, through the official Python client: see official_client.py.

Every act uses the one sandbox that is kept for it and leaves it ready for the next. Commands are plain enough
for stub_server.py, which the same acts are run against.
"""

import asyncio
import http.client
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import closing, suppress
from functools import cache
from itertools import count, cycle
from string import ascii_uppercase
from typing import TypeVar

from e2b import AsyncSandbox, PtySize, SandboxException
from e2b_code_interpreter import Sandbox

DATA_BYTES = 100_000_000
LINE = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\n"
LARGE_FILE = "/tmp/large.txt"
WATCHED = "/tmp/watched"
STREAMS = 200
LIFE_S = 3600
PATIENCE_S = 60

T = TypeVar("T")
numbers = count(1)
letters = cycle(ascii_uppercase)


@cache
def data() -> bytes:
    """A large file."""
    return LINE * (DATA_BYTES // len(LINE))


@cache
def kept() -> Sandbox:
    """The sandbox of all acts."""
    return Sandbox.create(timeout=LIFE_S)


@cache
def large_file() -> str:
    """A file of `data` in the sandbox."""
    kept().files.write(LARGE_FILE, data())
    return LARGE_FILE


def upload_100mb() -> float:
    """Bytes to a file."""
    sandbox, content = kept(), data()
    began = time.perf_counter()
    sandbox.files.write("/tmp/upload.txt", content)
    return time.perf_counter() - began


def download_100mb() -> float:
    """A file to a program that takes it piece by piece."""
    sandbox, path = kept(), large_file()
    began = time.perf_counter()
    size = sum(len(piece) for piece in sandbox.files.read(path, format="stream"))
    took = time.perf_counter() - began
    assert size == DATA_BYTES, size
    return took


def download_whole() -> float:
    """A file to one `bytearray` of the client."""
    sandbox, path = kept(), large_file()
    began = time.perf_counter()
    content = sandbox.files.read(path, format="bytes")
    took = time.perf_counter() - began
    assert len(content) == DATA_BYTES, len(content)
    return took


def stdout_mb_s() -> float:
    """All that a command prints, in one string."""
    sandbox, path = kept(), large_file()
    began = time.perf_counter()
    answer = sandbox.commands.run(f"cat {path}", timeout=PATIENCE_S)
    took = time.perf_counter() - began
    assert len(answer.stdout) == DATA_BYTES, len(answer.stdout)
    return took


def first_chunk() -> float:
    """From the call to the first output of a command that goes on."""
    sandbox = kept()
    began = time.perf_counter()
    handle = sandbox.commands.run("echo 1; exec sleep 60", background=True)
    try:
        first = next(iter(handle))
        took = time.perf_counter() - began
    finally:
        handle.kill()
    assert first[0] == "1\n", first
    return took


@cache
def terminal() -> tuple[int, "queue.SimpleQueue[bytes]"]:
    """The process of a terminal, and what it prints."""
    handle = kept().pty.create(PtySize(rows=24, cols=80), timeout=LIFE_S)
    printed: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def collect() -> None:
        with suppress(SandboxException):  # at the very end the sandbox is killed under it
            for _, _, piece in handle:
                printed.put(piece or b"")

    threading.Thread(target=collect, daemon=True).start()
    kept().pty.send_stdin(handle.pid, b"echo ready; exec cat\n")
    while b"ready" not in printed.get(timeout=PATIENCE_S):
        pass
    return handle.pid, printed


def pty_echo() -> float:
    """From a keystroke to its echo."""
    pid, printed = terminal()
    key = next(letters).encode()
    began = time.perf_counter()
    kept().pty.send_stdin(pid, key)
    while key not in printed.get(timeout=PATIENCE_S):
        pass
    return time.perf_counter() - began


class Background:
    """The asynchronous client, on an event loop in a thread of its own."""

    def __init__(self) -> None:
        """Start the loop."""
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def run(self, work: Coroutine[object, object, T]) -> T:
        """Wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)


@cache
def background() -> Background:
    """The one loop."""
    return Background()


@cache
def kept_too() -> AsyncSandbox:
    """The same sandbox for the asynchronous client."""
    return background().run(AsyncSandbox.connect(kept().sandbox_id))


class Watched:
    """A folder that is watched: `wait` for the event of one file."""

    def __init__(self) -> None:
        """Begin to watch."""
        self._sandbox = kept_too()
        self._seen: dict[str, asyncio.Event] = {}
        background().run(self._open())

    async def _open(self) -> None:
        await self._sandbox.files.write(f"{WATCHED}/0", b"0")
        await self._sandbox.files.watch_dir(WATCHED, lambda seen: self._event(seen.name).set(), timeout=0)

    def _event(self, name: str) -> asyncio.Event:
        return self._seen.setdefault(name, asyncio.Event())

    async def write(self, name: str) -> float:
        """Write a file and wait until its event has come."""
        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sandbox.files.write(f"{WATCHED}/{name}", b"1"))
            await self._event(name).wait()
            return time.perf_counter() - began


@cache
def watched() -> Watched:
    """The one watched folder."""
    return Watched()


def watch_event() -> float:
    """From the call that writes a file to the event that tells of it."""
    return background().run(watched().write(f"f{next(numbers)}"))


class Streams:
    """Commands that echo their input, each on a stream of its own."""

    def __init__(self) -> None:
        """Open all of them."""
        self._sandbox = kept_too()
        self._pids: list[int] = []
        self._answers: dict[int, str] = {}
        self._complete = asyncio.Event()
        background().run(self._open())

    async def _open(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(STREAMS):
                tasks.create_task(self._open_one(number))

    async def _open_one(self, number: int) -> None:
        def heard(text: str) -> None:
            self._answers[number] = text
            if len(self._answers) == STREAMS:
                self._complete.set()

        handle = await self._sandbox.commands.run(
            "cat", background=True, stdin=True, timeout=LIFE_S, on_stdout=heard
        )
        self._pids.append(handle.pid)

    async def echo(self) -> float:
        """Send a line to every command and wait until all have come back."""
        self._answers.clear()
        self._complete.clear()
        line = f"{next(numbers)}\n"
        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for pid in self._pids:
                tasks.create_task(self._sandbox.commands.send_stdin(pid, line))
            await self._complete.wait()
            took = time.perf_counter() - began
        assert set(self._answers.values()) == {line}
        return took


@cache
def streams() -> Streams:
    """All streams, open."""
    return Streams()


def streams_200() -> float:
    """With 200 streams open, from 200 inputs to the last of 200 outputs."""
    return background().run(streams().echo())


@cache
def edge() -> http.client.HTTPConnection:
    """A plain connection to the edge."""
    address = os.environ["E2B_SANDBOX_URL"].rpartition("/")[2]
    return http.client.HTTPConnection(address)


def edge_overhead() -> float:
    """The smallest request to a sandbox, through the edge."""
    routing = {"E2b-Sandbox-Id": kept().sandbox_id, "E2b-Sandbox-Port": "49983"}
    connection = edge()
    began = time.perf_counter()
    connection.request("GET", "/health", headers=routing)
    answer = connection.getresponse()
    answer.read()
    took = time.perf_counter() - began
    assert answer.status == 204, answer.status
    return took


def agent_direct() -> float:
    """The same request, at the socket of the sandbox's agent."""
    path = f"{os.environ['CLOCHE_AGENTS']}/{kept().sandbox_id}/envd.sock"
    connection = http.client.HTTPConnection("localhost")
    began = time.perf_counter()
    with closing(socket.socket(socket.AF_UNIX)) as connection.sock:
        connection.sock.connect(path)
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        took = time.perf_counter() - began
    assert answer.status == 204, answer.status
    return took


ACTS: dict[str, Callable[[], float]] = {
    act.__name__: act
    for act in (
        upload_100mb,
        download_100mb,
        download_whole,
        stdout_mb_s,
        first_chunk,
        pty_echo,
        watch_event,
        streams_200,
        edge_overhead,
        agent_direct,
    )
}


def clean_up() -> None:
    """Remove the sandbox, if there is one."""
    if kept.cache_info().currsize:
        kept().kill()
