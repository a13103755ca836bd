"""The launcher's end: one request after another, each done in a fork of this process.

Single-threaded, so it may fork and unshare. A request comes on the descriptor that the process was started
with (a SOCK_SEQPACKET pair): one packet, and with it the socket that the answer goes to and further
descriptors. What a fork mounts stands in a mount namespace of its own and goes with it, whatever is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

from cloche_server.isolation import syscalls

MAX_REQUEST_BYTES = 64 * 1024
MAX_DESCRIPTORS = 250
"""The kernel passes 253 at once (unix(7), SCM_RIGHTS)."""
_LIFTED_DESCRIPTOR = 300
"""Above all that can come with a request."""


class BadPath(Exception):  # noqa: N818 - an answer to whoever named the path
    """No folder can be mounted over at a shared mount's path; the message says why."""


class FilesInUse(Exception):  # noqa: N818 - an answer to whoever wanted them to be free
    """Programs of a sandbox use files that have to be free for what was asked; the message names both."""


class Done(NamedTuple):
    """What a request has come to; the descriptors are passed on and closed."""

    pid: int = 0
    descriptors: tuple[int, ...] = ()


Act = Callable[[bytes, list[int]], Done]
"""Does one request in a process that ends after it, given its packet and descriptors.

Raises:
    BadPath: The caller asked for what this template cannot have.
    FilesInUse: Programs of the sandbox are in the way.
    OSError, ValueError, TypeError: It failed; the message is passed on.
"""


def take_control() -> socket.socket:
    """Take over the descriptor named by the first argument, and end with whoever started this process."""
    control = socket.socket(fileno=int(sys.argv[1]))
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    # First processes of sandboxes become our children, and are reaped.
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps for us: sigaction(2), SA_NOCLDWAIT
    return control


def enter_groups(files: list[str]) -> None:
    """Put this process, and all that it starts, in the control groups with these files `cgroup.procs`."""
    own = str(os.getpid())
    for path in files:
        # SAFETY: the limits hold for this process and all it starts, before the first of them exists.
        Path(path).write_text(own)


def serve(control: socket.socket, act: Act) -> None:
    """Answer requests until the driver's end is closed."""
    while True:
        packet, descriptors, _, _ = socket.recv_fds(control, MAX_REQUEST_BYTES, MAX_DESCRIPTORS)
        if not packet:
            return
        if os.fork() == 0:
            control.close()
            _child(packet, descriptors, act)
        for descriptor in descriptors:
            os.close(descriptor)


def _child(packet: bytes, descriptors: list[int], act: Act) -> NoReturn:
    """Do one request and leave."""
    lifted = fcntl.fcntl(descriptors[0], fcntl.F_DUPFD_CLOEXEC, _LIFTED_DESCRIPTOR)
    os.close(descriptors[0])
    done = Done()
    answer: dict[str, object] = {}
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        done = act(packet, descriptors[1:])
        answer["pid"] = done.pid
    except BadPath as error:
        answer["bad_path"] = str(error)
    except FilesInUse as error:
        answer["in_use"] = str(error)
    except (OSError, ValueError, TypeError) as error:
        answer["error"] = str(error)
    # Nobody reads it any more when the node was killed meanwhile: its next start ends what stands there.
    with contextlib.suppress(BrokenPipeError, ConnectionError), socket.socket(fileno=lifted) as answers:
        socket.send_fds(answers, [json.dumps(answer).encode()], done.descriptors)
    os._exit(0)
