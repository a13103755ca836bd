"""The container driver: Linux namespaces, put together by a process of their own (`launcher`)."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

from cloche_server.isolation import cgroups, identity
from cloche_server.isolation.base import (
    ID_RANGE,
    Capabilities,
    ProcessIdentity,
    Program,
    SandboxSpec,
    Usage,
    first_id,
)
from cloche_server.isolation.container import launcher, root
from cloche_server.readiness import until_readable
from cloche_wire.errors import Internal, InvalidArgument, Unavailable

_START_TIMEOUT_S = 45.0


class ContainerDriver:
    """Sandboxes as containers of their own user, pid, mount, network, ipc, uts and cgroup namespaces."""

    def __init__(self, block: int) -> None:
        """Take the number of this server's block, which names its control groups."""
        self._groups = cgroups.SandboxGroups(
            cgroups.detect(Path("/proc/self/mountinfo").read_text()), f"cloche-{block}"
        )
        self._control: socket.socket | None = None
        self._launcher: subprocess.Popen[bytes] | None = None

    def capabilities(self) -> Capabilities:
        """See `Driver.capabilities`."""
        return Capabilities(name="container", shares_host_kernel=True, volumes=True)

    def prepare(self, program: Program | None = None) -> None:
        """Make the mount points and the parent group, start the launcher, which imports the program.

        See `Driver.prepare`.
        """
        for folder in (root.MOUNT_FOLDER, *map(Path, (root.ROOT, root.LOWER, root.RUNTIME, root.EMPTY))):
            _make_own_folder(folder)
        try:
            self._groups.prepare()
        except OSError as error:
            raise Unavailable(f"cannot make control groups: {error.filename}: {error.strerror}") from error
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        arguments = [] if program is None else [json.dumps(program._asdict())]
        with theirs:
            # SAFETY: the launcher gets this one descriptor only, and nothing of our environment: sandboxes
            # are forks of it. It ends when our end is closed, however that happens.
            self._launcher = subprocess.Popen(
                [sys.executable, "-I", "-m", launcher.__name__, str(theirs.fileno()), *arguments],
                pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, env={"LANG": "C.UTF-8"},
            )  # fmt: skip
        self._control = ours

    async def start(self, spec: SandboxSpec) -> ProcessIdentity:
        """See `Driver.start`."""
        first = first_id(spec.slot)
        try:
            await asyncio.to_thread(_write_layer, spec, first)
            request = launcher.LaunchRequest(
                hostname=spec.hostname,
                folder=str(spec.folder),
                rootfs=str(spec.rootfs),
                runtime_tree=str(spec.runtime_tree),
                first_id=first,
                id_count=ID_RANGE,
                cgroup_files=[str(path) for path in self._groups.create(spec.sandbox_id, spec.limits)],
                argv=list(spec.argv),
                env=spec.env,
                mount_paths=[shared.path for shared in spec.mounts],
            )
            mounts = [shared.mount for shared in spec.mounts]
            pid = await self._launch(request, [*mounts, spec.network_namespace, *spec.listeners])
        except OSError as error:
            raise Internal(f"cannot start the sandbox: {error}") from error
        init = identity.identify(pid)
        if init is None:
            raise Internal("cannot start the sandbox: its init ended at once")
        return init

    async def destroy(self, sandbox_id: str, folder: Path, init: ProcessIdentity | None) -> None:
        """See `Driver.destroy`. The end of pid 1 ends every process of its namespace (pid_namespaces(7))."""
        if init is not None:
            identity.kill(init)
            await identity.wait_for_exit(init)
        # A half-made sandbox has no known init: whatever stands in its groups is the
        # launcher's, or what that started.
        while stray := self._groups.pids(sandbox_id):
            for known in filter(None, map(identity.identify, stray)):
                identity.kill(known)
                await identity.wait_for_exit(known)
            await asyncio.sleep(0)
        await self._groups.remove(sandbox_id)

    def is_alive(self, init: ProcessIdentity) -> bool:
        """See `Driver.is_alive`."""
        return identity.is_same(init)

    async def wait(self, init: ProcessIdentity) -> None:
        """See `Driver.wait`."""
        await identity.wait_for_exit(init)

    def usage(self, sandbox_id: str) -> Usage:
        """See `Driver.usage`."""
        return self._groups.usage(sandbox_id)

    def leftovers(self) -> set[str]:
        """See `Driver.leftovers`."""
        return self._groups.names()

    def close(self) -> None:
        """End the launcher, and remove the parent group when no sandbox is left."""
        if self._control is not None:
            self._control.close()
        if self._launcher is not None:
            self._launcher.wait()
        self._groups.remove_parent()

    async def _launch(self, request: launcher.LaunchRequest, descriptors: list[int]) -> int:
        if self._control is None:
            raise Internal("the driver is not prepared")
        answer, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            socket.send_fds(self._control, [request.encode()], [theirs, *descriptors])
        finally:
            os.close(theirs)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                text = await _read_to_end(answer)
        except TimeoutError as error:
            raise Internal(f"cannot start the sandbox: no answer in {_START_TIMEOUT_S:.0f} s") from error
        finally:
            os.close(answer)
        if not text:
            raise Internal("cannot start the sandbox: the launcher ended", hint="see the node's log")
        reply = json.loads(text)
        if "bad_path" in reply:
            raise InvalidArgument(reply["bad_path"], hint="mount the volume at a folder of its own")
        if "error" in reply:
            raise Internal(f"cannot start the sandbox: {reply['error']}")
        return int(reply["pid"])


def _write_layer(spec: SandboxSpec, first: int) -> None:
    """Make the writable layer, with /etc/hosts and the like in it, where no template can redirect them."""
    for name in ("upper", "work"):
        (spec.folder / name).mkdir()
        os.chown(spec.folder / name, first, first)
    (spec.folder / "upper").chmod(0o755)
    folder = spec.folder / "upper" / "etc"
    folder.mkdir(mode=0o755)
    os.chown(folder, first, first)
    for name, text in spec.etc_files.items():
        path = folder / name
        # SAFETY: the folder was made above and is still empty: no name in it is a link.
        path.write_text(text)
        os.chown(path, first, first)
        path.chmod(0o644)


def _make_own_folder(path: Path) -> None:
    """Make a folder that may be mounted over; refuse one that others own or can write to."""
    path.mkdir(mode=0o755, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
        raise Unavailable(f"not a folder of ours: {path}", hint="move it away")


async def _read_to_end(descriptor: int) -> bytes:
    parts: list[bytes] = []
    while True:
        try:
            data = os.read(descriptor, 65_536)
        except BlockingIOError:
            await until_readable(descriptor)
            continue
        if not data:
            return b"".join(parts)
        parts.append(data)
