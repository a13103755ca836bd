"""Messages of the service `filesystem.Filesystem`: look at, change and watch the files of a sandbox.

Mirrors `specs/envd/filesystem.proto`; a unit test keeps the two in step. File contents do not pass here but
through `/files`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from cloche_wire.messages.schema import Kind, Message, Rpc, enum_of, message_of, scalar, string_map, timestamp

if TYPE_CHECKING:
    from cloche_wire.messages.timestamp import Timestamp

SERVICE: Final = "filesystem.Filesystem"


class FileType(IntEnum):
    """What a path names."""

    FILE_TYPE_UNSPECIFIED = 0
    FILE_TYPE_FILE = 1
    FILE_TYPE_DIRECTORY = 2
    FILE_TYPE_SYMLINK = 3


class EventType(IntEnum):
    """What happened to a path."""

    EVENT_TYPE_UNSPECIFIED = 0
    EVENT_TYPE_CREATE = 1
    EVENT_TYPE_WRITE = 2
    EVENT_TYPE_REMOVE = 3
    EVENT_TYPE_RENAME = 4
    EVENT_TYPE_CHMOD = 5


@dataclass(frozen=True, slots=True)
class EntryInfo:
    """One file, folder or link.

    Attributes:
        name: Last part of the path.
        type: A `FileType`; of a link: what it points to, unspecified when that is missing.
        path: Absolute path.
        size: Bytes, of the entry itself (lstat).
        mode: Permission bits; of a link: those of its target.
        permissions: As `ls -l` writes them, with `L` for a link.
        symlink_target: Fully resolved target, only of links.
        metadata: What the upload gave along.
        is_symlink: Newer than the oldest clients in use; see the compatibility notes of the daemon.
    """

    name: str = field(default="", metadata=scalar(1, Kind.STRING))
    type: int = field(default=FileType.FILE_TYPE_UNSPECIFIED, metadata=enum_of(2, FileType))
    path: str = field(default="", metadata=scalar(3, Kind.STRING))
    size: int = field(default=0, metadata=scalar(4, Kind.INT64))
    mode: int = field(default=0, metadata=scalar(5, Kind.UINT32))
    permissions: str = field(default="", metadata=scalar(6, Kind.STRING))
    owner: str = field(default="", metadata=scalar(7, Kind.STRING))
    group: str = field(default="", metadata=scalar(8, Kind.STRING))
    modified_time: Timestamp | None = field(default=None, metadata=timestamp(9))
    symlink_target: str | None = field(default=None, metadata=scalar(10, Kind.STRING, optional=True))
    metadata: dict[str, str] = field(default_factory=dict[str, str], metadata=string_map(11))
    is_symlink: bool = field(default=False, metadata=scalar(12, Kind.BOOL))


@dataclass(frozen=True, slots=True)
class StatRequest:
    """Asks for one entry."""

    path: str = field(default="", metadata=scalar(1, Kind.STRING))


@dataclass(frozen=True, slots=True)
class StatResponse:
    """The entry."""

    entry: EntryInfo | None = field(default=None, metadata=message_of(1, EntryInfo))


@dataclass(frozen=True, slots=True)
class MakeDirRequest:
    """Makes a folder and its missing parents."""

    path: str = field(default="", metadata=scalar(1, Kind.STRING))


@dataclass(frozen=True, slots=True)
class MakeDirResponse:
    """The new folder."""

    entry: EntryInfo | None = field(default=None, metadata=message_of(1, EntryInfo))


@dataclass(frozen=True, slots=True)
class MoveRequest:
    """Renames an entry."""

    source: str = field(default="", metadata=scalar(1, Kind.STRING))
    destination: str = field(default="", metadata=scalar(2, Kind.STRING))


@dataclass(frozen=True, slots=True)
class MoveResponse:
    """The entry at its new place."""

    entry: EntryInfo | None = field(default=None, metadata=message_of(1, EntryInfo))


@dataclass(frozen=True, slots=True)
class ListDirRequest:
    """Lists a folder.

    Attributes:
        depth: Levels to descend; 0 means 1.
    """

    path: str = field(default="", metadata=scalar(1, Kind.STRING))
    depth: int = field(default=0, metadata=scalar(2, Kind.UINT32))


@dataclass(frozen=True, slots=True)
class ListDirResponse:
    """The entries, depth first, without the folder itself."""

    entries: list[EntryInfo] = field(
        default_factory=list[EntryInfo], metadata=message_of(1, EntryInfo, repeated=True)
    )


@dataclass(frozen=True, slots=True)
class RemoveRequest:
    """Removes an entry and all below it; a missing one is no error."""

    path: str = field(default="", metadata=scalar(1, Kind.STRING))


@dataclass(frozen=True, slots=True)
class RemoveResponse:
    """Done."""


@dataclass(frozen=True, slots=True)
class FilesystemEvent:
    """One change below a watched folder.

    Attributes:
        name: Path relative to the watched folder.
        type: An `EventType`.
    """

    name: str = field(default="", metadata=scalar(1, Kind.STRING))
    type: int = field(default=EventType.EVENT_TYPE_UNSPECIFIED, metadata=enum_of(2, EventType))
    entry: EntryInfo | None = field(default=None, metadata=message_of(3, EntryInfo, optional=True))


@dataclass(frozen=True, slots=True)
class WatchDirRequest:
    """Streams the changes of a folder."""

    path: str = field(default="", metadata=scalar(1, Kind.STRING))
    recursive: bool = field(default=False, metadata=scalar(2, Kind.BOOL))
    include_entry: bool = field(default=False, metadata=scalar(3, Kind.BOOL))
    allow_network_mounts: bool = field(default=False, metadata=scalar(4, Kind.BOOL))


@dataclass(frozen=True, slots=True)
class WatchStart:
    """The watch stands; always the first event."""


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Says only that the stream is alive."""


@dataclass(frozen=True, slots=True)
class WatchDirResponse:
    """One event of a watch."""

    start: WatchStart | None = field(default=None, metadata=message_of(1, WatchStart, oneof="event"))
    filesystem: FilesystemEvent | None = field(
        default=None, metadata=message_of(2, FilesystemEvent, oneof="event")
    )
    keepalive: KeepAlive | None = field(default=None, metadata=message_of(3, KeepAlive, oneof="event"))


@dataclass(frozen=True, slots=True)
class CreateWatcherRequest:
    """Starts a watch whose events are fetched later; the same fields as WatchDirRequest."""

    path: str = field(default="", metadata=scalar(1, Kind.STRING))
    recursive: bool = field(default=False, metadata=scalar(2, Kind.BOOL))
    include_entry: bool = field(default=False, metadata=scalar(3, Kind.BOOL))
    allow_network_mounts: bool = field(default=False, metadata=scalar(4, Kind.BOOL))


@dataclass(frozen=True, slots=True)
class CreateWatcherResponse:
    """The new watcher."""

    watcher_id: str = field(default="", metadata=scalar(1, Kind.STRING))


@dataclass(frozen=True, slots=True)
class GetWatcherEventsRequest:
    """Takes the events that a watcher has gathered."""

    watcher_id: str = field(default="", metadata=scalar(1, Kind.STRING))


@dataclass(frozen=True, slots=True)
class GetWatcherEventsResponse:
    """The events since the last call."""

    events: list[FilesystemEvent] = field(
        default_factory=list[FilesystemEvent], metadata=message_of(1, FilesystemEvent, repeated=True)
    )


@dataclass(frozen=True, slots=True)
class RemoveWatcherRequest:
    """Ends a watcher."""

    watcher_id: str = field(default="", metadata=scalar(1, Kind.STRING))


@dataclass(frozen=True, slots=True)
class RemoveWatcherResponse:
    """Done."""


STAT: Final = Rpc(SERVICE, "Stat", StatRequest, StatResponse)
MAKE_DIR: Final = Rpc(SERVICE, "MakeDir", MakeDirRequest, MakeDirResponse)
MOVE: Final = Rpc(SERVICE, "Move", MoveRequest, MoveResponse)
LIST_DIR: Final = Rpc(SERVICE, "ListDir", ListDirRequest, ListDirResponse)
REMOVE: Final = Rpc(SERVICE, "Remove", RemoveRequest, RemoveResponse)
WATCH_DIR: Final = Rpc(SERVICE, "WatchDir", WatchDirRequest, WatchDirResponse, server_stream=True)
CREATE_WATCHER: Final = Rpc(SERVICE, "CreateWatcher", CreateWatcherRequest, CreateWatcherResponse)
GET_WATCHER_EVENTS: Final = Rpc(
    SERVICE, "GetWatcherEvents", GetWatcherEventsRequest, GetWatcherEventsResponse
)
REMOVE_WATCHER: Final = Rpc(SERVICE, "RemoveWatcher", RemoveWatcherRequest, RemoveWatcherResponse)

RPCS: Final[dict[str, Rpc]] = {
    rpc.name: rpc
    for rpc in (
        STAT,
        MAKE_DIR,
        MOVE,
        LIST_DIR,
        REMOVE,
        WATCH_DIR,
        CREATE_WATCHER,
        GET_WATCHER_EVENTS,
        REMOVE_WATCHER,
    )
}

PROTO_NAMES: Final[dict[str, type[Message]]] = {
    "EntryInfo": EntryInfo,
    "StatRequest": StatRequest,
    "StatResponse": StatResponse,
    "MakeDirRequest": MakeDirRequest,
    "MakeDirResponse": MakeDirResponse,
    "MoveRequest": MoveRequest,
    "MoveResponse": MoveResponse,
    "ListDirRequest": ListDirRequest,
    "ListDirResponse": ListDirResponse,
    "RemoveRequest": RemoveRequest,
    "RemoveResponse": RemoveResponse,
    "FilesystemEvent": FilesystemEvent,
    "WatchDirRequest": WatchDirRequest,
    "WatchDirResponse": WatchDirResponse,
    "WatchDirResponse.StartEvent": WatchStart,
    "WatchDirResponse.KeepAlive": KeepAlive,
    "CreateWatcherRequest": CreateWatcherRequest,
    "CreateWatcherResponse": CreateWatcherResponse,
    "GetWatcherEventsRequest": GetWatcherEventsRequest,
    "GetWatcherEventsResponse": GetWatcherEventsResponse,
    "RemoveWatcherRequest": RemoveWatcherRequest,
    "RemoveWatcherResponse": RemoveWatcherResponse,
}
