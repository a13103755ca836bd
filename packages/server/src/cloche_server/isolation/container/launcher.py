"""The container driver's only process that touches mounts: single-threaded, so it may fork and unshare.

Started by the driver as `python -I -m cloche_server.isolation.container.launcher FD [PRELOAD]`. For each
request (`requests`) its fork enters the sandbox's control groups, makes a mount namespace that dies with the
sandbox, assembles the root there, and becomes the parent of the sandbox's pid 1. So no mount of ours ever
stands in a namespace that outlives one create, whatever is killed, and there is nothing to unmount.

It is the agent's zygote too: it has imported the agent, so where a sandbox is to run that, its pid 1 is a
fork of this process that goes on as the agent, instead of an interpreter that starts and imports. It holds
no secret: its arguments, its environment and its requests name files, limits and ids.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import NamedTuple, NoReturn

from cloche_server.isolation import overlay, syscalls
from cloche_server.isolation.container import call_filter, confine, preload, root, seccomp
from cloche_server.isolation.container.requests import LaunchRequest, NamespacesRequest, decode
from cloche_server.isolation.launching import server

ID_RANGE = 65_536


class _Ready(NamedTuple):
    """What every child finds made."""

    sandbox_filter: bytes
    zygote_filter: bytes
    program: preload.Preloaded | None


def main() -> None:
    """Answer requests until the driver's end is closed."""
    control = server.take_control()
    ready = _Ready(
        call_filter.compile_profile(seccomp.profile()),
        call_filter.compile_profile(seccomp.profile(enters_namespaces=True)),
        preload.load(sys.argv[2]) if len(sys.argv) > 2 else None,
    )
    server.serve(control, partial(_act, ready))


def _act(ready: _Ready, packet: bytes, descriptors: list[int]) -> server.Done:
    match decode(packet):
        case LaunchRequest() as request:
            return server.Done(_launch(request, descriptors, ready))
        case NamespacesRequest() as request:
            return server.Done(descriptors=tuple(_make_namespaces(request, descriptors)))


def _launch(request: LaunchRequest, inherited: list[int], ready: _Ready) -> int:
    server.enter_groups(request.cgroup_files)
    user_namespace = (
        inherited.pop(0)
        if request.has_user_namespace
        else syscalls.user_namespace([(0, request.first_id, ID_RANGE)])
    )
    count = len(request.mount_paths)
    shared = dict(zip(request.mount_paths, inherited[:count], strict=True))
    descriptors = inherited[count:]
    ids = overlay.Ids(user_namespace, request.first_id)
    root.assemble(request.folder, request.layers, request.runtime_tree, ids, shared)
    if request.role == "sandbox":
        # SAFETY: while this process has the rights for it, which the sandbox's own root will not have.
        syscalls.setns(descriptors.pop(0), syscalls.CLONE_NEWNET)
        role, calls = confine.SANDBOX, ready.sandbox_filter
    else:
        # Its forks will need the sandboxes' own filter, in a file, since they read no more of ours.
        descriptors.append(_in_memory(ready.sandbox_filter))
        role, calls = confine.ZYGOTE, ready.zygote_filter
    if request.hands_groups_over:
        # SAFETY: opened by the host's root, so they take any process that the holder can name: in a
        # sandbox that is one of the sandbox's own (cgroups(7); the rights are those of the open).
        descriptors += [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in request.cgroup_files]
    confinement = confine.Confinement(role, request.hostname, user_namespace, descriptors, calls)
    program = ready.program
    if program is not None and program.is_meant_by(request.argv):
        return confine.start_first(confinement, partial(program.run, request.argv, request.env))
    return confine.start_first(confinement, partial(_execute, request))


def _execute(request: LaunchRequest, report: int) -> NoReturn:
    """Become the program; `report` closes itself then."""
    os.execvpe(request.argv[0], request.argv, request.env)  # noqa: S606 - the sandbox's own program


def _in_memory(content: bytes) -> int:
    memory = os.memfd_create("filter", os.MFD_CLOEXEC)
    os.write(memory, content)
    return memory


def _make_namespaces(request: NamespacesRequest, inherited: list[int]) -> list[int]:
    made: list[int] = []
    if request.extents:
        made.append(
            syscalls.user_namespace([(inside, outside, count) for inside, outside, count in request.extents])
        )
    # SAFETY: this process ends after it; what it makes in there belongs to the family.
    syscalls.setns((made or inherited)[0], syscalls.CLONE_NEWUSER)
    for first, count in request.sandboxes:
        # Not the family's own root: that would have every right over it, and the zygote has few.
        made.append(syscalls.user_namespace([(0, first, count)], owner=first))
    for _ in range(request.networks):
        syscalls.unshare(syscalls.CLONE_NEWNET)
        made.append(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
    return made


if __name__ == "__main__":
    main()
