"""Requests that build a template, and what their answers say. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cloche import _requests
from cloche.errors import BuildFailed

POLL_S: Final = 0.2
"""Between two looks at a build that has said nothing since the last one."""


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """A build that is ready.

    Attributes:
        name: What sandboxes can be made of it by.
    """

    template_id: str
    build_id: str
    name: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BuildLogEntry:
    """A line of a build's log.

    Attributes:
        level: `debug`, `info`, `warn` or `error`.
        step: Its number, `base` or `finalize`; empty for what belongs to none.
    """

    timestamp: datetime
    level: str
    message: str
    step: str = ""


def request_body(
    name: str, tags: Sequence[str], cpu_count: int | None, memory_mb: int | None
) -> dict[str, Any]:
    """The body that asks for a build."""
    size = {"cpuCount": cpu_count, "memoryMB": memory_mb}
    return {"name": name, "tags": list(tags), **{key: value for key, value in size.items() if value}}


def read_build(data: Any, name: str) -> BuildInfo:  # noqa: ANN401 - decoded JSON
    """Read the answer to it."""
    return BuildInfo(data["templateID"], data["buildID"], name, tuple(data.get("tags") or ()))


def read_log(data: Any) -> list[BuildLogEntry]:  # noqa: ANN401 - decoded JSON
    """Read what is new of a log, of a build's status."""
    return [
        BuildLogEntry(
            _requests.moment(entry["timestamp"]), entry["level"], entry["message"], entry.get("step", "")
        )
        for entry in data["logEntries"]
    ]


def is_over(data: Any) -> bool:  # noqa: ANN401 - decoded JSON
    """Whether a status whose log is known says that the build is ready.

    Raises:
        BuildFailed: It has failed.
    """
    if data["status"] == "error":
        reason: dict[str, Any] = data.get("reason") or {}
        raise BuildFailed(reason.get("message", "the build failed"), reason.get("step", ""))
    return bool(data["status"] == "ready")
