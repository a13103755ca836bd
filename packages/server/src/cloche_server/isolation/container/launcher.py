"""The container driver's only process that touches mounts: single-threaded, so it may fork and unshare.

Started by the driver as `python -I -m cloche_server.isolation.container.launcher FD`. For each request on
the descriptor (a SOCK_SEQPACKET pair) it forks a child, which enters the sandbox's control groups, makes a
mount namespace that dies with it, assembles the root there and runs crun; the answer goes to the request's
own pipe. So no mount of ours ever stands in a namespace that outlives one create, whatever is killed, and
there is nothing to unmount.

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
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cloche_server.isolation import syscalls
from cloche_server.isolation.container import shared_mounts

MOUNT_FOLDER = Path("/run/cloche")
"""Mount points of every create, each in its own namespace.

Short, the same for all, and reachable for every user id.
"""
ROOT, LOWER, RUNTIME, EMPTY = (str(MOUNT_FOLDER / name) for name in ("root", "lower", "runtime", "empty"))
CRUN_TIMEOUT_S = 30
MAX_REQUEST_BYTES = 64 * 1024
MAX_DESCRIPTORS = 32
FIRST_DESCRIPTOR = 3
LIFTED_DESCRIPTOR = 64
_HYBRID_CGROUP2 = "/sys/fs/cgroup/unified"


@dataclass(frozen=True)
class LaunchRequest:
    """Everything the launcher has to know; made by the driver only."""

    sandbox_id: str
    folder: str
    """Holds `upper`, `work` and `bundle/config.json`; becomes the working directory."""
    rootfs: str
    runtime_tree: str
    first_id: int
    id_count: int
    cgroup_files: list[str]
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
    while True:
        packet, descriptors, _, _ = socket.recv_fds(control, MAX_REQUEST_BYTES, MAX_DESCRIPTORS)
        if not packet:
            return
        if os.fork() == 0:
            control.close()
            _child(packet, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _child(packet: bytes, descriptors: list[int]) -> None:
    """Run one create and leave. Never returns."""
    # Out of the way of the numbers that crun's descriptors will take.
    answer_pipe = fcntl.fcntl(descriptors[0], fcntl.F_DUPFD_CLOEXEC, LIFTED_DESCRIPTOR)
    os.close(descriptors[0])
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        request = LaunchRequest(**json.loads(packet))
        answer = {"pid": _launch(request, descriptors[1:])}
    except shared_mounts.BadPath as error:
        answer = {"bad_path": str(error)}
    except (OSError, subprocess.SubprocessError, ValueError, TypeError) as error:
        answer = {"error": str(error)}
    # Nobody reads it any more when the node was killed meanwhile: its next start ends what stands there.
    with contextlib.suppress(BrokenPipeError):
        os.write(answer_pipe, json.dumps(answer).encode())
    os._exit(0)


def _launch(request: LaunchRequest, inherited: list[int]) -> int:
    own = str(os.getpid())
    for path in request.cgroup_files:
        # SAFETY: the limits hold for crun and all it starts, before the first of them exists.
        Path(path).write_text(own)
    count = len(request.mount_paths)
    _assemble_root(request, inherited[:count])
    return _run_crun(request, inherited[count:])


def _assemble_root(request: LaunchRequest, mounts: list[int]) -> None:
    """Mount the template, the writable layer and the runtime tree in a namespace of this process alone.

    Shared mounts come last, into the writable layer, where nothing of the tenant has run yet.

    Options are relative to the working directory, so that the mount table shown inside names no path of the
    host. Leaves: the working directory is the sandbox's folder.
    """
    user_namespace = syscalls.user_namespace(request.first_id, request.id_count)
    syscalls.enter_private_mounts()
    if Path(_HYBRID_CGROUP2, "cgroup.procs").exists() and Path("/sys/fs/cgroup/memory").exists():
        # crun 1.8 takes a version 1 layout with an extra, controllerless cgroup2 mount for an error.
        # SAFETY: in our own mount namespace only; nothing propagates out of it.
        syscalls.unmount(_HYBRID_CGROUP2, syscalls.MNT_DETACH)
    # SAFETY: /run/cloche and these folders are ours (driver's prepare checks it), and empty.
    syscalls.mount_idmapped(request.rootfs, LOWER, user_namespace)
    # An overlay of one folder (it wants two): the table would show the source of a bind mount.
    os.chdir(request.runtime_tree)
    read_only = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount("overlay", RUNTIME, "overlay", read_only, f"lowerdir=.:{EMPTY}")
    os.chdir(request.folder)
    options = f"lowerdir={LOWER},upperdir=upper,workdir=work,redirect_dir=nofollow,index=off,metacopy=off"
    syscalls.mount("overlay", ROOT, "overlay", syscalls.MS_NODEV, options)
    for mount, path in zip(mounts, request.mount_paths, strict=True):
        shared_mounts.show(mount, ROOT, path, user_namespace, request.first_id)
        os.close(mount)
    os.close(user_namespace)


def _run_crun(request: LaunchRequest, inherited: list[int]) -> int:
    """Start the init detached and return its pid.

    Descriptors: the network namespace first, then the listeners.
    """
    network, *listeners = inherited
    targets = [*listeners, network]
    # SAFETY: lifted above the target numbers first, so that no dup2 below overwrites one that is still to
    # be moved.
    lifted = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, LIFTED_DESCRIPTOR) for descriptor in targets]
    for number, descriptor in enumerate(lifted, start=FIRST_DESCRIPTOR):
        os.dup2(descriptor, number, inheritable=True)
    kept = tuple(range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + len(targets)))
    # Absolute: crun changes its folder before it opens them.
    log, pid_file = f"{request.folder}/crun.log", f"{request.folder}/pid"
    argv = [
        "crun", "--cgroup-manager=disabled",
        "--root", f"{request.folder}/crun", "--log", log, "run", "--detach", "--no-new-keyring",
        "--preserve-fds", str(len(listeners)), "--pid-file", pid_file,
        "--bundle", f"{request.folder}/bundle", request.sandbox_id,
    ]  # fmt: skip
    # SAFETY: pipes of this sandbox alone. crun gives its standard streams to the sandbox's root; were they
    # /dev/null, the host's device would be his from then on, to chmod through the bind mount inside.
    reading, writing = os.pipe()
    with subprocess.Popen(
        argv, stdin=reading, stdout=writing, stderr=writing,
        pass_fds=kept, env={"PATH": os.defpath + ":/usr/sbin:/sbin"},
    ) as crun:  # fmt: skip
        os.close(writing)
        try:
            status = crun.wait(CRUN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            crun.kill()  # else the end of this block would wait for it for ever
            raise
    if status != 0:
        reason = Path(log).read_text(errors="replace").strip()[-500:] if Path(log).exists() else ""
        raise OSError(f"crun run failed with {status}: {reason or 'no message'}")
    return int(Path(pid_file).read_text())


if __name__ == "__main__":
    main()
