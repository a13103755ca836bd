"""The driver interface: what every kind of isolation can be asked, over plain values.

Callers ask for `Capabilities`, never for the driver's type. A driver knows nothing of teams, tokens, HTTP
or time-outs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

ID_RANGE = 65_536
"""Ids of one sandbox: all of 0..65535 are mapped, since apt's `_apt` and service users need theirs."""
_FIRST_ID = 0x1000_0000


def first_id(machine_slot: int) -> int:
    """Host id of a sandbox's root; the ids of 28,000 slots stay below 2^31."""
    return _FIRST_ID + machine_slot * ID_RANGE


class Capabilities(msgspec.Struct, frozen=True):
    """What a driver can do, and what it calls itself."""

    name: str
    shares_host_kernel: bool
    memory_snapshot: bool = False
    disk_snapshot: bool = False
    """Whether files can be kept without memory: by `Driver.save`, or where it is said so as a layer."""
    writes_layers: bool = False
    """Whether what a sandbox has written always lies in `overlay.UPPER` of its folder, as a layer that others
    can be made of: where it stands still, nothing else is needed to keep its files."""
    freezes: bool = False
    """Whether a sandbox can be made to stand still (`Driver.freeze`)."""
    own_cpu_pct: float = 0.0
    """What a sandbox in which nothing happens uses at most, in percent of one CPU."""
    own_memory_mib: int = 0
    """What it uses itself for each sandbox at most, which a sandbox's own limit does not count."""
    memory_margin_mib: int = 0
    """How much a sandbox gets above its limit, for the moment that it takes to end what uses the most: at the
    end of that, the kernel may end all of it. 0: the kernel ends one process, at the limit."""
    families: bool = False
    """Whether an interpreter can be made ready for many sandboxes at once (`Driver.open_family`)."""
    volumes: bool = False
    """Whether mounts of others can be shown in a sandbox (`SandboxSpec.mounts`)."""
    saves_beside_volumes: bool = False
    """Whether `Driver.save` can be asked of a sandbox that has such: it refuses while one is in use."""
    listeners: bool = True
    """Whether its first process gets `SandboxSpec.listeners`; otherwise it is reached over its network."""
    image_format: str = ""
    """What can read the images that `save` writes: they are of use to drivers that say the same."""


class ResourceLimits(msgspec.Struct, frozen=True):
    """What the kernel enforces on one sandbox."""

    cpu_count: int
    memory_mib: int
    pids: int


class ProcessIdentity(msgspec.Struct, frozen=True):
    """Who a process is, so that a reused pid is never taken for it.

    Pid, start time in clock ticks, boot id.
    """

    pid: int
    start_ticks: int
    boot_id: str


class SharedMount(NamedTuple):
    """A file system that outlives the sandbox and that others may have too."""

    mount: int
    """Descriptor of a mount that stands nowhere yet; ids in it are those of the sandbox, 0..65535."""
    path: str
    """Absolute and normal, and none lies inside another; the driver makes the folder where it is missing."""


class FamilySpec(msgspec.Struct, frozen=True):
    """Everything a driver needs to have an interpreter ready for one team's sandboxes of one template."""

    family_id: str
    """In the place of a sandbox's id."""
    slots: tuple[int, ...]
    """The first is its own; the others are for its sandboxes, and for nobody else as long as it lives."""
    layers: tuple[Path, ...]
    """As `SandboxSpec.layers`."""
    folder: Path
    runtime_tree: Path
    limits: ResourceLimits
    argv: tuple[str, ...]
    """A program of the template that imports what kernels import, and is then forked into sandboxes.

    Its descriptors are 3, the control socket, and 4, the filter; see `container.zygote`.
    """
    env: dict[str, str]


class Family(Protocol):
    """Sandboxes of one team and one template build, in which an interpreter need not be started."""

    @property
    def init(self) -> ProcessIdentity:
        """The process that is forked; when it ends the family is of no more use."""
        ...

    async def network_namespace(self) -> int:
        """Return a descriptor of a new network namespace for one of its sandboxes.

        Raises:
            Internal: The kernel refuses.
        """
        ...

    def close(self) -> None:
        """Let go of what this process holds of it; its sandboxes go on. Idempotent."""
        ...


class Program(NamedTuple):
    """A Python program that many sandboxes run; a driver may have it imported before one needs it."""

    argv: tuple[str, ...]
    """The command that starts it inside, without its arguments: `SandboxSpec.argv` begins with it."""
    module: str
    """Has `main(arguments) -> exit code`, which is the same as running the command."""
    here: tuple[str, ...]
    """Where its modules are found on this machine."""
    inside: tuple[str, ...]
    """Where all that it may ever import is found in a sandbox."""
    moved: dict[str, str]
    """Folders of this machine that a sandbox shows at another place."""
    title: str
    """What a list of processes shows for it."""


class SandboxSpec(msgspec.Struct, frozen=True):
    """Everything a driver needs to start one sandbox; made by the node, never by a tenant."""

    sandbox_id: str
    slot: int
    hostname: str
    layers: tuple[Path, ...]
    """Folders that make its root, uppermost first; shared and never written to. Ids in them are those of the
    inside. All but the lowest may hide what lies below as overlayfs does it."""
    folder: Path
    """This sandbox's own folder; the driver keeps its writable layer and its bundle in it."""
    runtime_tree: Path
    """The private runtime tree, shown read-only at /.cloche."""
    limits: ResourceLimits
    network_namespace: int
    """Descriptor of the network namespace it is to run in."""
    listeners: tuple[int, ...]
    """Listening Unix sockets that the agent inherits, as descriptors 3, 4, ..."""
    argv: tuple[str, ...]
    env: dict[str, str]
    etc_files: dict[str, str]
    """Files below /etc that are this sandbox's own (hosts, resolv.conf), by name."""
    family: Family | None = None
    """Has this sandbox's slot, and made its network namespace: then the program gets a connection with its
    zygote, and files to move a process into the sandbox's groups, as `--zygote-fd` and `--group-fds`."""
    mounts: tuple[SharedMount, ...] = ()
    """Shown without devices and setuid programs; for drivers that say `volumes`."""
    keeps_layer: bool = False
    """Whether what it writes lies in `overlay.UPPER` of its folder as soon as it is written, as a layer that
    others can be made of. Drivers that do not say `writes_layers` may else keep it where they like."""
    boot_id: str = ""
    """What the sandbox shows as the id of its boot; for drivers that say `memory_snapshot`. Empty: what the
    kernel in it has by itself. Others draw a new one at each start."""
    image: Path | None = None
    """What `Driver.save` has written: the sandbox goes on from there, and `argv` and `env` are as they were
    then; for drivers that say `memory_snapshot`. It was saved with the same `keeps_layer`; `layers` are those
    of then, or what `Driver.goes_on_over` says."""


class Usage(NamedTuple):
    """What a sandbox uses now."""

    memory_bytes: int
    """All that counts against its limit, the cache of files included."""
    cpu_s: float
    pids: int
    cache_bytes: int = 0
    """Part of `memory_bytes` that the kernel gives up when others need it; not files in memory."""

    @property
    def held_bytes(self) -> int:
        """The rest of it."""
        return max(0, self.memory_bytes - self.cache_bytes)


class Driver(Protocol):
    """One kind of isolation."""

    def capabilities(self) -> Capabilities:
        """What this driver can do. Never blocks."""
        ...

    def goes_on_over(self, layers: Sequence[Path]) -> bool:
        """Whether a sandbox over these layers may go on from an image that was saved over others.

        That one has a root of mount points, keeps its layer, and has no file of that root open. Blocks for a
        moment.
        """
        ...

    def prepare(self, program: Program | None = None) -> None:
        """Make the machine ready, once per start of the node.

        `program` is what most sandboxes will run: to start it may then cost less, and is the same otherwise.

        Raises:
            Unavailable: The machine lacks what this driver needs; the message names it, the hint says what
            to do.
        """
        ...

    async def open_family(self, spec: FamilySpec) -> Family:
        """Have an interpreter ready for sandboxes of that family; for drivers that say `families`.

        Leaves: on any error what `destroy` takes away, by the family's id.

        Raises:
            Internal: It cannot be started, or its imports fail or take too long; the message says why.
        """
        ...

    async def start(self, spec: SandboxSpec) -> ProcessIdentity:
        """Start the sandbox's init with `spec.argv`; limits hold before its first instruction.

        Leaves: the sandbox's init running; or, on any error, what `destroy` takes away, with no init known.

        Raises:
            Internal: A control could not be put in place; the message names it. Nothing of the tenant ran.
            InvalidArgument: A shared mount's path is none for a folder in this template.
        """
        ...

    async def freeze(self, sandbox_id: str, folder: Path) -> None:
        """Have every process of a sandbox stand still, memory where it is; for drivers that say `freezes`.

        Raises:
            Internal: It cannot; the sandbox runs on.
        """
        ...

    async def thaw(self, sandbox_id: str, folder: Path) -> None:
        """Have a frozen sandbox go on, whichever process of ours froze or saved it. Idempotent.

        Raises:
            Internal: It cannot.
        """
        ...

    def reclaim(self, sandbox_id: str) -> None:
        """Give back the cache of a sandbox's files, which costs it nothing but time. Never fails; blocks."""
        ...

    async def save(self, sandbox_id: str, folder: Path, image: Path) -> tuple[str, ...]:
        """Write processes, memory and files of a frozen sandbox into files of the folder `image`, not synced.

        What lies in shared mounts is not written. Returns the files and folders in them, these with a slash
        at the end, that may have to be there still when something goes on from the image.

        Leaves: the sandbox frozen, as it was; on an error perhaps a part in `image`.

        Raises:
            InUse: Its programs use something in a shared mount, but for its root; the message names both.
            UnsupportedOption: It has shared mounts, and what runs it cannot be asked for that.
            NotEnoughSpace: The disk is full.
            Internal: It cannot; the message says why.
        """
        ...

    async def destroy(self, sandbox_id: str, folder: Path, init: ProcessIdentity | None) -> None:
        """End every process and remove every kernel object of the sandbox, whether it stands still or not.

        What stands still does not go on before it ends: its files may be kept as they are. The caller
        removes the folder then. Idempotent, and safe on half-made sandboxes.
        """
        ...

    def is_alive(self, init: ProcessIdentity) -> bool:
        """Whether that very init still runs."""
        ...

    async def wait(self, init: ProcessIdentity) -> None:
        """Return when that init has ended; also for one that an earlier process of ours started."""
        ...

    def usage(self, sandbox_id: str) -> Usage:
        """What the sandbox uses now; zeros when it is gone."""
        ...

    def leftovers(self) -> set[str]:
        """Ids of sandboxes of which any kernel object of this driver exists, for reconciliation."""
        ...

    def close(self) -> None:
        """Let go of the machine at the end of the node; running sandboxes stay."""
        ...
