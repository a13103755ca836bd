"""A command's requests to a running server: the one of a state folder, or the one that variables name."""

from __future__ import annotations

import http.client
import os
from typing import Any, BinaryIO
from urllib.parse import urlencode, urlsplit

import msgspec

from cloche_server import config as configuration
from cloche_server.cli import env
from cloche_server.cli.lock import running_server
from cloche_wire.errors import ClocheError, Internal, InvalidArgument, Unavailable, error_types

TIMEOUT_S = 60.0
UPLOAD_TIMEOUT_S = 3600.0


class _Problem(msgspec.Struct):
    message: str = "no reason given"


class Remote:
    """A server's control plane."""

    def __init__(self, url: str, api_key: str) -> None:
        """Ask this server with this key; each request opens a connection of its own."""
        self._url = url
        self._api_key = api_key

    @classmethod
    def of(cls, state: str | None) -> Remote:
        """Return the server of the state folder; without one that of E2B_API_URL, where that is set.

        Raises:
            NotFound: None runs there.
            PermissionDenied: The key is not ours to read.
        """
        url, key = os.environ.get("E2B_API_URL"), os.environ.get("E2B_API_KEY")
        if state is None and url and key:
            return cls(url, key)
        config = configuration.load({"state": state})
        return cls(running_server(config.state_dir).url, env.api_key(config.state_dir / "api-key"))

    def ask(self, method: str, path: str, body: object = None, **query: object) -> Any:  # noqa: ANN401 -- JSON
        """Return the answer; None where it has no body.

        Raises:
            Unavailable: The server cannot be reached.
            ClocheError: It refused; the class says why.
        """
        target = f"{path}?{urlencode(query)}" if query else path
        content = None if body is None else msgspec.json.encode(body)
        headers = {"X-API-KEY": self._api_key, "Content-Type": "application/json"}
        answer = self._send(self._url, method, target, content, headers, TIMEOUT_S)
        return msgspec.json.decode(answer) if answer else None

    def send(self, url: str, file: BinaryIO, size: int) -> None:
        """Send a file of so many bytes to a link that the server has given.

        Raises:
            Unavailable: The server cannot be reached.
            ClocheError: It refused; the class says why.
        """
        parts = urlsplit(url)
        headers = {"Content-Length": str(size)}
        self._send(f"{parts.scheme}://{parts.netloc}", "PUT", parts.path, file, headers, UPLOAD_TIMEOUT_S)

    def _send(
        self,
        url: str,
        method: str,
        target: str,
        content: bytes | BinaryIO | None,
        headers: dict[str, str],
        timeout_s: float,
    ) -> bytes:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InvalidArgument(f"not an address of a server: {url[:200]!r}")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.netloc, timeout=timeout_s)
        try:
            connection.request(method, parts.path.rstrip("/") + target, content, headers)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"cannot reach the server: {url}: {error}", hint="does it run?") from error
        finally:
            connection.close()
        if answer.status >= 300:
            raise _refusal(answer.status, body)
        return body


def _refusal(status: int, body: bytes) -> ClocheError:
    try:
        message = msgspec.json.decode(body, type=_Problem).message
    except msgspec.DecodeError:
        message = f"status {status}"
    kinds = [kind for kind in error_types().values() if kind.__dict__.get("http_status") == status]
    return (kinds[0] if kinds else Internal)(message)
