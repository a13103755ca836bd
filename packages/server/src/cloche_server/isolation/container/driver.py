"""The container driver: Linux namespaces, put together by a process of their own (`launcher`)."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from cloche_server.isolation import identity, overlay
from cloche_server.isolation.base import (
    Capabilities,
    FamilySpec,
    ProcessIdentity,
    Program,
    SandboxSpec,
    first_id,
)
from cloche_server.isolation.container import family, launcher
from cloche_server.isolation.container.family import ContainerFamily
from cloche_server.isolation.container.requests import LaunchRequest, NamespacesRequest, encode
from cloche_server.isolation.grouped import GroupedDriver
from cloche_wire.errors import Internal

_FIRST_DESCRIPTOR = 3


class ContainerDriver(GroupedDriver):
    """Sandboxes as containers of their own user, pid, mount, network, ipc, uts and cgroup namespaces."""

    def capabilities(self) -> Capabilities:
        """See `Driver.capabilities`."""
        return Capabilities(
            name="container",
            shares_host_kernel=True,
            freezes=self._groups.freezes,
            # A copy of what still changes would be of no one moment.
            disk_snapshot=self._groups.freezes,
            writes_layers=True,
            families=True,
            volumes=True,
        )

    def prepare(self, program: Program | None = None) -> None:
        """Make the mount points and the parent group, start the launcher, which imports the program.

        See `Driver.prepare`.
        """
        self._prepare(launcher.__name__, *(() if program is None else (json.dumps(program._asdict()),)))

    async def start(self, spec: SandboxSpec) -> ProcessIdentity:
        """See `Driver.start`."""
        try:
            return await self._start(spec)
        except (OSError, Internal) as error:
            raise Internal(f"cannot start the sandbox: {error}") from error

    async def _start(self, spec: SandboxSpec) -> ProcessIdentity:
        first = first_id(spec.slot)
        await asyncio.to_thread(_write_layer, spec.folder, spec.etc_files)
        groups = [str(path) for path in self._groups.create(spec.sandbox_id, spec.limits)]
        with ExitStack() as opened:
            own = spec.family if isinstance(spec.family, ContainerFamily) else None
            connection = own.connect() if own is not None else None
            descriptors = [shared.mount for shared in spec.mounts]
            descriptors += [spec.network_namespace, *spec.listeners]
            arguments = list(spec.argv)
            if connection is not None:
                opened.enter_context(connection)
                number = _FIRST_DESCRIPTOR + len(spec.listeners)
                files = range(number + 1, number + 1 + len(groups))
                arguments += ["--zygote-fd", str(number), "--group-fds", ",".join(map(str, files))]
                descriptors.append(connection.fileno())
            if own is not None:
                descriptors.insert(0, own.of_slot(spec.slot))
            request = LaunchRequest(
                role="sandbox",
                hostname=spec.hostname,
                folder=str(spec.folder),
                layers=list(map(str, spec.layers)),
                runtime_tree=str(spec.runtime_tree),
                first_id=first,
                cgroup_files=groups,
                argv=arguments,
                env=spec.env,
                has_user_namespace=own is not None,
                hands_groups_over=connection is not None,
                mount_paths=[shared.path for shared in spec.mounts],
            )
            return await self._launch(request, descriptors)

    async def open_family(self, spec: FamilySpec) -> ContainerFamily:
        """See `Driver.open_family`."""
        first = first_id(spec.slots[0])
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        opened: ContainerFamily | None = None
        with theirs:
            try:
                asked = NamespacesRequest(family.extents(spec), family.sandboxes(spec), networks=0)
                namespaces = (await self._launcher.ask(encode(asked), [])).descriptors
                opened = ContainerFamily(spec, self._launcher, namespaces)
                await asyncio.to_thread(_write_layer, spec.folder, {})
                request = LaunchRequest(
                    role="zygote",
                    hostname="zygote",
                    folder=str(spec.folder),
                    layers=list(map(str, spec.layers)),
                    runtime_tree=str(spec.runtime_tree),
                    first_id=first,
                    cgroup_files=[str(path) for path in self._groups.create(spec.family_id, spec.limits)],
                    argv=list(spec.argv),
                    env=spec.env,
                    has_user_namespace=True,
                )
                init = await self._launch(request, [opened.user_namespace, theirs.fileno()])
                theirs.close()
                await opened.adopt_zygote(ours, init)
            except (OSError, Internal) as error:
                ours.close()
                if opened is not None:
                    opened.close()
                raise Internal(f"cannot start the zygote: {error}") from error
            return opened

    async def freeze(self, sandbox_id: str, folder: Path) -> None:
        """See `Driver.freeze`."""
        await self._groups.freeze(sandbox_id)

    async def thaw(self, sandbox_id: str, folder: Path) -> None:
        """See `Driver.thaw`."""
        self._groups.thaw(sandbox_id)

    async def save(self, sandbox_id: str, folder: Path, image: Path) -> tuple[str, ...]:
        """See `Driver.save`; this one says no `memory_snapshot`."""
        raise Internal("no images here")

    async def destroy(self, sandbox_id: str, folder: Path, init: ProcessIdentity | None) -> None:
        """See `Driver.destroy`. The end of pid 1 ends every process of its namespace (pid_namespaces(7))."""
        if init is not None:
            identity.kill(init)
            self._kill_group(sandbox_id)  # each by itself: the end of pid 1 comes after they have gone on
            await identity.wait_for_exit(init)
        # A half-made sandbox has no known init: whatever stands in its groups is a child of the launcher, or
        # what that started.
        await self._end_group(sandbox_id)

    async def _launch(self, request: LaunchRequest, descriptors: list[int]) -> ProcessIdentity:
        answer = await self._launcher.ask(encode(request), descriptors)
        init = identity.identify(answer.pid)
        if init is None:
            raise Internal("it ended at once")
        return init


def _write_layer(folder: Path, etc_files: Mapping[str, str]) -> None:
    """Make the writable layer, with /etc/hosts and the like in it, where no template can redirect them."""
    etc = overlay.make_writable(folder) / "etc"
    if etc_files:
        etc.mkdir(mode=0o755)
    for name, text in etc_files.items():
        path = etc / name
        # SAFETY: the folder was made above and is still empty: no name in it is a link.
        path.write_text(text)
        path.chmod(0o644)
