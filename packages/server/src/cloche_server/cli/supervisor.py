"""Keeps the server's three processes running: start, watch, start again, end in order.

One thread and one selector. A process that ends is started again, at once the first time, then after growing
pauses; one that says it cannot run on this machine ends the start of the server, and later is tried again
like any other. Sandboxes are nobody's children here: they live on whatever ends.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from cloche_server import link
from cloche_server.cli import component
from cloche_server.cli.logs import BoundedFile
from cloche_server.config import Config
from cloche_wire.errors import ClocheError, Unavailable

NAMES = ("node", "api", "edge", "egress", "content")
PAUSES_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Before the first, second, ... restart in a row; the last one is repeated."""
STEADY_S = 20.0
"""A process that ran this long starts with the first pause again."""
START_S = 60.0
"""Until everything has to answer after the start."""
STOP_S = 12.0
"""For the processes to end by themselves after SIGTERM."""
DRAIN_S = 25.0
"""For the node to end all sandboxes."""

_PROBE_TIMEOUT_S = 2.0
_PROBE_EVERY_S = 0.05
_READ_BYTES = 1 << 16

log = structlog.get_logger()


@dataclass
class _Child:
    """One of the three: how it runs now, and when it is to run again."""

    name: str
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    started_at_s: float = 0.0
    restarts: int = 0
    """In a row, without a steady run between them."""
    start_at_s: float | None = 0.0
    """When to start it; None while it runs."""


class Supervisor:
    """The server, as seen from above."""

    def __init__(self, config: Config, listener: socket.socket, log_dir: Path | None) -> None:
        """Take the configuration and the public socket, which stays open over every restart of the edge.

        Args:
            config: Given to every process.
            listener: Listening; inherited by the edge alone.
            log_dir: Where the processes' standard error goes; None: to ours.
        """
        self._config = config
        self._listener = listener
        self._log_dir = log_dir
        self._logs = {name: BoundedFile(log_dir / f"{name}.log") for name in NAMES} if log_dir else {}
        self._children = {name: _Child(name) for name in NAMES}
        self._selector = selectors.DefaultSelector()
        self._is_ready = False
        self._stop_asked = False

    def run(self, on_ready: Callable[[], None]) -> None:
        """Run everything until SIGTERM or SIGINT, then end all sandboxes and all processes.

        Args:
            on_ready: Called once, when a request goes through all three processes.

        Raises:
            Unavailable: A process cannot run here, or nothing answers within `START_S`; all is ended again.
        """
        with self._signals():
            deadline_s = time.monotonic() + START_S
            try:
                while not self._stop_asked:
                    self._start_due()
                    self._wait(self._next_wake_s())
                    if not self._is_ready and self._answers():
                        self._is_ready = True
                        on_ready()
                    if not self._is_ready and time.monotonic() > deadline_s:
                        raise Unavailable(f"the server does not answer after {START_S:.0f} s")
                self._drain()
            finally:
                self._end_all()

    # --- starting ---------------------------------------------------------------------------------------

    def _start_due(self) -> None:
        now_s = time.monotonic()
        for child in self._children.values():
            if child.start_at_s is not None and child.start_at_s <= now_s:
                self._start(child)

    def _start(self, child: _Child) -> None:
        environment = os.environ | {
            component.CONFIG_VARIABLE: msgspec.json.encode(self._config).decode(),
            component.SUPERVISOR_VARIABLE: str(os.getpid()),
        }
        inherited: tuple[int, ...] = ()
        if child.name == "edge":
            environment[component.LISTENER_VARIABLE] = str(self._listener.fileno())
            inherited = (self._listener.fileno(),)
        # SAFETY: only the edge inherits the public socket; everything else of ours is closed at exec.
        child.process = subprocess.Popen(
            [sys.executable, "-m", component.__name__, child.name],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if self._logs else None,
            pass_fds=inherited,
            process_group=0,  # Ctrl-C at the terminal reaches us alone
        )
        child.started_at_s = time.monotonic()
        child.start_at_s = None
        child.pidfd = os.pidfd_open(child.process.pid)
        self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._ended(child))
        if child.process.stderr is not None:
            self._pump(child.name, child.process.stderr.fileno())

    def _pump(self, name: str, descriptor: int) -> None:
        # A descriptor of our own: the last lines are still read after the process object is gone.
        copy = os.dup(descriptor)

        def pump() -> None:
            if chunk := os.read(copy, _READ_BYTES):
                self._logs[name].write(chunk)
            else:
                self._selector.unregister(copy)
                os.close(copy)

        self._selector.register(copy, selectors.EVENT_READ, pump)

    def _ended(self, child: _Child) -> None:
        process, child.process = child.process, None
        assert process is not None, "only a running process is watched"
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        status = process.wait()
        if process.stderr is not None:
            process.stderr.close()
        if self._stop_asked:
            return
        log.warning("supervisor.process_ended", name=child.name, status=status)
        if status == component.CANNOT_RUN and not self._is_ready:
            where = self._log_dir / f"{child.name}.log" if self._log_dir else "the log above"
            hint = f"its reason is the last line of {where}"
            raise Unavailable(f"the {child.name} cannot run on this machine", hint=hint)
        now_s = time.monotonic()
        if now_s - child.started_at_s >= STEADY_S:
            child.restarts = 0
        child.start_at_s = now_s + PAUSES_S[min(child.restarts, len(PAUSES_S) - 1)]
        child.restarts += 1

    # --- watching ---------------------------------------------------------------------------------------

    def _next_wake_s(self) -> float | None:
        due = [child.start_at_s for child in self._children.values() if child.start_at_s is not None]
        pauses = [max(0.0, start_at_s - time.monotonic()) for start_at_s in due]
        if not self._is_ready:
            pauses.append(_PROBE_EVERY_S)
        return min(pauses, default=None)

    def _wait(self, timeout_s: float | None) -> None:
        for key, _ in self._selector.select(timeout_s):
            act: Callable[[], None] = key.data
            act()

    def _answers(self) -> bool:
        """Whether a request reaches the api through the edge, and the node answers on its socket."""
        if any(child.process is None for child in self._children.values()):
            return False
        connection = http.client.HTTPConnection(*self._own_address(), timeout=_PROBE_TIMEOUT_S)
        try:
            connection.request("GET", "/health")
            answer = connection.getresponse().status
            self._ask_node("list", timeout_s=_PROBE_TIMEOUT_S)
        except (OSError, http.client.HTTPException, ClocheError):
            return False
        finally:
            connection.close()
        return answer in {200, 204}

    def _own_address(self) -> tuple[str, int]:
        address: tuple[str, int] = self._listener.getsockname()[:2]
        host, port = address
        return ({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)  # noqa: S104 - compared only

    def _ask_node(self, method: str, *, timeout_s: float) -> None:
        asyncio.run(link.call(self._config.node_socket, method, {}, msgspec.Raw, timeout_s=timeout_s))

    # --- ending -----------------------------------------------------------------------------------------

    def _drain(self) -> None:
        try:
            self._ask_node("drain", timeout_s=DRAIN_S)
        except (ClocheError, TimeoutError, OSError) as error:
            # They are not lost: the next start finds them in the journal.
            log.error("supervisor.drain_failed", reason=str(error))

    def _end_all(self) -> None:
        """End the processes; whoever does not end by itself is killed. Sandboxes are not touched."""
        self._stop_asked = True
        for child in self._children.values():
            if child.process is not None:
                child.process.terminate()
        deadline_s = time.monotonic() + STOP_S
        while any(child.process is not None for child in self._children.values()):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                self._kill_rest()
                break
            self._wait(left_s)
        for file in self._logs.values():
            file.close()

    def _kill_rest(self) -> None:
        for child in self._children.values():
            if child.process is not None:
                log.error("supervisor.process_killed", name=child.name)
                child.process.kill()
                child.process.wait()

    @contextmanager
    def _signals(self) -> Generator[None]:
        """Let SIGTERM and SIGINT wake the selector; the handlers that were there come back at the end."""
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

        def asked() -> None:
            numbers = os.read(reading, 64)
            self._stop_asked |= bool({signal.SIGTERM, signal.SIGINT} & set(numbers))

        def leave_to_the_pipe(_: int, __: object) -> None:
            return

        self._selector.register(reading, selectors.EVENT_READ, asked)
        before_fd = signal.set_wakeup_fd(writing)
        before = {
            number: signal.signal(number, leave_to_the_pipe) for number in (signal.SIGTERM, signal.SIGINT)
        }
        hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            yield
        finally:
            signal.signal(signal.SIGHUP, hangup)
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before_fd)
            self._selector.unregister(reading)
            os.close(reading)
            os.close(writing)
