"""Bodies of template builds, spelt as in `specs/control_plane.yaml`. Only this room uses them."""

from datetime import datetime
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType, field


class NewBuild(msgspec.Struct, frozen=True, rename="camel"):
    """Body of `POST /v3/templates`."""

    name: str = ""
    alias: str = ""
    """Of older clients: the same as `name`."""
    tags: list[str] | None = None
    cpu_count: int | None = None
    memory_mib: int | None = field(default=None, name="memoryMB")
    min_free_disk_mib: int | None = field(default=None, name="minFreeDiskMb")
    """Has no effect: no quota is set on a sandbox's disk."""
    team_id: str = field(default="", name="teamID")


class BuildRequested(msgspec.Struct, frozen=True, rename="camel"):
    """Answer to it."""

    template_id: str = field(name="templateID")
    build_id: str = field(name="buildID")
    public: bool
    names: list[str]
    tags: list[str]
    aliases: list[str]


class FilesLink(msgspec.Struct, frozen=True):
    """Where an archive goes, and whether it is there already."""

    present: bool
    url: str


class StatusQuery(msgspec.Struct, frozen=True, rename="camel"):
    """Query of a build's status."""

    logs_offset: int = 0
    limit: int = 100
    level: Literal["debug", "info", "warn", "error"] | None = None


class BuildLogsQuery(msgspec.Struct, frozen=True):
    """Query of `GET /templates/{id}/builds/{build}/logs`; the cursor is a Unix time in milliseconds."""

    cursor: int | None = None
    limit: int = 100
    direction: Literal["forward", "backward"] = "forward"
    level: Literal["debug", "info", "warn", "error"] | None = None
    source: str = ""


class BuildLogEntry(msgspec.Struct, frozen=True):
    """One line of a build's log."""

    timestamp: datetime
    message: str
    level: str
    step: str | UnsetType = UNSET


class Reason(msgspec.Struct, frozen=True, rename="camel"):
    """Why a build has failed, and in which step."""

    message: str
    log_entries: list[BuildLogEntry]
    step: str | UnsetType = UNSET


class BuildStatus(msgspec.Struct, frozen=True, rename="camel"):
    """How far a build is."""

    template_id: str = field(name="templateID")
    build_id: str = field(name="buildID")
    status: Literal["waiting", "building", "ready", "error"]
    logs: list[str]
    """Of clients before the second builder: always empty."""
    log_entries: list[BuildLogEntry]
    reason: Reason | UnsetType = UNSET


class BuildLogs(msgspec.Struct, frozen=True):
    """Answer to `GET /templates/{id}/builds/{build}/logs`."""

    logs: list[BuildLogEntry]


class TagsBody(msgspec.Struct, frozen=True):
    """Body of `POST /templates/tags`: `target` is `name:tag`."""

    target: str
    tags: list[str]


class UntagBody(msgspec.Struct, frozen=True):
    """Body of `DELETE /templates/tags`."""

    name: str
    tags: list[str]


class AssignedTags(msgspec.Struct, frozen=True, rename="camel"):
    """Answer to `POST /templates/tags`."""

    tags: list[str]
    build_id: str = field(name="buildID")


class TemplateTag(msgspec.Struct, frozen=True, rename="camel"):
    """One tag of a template."""

    tag: str
    build_id: str = field(name="buildID")
    created_at: datetime


class TemplateChange(msgspec.Struct, frozen=True):
    """Body of `PATCH /v2/templates/{id}`."""

    public: bool | None = None
    pinned: bool | None = None
    """Ours."""


class TemplateNames(msgspec.Struct, frozen=True):
    """Answer to it."""

    names: list[str]
