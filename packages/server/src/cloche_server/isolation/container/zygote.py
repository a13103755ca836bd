# ruff: noqa: ANN401, B905, PTH123, UP045 - run by the template's Python, which may be 3.9
"""A template's Python that has imported what its kernels import, and forks itself into sandboxes.

    python3 ZYGOTE_FOLDER/__main__.py CONTROL_FD FILTER_FD KERNEL_FOLDER MODULE [IMPORT ...]

It has run the template's code, so it is as little trusted as that: it lives in a user namespace of one team
and one template build, under the sandboxes' filter plus setns, without a network, and holds nothing of
anybody's. What it can reach are sandboxes made of that same template for that same team.

The control socket (SOCK_SEQPACKET) hears `ready`, or why not, and then sends one descriptor at a time: a
connection with one sandbox's agent. A packet on such a connection asks for a fork; its descriptors are the
kernel's socket, its standard output and error, a pipe for its exit status, and the sandbox's namespaces. The
kernel's socket hears `+` from the fork, whose pid and whose place in the sandbox come with it as credentials,
or why there is none. The zygote ends with its control socket.

The module has `preload(imports)`, which returns a failure or None, `unchanged()`, `renew()` and
`serve(descriptor, failure)`.

See: pid_namespaces(7), user_namespaces(7), clone(2) CLONE_PARENT.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import os
import resource
import selectors
import signal
import socket
import sys
import threading
import traceback
from typing import Any, Optional

from cloche_server.isolation import posture, syscalls

NAMESPACES = {
    "net": syscalls.CLONE_NEWNET,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "cgroup": syscalls.CLONE_NEWCGROUP,
    "pid": syscalls.CLONE_NEWPID,
    "mnt": syscalls.CLONE_NEWNS,
    "user": syscalls.CLONE_NEWUSER,
}
"""In the order of entering: the user namespace last, for the rights over the others end with that."""
_DESCRIPTORS = 4 + len(NAMESPACES)
_SOCKET, _OUT, _ERR, _STATUS = range(4)
_KERNEL_FD = 3
_PID = array.array("i", [0]).itemsize
_OOM_SCORE_ADJ = "500"


class Zygote:
    """The loop: agents' connections in, forks out."""

    def __init__(self, control: socket.socket, calls: bytes, module: Any, failure: Any) -> None:
        self._control = control
        self._calls = calls
        self._module = module
        self._failure = failure
        self._selector = selectors.DefaultSelector()
        self._statuses: dict[int, int] = {}

    def run(self) -> None:
        """Serve until the control socket is closed."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _wake)
        self._selector.register(self._control, selectors.EVENT_READ, self._accept)
        self._selector.register(reading, selectors.EVENT_READ, self._reap)
        self._control.send(b"ready")
        while True:
            for key, _ in self._selector.select():
                if key.data(key.fileobj) is False:
                    return

    def _accept(self, control: socket.socket) -> Optional[bool]:
        packet, descriptors, _, _ = socket.recv_fds(control, 16, 1)
        if not packet:
            return False
        for descriptor in descriptors:
            connection = socket.socket(fileno=descriptor)
            self._selector.register(connection, selectors.EVENT_READ, self._serve)
        return None

    def _serve(self, connection: socket.socket) -> None:
        try:
            packet, descriptors, _, _ = socket.recv_fds(connection, 16, _DESCRIPTORS)
        except OSError:
            packet, descriptors = b"", []
        if not packet:
            self._selector.unregister(connection)
            connection.close()
            return
        try:
            if len(descriptors) == _DESCRIPTORS:
                self._fork(descriptors)
        except OSError as error:  # no more processes, or no memory for one: the next may go again
            _tell(descriptors[_SOCKET], f"cannot fork: {error}")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _fork(self, descriptors: list[int]) -> None:
        reading, writing = os.pipe()
        between = os.fork()
        if between == 0:
            self._enter(descriptors, writing)
        os.close(writing)
        told = os.read(reading, _PID)
        os.close(reading)
        os.waitpid(between, 0)
        if len(told) == _PID:
            pid = array.array("i", told)[0]
            self._statuses[pid] = os.dup(descriptors[_STATUS])

    def _reap(self, wakeups: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(wakeups, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            descriptor = self._statuses.pop(pid, None)
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    os.write(descriptor, array.array("i", [status]).tobytes())
                os.close(descriptor)

    # --- in the child

    def _enter(self, descriptors: list[int], told: int) -> None:
        """Go into the sandbox and fork once more, for only a child is in its pid namespace. Never returns."""
        kernel = descriptors[_SOCKET]
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for kind, descriptor in zip(NAMESPACES.values(), descriptors[4:]):
                # SAFETY: of one sandbox, by the hand of its agent; none of them leads out of it.
                syscalls.setns(descriptor, kind)
            os.setgroups([0])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            child = syscalls.fork_sibling()
            if child == 0:
                self._become(descriptors)
            os.write(told, array.array("i", [child]).tobytes())
        except BaseException:  # noqa: BLE001 - told to the agent, which starts a Python by itself
            _tell(kernel, traceback.format_exc(limit=-1))
        finally:
            os._exit(0)

    def _become(self, descriptors: list[int]) -> None:
        """Be the kernel, in its place and with its rights. Never returns."""
        kernel = descriptors[_SOCKET]
        try:
            self._arrange(descriptors)
            kernel = _KERNEL_FD
            self._settle()
            if not self._module.unchanged():
                _tell(_KERNEL_FD, "modules have changed since they were imported")
                os._exit(0)
            self._module.renew()
            _tell(_KERNEL_FD, "+")
        except BaseException:  # noqa: BLE001 - as above
            _tell(kernel, traceback.format_exc(limit=-1))
            os._exit(1)
        try:
            self._module.serve(_KERNEL_FD, self._failure)
        finally:
            os._exit(0)

    def _arrange(self, descriptors: list[int]) -> None:
        null = os.open(os.devnull, os.O_RDWR)
        # All are above the numbers that they become: those are in use here.
        os.dup2(null, 0)
        os.dup2(descriptors[_OUT], 1)
        os.dup2(descriptors[_ERR], 2)
        if descriptors[_SOCKET] != _KERNEL_FD:
            os.dup2(descriptors[_SOCKET], _KERNEL_FD)
        # SAFETY: none of the zygote's own goes along, and none of another sandbox's.
        syscalls.close_all_but({0, 1, 2, _KERNEL_FD})

    def _settle(self) -> None:
        os.setsid()
        os.chdir("/")
        os.umask(0o022)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(_OOM_SCORE_ADJ)
        # SAFETY: the sandbox's own filter over the zygote's, and its eleven capabilities, before the first
        # instruction of the tenant; entering the user namespace has given this process all of them.
        syscalls.load_filter(self._calls)
        syscalls.limit_capabilities(frozenset(posture.CAPABILITIES.values()))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _wake(signum: int, frame: object) -> None:
    """Nothing: that the signal has a handler is what writes to the wake-up descriptor."""


def _tell(descriptor: int, text: str) -> None:
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as kernel:
        kernel.sendall(text.encode()[-2000:])


def main() -> None:
    """Preload, say so, and serve."""
    control = socket.socket(fileno=int(sys.argv[1]))
    memory = int(sys.argv[2])
    calls = os.pread(memory, os.fstat(memory).st_size, 0)
    os.close(memory)
    ours = {name for name in sys.modules if name.partition(".")[0] == "cloche_server"}
    sys.path[0] = sys.argv[3]
    module = importlib.import_module(sys.argv[4])
    # Nothing of this program is to be seen or imported in a kernel.
    del sys.path[0]
    failure = module.preload(sys.argv[5:])
    sys.argv[:] = [f"{sys.argv[3]}/{sys.argv[4].partition('.')[0]}", str(_KERNEL_FD)]
    for name in ours | {"__main__"}:
        sys.modules.pop(name, None)
    if threading.active_count() != 1:
        control.send(b"a module has started a thread: it would not be there in a fork")
        return
    gc.collect()
    gc.freeze()
    Zygote(control, calls, module, failure).run()


if __name__ == "__main__":
    main()
