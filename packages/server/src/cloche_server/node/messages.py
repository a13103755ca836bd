"""What the api and the edge say to the node over its Unix sockets, and what it answers.

Control socket (`Config.node_socket`), method -> params -> result:

    create       CreateSandbox   SandboxState     raises TemplateNotFound, ResourceExhausted, Unavailable,
    Internal kill         KillSandbox     {}               raises SandboxNotFound
    set_timeout  SetTimeout      SandboxState     raises SandboxNotFound
    set_egress   SetEgress       {}               raises SandboxNotFound, InvalidArgument, Unavailable
    list         {}              [SandboxState]   everything alive on this node
    metrics      MetricsQuery    [SandboxMetrics] of those of the sandboxes that run
    logs         LogsQuery       [LogEntry]       of one, also a while after its end; raises SandboxNotFound
    health       {}              {}               whether the node answers
    drain        {}              {}               ends every sandbox; more creates answer Unavailable
    watch        {}              [SandboxReady], then events `ended` (SandboxEnded), `ready` (SandboxReady),
                                 `unready` (SandboxUnready), `paused`, `resumed`, `frozen` and `thawed`
                                 (SandboxState) on the same link until it is closed

    pause           PauseSandbox   {}             raises SandboxNotFound, Conflict (paused, or busy),
                                                  UnsupportedOption, TooLarge, NotEnoughSpace,
                                                  Internal: it runs on
    resume          ResumeSandbox  SandboxState   raises SandboxNotFound, Conflict (it runs, or is busy),
                                                  ResourceExhausted, SnapshotUnusable: it stays paused
    freeze          FreezeSandbox  {}             raises SandboxNotFound, Conflict (paused, or busy),
                                                  UnsupportedOption, Internal: it runs on
    snapshot        TakeSnapshot   SnapshotTaken  raises as pause; the sandbox runs on
    remove_snapshot RemoveSnapshot {}             one that is not there is a success

    create_volume  CreateVolume   {}             raises NotEnoughSpace, AlreadyExists, Unavailable, Internal
    remove_volume  RemoveVolume   {}             raises Conflict: a sandbox has it

Socket of the volumes' content (`Config.open_socket`):

    open         OpenVolume      {} with one descriptor: a mount of the volume that stands nowhere, its ids
    shifted to those of the asking process
                                 raises Unauthenticated: no such volume, or another token

Edge socket (`Config.edge_socket`):

    routes       {}              [Route], then events `route` (Route) and `gone` (RouteGone) until it is
    closed dial         Dial            {} with one descriptor: a connected TCP socket, made inside the
    sandbox's network namespace
                                 raises SandboxNotFound, PortClosed
    wake         Wake            Route           raises SandboxNotFound: it is not paused, and does not run
    idle         IdleSandbox     LookAgain       raises SandboxNotFound, Conflict: it is paused

Egress socket (`Config.egress_socket`):

    listen       {}              {} with one descriptor: the listening socket that connections of sandboxes
                                 with domains are led to; the node keeps none of it, so that nobody answers
                                 them while no egress runs
    policy       AskPolicy       NamePolicy       raises SandboxNotFound
    changes      {}              {}, then events `changed` (PolicyChanged) until it is closed
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Literal

import msgspec

EndReason = Literal["killed", "timeout", "exited", "out_of_memory", "failed", "lost"]


class VolumeMount(msgspec.Struct, frozen=True):
    """Show a volume at a folder of a sandbox."""

    volume_id: str
    path: str


class EgressPolicy(msgspec.Struct, frozen=True):
    """What one sandbox may reach outside, within what any may. Allow wins over deny; the rest is allowed."""

    allow: tuple[str, ...] = ()
    """IPv4 networks in CIDR form that do not overlap."""
    deny: tuple[str, ...] = ()
    """The same."""
    domains: tuple[str, ...] = ()
    """Names reached on ports 80 and 443 through the egress; `*.` before one stands for all below it."""
    dns_servers: tuple[str, ...] = ()
    """Addresses reached on every port although there are `domains`, which close foreign name servers."""
    names: bool = True
    """Whether the node's own name server answers for `domains`."""


class CreateSandbox(msgspec.Struct, frozen=True):
    """Make and start one sandbox. The answer comes when its agent has answered."""

    sandbox_id: str
    team_id: str
    template_id: str
    build_id: str
    timeout_s: int
    access_token: str
    traffic_token: str | None = None
    """Set when public traffic is off: user ports then ask for it."""
    env: dict[str, str] = {}
    metadata: dict[str, str] = {}
    cpu_count: int = 2
    memory_mib: int = 2048
    allow_internet: bool = True
    mask_request_host: str | None = None
    volume_mounts: tuple[VolumeMount, ...] = ()
    egress: EgressPolicy = EgressPolicy()
    https_ports: tuple[int, ...] = ()
    """Ports on which the sandbox's services speak TLS."""
    on_timeout: Literal["kill", "pause"] = "kill"
    pause_memory: bool = True
    """Whether its memory is kept when its time-out pauses it."""
    auto_resume: bool = False
    """Whether a request for it resumes it when it is paused, for `timeout_s` seconds."""
    idle_after_s: int = 0
    """After so long without anything happening in it `idle_action` is done with it; 0: never."""
    idle_action: Literal["freeze", "pause"] = "freeze"
    snapshot_id: str | None = None
    """Made as a copy of what that snapshot has kept, instead of from its template."""
    isolation: str = ""
    """Its driver; empty: its template's, or the server's."""

    @property
    def wakes_on_traffic(self) -> bool:
        """Whether it is resumed by a request when it is paused."""
        return self.auto_resume or bool(self.idle_after_s and self.idle_action == "pause")


class SandboxState(msgspec.Struct, frozen=True):
    """What the node knows of one sandbox. Times are wall-clock, derived from the boot clock that rules."""

    sandbox_id: str
    team_id: str
    started_at: datetime
    end_at: datetime
    isolation: str
    egress_digest: str = ""
    """Of what it may reach now, so that the control plane can see whether that is what it shows."""
    state: Literal["running", "paused"] = "running"
    is_frozen: bool = False
    """It stands still until something needs it; it runs all the same."""


class FreezeSandbox(msgspec.Struct, frozen=True):
    """Have one sandbox stand still until something needs it, its memory where it is."""

    sandbox_id: str


class PauseSandbox(msgspec.Struct, frozen=True):
    """Put one sandbox on disk; the answer comes when that is safe there, and no process of it is left."""

    sandbox_id: str
    memory: bool = True
    """Whether its processes and their memory are kept; its files are in any case."""


class ResumeSandbox(msgspec.Struct, frozen=True):
    """Have a paused sandbox run again; the answer comes when its agent has answered."""

    sandbox_id: str
    timeout_s: int
    memory: bool = True
    """Whether its processes go on; otherwise they end, and its files are as they were."""


class TakeSnapshot(msgspec.Struct, frozen=True):
    """Keep a copy of a running sandbox, which runs on, to make others of."""

    sandbox_id: str
    snapshot_id: str
    memory: bool = True
    for_now: bool = False
    """Whether it is of no use once the node has ended; it is not synced to disk then."""


class SnapshotTaken(msgspec.Struct, frozen=True):
    """A copy that is safe on disk, or there for now."""

    snapshot_id: str
    bytes_on_disk: int
    stall_ms: int
    """How long the sandbox stood still for it."""


class RemoveSnapshot(msgspec.Struct, frozen=True):
    """Forget a snapshot; sandboxes that were made of it live on."""

    snapshot_id: str


class KillSandbox(msgspec.Struct, frozen=True):
    """End one sandbox; the answer comes when no process of it is left."""

    sandbox_id: str
    reason: EndReason = "killed"


class SetTimeout(msgspec.Struct, frozen=True):
    """Move the end of one sandbox to `timeout_s` seconds from now."""

    sandbox_id: str
    timeout_s: int
    only_extend: bool = False
    """Leave the end where it is when it already lies later (connect, refreshes)."""
    is_needed: bool = False
    """Have it go on where it stands still: it is about to be used (connect)."""


class SetEgress(msgspec.Struct, frozen=True):
    """Replace what one sandbox may reach; it holds for open connections too when the answer comes."""

    sandbox_id: str
    allow_internet: bool = True
    egress: EgressPolicy = EgressPolicy()

    @property
    def digest(self) -> str:
        """The same for the same policy, whatever the sandbox."""
        return hashlib.sha256(msgspec.json.encode((self.allow_internet, self.egress))).hexdigest()


class AskPolicy(msgspec.Struct, frozen=True):
    """Ask what the sandbox at an address may reach by name."""

    address: str


class NamePolicy(msgspec.Struct, frozen=True):
    """What the sandbox at an address may reach by name, now."""

    sandbox_id: str
    domains: tuple[str, ...]


class PolicyChanged(msgspec.Struct, frozen=True):
    """Event: the sandbox at this address may reach something else than before, or is gone."""

    address: str


class SandboxEnded(msgspec.Struct, frozen=True):
    """Event: the sandbox is gone, with all it had."""

    sandbox_id: str
    reason: EndReason


class SandboxReady(msgspec.Struct, frozen=True):
    """Event: a sandbox was made ahead; a `create` with its id takes it, if all else is the same."""

    sandbox_id: str
    team_id: str
    build_id: str
    cpu_count: int
    memory_mib: int
    isolation: str


class SandboxUnready(msgspec.Struct, frozen=True):
    """Event: that sandbox is not there any more; a `create` with its id makes it from the start."""

    sandbox_id: str


class MetricsQuery(msgspec.Struct, frozen=True):
    """What these sandboxes have used; unknown ones are left out of the answer."""

    sandbox_ids: list[str]
    start_s: int = 0
    end_s: int = 0xFFFF_FFFF
    """Unix times, both included."""
    only_latest: bool = False
    """One point each, whatever the times say."""


class MetricPoint(msgspec.Struct, frozen=True, array_like=True):
    """What one sandbox used at one moment."""

    at_s: int
    """Unix time."""
    cpu_used_pct: float
    """Of all its CPUs together, since the point before."""
    memory_used_bytes: int
    """Without the cache."""
    memory_cache_bytes: int
    disk_used_bytes: int
    """What its writable layer takes."""


class SandboxMetrics(msgspec.Struct, frozen=True):
    """What one sandbox may use, and has used."""

    sandbox_id: str
    cpu_count: int
    memory_total_bytes: int
    disk_total_bytes: int
    """What its writable layer could grow to."""
    points: list[MetricPoint]


LogLevel = Literal["debug", "info", "warn", "error"]


class LogsQuery(msgspec.Struct, frozen=True):
    """What has happened in one sandbox since a moment."""

    sandbox_id: str
    since_ms: int = 0
    """Unix time in milliseconds."""


class LogEntry(msgspec.Struct, frozen=True):
    """One thing that happened in a sandbox. What an agent says of it is checked before it becomes one."""

    at_ms: int
    level: LogLevel
    logger: str
    message: str
    fields: dict[str, str] = {}


class Route(msgspec.Struct, frozen=True):
    """How the edge reaches one sandbox."""

    sandbox_id: str
    agent_address: str
    """Of the daemon that answers for port 49983: the path of a Unix socket, or `address:port`."""
    interpreter_address: str
    """The same of the code interpreter, port 49999."""
    access_token: str
    traffic_token: str | None = None
    mask_request_host: str | None = None
    https_ports: tuple[int, ...] = ()
    is_paused: bool = False
    """It is not there, and a request for it has the node resume it (`wake`)."""
    is_frozen: bool = False
    """It stands still, and whatever it has to answer has the node let it go on (`wake`)."""
    is_idle: bool = False
    """It stands still because nothing was open to it; so whatever is open now needs it."""
    idle_after_s: int = 0
    """After so long without anything open the node wants to know (`idle`); 0: never."""

    @property
    def sleeps(self) -> bool:
        """Whether it has to be woken before it answers."""
        return self.is_paused or self.is_frozen


class Wake(msgspec.Struct, frozen=True):
    """Ask for a paused sandbox that wakes on traffic, or a frozen one; the answer comes when it answers."""

    sandbox_id: str


class IdleSandbox(msgspec.Struct, frozen=True):
    """Nothing is open to this sandbox, and nothing has been for as long as its route says."""

    sandbox_id: str
    is_frozen: bool = False
    """Whether the edge knows that it stands still, so that nothing reaches it unless the node is asked."""


class LookAgain(msgspec.Struct, frozen=True):
    """When to say it again, if it holds still."""

    after_s: float


class RouteGone(msgspec.Struct, frozen=True):
    """Event: the sandbox is no longer to be reached; open streams of it are to be cut without an end."""

    sandbox_id: str
    is_paused: bool = False
    """It may be resumed: a request that overtakes its new route is to wait for that a moment."""


class Dial(msgspec.Struct, frozen=True):
    """Ask for a connection to a port of a sandbox."""

    sandbox_id: str
    port: int


class CreateVolume(msgspec.Struct, frozen=True):
    """Make an empty volume, with the limits of the configuration."""

    volume_id: str
    team_id: str
    token: str
    """Opens its content; the node keeps a hash of it."""


class RemoveVolume(msgspec.Struct, frozen=True):
    """Remove a volume that no sandbox has, with all it holds. One that is not there is a success."""

    volume_id: str


class OpenVolume(msgspec.Struct, frozen=True):
    """Ask for the root of a volume, for a request about its content."""

    volume_id: str
    token: str
