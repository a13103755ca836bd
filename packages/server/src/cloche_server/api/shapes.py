"""Bodies of the REST interface, spelt as in `specs/control_plane.yaml`. Only this room uses them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType, field

ENVD_VERSION = "0.6.13"
"""What our agent's daemon is compatible with: clients switch features by it."""
CLIENT_ID = "cloche"
"""Value of the deprecated `clientID`, which clients require and ignore."""


# --- requests --------------------


class AutoResume(msgspec.Struct, frozen=True):
    """Whether traffic wakes a paused sandbox."""

    enabled: bool


class IdleConfig(msgspec.Struct, frozen=True, rename="camel"):
    """What becomes of a sandbox in which nothing happens; our own option."""

    after_seconds: int = 0
    """0: nothing, whatever the server's settings say."""
    action: Literal["freeze", "pause"] = "freeze"


class NetworkConfig(msgspec.Struct, frozen=True, rename="camel"):
    """Network options of a new sandbox."""

    allow_public_traffic: bool = True
    mask_request_host: str | None = None
    allow_out: list[str] | None = None
    deny_out: list[str] | None = None
    dns_servers: list[str] | UnsetType = UNSET
    https_ports: list[int] | None = None
    rules: dict[str, Any] | None = None
    egress_proxy: dict[str, Any] | None = None


class VolumeMount(msgspec.Struct, frozen=True):
    """A volume at a folder of a sandbox, as it is asked for and shown."""

    name: str
    path: str


class NetworkUpdate(msgspec.Struct, frozen=True, rename="camel"):
    """Body of `PUT /sandboxes/{id}/network`: the egress part, whole; what is left out is cleared."""

    allow_internet_access: bool | None = field(default=None, name="allow_internet_access")
    allow_out: list[str] | None = None
    deny_out: list[str] | None = None
    dns_servers: list[str] | UnsetType = UNSET
    rules: dict[str, Any] | None = None
    egress_proxy: dict[str, Any] | None = None


class NewSandbox(msgspec.Struct, frozen=True, rename="camel"):
    """Body of `POST /v2/sandboxes`; `POST /sandboxes` has the same fields and another default timeout."""

    template_id: str = field(name="templateID")
    timeout: int | UnsetType = UNSET
    metadata: dict[str, str] = {}
    env_vars: dict[str, str] = {}
    allow_internet_access: bool | None = field(default=None, name="allow_internet_access")
    network: NetworkConfig | None = None
    auto_pause: bool = False
    auto_pause_memory: bool = True
    auto_resume: AutoResume = AutoResume(enabled=False)
    mcp: dict[str, Any] | None = None
    iam: dict[str, Any] | None = None
    isolation: str | None = None
    """Ours alone: a stronger one than the server's or the template's."""
    volume_mounts: list[VolumeMount] | None = None
    idle: IdleConfig | None = None


class NewVolume(msgspec.Struct, frozen=True):
    """Body of `POST /volumes`."""

    name: str


class SetTimeoutBody(msgspec.Struct, frozen=True):
    """Body of `POST /sandboxes/{id}/timeout`."""

    timeout: int


class RefreshBody(msgspec.Struct, frozen=True):
    """Body of `POST /sandboxes/{id}/refreshes`: seconds."""

    duration: int = 15


class ConnectBody(msgspec.Struct, frozen=True):
    """Body of `POST /v2/sandboxes/{id}/connect`."""

    timeout: int | UnsetType = UNSET
    memory: bool | None = None
    """False has a paused one start anew from its files."""


class ConnectBodyV1(msgspec.Struct, frozen=True):
    """Body of `POST /sandboxes/{id}/connect`: the timeout is required."""

    timeout: int
    memory: bool | None = None


class ListQuery(msgspec.Struct, frozen=True, rename="camel"):
    """Query of `GET /v2/sandboxes`."""

    metadata: str = ""
    state: str = ""
    order: Literal["asc", "desc"] = "desc"
    started_after: str = ""
    template: str | None = None
    limit: int = 100
    next_token: str = ""


class RangeQuery(msgspec.Struct, frozen=True):
    """Query of `GET /sandboxes/{id}/metrics`: Unix times in seconds."""

    start: int | None = None
    end: int | None = None


class MaxQuery(msgspec.Struct, frozen=True):
    """Query of `GET /teams/{id}/metrics/max`."""

    metric: Literal["concurrent_sandboxes", "sandbox_start_rate"]
    start: int | None = None
    end: int | None = None


class ManyMetricsQuery(msgspec.Struct, frozen=True):
    """Query of `GET /sandboxes/metrics`: ids with commas between them."""

    sandbox_ids: str


class LogsQueryV1(msgspec.Struct, frozen=True):
    """Query of `GET /sandboxes/{id}/logs`: a Unix time in milliseconds."""

    start: int | None = None
    limit: int = 1000


class LogsQueryV2(msgspec.Struct, frozen=True):
    """Query of `GET /v2/sandboxes/{id}/logs`; the cursor is a Unix time in milliseconds."""

    cursor: int | None = None
    limit: int = 1000
    direction: Literal["forward", "backward"] = "forward"
    level: Literal["debug", "info", "warn", "error"] | None = None
    search: str = ""


class EventsQuery(msgspec.Struct, frozen=True, rename="camel"):
    """Query of `GET /events/sandboxes`."""

    offset: int = 0
    limit: int = 10
    order_asc: bool = False
    types: str = ""


class PageQuery(msgspec.Struct, frozen=True, rename="camel"):
    """Query of `GET /v2/templates` and `GET /templates/{id}`."""

    limit: int = 100
    next_token: str = ""


# --- answers --------------------


class Sandbox(msgspec.Struct, frozen=True, rename="camel"):
    """Answer to create and connect: what a client needs to talk to the sandbox."""

    template_id: str = field(name="templateID")
    sandbox_id: str = field(name="sandboxID")
    alias: str
    envd_access_token: str
    traffic_access_token: str | None
    domain: str
    isolation: str
    client_id: str = field(default=CLIENT_ID, name="clientID")
    envd_version: str = ENVD_VERSION


class ListedSandbox(msgspec.Struct, frozen=True, rename="camel"):
    """One sandbox of a listing."""

    template_id: str = field(name="templateID")
    sandbox_id: str = field(name="sandboxID")
    alias: str
    started_at: datetime
    end_at: datetime
    cpu_count: int
    memory_mib: int = field(name="memoryMB")
    disk_mib: int = field(name="diskSizeMB")
    metadata: Mapping[str, str]
    volume_mounts: list[dict[str, str]]
    isolation: str
    state: Literal["running", "paused"]
    frozen: bool = False
    """It runs, and stands still until something needs it; our own field."""
    snapshot_id: str | UnsetType = field(default=UNSET, name="snapshotID")
    """What it was made of, unless of a template."""
    parent_id: str | UnsetType = field(default=UNSET, name="parentSandboxID")
    """What it is a fork of, or what its snapshot was taken of."""
    client_id: str = field(default=CLIENT_ID, name="clientID")
    envd_version: str = ENVD_VERSION


class Lifecycle(msgspec.Struct, frozen=True, rename="camel"):
    """What happens at the end of a sandbox's time."""

    auto_resume: bool = False
    on_timeout: Literal["kill", "pause"] = "kill"
    idle: IdleConfig | UnsetType = UNSET
    """What happens when nothing happens in it; our own field."""


class SandboxDetail(ListedSandbox, frozen=True, rename="camel", kw_only=True):
    """Answer to `GET /sandboxes/{id}`."""

    envd_access_token: str
    domain: str
    allow_internet_access: bool
    network: dict[str, Any]
    lifecycle: Lifecycle
    pause_mode: Literal["full", "filesystem"] | UnsetType = UNSET
    """What was kept of one that is paused."""


class Volume(msgspec.Struct, frozen=True):
    """One volume of a listing."""

    volume_id: str = field(name="volumeID")
    name: str


class VolumeAndToken(Volume, frozen=True):
    """One volume, with what opens its content."""

    token: str


class SandboxMetric(msgspec.Struct, frozen=True, rename="camel"):
    """What a sandbox used at one moment; sizes in bytes."""

    timestamp: datetime
    timestamp_unix: int
    cpu_count: int
    cpu_used_pct: float
    mem_used: int
    mem_total: int
    mem_cache: int
    disk_used: int
    disk_total: int


class LatestMetrics(msgspec.Struct, frozen=True):
    """Answer to `GET /sandboxes/metrics`, by sandbox id."""

    sandboxes: dict[str, SandboxMetric]


class TeamMetric(msgspec.Struct, frozen=True, rename="camel"):
    """What a team used within one step of time."""

    timestamp: datetime
    timestamp_unix: int
    concurrent_sandboxes: int
    sandbox_start_rate: float


class MaxTeamMetric(msgspec.Struct, frozen=True, rename="camel"):
    """The highest value of one of a team's metrics."""

    timestamp: datetime
    timestamp_unix: int
    value: float


class LogLine(msgspec.Struct, frozen=True):
    """One entry as clients before the second version read it: `line` is JSON."""

    timestamp: datetime
    line: str


class LogEntry(msgspec.Struct, frozen=True):
    """One thing that happened in a sandbox."""

    timestamp: datetime
    message: str
    level: str
    fields: dict[str, str]


class LogsV1(msgspec.Struct, frozen=True, rename="camel"):
    """Answer to `GET /sandboxes/{id}/logs`."""

    logs: list[LogLine]
    log_entries: list[LogEntry]


class LogsV2(msgspec.Struct, frozen=True):
    """Answer to `GET /v2/sandboxes/{id}/logs`."""

    logs: list[LogEntry]


class LifecycleEvent(msgspec.Struct, frozen=True, rename="camel"):
    """One thing that has happened to a sandbox."""

    id: str
    type: str
    event_data: dict[str, Any] | None
    sandbox_build_id: str
    sandbox_execution_id: str
    sandbox_id: str
    sandbox_team_id: str
    sandbox_template_id: str
    timestamp: datetime
    version: str = "v1"


class Template(msgspec.Struct, frozen=True, rename="camel"):
    """One template of a listing."""

    template_id: str = field(name="templateID")
    build_id: str = field(name="buildID")
    cpu_count: int
    memory_mib: int = field(name="memoryMB")
    disk_mib: int = field(name="diskSizeMB")
    public: bool
    aliases: list[str]
    names: list[str]
    created_at: datetime
    updated_at: datetime
    last_spawned_at: datetime | None
    spawn_count: int
    is_default: bool
    isolation: str
    """What its sandboxes get where their creator asks for none."""
    pinned: bool
    """Whether what it is made of, and built from, stays however long nobody uses it."""
    created_by: None = None
    build_count: int = 1
    build_status: str = "ready"
    envd_version: str = ENVD_VERSION


class TemplateBuild(msgspec.Struct, frozen=True, rename="camel"):
    """One build of a template."""

    build_id: str = field(name="buildID")
    created_at: datetime
    updated_at: datetime
    cpu_count: int
    memory_mib: int = field(name="memoryMB")
    disk_mib: int = field(name="diskSizeMB")
    finished_at: datetime | UnsetType = UNSET
    status: str = "ready"
    envd_version: str = ENVD_VERSION


class TemplateWithBuilds(Template, frozen=True, rename="camel", kw_only=True):
    """Answer to `GET /templates/{id}`."""

    builds: list[TemplateBuild]


class TemplateAlias(msgspec.Struct, frozen=True, rename="camel"):
    """Answer to `GET /templates/aliases/{alias}`."""

    template_id: str = field(name="templateID")
    public: bool


class KeyName(msgspec.Struct, frozen=True):
    """Body of `POST /api-keys` and `PATCH /api-keys/{id}`."""

    name: str


class KeyMask(msgspec.Struct, frozen=True, rename="camel"):
    """What people recognise a key by."""

    prefix: str
    value_length: int
    masked_value_prefix: str
    masked_value_suffix: str


class TeamApiKey(msgspec.Struct, frozen=True, rename="camel"):
    """One key of a listing."""

    id: str
    name: str
    mask: KeyMask
    created_at: datetime
    last_used: datetime | None


class CreatedKey(TeamApiKey, frozen=True, rename="camel", kw_only=True):
    """Answer to `POST /api-keys`: the only one that holds the key."""

    key: str


class Team(msgspec.Struct, frozen=True, rename="camel"):
    """One team of the caller's."""

    team_id: str = field(name="teamID")
    name: str
    api_key: str
    is_default: bool = True


class Killed(msgspec.Struct, frozen=True, rename="camel"):
    """Answer to `POST /admin/teams/{team}/sandboxes/kill`."""

    killed_count: int
    failed_count: int


class Problem(msgspec.Struct, frozen=True):
    """Body of every error; `code` repeats the status, since some clients read only one of the two."""

    code: int
    message: str


def encode(value: Any) -> bytes:  # noqa: ANN401 -- any struct or list of structs above
    """Return the JSON of an answer."""
    return msgspec.json.encode(value)
