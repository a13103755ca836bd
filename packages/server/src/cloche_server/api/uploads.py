"""Archives of files that builds copy from: a link for each, to which a client sends it without a key.

What stands in the link is all that is asked for: whose archive it is and under which hash, until when, and a
signature. The hash is the client's; nothing here depends on what it was made of, and it is one team's alone.
"""

import base64
import hashlib
import hmac
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response

from cloche_server import disk_space
from cloche_server.api.routing import Call
from cloche_server.clock import Clock
from cloche_server.ids import TeamId
from cloche_wire.errors import InvalidArgument, PermissionDenied, TooLarge

LINK_LIFE_S = 3600
"""How long a link may be used; clients give an upload as long."""
STALL_TIMEOUT_S = 60.0
"""How long a client may send nothing."""
FREE_BYTES = 1 << 30
"""What an upload leaves free on the disk."""
_DAY_S = 86_400

log = structlog.get_logger()


class _Ticket(NamedTuple):
    team_id: str
    files_hash: str
    until_s: int


class Uploads:
    """The archives of all teams: `<team>/<hash>`, each complete."""

    def __init__(self, folder: Path, clock: Clock, *, max_bytes: int) -> None:
        """Keep them in this folder. Links hold until this process ends."""
        self._folder = folder
        self._clock = clock
        self._max_bytes = max_bytes
        self._secret = secrets.token_bytes(32)

    def folder_of(self, team: TeamId) -> Path:
        """Where a team's archives lie, each called by its hash."""
        return self._folder / team

    def has(self, team: TeamId, files_hash: str) -> bool:
        """Whether an archive is there; it is then kept for a while longer."""
        try:
            os.utime(self.folder_of(team) / files_hash)
        except FileNotFoundError:
            return False
        return True

    def path_for(self, team: TeamId, files_hash: str) -> str:
        """Return the path of a link for one archive."""
        ticket = _Ticket(team, files_hash, int(self._clock.boot_s()) + LINK_LIFE_S)
        text = msgspec.json.encode(ticket)
        token = base64.urlsafe_b64encode(self._sign(text) + text).rstrip(b"=").decode()
        return f"/templates/uploads/{token}"

    async def receive(self, call: Call) -> Response:
        """`PUT /templates/uploads/{token}`: afterwards the archive is there whole, or not at all.

        Raises:
            PermissionDenied: The link is none of ours, or too old.
            TooLarge: It is larger than `builds.max_upload_mib`.
            NotEnoughSpace: The disk is too full for it.
            InvalidArgument: It stopped before its end.
        """
        ticket = self._check(call.params["token"])
        length = _declared_length(call.request)
        if length > self._max_bytes:
            raise TooLarge(f"archive of {length} bytes, of at most {self._max_bytes}")
        folder = self.folder_of(TeamId(ticket.team_id))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        disk_space.require(folder, length + FREE_BYTES, "an archive of files")
        part = folder / f".{ticket.files_hash}.{secrets.token_hex(8)}"
        try:
            await self._write(part, call.request, length)
            part.rename(folder / ticket.files_hash)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        log.info("build.files_received", team_id=ticket.team_id, hash=ticket.files_hash)
        return Response(status_code=200)

    async def _write(self, target: Path, request: Request, length: int) -> None:
        size = 0
        async with await anyio.open_file(target, "xb") as file:
            async for piece in _steadily(request):
                size += len(piece)
                if size > self._max_bytes:
                    raise TooLarge(f"archive of more than {self._max_bytes} bytes")
                await file.write(piece)
        if length and size != length:
            raise InvalidArgument(f"the archive ended after {size} of {length} bytes")

    def _sign(self, text: bytes) -> bytes:
        return hmac.digest(self._secret, text, hashlib.sha256)

    def _check(self, token: str) -> _Ticket:
        with suppress(ValueError, msgspec.MsgspecError):
            raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
            if hmac.compare_digest(self._sign(raw[32:]), raw[:32]):
                ticket = msgspec.json.decode(raw[32:], type=_Ticket)
                if ticket.until_s >= self._clock.boot_s():
                    return ticket
        raise PermissionDenied("this link for an upload is not valid any more", hint="ask for another one")

    async def clean(self, *, keep_days: int) -> None:
        """Remove archives that no build has asked for lately, and what broken uploads have left."""
        await anyio.to_thread.run_sync(_clean, self._folder, self._clock.now().timestamp(), keep_days)


def _clean(folder: Path, now_s: float, keep_days: int) -> None:
    for path in folder.glob("*/*"):
        age_s = now_s - path.stat().st_mtime
        is_part = path.name.startswith(".")
        if age_s > (_DAY_S if is_part else keep_days * _DAY_S):
            path.unlink(missing_ok=True)


def _declared_length(request: Request) -> int:
    text = request.headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() else 0


async def _steadily(request: Request) -> AsyncIterator[bytes]:
    """Yield the body as it comes.

    Raises:
        InvalidArgument: Nothing has come for `STALL_TIMEOUT_S`.
    """
    pieces = aiter(request.stream())
    while True:
        with anyio.move_on_after(STALL_TIMEOUT_S):
            try:
                piece = await anext(pieces)
            except StopAsyncIteration:
                return
            yield piece
            continue
        raise InvalidArgument(f"nothing of the archive has come for {STALL_TIMEOUT_S:g} s")
