"""The process that runs runsc, and that speaks to the kernels which runsc has started.

What runsc starts is in control groups and mount namespaces that end with it.

Started by the driver as `python -I -m cloche_server.isolation.gvisor.launcher FD`; see `launching.server`.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cloche_server.isolation import mount_points, overlay, shared_mounts, syscalls
from cloche_server.isolation.gvisor import boot_id, control, temporary
from cloche_server.isolation.launching import server

_ID_RANGE = 65_536
_TIMEOUT_S = 40.0
_LOG_BYTES = 2000


@dataclass(frozen=True)
class RunscRequest:
    """Run runsc once, to its end.

    Descriptors: the network namespace, where it starts a sandbox, and the shared mounts.
    """

    command: list[str]
    log: str
    """File that it writes what went wrong to."""
    cgroup_files: list[str] = field(default_factory=list[str])
    """Groups that it and all that it starts are in; none: those of the launcher."""
    layers: list[str] = field(default_factory=list[str])
    """Shown to it at `mount_points.ROOT` as one, with the ids of the sandbox; none: it starts no sandbox."""
    writable: str | None = None
    """Holds the layer that the sandbox writes to, or that has the folders of `mount_paths` alone, where the
    sentry keeps what is written; None: there is none."""
    marks_tmp: bool = False
    """Whether runsc is to find an entry in /tmp, which the agent takes away at its start; see `temporary`."""
    runtime_tree: str = ""
    first_id: int = 0
    boot_id_file: str = ""
    """Shown to it at `mount_points.BOOT_ID`; empty: none is."""
    pid_file: str = ""
    """Where it writes the pid of the sandbox's first process."""
    mount_paths: list[str] = field(default_factory=list[str])
    """Where shared mounts are shown inside; each is shown to runsc at `mount_points.shared_at`."""


@dataclass(frozen=True)
class ControlRequest:
    """Have the kernel of a sandbox do something; see `control.act`."""

    verb: control.Verb
    socket: str
    mark: str
    image: str = ""
    shared: list[str] = field(default_factory=list[str])
    """Where mounts that others have too are shown inside."""


def encode(request: RunscRequest | ControlRequest) -> bytes:
    """One packet."""
    return json.dumps({type(request).__name__: asdict(request)}).encode()


def main() -> None:
    """Answer requests until the driver's end is closed."""
    server.serve(server.take_control(), _act)


def _act(packet: bytes, descriptors: list[int]) -> server.Done:
    ((kind, values),) = json.loads(packet).items()
    if kind == ControlRequest.__name__:
        asked = ControlRequest(**values)
        mark = Path(asked.mark)
        control.act(asked.verb, asked.socket, mark, asked.image, shared=asked.shared, timeout_s=_TIMEOUT_S)
        return server.Done()
    return _run(RunscRequest(**values), descriptors)


def _run(request: RunscRequest, descriptors: list[int]) -> server.Done:
    server.enter_groups(request.cgroup_files)
    _make_mounts(request, descriptors)
    log = Path(request.log)
    log.unlink(missing_ok=True)
    null = os.open(mount_points.NULL, os.O_RDWR | os.O_CLOEXEC)
    # SAFETY: nothing of ours goes in but this null device, on a mount that refuses the change of its owner
    # which runsc makes to what it gets for a standard stream.
    try:
        process = subprocess.run(
            request.command, check=False, stdin=null, stdout=null, stderr=null, timeout=_TIMEOUT_S,
            env={"PATH": "/usr/bin:/bin"},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise OSError(f"runsc did not end within {_TIMEOUT_S:g} s") from error
    if process.returncode != 0:
        raise OSError(_reason(log) or f"runsc ended with status {process.returncode}")
    return server.Done(int(Path(request.pid_file).read_text()) if request.pid_file else 0)


def _make_mounts(request: RunscRequest, descriptors: list[int]) -> None:
    syscalls.enter_private_mounts()
    # SAFETY: all of these are places of ours (`mount_points.prepare`), in a namespace of this process and
    # of what it starts.
    _show("/dev/null", mount_points.NULL, syscalls.MOUNT_ATTR_RDONLY)
    # Releases of 2024 take every network namespace for the first one where they find this folder's files.
    syscalls.mount("tmpfs", "/proc/sys/net", "tmpfs", syscalls.MS_RDONLY)
    if not request.layers:
        return
    ids = overlay.Ids(syscalls.user_namespace([(0, request.first_id, _ID_RANGE)]), request.first_id)
    read_only = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NODEV
    if len(request.layers) == 1 and request.writable is None:
        syscalls.mount_idmapped(request.layers[0], mount_points.ROOT, ids.user_namespace, read_only)
    else:
        overlay.mount(request.layers, request.writable, mount_points.ROOT, ids, syscalls.MS_NODEV)
    if request.marks_tmp:
        temporary.keep_on_disk(mount_points.ROOT, ids, is_writable=request.writable is not None)
    syscalls.mount_idmapped(request.runtime_tree, mount_points.RUNTIME, ids.user_namespace, read_only)
    syscalls.mount(f"/proc/self/fd/{descriptors[0]}", mount_points.NETWORK, None, syscalls.MS_BIND)
    if request.boot_id_file:
        boot_id.make_place(mount_points.ROOT)
        _show(request.boot_id_file, mount_points.BOOT_ID, syscalls.MOUNT_ATTR_RDONLY)
    if request.mount_paths:
        _show_shared(dict(zip(request.mount_paths, descriptors[1:], strict=True)), ids)


def _show_shared(shared: dict[str, int], ids: overlay.Ids) -> None:
    """Show shared mounts to runsc, and have the root hold a folder at each of their paths.

    Raises:
        BadPath: One of those is no path for a folder.
    """
    # SAFETY: in this process's namespace only, over a folder of ours.
    flags = syscalls.MS_NODEV | syscalls.MS_NOSUID
    syscalls.mount("tmpfs", mount_points.SHARED, "tmpfs", flags, "size=64k,mode=755")
    for number, (path, mount) in enumerate(shared.items()):
        with shared_mounts.folder_at(mount_points.ROOT, path, ids):
            shared_mounts.restrict(mount, ids)
        place = Path(mount_points.shared_at(number))
        place.mkdir()
        folder = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        syscalls.attach_mount(mount, folder)
        os.close(folder)
        os.close(mount)


def _show(source: str, target: str, attributes: int) -> None:
    mount = syscalls.clone_mount(source)
    syscalls.add_attributes(mount, attributes)
    point = os.open(target, os.O_PATH | os.O_CLOEXEC)
    assert stat.S_ISREG(os.fstat(point).st_mode)
    syscalls.attach_mount(mount, point)
    os.close(mount)
    os.close(point)


def _reason(log: Path) -> str:
    """What runsc has said last."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return ""
    lines = text.splitlines()
    said = [line.partition("FATAL ERROR: ")[2] for line in lines if "FATAL ERROR: " in line] or lines
    return said[-1][:_LOG_BYTES] if said else ""


if __name__ == "__main__":
    main()
