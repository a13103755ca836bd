"""Keeps the server's processes running: start, watch, start again, end in order.

One thread and one selector, so that the processes can be its forks, and no secret that these would inherit.
A process that ends is started again, at once the first time, then after growing pauses; one that says it
cannot run on this machine ends the start of the server, and later is tried again like any other. Sandboxes
live on whatever ends; what is left of a node that was killed becomes ours, to be collected when it ends.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import selectors
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from cloche_server import link
from cloche_server.cli import component
from cloche_server.cli.component import NAMES, Inheritance
from cloche_server.cli.fork import fork
from cloche_server.cli.logs import BoundedFile
from cloche_server.isolation import syscalls
from cloche_wire.errors import ClocheError, Unavailable

Run = Callable[[str, Inheritance], int]
"""What a process does: see `component.run`."""

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
    """One of the processes: how it runs now, and when it is to run again."""

    name: str
    pid: int | None = None
    """None while it does not run."""
    pidfd: int = -1
    started_at_s: float = 0.0
    restarts: int = 0
    """In a row, without a steady run between them."""
    start_at_s: float | None = 0.0
    """When to start it; None while it runs."""


class Supervisor:
    """The server, as seen from above."""

    def __init__(self, inheritance: Inheritance, log_dir: Path | None, run: Run = component.run) -> None:
        """Nothing runs yet.

        Args:
            inheritance: Given to every process; the public socket stays open over every restart of the edge.
            log_dir: Where the processes' standard error goes; None: to ours.
            run: What each process does.
        """
        self._inheritance = inheritance
        self._log_dir = log_dir
        self._run = run
        self._logs = {name: BoundedFile(log_dir / f"{name}.log") for name in NAMES} if log_dir else {}
        self._children = {name: _Child(name) for name in NAMES}
        self._selector = selectors.DefaultSelector()
        self._is_ready = False
        self._stop_asked = False

    def run(self, on_ready: Callable[[], None]) -> None:
        """Run everything until SIGTERM or SIGINT, then end all sandboxes and all processes.

        Requires: one thread.

        Args:
            on_ready: Called once, when a request goes through all of them.

        Raises:
            Unavailable: A process cannot run here, or nothing answers within `START_S`; all is ended again.
        """
        # SAFETY: a process in a sandbox whose parent was outside, and is gone, holds up the sandbox's end
        # until it is collected (pid_namespaces(7)); not every machine's pid 1 collects.
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
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
        # SAFETY: only the edge inherits the public socket; everything else of ours is closed in the child.
        kept = (self._inheritance.listener.fileno(),) if child.name == "edge" else ()
        with self._log_pipe(child.name) as standard_error:
            child.pid = fork(
                lambda: self._run(child.name, self._inheritance),
                kept=kept,
                standard_error=standard_error,
            )
        child.started_at_s = time.monotonic()
        child.start_at_s = None
        child.pidfd = os.pidfd_open(child.pid)
        self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._ended(child))

    @contextmanager
    def _log_pipe(self, name: str) -> Generator[int | None]:
        """Give the writing end of a pipe whose other end goes into the log file, None where there is none.

        The reading end outlives the process: its last lines are still read when it is gone.
        """
        if not self._logs:
            yield None
            return
        reading, writing = os.pipe()

        def pump() -> None:
            if chunk := os.read(reading, _READ_BYTES):
                self._logs[name].write(chunk)
            else:
                self._selector.unregister(reading)
                os.close(reading)

        self._selector.register(reading, selectors.EVENT_READ, pump)
        try:
            yield writing
        finally:
            os.close(writing)

    def _ended(self, child: _Child) -> None:
        status = self._reap(child)
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

    def _collect_orphans(self) -> None:
        """Collect what has ended and was never ours to watch, up to the first that was."""
        watched = {child.pid for child in self._children.values()}
        with suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if ended.si_pid in watched:
                    return  # its descriptor is readable
                os.waitpid(ended.si_pid, 0)

    def _reap(self, child: _Child) -> int:
        pid, child.pid = child.pid, None
        assert pid is not None, "only a running process is watched"
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        status = os.waitpid(pid, 0)[1]
        self._collect_orphans()
        return os.waitstatus_to_exitcode(status)

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
        if any(child.pid is None for child in self._children.values()):
            return False
        connection = http.client.HTTPConnection(*self._own_address(), timeout=_PROBE_TIMEOUT_S)
        try:
            connection.request("GET", "/health")
            answer = connection.getresponse().status
            self._ask_node("health", timeout_s=_PROBE_TIMEOUT_S)
        except (OSError, http.client.HTTPException, ClocheError):
            return False
        finally:
            connection.close()
        return answer in {200, 204}

    def _own_address(self) -> tuple[str, int]:
        address: tuple[str, int] = self._inheritance.listener.getsockname()[:2]
        host, port = address
        return ({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)  # noqa: S104 - compared only

    def _ask_node(self, method: str, *, timeout_s: float) -> None:
        node_socket = self._inheritance.config.node_socket
        asyncio.run(link.call(node_socket, method, {}, msgspec.Raw, timeout_s=timeout_s))

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
            if child.pid is not None:
                signal.pidfd_send_signal(child.pidfd, signal.SIGTERM)
        deadline_s = time.monotonic() + STOP_S
        while any(child.pid is not None for child in self._children.values()):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                self._kill_rest()
                break
            self._wait(left_s)
        for file in self._logs.values():
            file.close()

    def _kill_rest(self) -> None:
        for child in self._children.values():
            if child.pid is not None:
                log.error("supervisor.process_killed", name=child.name)
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
                self._reap(child)

    @contextmanager
    def _signals(self) -> Generator[None]:
        """Let SIGTERM and SIGINT wake the selector; the handlers that were there come back at the end."""
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

        def asked() -> None:
            numbers = os.read(reading, 64)
            self._stop_asked |= bool({signal.SIGTERM, signal.SIGINT} & set(numbers))
            if signal.SIGCHLD in numbers:
                self._collect_orphans()

        def leave_to_the_pipe(_: int, __: object) -> None:
            return

        self._selector.register(reading, selectors.EVENT_READ, asked)
        before_fd = signal.set_wakeup_fd(writing)
        before = {
            number: signal.signal(number, leave_to_the_pipe)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
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
