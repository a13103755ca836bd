"""The /files routes: who may ask, for which user, for which path. `download` and `upload` move the bytes."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import time
from typing import TYPE_CHECKING, NamedTuple, cast

from cloche_agent import users
from cloche_agent.credentials import acting_as
from cloche_agent.filesystem.download import download
from cloche_agent.filesystem.entries import read_metadata
from cloche_agent.filesystem.paths import explained, resolve, shown
from cloche_agent.filesystem.upload import Target, upload
from cloche_agent.http import Response, json_response
from cloche_wire import signature
from cloche_wire.errors import InvalidArgument, Unauthenticated

if TYPE_CHECKING:
    from cloche_agent.http import Request
    from cloche_agent.init import Sandbox
    from cloche_agent.users import User

_COPY_BYTES = 1 << 20
_LARGEST_COMPOSE_BYTES = 1 << 20


class _Compose(NamedTuple):
    sources: list[str]
    destination: str
    username: str | None


class TransferRoutes:
    """GET, HEAD and POST /files, and POST /files/compose."""

    def __init__(self, sandbox: Sandbox) -> None:
        """Serve the files of `sandbox`."""
        self._sandbox = sandbox

    async def files(self, request: Request) -> Response:
        """Serve /files.

        Raises:
            Unauthenticated: Neither the sandbox's token nor a valid signature, or no such user.
            ClocheError: As `download` and `upload` say.
        """
        if request.method not in ("GET", "HEAD", "POST"):
            return Response(405, [("allow", "GET, HEAD, POST")])
        operation: signature.Operation = "write" if request.method == "POST" else "read"
        self._authorize(request, operation)
        user = self._user(request.parameter("username"))
        path = request.parameter("path")
        if operation == "write":
            return await upload(request, path, user, self._sandbox.default_workdir)
        return await download(request, resolve(path or "", user, self._sandbox.default_workdir), user)

    async def compose(self, request: Request) -> Response:
        """Serve /files/compose: put files together in order, then remove them.

        Raises:
            ClocheError: As for reading and writing the files one by one. The sources are removed at the very
                end only.
        """
        wanted = _read_compose(await request.read(_LARGEST_COMPOSE_BYTES))
        user = self._user(wanted.username)
        sources = [resolve(source, user, self._sandbox.default_workdir) for source in wanted.sources]
        destination = resolve(wanted.destination, user, self._sandbox.default_workdir)
        if destination in sources:
            raise InvalidArgument("destination is one of the sources")
        for source in sources:
            os.close(_open(source, user))
        with Target(destination, user) as file:
            for source in sources:
                await _append(file, source, user)
        for source in sources:
            with explained(source), acting_as(user):
                os.unlink(source)  # noqa: PTH108
        with acting_as(user):
            metadata = read_metadata(destination)
        name = shown(destination).rpartition("/")[2]
        return json_response(
            {
                "name": name,
                "path": shown(destination),
                "type": "file",
                **({"metadata": metadata} if metadata else {}),
            }
        )

    def _authorize(self, request: Request, operation: signature.Operation) -> None:
        """A token in the header decides alone: a wrong one is not made good by a signature (wire.md 1.3)."""
        token = request.headers.get("x-access-token")
        if token is not None:
            if not self._sandbox.authorized(token):
                raise Unauthenticated("access token is wrong")
            return
        if self._sandbox.token is None:
            raise Unauthenticated("agent is not initialised")
        query = signature.read_query(request.query)
        signature.verify(query, operation, self._sandbox.token, time.time())

    def _user(self, name: str | None) -> User:
        name = name or self._sandbox.default_user
        try:
            return users.lookup(name)
        except Unauthenticated as error:
            raise Unauthenticated(f"error looking up user '{name}': no such user") from error


def _read_compose(body: bytes) -> _Compose:
    try:
        fields: object = json.loads(body)
    except ValueError as error:
        raise InvalidArgument("body is not JSON") from error
    if not isinstance(fields, dict):
        raise InvalidArgument("body is not a JSON object")
    found = cast("dict[str, object]", fields)
    sources, destination, username = (found.get(name) for name in ("source_paths", "destination", "username"))
    if not isinstance(sources, list) or not sources:
        raise InvalidArgument("source_paths is missing or empty")
    paths = [path for path in cast("list[object]", sources) if isinstance(path, str) and path]
    if (
        len(paths) != len(cast("list[object]", sources))
        or not isinstance(destination, str)
        or not destination
    ):
        raise InvalidArgument("source_paths and destination must be paths")
    if username is not None and not isinstance(username, str):
        raise InvalidArgument("username is not a string")
    return _Compose(paths, destination, username)


def _open(path: str, user: User) -> int:
    with explained(path), acting_as(user):
        # SAFETY: as in `download`.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidArgument(f"path '{shown(path)}' is not a regular file")
    return descriptor


async def _append(file: Target, source: str, user: User) -> None:
    descriptor = _open(source, user)
    try:
        while data := os.read(descriptor, _COPY_BYTES):
            await file.write(data)
            await asyncio.sleep(0)
    finally:
        os.close(descriptor)
