"""Who this agent serves: the one sandbox it lives in, told by the node's first request."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cloche_agent.activity import Activity
from cloche_agent.host_identity import host_identity
from cloche_agent.http import Response
from cloche_wire.errors import InvalidArgument, NotFound, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cloche_agent.http import Request
    from cloche_agent.kernels.zygote import Zygote

log = logging.getLogger(__name__)

ENVD_VERSION = "0.6.13"
"""What the clients' version gates see; wire.md 3.5."""

_LARGEST_INIT_BYTES = 1 << 20
_IDENTITY_FOLDER = Path("/run/e2b")


@dataclass
class Sandbox:
    """The sandbox around this agent. One per agent, changed only by `apply`.

    Before the first `/init` there is no token, and then nobody is authorized.
    """

    token: str | None = None
    env: dict[str, str] = field(default_factory=dict[str, str])
    """Variables of every process, after PATH, HOME, USER and LOGNAME and before those of the request."""
    _variables: dict[str, str] = field(default_factory=dict[str, str])
    """Those of `env` that do not follow from the other settings."""
    default_user: str = "user"
    default_workdir: str | None = None
    sandbox_id: str = ""
    template_id: str = ""
    cpu_count: int = 0
    """CPUs it may use at once; 0: nobody has said."""
    memory_bytes: int = 0
    """Memory it may use; 0: nobody has said."""
    activity: Activity = field(default_factory=Activity)
    """What has happened in it."""
    wanted: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by `/prepare`: Python is wanted before any request asks for it."""
    prepared: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the first context of Python is ready, or cannot be."""
    start_cmd: str = ""
    """What the template has run in each of its sandboxes from the beginning."""
    ready_cmd: str = ""
    """Succeeds once that is so far."""
    imports: tuple[str, ...] = ()
    """Modules that the first context of Python imports before it is ready."""
    zygote: Zygote | None = None
    """What kernels of Python may be forked from."""
    is_saved: bool = False
    """Whether it may be written to disk and brought back with all its processes, as under gVisor."""
    restores: int = 0
    """How often a checkpoint of it was restored, as far as it remembers: siblings count alike."""
    on_restore: list[Callable[[], Awaitable[None]]] = field(
        default_factory=list["Callable[[], Awaitable[None]]"]
    )
    """What each part of the agent does before the sandbox is used again."""
    on_quiesce: list[Callable[[], None]] = field(default_factory=list["Callable[[], None]"])
    """What each part of the agent forgets when every process is ended."""

    def authorized(self, token: str | None) -> bool:
        """Whether `token` is the sandbox's access token; compared in constant time."""
        if self.token is None or token is None:
            return False
        return hmac.compare_digest(self.token.encode(), token.encode("utf-8", "surrogateescape"))

    def apply(self, settings: dict[str, object]) -> None:
        """Take over what the node says; a field that is absent leaves the value as it was.

        Raises:
            InvalidArgument: A field has the wrong type, or the first call brings no token. Nothing is changed
                then.
        """
        token = _text(settings, "accessToken")
        if not token and self.token is None:
            raise InvalidArgument("accessToken is missing")
        variables = _variables(settings)
        user, workdir = _text(settings, "defaultUser"), _text(settings, "defaultWorkdir")
        sandbox_id, template_id = _text(settings, "sandboxId"), _text(settings, "templateId")
        cpu_count, memory_mib = _count(settings, "cpuCount"), _count(settings, "memoryMib")
        start_cmd, ready_cmd = _text(settings, "startCmd"), _text(settings, "readyCmd")
        is_first, is_restored = self.token is None, _flag(settings, "restored")
        self.token = token or self.token
        self.cpu_count = cpu_count or self.cpu_count
        self.memory_bytes = memory_mib << 20 or self.memory_bytes
        self.default_user = user or self.default_user
        self.default_workdir = workdir or self.default_workdir
        self.sandbox_id = sandbox_id or self.sandbox_id
        self.template_id = template_id or self.template_id
        self.start_cmd, self.ready_cmd = start_cmd or self.start_cmd, ready_cmd or self.ready_cmd
        self._variables = self._variables if variables is None else variables
        identity = {"E2B_SANDBOX_ID": self.sandbox_id, "E2B_TEMPLATE_ID": self.template_id}
        env = {"E2B_SANDBOX": "true", **identity, **self._variables}
        if env != self.env:
            self.env = env
        if is_first:
            self.activity.note("info", "sandbox", "sandbox started")
        elif is_restored:
            self.activity.note("info", "sandbox", "sandbox restored")
        self.restores += is_restored

    def prepare(self, settings: dict[str, object]) -> None:
        """Take over what is known before the sandbox is anybody's.

        Raises:
            InvalidArgument: A field has the wrong type.
        """
        variables, imports = _variables(settings), settings.get("imports")
        names = cast("list[object]", imports) if isinstance(imports, list) else [None]
        if not all(isinstance(name, str) for name in names):
            raise InvalidArgument("not a list of strings: imports")
        user, workdir = _text(settings, "defaultUser"), _text(settings, "defaultWorkdir")
        start_cmd, ready_cmd = _text(settings, "startCmd"), _text(settings, "readyCmd")
        self.restores += _flag(settings, "restored")
        self.default_user = user or self.default_user
        self.default_workdir = workdir or self.default_workdir
        self.start_cmd, self.ready_cmd = start_cmd or "", ready_cmd or ""
        self.env = self._variables = variables or {}
        self.imports = tuple(map(str, names))
        self.wanted.set()


def _text(settings: dict[str, object], name: str) -> str | None:
    value = settings.get(name)
    if value is None or isinstance(value, str):
        return value
    raise InvalidArgument(f"not a string: {name}")


def _count(settings: dict[str, object], name: str) -> int:
    value = settings.get(name, 0)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31:
        return value
    raise InvalidArgument(f"not a count: {name}")


def _flag(settings: dict[str, object], name: str) -> bool:
    value = settings.get(name, False)
    if isinstance(value, bool):
        return value
    raise InvalidArgument(f"not a boolean: {name}")


def _variables(settings: dict[str, object]) -> dict[str, str] | None:
    found = settings.get("envVars")
    if found is None:
        return None
    if not isinstance(found, dict):
        raise InvalidArgument("not an object: envVars")
    variables = cast("dict[object, object]", found)
    for name, value in variables.items():
        if (
            not isinstance(name, str)
            or not isinstance(value, str)
            or not name
            or "=" in name
            or "\0" in name + value
        ):
            raise InvalidArgument(f"not an environment variable: {name}")
    return cast("dict[str, str]", variables)


async def handle_init(sandbox: Sandbox, request: Request) -> Response:
    """Serve `POST /init`. The first call binds the agent to its token; later ones must bring that token.

    With `restored` the sandbox has just come back from a checkpoint, perhaps as one of several. The answer
    comes when what siblings must not share has been renewed, as far as that can be done at once.

    Raises:
        Unauthenticated: The agent is bound and the header's token is not the one.
        InvalidArgument: The body is not what `Sandbox.apply` and `host_identity` take. Nothing is changed
            then.
    """
    if sandbox.token is not None and not sandbox.authorized(request.headers.get("x-access-token")):
        raise Unauthenticated("access token is missing or wrong")
    settings = await _settings(request)
    identity = host_identity(settings)
    restores = sandbox.restores
    sandbox.apply(settings)
    if os.getpid() == 1:
        identity.show()
        _show_identity(sandbox)
    await _renew(sandbox, restores)
    return Response(204, [("x-envd-version", ENVD_VERSION), ("cache-control", "no-store")])


async def handle_prepare(sandbox: Sandbox, request: Request) -> Response:
    """Serve `POST /prepare`, for the node alone: start Python before the sandbox is anybody's.

    The answer comes when it is ready, or cannot be, which the first run of code will tell; `/ready` tells of
    the start command, which this begins. `restored` and the
    fields of `host_identity` mean what they do in `/init`, which then need not say them again.

    Raises:
        NotFound: The agent is bound.
        InvalidArgument: The body is not what `Sandbox.prepare` and `host_identity` take.
    """
    if sandbox.token is not None:
        raise NotFound("no such path: /prepare")
    settings = await _settings(request)
    identity = host_identity(settings)
    restores = sandbox.restores
    sandbox.prepare(settings)
    if os.getpid() == 1:
        identity.show()
    await sandbox.prepared.wait()
    await _renew(sandbox, restores)
    return Response(204)


async def _renew(sandbox: Sandbox, restores: int) -> None:
    """Where the sandbox was restored since it had been so often, make anew what siblings must not share."""
    if sandbox.restores != restores:
        for renew in sandbox.on_restore:
            await renew()


async def _settings(request: Request) -> dict[str, object]:
    body = await request.read(_LARGEST_INIT_BYTES)
    try:
        settings: object = json.loads(body or b"{}")
    except ValueError as error:
        raise InvalidArgument("body is not JSON") from error
    if not isinstance(settings, dict):
        raise InvalidArgument("body is not a JSON object")
    return cast("dict[str, object]", settings)


def _show_identity(sandbox: Sandbox) -> None:
    """Write the files that programs of E2B templates read; a sandbox without them is still a sandbox."""
    try:
        _IDENTITY_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
        for name in ("E2B_SANDBOX", "E2B_SANDBOX_ID", "E2B_TEMPLATE_ID"):
            (_IDENTITY_FOLDER / f".{name}").write_text(sandbox.env.get(name, ""))
    except OSError as error:
        log.warning("cannot write %s: %s", _IDENTITY_FOLDER, error)
