"""A family: sandboxes of one team and one template build, below one user namespace with one zygote."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

from cloche_server.isolation.base import ID_RANGE, FamilySpec, ProcessIdentity, first_id
from cloche_server.isolation.container.requests import NamespacesRequest, encode
from cloche_server.isolation.launching.client import Launcher
from cloche_server.readiness import until_readable
from cloche_wire.errors import Internal

PRELOAD_TIMEOUT_S = 60.0
"""pandas and matplotlib take 0.5 s; this is for a cold disk. What takes longer, hangs."""
_NETWORKS_AT_ONCE = 8
_REASON_BYTES = 4096


class ContainerFamily:
    """See `base.Family`. Namespaces of a slot are made once, and serve one sandbox after the other."""

    def __init__(self, spec: FamilySpec, launcher: Launcher, namespaces: list[int]) -> None:
        """Take the family's own user namespace and those of its slots, in their order."""
        self._launcher = launcher
        self.user_namespace, *others = namespaces
        self._slots = dict(zip(spec.slots[1:], others, strict=True))
        self._networks: list[int] = []
        self._making = asyncio.Lock()
        self._control: socket.socket | None = None
        self._init: ProcessIdentity | None = None

    @property
    def init(self) -> ProcessIdentity:
        """See `base.Family`."""
        if self._init is None:
            raise Internal("the family has no zygote yet")
        return self._init

    def of_slot(self, slot: int) -> int:
        """The descriptor of the user namespace of one of its slots."""
        return self._slots[slot]

    async def network_namespace(self) -> int:
        """See `base.Family`. Several are made at once, since making them takes a process."""
        async with self._making:
            if not self._networks:
                request = NamespacesRequest(extents=[], sandboxes=[], networks=_NETWORKS_AT_ONCE)
                self._networks = (
                    await self._launcher.ask(encode(request), [self.user_namespace])
                ).descriptors
            return self._networks.pop()

    async def adopt_zygote(self, control: socket.socket, init: ProcessIdentity) -> None:
        """Take over what has been started, once it says that it is ready.

        Raises:
            Internal: It is not, and says why, or ends, or takes too long.
        """
        self._control, self._init = control, init
        try:
            async with asyncio.timeout(PRELOAD_TIMEOUT_S):
                await until_readable(control.fileno())
                said = control.recv(_REASON_BYTES)
        except TimeoutError:
            raise Internal(f"its imports took longer than {PRELOAD_TIMEOUT_S:.0f} s") from None
        except OSError:
            said = b""
        if said != b"ready":
            reason = said.decode(errors="replace") or "it ended while it imported"
            raise Internal(f"the interpreter cannot be forked: {reason}")

    def connect(self) -> socket.socket | None:
        """Return one end of a connection with the zygote, for an agent; None when there is none any more."""
        if self._control is None:
            return None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                # SAFETY: what is sent over this end comes from one sandbox; see `zygote`.
                socket.send_fds(self._control, [b"agent"], [theirs.fileno()])
            except OSError:
                ours.close()
                return None
        return ours

    def close(self) -> None:
        """See `base.Family`. The zygote ends with its control socket."""
        if self._control is not None:
            self._control.close()
            self._control = None
        for descriptor in (self.user_namespace, *self._slots.values(), *self._networks):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._slots, self._networks = {}, []
        self.user_namespace = -1


def extents(spec: FamilySpec) -> list[tuple[int, int, int]]:
    """Ids of the family's user namespace: first those of its own slot, then those of each sandbox's."""
    return [(position * ID_RANGE, first_id(slot), ID_RANGE) for position, slot in enumerate(spec.slots)]


def sandboxes(spec: FamilySpec) -> list[tuple[int, int]]:
    """Ids of each sandbox's user namespace, as the family's counts them."""
    return [(position * ID_RANGE, ID_RANGE) for position in range(1, len(spec.slots))]
