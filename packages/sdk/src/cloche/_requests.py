"""Requests and answers as values: what is sent, how answers are read, which error a failure is. No I/O."""

from __future__ import annotations

import base64
import json
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from typing import Any, Final, cast
from urllib.parse import quote, urlencode

from cloche._config import Connection
from cloche.errors import (
    AlreadyExists,
    Canceled,
    ClocheError,
    Conflict,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotEnoughSpace,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    SandboxNotRunning,
    SandboxUnreachable,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from cloche.models import (
    EntryInfo,
    FileType,
    SandboxInfo,
    SandboxQuery,
    SandboxState,
    SnapshotInfo,
)
from cloche_wire import connect, signature
from cloche_wire.messages import filesystem
from cloche_wire.messages.timestamp import Timestamp

ENVD_PORT: Final = 49983
INTERPRETER_PORT: Final = 49999
KEEPALIVE_INTERVAL_S: Final = 50
STREAM_SILENCE_S: Final = 120.0
"""A stream that is silent for longer than two keep-alives has lost its sandbox."""
DEFAULT_TEMPLATE: Final = "code-interpreter-v1"
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
MAX_LINE_BYTES: Final = 256 * 1024 * 1024
RETRIES: Final = 3
MAX_RETRY_WAIT_S: Final = 10.0

_STATE_COLUMN: Final = 3
_LISTEN: Final = "0A"
_USER_AGENT: Final = f"cloche-python/{metadata.version('cloche')} python/{platform.python_version()}"
_ERROR_OF_STATUS: Final[dict[int, type[ClocheError]]] = {
    400: InvalidArgument,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: InvalidArgument,
    429: ResourceExhausted,
    499: Canceled,
    501: Unimplemented,
    502: SandboxUnreachable,
    503: Unavailable,
    504: DeadlineExceeded,
    507: NotEnoughSpace,
}
_FILE_TYPES: Final = {
    filesystem.FileType.FILE_TYPE_FILE: FileType.FILE,
    filesystem.FileType.FILE_TYPE_DIRECTORY: FileType.DIR,
    filesystem.FileType.FILE_TYPE_SYMLINK: FileType.SYMLINK,
}


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    """What the server answers to create and connect: all that is needed to speak to the sandbox."""

    sandbox_id: str
    template_id: str
    domain: str
    access_token: str | None = field(repr=False)
    traffic_token: str | None = field(default=None, repr=False)


def api_headers(connection: Connection) -> dict[str, str]:
    """Headers of a control-plane request."""
    return {"X-API-KEY": connection.api_key, "User-Agent": _USER_AGENT, **connection.headers}


def sandbox_headers(record: SandboxRecord, port: int) -> dict[str, str]:
    """Headers that bring a request to a port of a sandbox and let it in."""
    headers = {"E2b-Sandbox-Id": record.sandbox_id, "E2b-Sandbox-Port": str(port), "User-Agent": _USER_AGENT}
    if record.access_token:
        headers["X-Access-Token"] = record.access_token
    if record.traffic_token:
        headers["E2B-Traffic-Access-Token"] = record.traffic_token
    return headers


def rpc_headers(content_type: str, user: str | None, timeout_s: float | None) -> dict[str, str]:
    """Headers of a call to the daemon; the user is a Basic name without password."""
    headers = {"Content-Type": content_type, connect.PROTOCOL_VERSION_HEADER: "1"}
    if content_type == connect.STREAM_JSON:
        headers["Keepalive-Ping-Interval"] = str(KEEPALIVE_INTERVAL_S)
    if user:
        headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:".encode()).decode("ascii")
    if timeout_s:
        headers[connect.TIMEOUT_HEADER] = str(max(1, round(timeout_s * 1000)))
    return headers


def create_body(
    template: str,
    timeout: int | None,
    metadata: Mapping[str, str] | None,
    envs: Mapping[str, str] | None,
    allow_internet_access: bool | None,
) -> dict[str, Any]:
    """Body of `POST /v2/sandboxes`."""
    body: dict[str, Any] = {
        "templateID": template,
        "metadata": dict(metadata or {}),
        "envVars": dict(envs or {}),
    }
    if timeout is not None:
        body["timeout"] = timeout
    if allow_internet_access is not None:
        body["allow_internet_access"] = allow_internet_access
    return body


def lifecycle_body(on_timeout: str, auto_resume: bool, *, keep_memory: bool) -> dict[str, Any]:
    """Fields of a create that say what happens at the end of its time, where that is not the usual.

    Raises:
        InvalidArgument: No such end.
    """
    if on_timeout not in {"kill", "pause"}:
        raise InvalidArgument(f"bad on_timeout: {on_timeout}", hint="write kill or pause")
    fields: dict[str, Any] = {}
    if on_timeout == "pause":
        fields["autoPause"] = True
        if not keep_memory:
            fields["autoPauseMemory"] = False
    if auto_resume:
        fields["autoResume"] = {"enabled": True}
    return fields


def list_params(
    query: SandboxQuery | None, limit: int | None, next_token: str | None, order: str | None
) -> dict[str, str]:
    """Query of `GET /v2/sandboxes`; metadata is encoded twice, as the interface has it."""
    params: dict[str, str] = {}
    if query is not None:
        if query.metadata:
            params["metadata"] = urlencode({quote(key): quote(text) for key, text in query.metadata.items()})
        if query.state:
            params["state"] = ",".join(query.state)
        if query.started_after is not None:
            params["startedAfter"] = query.started_after.astimezone().isoformat()
        if query.template:
            params["template"] = query.template
    if order is not None:
        if order not in {"asc", "desc"}:
            raise InvalidArgument(f"bad order: {order}", hint="write asc or desc")
        params["order"] = order
    if limit is not None:
        params["limit"] = str(limit)
    if next_token:
        params["nextToken"] = next_token
    return params


def read_record(data: Any, connection: Connection) -> SandboxRecord:  # noqa: ANN401 - decoded JSON
    """Read the server's answer to create and connect."""
    fields = _object(data)
    return SandboxRecord(
        sandbox_id=str(fields["sandboxID"]),
        template_id=str(fields.get("templateID") or ""),
        domain=str(fields.get("domain") or connection.domain or "cloche.localhost:3000"),
        access_token=fields.get("envdAccessToken"),
        traffic_token=fields.get("trafficAccessToken"),
    )


def read_info(data: Any) -> SandboxInfo:  # noqa: ANN401 - decoded JSON
    """Read one sandbox of the list, or the details of one."""
    fields = _object(data)
    return SandboxInfo(
        sandbox_id=fields["sandboxID"],
        template_id=fields["templateID"],
        name=fields.get("alias"),
        metadata=dict(fields.get("metadata") or {}),
        started_at=moment(fields["startedAt"]),
        end_at=moment(fields["endAt"]),
        state=SandboxState(fields["state"]),
        cpu_count=fields["cpuCount"],
        memory_mb=fields["memoryMB"],
        envd_version=fields["envdVersion"],
        sandbox_domain=fields.get("domain"),
        allow_internet_access=fields.get("allowInternetAccess"),
        isolation=fields.get("isolation") or "",
        frozen=fields.get("frozen") is True,
    )


def read_snapshot(data: Any) -> SnapshotInfo:  # noqa: ANN401 - decoded JSON
    """Read the server's answer to a snapshot."""
    fields = _object(data)
    return SnapshotInfo(str(fields["snapshotID"]), tuple(map(str, fields.get("names") or ())))


def read_forks(data: Any, connection: Connection) -> list[SandboxRecord | ClocheError]:  # noqa: ANN401
    """Read the server's answer to a fork: of each copy its record, or why it is not there."""
    if not isinstance(data, list):
        raise Internal("malformed answer: expected a list")
    made: list[SandboxRecord | ClocheError] = []
    for item in cast("list[Any]", data):
        fields = _object(item)
        if fields.get("sandbox") is not None:
            made.append(read_record(fields["sandbox"], connection))
        else:
            problem = _object(fields.get("error"))
            made.append(api_error(int(problem.get("code") or 500), json_body(problem)))
    return made


def read_entry(entry: filesystem.EntryInfo | None) -> EntryInfo:
    """Turn the daemon's entry into the client's; a link is a link even if its target is missing."""
    entry = entry or filesystem.EntryInfo()
    kind = _FILE_TYPES.get(cast("filesystem.FileType", entry.type))
    if entry.is_symlink or (kind is None and entry.symlink_target is not None):
        kind = FileType.SYMLINK
    return EntryInfo(
        name=entry.name,
        type=kind,
        path=entry.path,
        size=entry.size,
        mode=entry.mode,
        permissions=entry.permissions,
        owner=entry.owner,
        group=entry.group,
        modified_time=(entry.modified_time or Timestamp()).to_datetime(),
        symlink_target=entry.symlink_target,
        metadata=entry.metadata or None,
    )


def api_error(status: int, body: bytes, *, missing: type[NotFound] = NotFound) -> ClocheError:
    """Return the error of a failed HTTP answer.

    Args:
        status: Its status.
        body: Its body; JSON with a `message`, or plain text.
        missing: What a 404 means for this request.
    """
    message = _message(body) or f"http status {status}"
    if status == 502:
        return _unreachable(message)
    if status == 409 and "already exists" in message:
        return AlreadyExists(message)
    kind = (
        missing
        if status == 404
        else _ERROR_OF_STATUS.get(status, Internal if status >= 500 else InvalidArgument)
    )
    return kind(message, hint="check CLOCHE_API_KEY or E2B_API_KEY" if status == 401 else None)


def rpc_error(status: int, body: bytes) -> ClocheError:
    """Return the error of a failed call to the daemon; a 502 comes from the way to it."""
    return _unreachable(_message(body)) if status == 502 else connect.read_error(status, body)


def retry_wait_s(status: int, headers: Mapping[str, str], attempt: int) -> float | None:
    """Return how many seconds to wait before a request is sent again, or None to give up."""
    verdict = headers.get("Should-Retry", "").lower()
    if attempt >= RETRIES or verdict == "false" or (verdict != "true" and status not in {429, 503}):
        return None
    after = headers.get("Retry-After", "")
    wait_s = float(after) if after.isdecimal() else 0.1 * 2**attempt
    return min(wait_s, MAX_RETRY_WAIT_S)


def json_body(value: object) -> bytes:
    """Body of a request to the interpreter."""
    return json.dumps(value).encode()


def path_part(text: str) -> str:
    """Return the text as one part of a path, whatever it holds."""
    return quote(text, safe="")


def listening_ports(proc_net_tcp: str) -> set[int]:
    """Return the ports with a listener, from the text of `/proc/net/tcp` and `/proc/net/tcp6`."""
    rows = [line.split() for line in proc_net_tcp.splitlines()]
    return {
        int(row[1].rpartition(":")[2], 16)
        for row in rows
        if len(row) > _STATE_COLUMN and row[_STATE_COLUMN] == _LISTEN
    }


def file_params(path: str, user: str | None) -> dict[str, str]:
    """Query of `/files`."""
    return {"path": path, "username": user} if user else {"path": path}


def file_url(
    connection: Connection,
    record: SandboxRecord,
    path: str,
    operation: signature.Operation,
    user: str | None,
    expires_in_s: int | None,
) -> str:
    """Return a URL with which anyone may read or write one file, until it expires or the sandbox ends."""
    params = file_params(path, user) if path else file_params("", user)
    if record.access_token:
        expires_at = None if expires_in_s is None else int(time.time()) + expires_in_s
        params["signature"] = signature.sign(path, operation, user, record.access_token, expires_at)
        if expires_at is not None:
            params["signature_expiration"] = str(expires_at)
    return f"{connection.sandbox_url}/files?{urlencode(params, quote_via=quote)}"


def _unreachable(message: str) -> ClocheError:
    if "was not found" in message:
        return SandboxNotRunning(
            message,
            hint="it was killed or its time was over; create it with a longer timeout, or call set_timeout",
        )
    return SandboxUnreachable(message)


def _message(body: bytes) -> str:
    try:
        fields: object = json.loads(body)
    except (ValueError, RecursionError):
        return body[:500].decode("utf-8", "replace").strip()
    if isinstance(fields, dict):
        return str(cast("dict[str, object]", fields).get("message") or "")
    return str(fields)[:500]


def _object(data: Any) -> dict[str, Any]:  # noqa: ANN401 - decoded JSON
    if not isinstance(data, dict):
        raise Internal("malformed answer: expected an object")
    return cast("dict[str, Any]", data)


def moment(text: str) -> datetime:
    """Read a time as the server writes it."""
    return Timestamp.from_rfc3339(text).to_datetime()
