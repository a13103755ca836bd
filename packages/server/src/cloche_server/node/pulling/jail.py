"""Runs `skopeo` where it can do no harm: a program of its own, which the node starts for each call.

    stdin   `Order`, as JSON
    stdout  `Done`, as JSON

Two processes come of it. The one that runs `skopeo`, which reads what strangers have written, has process
ids, mounts and a network of its own; in the last is nothing but our gate. It sees `/usr`, the authorities of
the machine, its work folder, and nothing else. The other is that gate, outside, where the first has no name
for it. Both are the same user, without rights: the kernel sends the signal that ends the first with the other
in the name of the other. The credentials are written to a file of the jail alone, in memory.
"""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures.thread  # noqa: F401 # pyright: ignore[reportUnusedImport] - loaded late by asyncio, when it cannot be read any more
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

import msgspec

from cloche_server.config import PULL_UID
from cloche_server.isolation import mount_points, netlink, syscalls
from cloche_server.node.pulling.gate import Gate, Problem, Rules

WORK, IMAGES = "/work", "/images"
"""Where the jail has its folder, and the operator's."""

_SYSTEM = ("usr", "lib", "lib32", "lib64", "bin", "sbin")
_AUTHORITIES = (
    "etc/ssl/certs", "etc/pki/tls/certs", "etc/pki/ca-trust/extracted", "etc/ca-certificates/extracted",
)  # fmt: skip
_BUNDLE, _KEYS = "etc/authorities.pem", "etc/auth.json"
_LO = 1
_OUTPUT_BYTES = 4 << 20
"""What the largest manifest may be for containers/image, too."""
_DATA_BYTES = 4 << 30
_CPU_S = 3600
_PROCESSES = 512
_OPEN_FILES = 1024
_PR_SET_NO_NEW_PRIVS = 38
_CAP_SETGID, _CAP_SETUID = 6, 7


class Order(msgspec.Struct, frozen=True):
    """What to run, and with what."""

    argv: list[str]
    """The program first; `AUTH` is the path of the credentials."""
    rules: Rules
    folder: str = ""
    """Shown as `WORK`, and the only one that can be written to; empty: none."""
    images: str = ""
    """Shown as `IMAGES`; empty: none."""
    bundle: str = ""
    """A file with the authorities to trust; empty: those of the machine."""
    host: str = ""
    username: str = ""
    password: str = ""
    """What opens this registry."""


class Done(msgspec.Struct, frozen=True):
    """What came of it."""

    status: int
    """128 and more: a signal has ended it."""
    stdout: str
    stderr: str
    problem: Problem | None = None
    """What the gate did not let through."""


AUTH = f"/{_KEYS}"


def main() -> None:
    """Do what standard input asks for."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    out, err = os.pipe(), os.pipe()
    own_processes = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    # SAFETY: the next child alone is the first process of another namespace; threads come after the way back.
    syscalls.unshare(syscalls.CLONE_NEWPID)
    child = os.fork()
    if child == 0:
        _become(order, theirs, out[1], err[1])
    syscalls.setns(own_processes, syscalls.CLONE_NEWPID)
    for number in (own_processes, out[1], err[1]):
        os.close(number)
    theirs.close()
    listeners = socket.recv_fds(ours, 64, 1 + len(order.rules.doors))[1]
    _settle()
    # SAFETY: its memory holds the credentials, and none of its user id may look into it.
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    stdout, stderr, problem = asyncio.run(_serve(order.rules, listeners, (out[0], err[0])))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    done = Done(128 - code if code < 0 else code, stdout, stderr, problem)
    sys.stdout.buffer.write(msgspec.json.encode(done))


async def _serve(
    rules: Rules, listeners: list[int], outputs: tuple[int, int]
) -> tuple[str, str, Problem | None]:
    """Be the gate until the program has ended; what it has said, and what did not go through."""
    gate = Gate(rules)
    sockets = [socket.socket(fileno=number) for number in listeners]
    for one in sockets:
        one.setblocking(False)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(gate.serve(sockets[0], sockets[1:])) if sockets else None
        reading = [tasks.create_task(asyncio.to_thread(_read, number)) for number in outputs]
        said = [await one for one in reading]
        if serving is not None:
            serving.cancel()
    return said[0], said[1], gate.problem


def _read(descriptor: int) -> str:
    """All that is written to a pipe, as far as anybody wants to know."""
    kept = bytearray()
    with os.fdopen(descriptor, "rb") as file:
        while piece := file.read1(1 << 16):
            kept += piece[: _OUTPUT_BYTES - len(kept)]
    return kept.decode(errors="replace")


# --- the program's side --------------------------------------------------------------------------------


def _become(order: Order, control: socket.socket, stdout: int, stderr: int) -> NoReturn:
    """In the child: go where the program can do no harm, and become it."""
    try:
        null = os.open("/dev/null", os.O_RDWR)
        for number, target in ((null, 0), (stdout, 1), (stderr, 2)):
            os.dup2(number, target)
        gate = _enter_network(order, control)
        _enter_root(order)
        syscalls.close_all_but({0, 1, 2})
        _limit(order)
        _settle()
        proxy = f"http://127.0.0.1:{gate}"
        env = {
            "PATH": "/usr/bin:/bin", "HOME": WORK, "TMPDIR": WORK, "LANG": "C.UTF-8",
            "HTTP_PROXY": proxy, "HTTPS_PROXY": proxy,
        }  # fmt: skip
        if order.bundle:
            env["SSL_CERT_FILE"] = f"/{_BUNDLE}"
        os.execve(order.argv[0], order.argv, env)  # noqa: S606 - no shell is wanted
    except OSError as error:
        os.write(2, f"the jail cannot be made: {error}\n".encode())
    finally:
        os._exit(127)


def _enter_network(order: Order, control: socket.socket) -> int:
    """Leave the machine's network for an empty one; the port of the gate in it."""
    syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS)
    with netlink.Socket() as kernel:
        kernel.send(netlink.bring_up(_LO))
    listeners = [_listen(port) for port in order.rules.doors]
    gate = _listen(0)
    socket.send_fds(control, [b"listeners"], [one.fileno() for one in (gate, *listeners)])
    return gate.getsockname()[1]


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(("127.0.0.1", port))
    listener.listen(64)
    return listener


def _enter_root(order: Order) -> None:
    """See nothing of the machine but programs, authorities and two folders."""
    syscalls.enter_private_mounts()
    root = mount_points.ROOT
    # SAFETY: /run/cloche and its folders are ours (`mount_points.prepare`), and empty; the namespace is new.
    syscalls.mount("tmpfs", root, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "size=16m,mode=755")
    read_only = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
    for name in _SYSTEM:
        source = Path("/", name)
        if source.is_symlink():
            Path(root, name).symlink_to(source.readlink())
        elif source.is_dir():
            _show(str(source), f"{root}/{name}", read_only)
    for name in _AUTHORITIES:
        if Path("/", name).is_dir():
            _show(f"/{name}", f"{root}/{name}", read_only | syscalls.MOUNT_ATTR_NOEXEC)
    if order.bundle:
        _write(f"{root}/{_BUNDLE}", Path(order.bundle).read_bytes(), 0)
    pair = base64.b64encode(f"{order.username}:{order.password}".encode()).decode()
    keys = {"auths": {order.host: {"auth": pair}} if order.username or order.password else {}}
    _write(f"{root}/{_KEYS}", msgspec.json.encode(keys), PULL_UID)
    if order.images:
        _show(order.images, root + IMAGES, read_only | syscalls.MOUNT_ATTR_NOEXEC)
    if order.folder:
        _show(order.folder, root + WORK, read_only & ~syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOEXEC)
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    syscalls.change_root(folder)


def _show(source: str, target: str, attributes: int) -> None:
    Path(target).mkdir(parents=True)
    mount = syscalls.clone_mount(source)
    syscalls.add_attributes(mount, attributes)
    # SAFETY: below the tmpfs that was mounted above, in which nobody else can write.
    folder = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    syscalls.attach_mount(mount, folder)
    os.close(folder)
    os.close(mount)


def _write(path: str, content: bytes, uid: int) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if uid else 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    os.chown(path, uid, uid)


def _limit(order: Order) -> None:
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, _CPU_S),
        (resource.RLIMIT_DATA, _DATA_BYTES),
        (resource.RLIMIT_FSIZE, order.rules.max_bytes),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_NPROC, _PROCESSES),
    ):
        resource.setrlimit(kind, (most, most))


def _settle() -> None:
    """Become a user without any right, and end with the parent."""
    syscalls.limit_capabilities(frozenset((_CAP_SETGID, _CAP_SETUID)))
    # SAFETY: groups first, user last; all three of each, so there is no way back, nor one by exec.
    os.setgroups([])
    os.setresgid(PULL_UID, PULL_UID, PULL_UID)
    os.setresuid(PULL_UID, PULL_UID, PULL_UID)
    syscalls.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # After the change of user, which would reset it (prctl(2)).
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
