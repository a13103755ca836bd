"""Values the client returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final


class SandboxState(StrEnum):
    """Whether a sandbox runs."""

    RUNNING = "running"
    PAUSED = "paused"


class FileType(StrEnum):
    """What a path names."""

    FILE = "file"
    DIR = "dir"
    SYMLINK = "symlink"


class FilesystemEventType(StrEnum):
    """What happened to a path."""

    CREATE = "create"
    WRITE = "write"
    REMOVE = "remove"
    RENAME = "rename"
    CHMOD = "chmod"


_WIRE_NAMES: Final = {
    "sandboxId": "sandbox_id",
    "sandboxID": "sandbox_id",
    "templateId": "template_id",
    "templateID": "template_id",
    "startedAt": "started_at",
    "endAt": "end_at",
    "cpuCount": "cpu_count",
    "memoryMB": "memory_mb",
    "envdVersion": "envd_version",
    "alias": "name",
}


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A copy of a sandbox, to make others of.

    Attributes:
        snapshot_id: What `Sandbox.create` takes as a template.
        names: Names that it was given.
    """

    snapshot_id: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SandboxInfo:
    """What the server knows of a sandbox. Fields can also be read by their wire names: `info["startedAt"]`.

    Attributes:
        name: Name of its template.
        started_at: Aware UTC time of its start.
        end_at: When its time will be over.
        memory_mb: Memory limit in MiB.
        envd_version: Version of the daemon's interface that the sandbox speaks.
        isolation: What separates it from the server's machine: `container` or `gvisor`; empty where a server
            does not say.
        frozen: Whether it stands still until something needs it; it runs all the same.
    """

    sandbox_id: str
    template_id: str
    name: str | None
    metadata: dict[str, str]
    started_at: datetime
    end_at: datetime
    state: SandboxState
    cpu_count: int
    memory_mb: int
    envd_version: str
    sandbox_domain: str | None = None
    allow_internet_access: bool | None = None
    isolation: str = ""
    frozen: bool = False

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - the fields have no common type
        attribute = _WIRE_NAMES.get(name, name)
        if attribute not in self.__slots__:
            raise KeyError(name)
        return getattr(self, attribute)


@dataclass(frozen=True, slots=True)
class SandboxQuery:
    """Which sandboxes to list.

    Attributes:
        metadata: Only those whose metadata holds all of these.
        state: Only those in one of these states.
        started_after: Only those started at this aware time or later.
        template: Only those of this template, by id or name.
    """

    metadata: dict[str, str] = field(default_factory=dict[str, str])
    state: list[SandboxState] = field(default_factory=list[SandboxState])
    started_after: datetime | None = None
    template: str | None = None


@dataclass(frozen=True, slots=True)
class WriteInfo:
    """A file that was written."""

    name: str
    type: FileType | None
    path: str


@dataclass(frozen=True, slots=True)
class EntryInfo:
    """One file, folder or link of a sandbox.

    Attributes:
        type: None for what is neither file, folder nor link.
        size: Bytes.
        mode: Permission bits.
        permissions: As `ls -l` writes them.
        modified_time: Aware UTC time.
        symlink_target: Resolved target, only of links.
        metadata: What the upload gave along.
    """

    name: str
    type: FileType | None
    path: str
    size: int
    mode: int
    permissions: str
    owner: str
    group: str
    modified_time: datetime
    symlink_target: str | None = None
    metadata: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class FilesystemEvent:
    """One change below a watched folder.

    Attributes:
        name: Path relative to the watched folder.
    """

    name: str
    type: FilesystemEventType
    entry: EntryInfo | None = None


@dataclass(frozen=True, slots=True)
class PtySize:
    """Size of a terminal in characters."""

    rows: int
    cols: int


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A running process that was started through the sandbox's interface."""

    pid: int
    tag: str | None
    cmd: str
    args: list[str]
    envs: dict[str, str]
    cwd: str | None


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended.

    Attributes:
        error: What the sandbox says about a bad end, such as `signal: killed`.
    """

    stdout: str
    stderr: str
    exit_code: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """A kernel with its own state in which code runs."""

    id: str
    language: str
    cwd: str


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """What the server knows of a volume."""

    volume_id: str
    name: str


@dataclass(frozen=True, slots=True)
class VolumeEntry:
    """One entry of a volume. Ids are those that sandboxes see.

    Attributes:
        type: None for what is neither a file nor a folder nor a link.
        mode: Permission bits.
        target: Where a link points, as it is written in it.
    """

    name: str
    type: FileType | None
    path: str
    size: int
    mode: int
    uid: int
    gid: int
    atime: datetime
    mtime: datetime
    ctime: datetime
    target: str | None = None
