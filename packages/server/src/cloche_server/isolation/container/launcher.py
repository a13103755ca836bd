"""The container driver's only process that touches mounts: single-threaded, so it may fork and unshare.

Started by the driver as `python -I -m cloche_server.isolation.container.launcher FD [PRELOAD]`. For each
request on the descriptor (a SOCK_SEQPACKET pair) it forks a child, which enters the sandbox's control groups,
makes a mount namespace that dies with the sandbox, assembles the root there, and becomes the parent of the
sandbox's pid 1; the answer goes to the request's own pipe. So no mount of ours ever stands in a namespace
that outlives one create, whatever is killed, and there is nothing to unmount.

It is the agent's zygote too: it has imported the agent, so where a sandbox is to run that, its pid 1 is a
fork of this process that goes on as the agent, instead of an interpreter that starts and imports. It holds
no secret: its arguments, its environment and its requests name files, limits and ids.

A request is one JSON object (`LaunchRequest`) with descriptors: the answer pipe, the shared mounts, the
network namespace, the listeners.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

from cloche_server.isolation import syscalls
from cloche_server.isolation.container import call_filter, confine, preload, root, seccomp, shared_mounts

MAX_REQUEST_BYTES = 64 * 1024
MAX_DESCRIPTORS = 32
_LIFTED_DESCRIPTOR = 64


@dataclass(frozen=True)
class LaunchRequest:
    """Everything the launcher has to know; made by the driver only."""

    hostname: str
    folder: str
    """Holds `upper` and `work`; becomes the working directory."""
    rootfs: str
    runtime_tree: str
    first_id: int
    id_count: int
    cgroup_files: list[str]
    argv: list[str]
    env: dict[str, str]
    mount_paths: list[str] = field(default_factory=list[str])
    """Where the shared mounts go, in the order of their descriptors."""

    def encode(self) -> bytes:
        """One packet."""
        return json.dumps(asdict(self)).encode()


def main() -> None:
    """Answer requests until the driver's end is closed."""
    control = socket.socket(fileno=int(sys.argv[1]))
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    # Inits of sandboxes become our children, and are reaped.
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps for us: sigaction(2), SA_NOCLDWAIT
    calls = call_filter.compile_profile(seccomp.profile())
    program = preload.load(sys.argv[2]) if len(sys.argv) > 2 else None
    while True:
        packet, descriptors, _, _ = socket.recv_fds(control, MAX_REQUEST_BYTES, MAX_DESCRIPTORS)
        if not packet:
            return
        if os.fork() == 0:
            control.close()
            _child(packet, descriptors, calls, program)
        for descriptor in descriptors:
            os.close(descriptor)


def _child(
    packet: bytes, descriptors: list[int], calls: bytes, program: preload.Preloaded | None
) -> NoReturn:
    """Run one create and leave."""
    answer_pipe = fcntl.fcntl(descriptors[0], fcntl.F_DUPFD_CLOEXEC, _LIFTED_DESCRIPTOR)
    os.close(descriptors[0])
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        request = LaunchRequest(**json.loads(packet))
        answer = {"pid": _launch(request, descriptors[1:], calls, program)}
    except shared_mounts.BadPath as error:
        answer = {"bad_path": str(error)}
    except (OSError, ValueError, TypeError) as error:
        answer = {"error": str(error)}
    # Nobody reads it any more when the node was killed meanwhile: its next start ends what stands there.
    with contextlib.suppress(BrokenPipeError):
        os.write(answer_pipe, json.dumps(answer).encode())
    os._exit(0)


def _launch(
    request: LaunchRequest, inherited: list[int], calls: bytes, program: preload.Preloaded | None
) -> int:
    own = str(os.getpid())
    for path in request.cgroup_files:
        # SAFETY: the limits hold for this process and all it starts, before the first of them exists.
        Path(path).write_text(own)
    count = len(request.mount_paths)
    network, *listeners = inherited[count:]
    user_namespace = syscalls.user_namespace(request.first_id, request.id_count)
    shared = dict(zip(request.mount_paths, inherited[:count], strict=True))
    root.assemble(
        request.folder, request.rootfs, request.runtime_tree, user_namespace, request.first_id, shared
    )
    # SAFETY: while this process still has the rights for it, which the sandbox's own root will not have.
    syscalls.setns(network, syscalls.CLONE_NEWNET)
    confinement = confine.Confinement(request.hostname, user_namespace, listeners, calls)
    if program is not None and program.is_meant_by(request.argv):
        return confine.start_init(confinement, partial(program.run, request.argv, request.env))
    return confine.start_init(confinement, partial(_execute, request))


def _execute(request: LaunchRequest, report: int) -> NoReturn:
    """Become the program; `report` closes itself then."""
    os.execve(request.argv[0], request.argv, request.env)  # noqa: S606 - the sandbox's own program


if __name__ == "__main__":
    main()
