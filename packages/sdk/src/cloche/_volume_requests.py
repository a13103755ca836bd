"""Requests about volumes as values: their query, their headers, how answers are read. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cloche.errors import Internal
from cloche.models import FileType, VolumeEntry, VolumeInfo
from cloche_wire.messages.timestamp import Timestamp

_TYPES: Final = {"file": FileType.FILE, "directory": FileType.DIR, "symlink": FileType.SYMLINK}


def query(path: str, **wanted: float | None) -> dict[str, str]:
    """Query of a request about a volume's content; what is None is left to the server."""
    params = {"path": path}
    for name, value in wanted.items():
        if isinstance(value, bool):
            params[name] = str(value).lower()
        elif value is not None:
            params[name] = str(value)
    return params


def mounts_body(mounts: Mapping[str, str]) -> list[dict[str, str]]:
    """`volumeMounts` of a new sandbox, from paths and names."""
    return [{"name": name, "path": path} for path, name in mounts.items()]


def read_volume(data: Any) -> tuple[VolumeInfo, str]:  # noqa: ANN401 - decoded JSON
    """Read one volume, and the token of its content."""
    return VolumeInfo(str(data["volumeID"]), str(data["name"])), str(data.get("token") or "")


def read_entries(data: Any) -> Sequence[VolumeEntry]:  # noqa: ANN401 - decoded JSON
    """Read a listing."""
    if not isinstance(data, list):
        raise Internal("malformed answer: expected a list")
    return [read_entry(entry) for entry in data]  # pyright: ignore[reportUnknownVariableType]


def read_entry(fields: Any) -> VolumeEntry:  # noqa: ANN401 - decoded JSON
    """Read one entry."""
    return VolumeEntry(
        name=fields["name"],
        type=_TYPES.get(fields["type"]),
        path=fields["path"],
        size=fields["size"],
        mode=fields["mode"],
        uid=fields["uid"],
        gid=fields["gid"],
        atime=Timestamp.from_rfc3339(fields["atime"]).to_datetime(),
        mtime=Timestamp.from_rfc3339(fields["mtime"]).to_datetime(),
        ctime=Timestamp.from_rfc3339(fields["ctime"]).to_datetime(),
        target=fields.get("target"),
    )
