# ruff: noqa: UP045 - IPython is untyped, runs on Python 3.9
"""Life of a kernel process: preload, take a socket, run cells until the agent closes it.

`preload` and `serve` are apart so that a process that has preloaded can fork, and each child serve
its own socket.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import resource
import select
import socket
import sys
import time
import traceback
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Optional

from . import frames
from .renew import remember, renew, unchanged
from .renewal import answer_on

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .interrupts import Interrupts
    from .outbox import Outbox
    from .shell import KernelShell

__all__ = ["main", "preload", "renew", "serve", "unchanged"]

_IDLE_S = 0.1
"""A client that has not sent its first cell by then is not waiting for it."""


def main(descriptor: int) -> None:
    """Serve one socket in this process."""
    failure = preload()
    serve(descriptor, failure)


def preload(imports: Optional[Sequence[str]] = None) -> Optional[dict[str, str]]:
    """Import what every context needs; or the reason why not. Starts no thread, opens nothing.

    With `imports` this process is going to be forked, not to serve: then all that a first cell would pay for
    is paid here, and these modules are imported.
    """
    try:
        from . import shell
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("IPython", "traitlets"):
            return {"kind": "package", "message": str(error.name)}
        return {"kind": "import", "message": str(error)}
    if imports is not None:
        _choose_backend()
        _warm(shell.make_shell(), imports)
        remember()
    return None


def _choose_backend() -> None:
    if find_spec("matplotlib_inline"):
        # Read by matplotlib if it is ever imported; figures are then shown at the end of the cell.
        os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")


def _warm(shell: KernelShell, imports: Sequence[str]) -> None:
    """Pay for these modules and what first cells import."""
    shell.warm_up()
    shell.warm_up_tracebacks()
    for name in imports:
        with contextlib.suppress(BaseException):  # told when a cell imports it
            importlib.import_module(name)
    shell.warm_up_results()
    gc.collect()
    type(shell).is_warm = True


def serve(descriptor: int, failure: Optional[dict[str, str]] = None) -> None:
    """Become the context at the other end of `descriptor`; returns when that end is closed."""
    sock = socket.socket(fileno=descriptor)
    # Handed over by exec as inheritable; the programs that cells start must not hold it.
    sock.set_inheritable(False)
    settings = frames.receive(sock)
    if settings is None:
        return
    try:
        failure = failure or _settle(settings)
        if failure is None:
            kernel = Kernel(sock, settings)
    except Exception:  # noqa: BLE001 - reported to the agent, which shows it to the user
        failure = {"kind": "crash", "message": traceback.format_exc(limit=-5)}
    if failure is not None:
        sock.sendall(frames.encode({"type": "failed", **failure}))
        return
    kernel.prepare(settings.get("renewal"), settings.get("imports"))
    sock.sendall(frames.encode({"type": "ready", "version": sys.version.split()[0], "pid": os.getpid()}))
    kernel.run()


def _settle(settings: dict[str, Any]) -> Optional[dict[str, str]]:
    os.environ.clear()
    os.environ.update(settings["env"])
    time.tzset()
    # A core file of a crashed kernel would be the size of its memory, in the user's folder.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    try:
        os.chdir(os.path.expanduser(settings["cwd"]))  # noqa: PTH111 - start-up time
    except OSError as error:
        return {"kind": "cwd", "message": f"{settings['cwd']}: {error.strerror}"}
    sys.path.insert(0, "")
    return None


class Kernel:
    """The context of this process, and the loop that runs its cells."""

    def __init__(self, sock: socket.socket, settings: dict[str, Any]) -> None:
        """Redirect this process's output and make its shell; `settings` is the agent's first message."""
        from .interrupts import Interrupts
        from .outbox import Outbox
        from .shell import make_shell
        from .streams import replace_standard_streams

        self._socket = sock
        self._pid = os.getpid()
        self._env: dict[str, str] = settings["env"]
        _choose_backend()
        self._outbox: Outbox = Outbox(sock)
        self._interrupts: Interrupts = Interrupts()
        replace_standard_streams(self._outbox)
        self._interrupts.open()
        self._interrupts.close()
        self._shell: KernelShell = make_shell()
        self._shell.attach(self._outbox, self._interrupts)

    def prepare(self, renewal: Optional[int], imports: Optional[list[str]]) -> None:
        """Begin to send, and to listen on the descriptor `renewal`.

        Where nobody waits yet, pay now for these modules and what first cells import.
        """
        self._outbox.start()
        if renewal is not None:
            answer_on(renewal)
        if imports is None:
            return
        if self._shell.is_warm:
            # A fork writes to a page of its parent's at the price of a copy: those that every cell writes to,
            # some 120, are copied now.
            self._shell.warm_up()
        else:
            _warm(self._shell, imports)

    def run(self) -> None:
        """Run cells until the agent closes the socket; then end at once, whatever threads are left."""
        try:
            if not self._shell.is_warm:
                self._shell.warm_up()
                if not select.select([self._socket], [], [], _IDLE_S)[0]:
                    self._shell.warm_up_tracebacks()
            while (request := frames.receive(self._socket)) is not None:
                self._execute(request)
        finally:
            os._exit(0)

    def _execute(self, request: dict[str, Any]) -> None:
        run_id: int = request["id"]
        if request.get("renew"):
            renew()
        if request.get("env") is not None:
            self._renew_environment(request["env"])
        self._outbox.begin(run_id)
        self._outbox.put({"type": "started", "id": run_id, "count": self._shell.execution_count})
        before = self._set_variables(request["env_vars"])
        try:
            self._run_cell(request["code"])
        finally:
            self._interrupts.close()
            if os.getpid() != self._pid:
                self._leave_child()
            self._restore_variables(before)
            self._settle_streams()
            self._outbox.end(run_id)

    def _run_cell(self, code: str) -> None:
        try:
            self._interrupts.open()
            self._shell.run(code)
            self._interrupts.close()
        except BaseException as error:  # noqa: BLE001 - whatever a cell does, the kernel goes on
            self._interrupts.close()
            lines = traceback.format_exception(type(error), error, error.__traceback__, limit=-5)
            self._shell.send_error(type(error), error, lines)

    def _leave_child(self) -> None:
        """A cell has forked, and this is the child at the end of the cell: it is nobody's kernel."""
        try:
            sys.stdout.flush()
        finally:
            os._exit(0)

    def _settle_streams(self) -> None:
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            with contextlib.suppress(Exception):  # user code may have put anything there
                stream.flush()

    # --- environment

    def _renew_environment(self, env: dict[str, str]) -> None:
        """The sandbox's own variables have changed: follow, and leave those of the cells alone."""
        for name in self._env.keys() - env.keys():
            os.environ.pop(name, None)
        for name, value in env.items():
            if self._env.get(name) != value:
                os.environ[name] = value
        self._env = env

    def _set_variables(self, variables: dict[str, str]) -> dict[str, Optional[str]]:
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        return before

    def _restore_variables(self, before: dict[str, Optional[str]]) -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
