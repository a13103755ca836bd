# ruff: noqa: UP045 - runs on Python 3.9
"""The loop of a driven kernel: settings, then runs, until the agent closes. See: docs/kernels.md."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
import traceback
from importlib import import_module
from typing import TYPE_CHECKING, Any, Optional

from ..python_kernel import frames  # noqa: TID252 - the kernels lie beside each other, under any name
from .voice import Failure, Voice

if TYPE_CHECKING:
    from types import FrameType
    from typing import Protocol

    class Backend(Protocol):
        """What runs the cells of one context."""

        def start(self) -> None:
            """Make it ready; folder and environment of this process are the context's.

            Raises:
                Failure: The template lacks what it takes.
            """

        def assign(self, variables: dict[str, Optional[str]]) -> None:
            """Set environment variables for good; None takes one away."""

        def renew(self) -> None:
            """Renew what the context would share with siblings of a checkpoint, as far as it can be."""

        def run(self, code: str, variables: dict[str, str], voice: Voice) -> None:
            """Run a cell with these variables set for its time; returns when it is over."""

        def settle(self, voice: Voice) -> None:
            """The run before was interrupted: what is left of that must not hit the next one."""

        def interrupt(self) -> None:
            """End the cell that runs; called from a signal handler."""


_PR_SET_PDEATHSIG = 1
_BACKENDS = {"bash": "BashBackend", "cpp": "CppBackend", "jupyter": "JupyterBackend"}


def main(arguments: list[str], descriptor: int) -> None:
    """Serve one socket with the backend that the first argument names; the others are its own."""
    sock = socket.socket(fileno=descriptor)
    # Handed over by exec as inheritable; the programs that cells start must not hold it.
    sock.set_inheritable(False)
    settings = frames.receive(sock)
    if settings is None:
        return
    voice = Voice(sock)
    try:
        driver = Driver(_made(arguments), voice, settings)
    except Failure as failure:
        voice.say({"type": "failed", "kind": failure.kind, "message": failure.message})
        return
    except Exception:  # noqa: BLE001 - reported to the agent, which shows it to the user
        voice.say({"type": "failed", "kind": "crash", "message": traceback.format_exc(limit=-5)})
        return
    voice.say({"type": "ready", "version": sys.version.split()[0], "pid": os.getpid()})
    try:
        while (request := frames.receive(sock)) is not None:
            driver.execute(request)
    except BaseException:  # noqa: BLE001 - the agent is gone, or there is no memory
        traceback.print_exc()
        os._exit(1)
    end()


def _made(arguments: list[str]) -> Backend:
    name, *rest = arguments
    module = import_module(f".{name}", __package__)
    return getattr(module, _BACKENDS[name])(*rest)


class Driver:
    """One context."""

    def __init__(self, backend: Backend, voice: Voice, settings: dict[str, Any]) -> None:
        """Settle this process as `settings` say, and start the backend.

        Raises:
            Failure: The template lacks what it takes, or the folder is missing.
        """
        self._backend = backend
        self._voice = voice
        self._env: dict[str, str] = settings["env"]
        self._count = 0
        self._is_running = False
        os.environ.clear()
        os.environ.update(self._env)
        # A core file of a crashed kernel would be the size of its memory, in the user's folder.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        try:
            os.chdir(os.path.expanduser(settings["cwd"]))  # noqa: PTH111 - start-up time
        except OSError as error:
            raise Failure("cwd", f"{settings['cwd']}: {error.strerror}") from error
        signal.signal(signal.SIGINT, self._on_interrupt)
        backend.start()

    def execute(self, request: dict[str, Any]) -> None:
        """Run one cell, whatever becomes of it."""
        self._count += 1
        self._voice.say({"type": "started", "id": request["id"], "count": self._count})
        if request.get("settle"):
            self._backend.settle(self._voice)
        if request.get("env") is not None:
            self._follow(request["env"])
        if request.get("renew"):
            self._backend.renew()
        self._is_running = True
        try:
            self._backend.run(request["code"], request["env_vars"], self._voice)
        finally:
            self._is_running = False
        self._voice.say({"type": "done", "id": request["id"]})

    def _follow(self, env: dict[str, str]) -> None:
        """The sandbox's own variables have changed: follow, and leave those of the cells alone."""
        changed: dict[str, Optional[str]] = dict.fromkeys(self._env.keys() - env.keys())
        changed.update({name: value for name, value in env.items() if self._env.get(name) != value})
        self._env = env
        self._backend.assign(changed)

    def _on_interrupt(self, signum: int, frame: Optional[FrameType]) -> None:
        # Outside of a run a late signal must not hit the next cell.
        if self._is_running:
            self._backend.interrupt()


def end() -> None:
    """End with everything that was started in this session: it is nobody's any more."""
    if os.getpgrp() == os.getpid():
        # SAFETY: the agent made this process the leader of its own session and group.
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def die_with_parent() -> None:
    """In a child before exec: end when the driver does, however it does."""
    # SAFETY: prctl(PR_SET_PDEATHSIG) changes nothing but what this process gets when its parent ends.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def interrupt_group() -> None:
    """SIGINT to everything in this process's group but this process itself.

    What a cell has put into the background is spared: shells start it with that signal ignored.
    """
    if os.getpgrp() == os.getpid():
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        # SAFETY: the group is that of the session the agent made for this kernel: what cells have started.
        os.killpg(0, signal.SIGINT)
        signal.signal(signal.SIGINT, before)


def end_like(status: int) -> None:
    """End this process as the one it drove has ended (`status` as of `Popen`), so that the agent can tell."""
    if status < 0:
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(max(status, 0))
