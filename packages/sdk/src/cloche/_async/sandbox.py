"""A sandbox: create, connect, look, end; and the ways into it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import ClassVar, Literal, Self, Unpack

from cloche import _config, _requests, _volume_requests
from cloche._async import keeping
from cloche._async.client import Client, Session, sleep
from cloche._async.commands import Commands
from cloche._async.files import Files
from cloche._async.interpreter import AsyncCodeInterpreter
from cloche._async.listing import AsyncSandboxPaginator
from cloche._async.pty import Pty
from cloche._async.volume import AsyncVolume
from cloche._config import ConnectionOptions
from cloche._either import Either
from cloche._requests import SandboxRecord
from cloche.errors import ClocheError, NotFound, SandboxNotFound, TemplateNotFound
from cloche.models import SandboxInfo, SandboxQuery, SnapshotInfo
from cloche_wire.hostname import format_host

PORT_POLL_S = 0.05


async def _connect_by_id(
    owner: type[AsyncSandbox],
    sandbox_id: str,
    timeout: int | None = None,
    **options: Unpack[ConnectionOptions],
) -> AsyncSandbox:
    client = Client(_config.resolve(options))
    return owner.of(client, await _connected(client, sandbox_id, timeout))


async def _kill_by_id(
    _owner: type[AsyncSandbox], sandbox_id: str, **options: Unpack[ConnectionOptions]
) -> bool:
    async with Client(_config.resolve(options)) as client:
        return await _killed(client, sandbox_id)


async def set_timeout_by_id(
    _owner: type[AsyncSandbox], sandbox_id: str, timeout: int, **options: Unpack[ConnectionOptions]
) -> None:
    """Let the sandbox with that id live `timeout` seconds from now; see `AsyncSandbox.set_timeout`."""
    async with Client(_config.resolve(options)) as client:
        await _timeout_set(client, sandbox_id, timeout)


async def _pause_by_id(
    _owner: type[AsyncSandbox],
    sandbox_id: str,
    memory: bool = True,
    **options: Unpack[ConnectionOptions],
) -> str:
    async with Client(_config.resolve(options)) as client:
        return await keeping.paused(client, sandbox_id, memory=memory)


async def _info_by_id(
    _owner: type[AsyncSandbox], sandbox_id: str, **options: Unpack[ConnectionOptions]
) -> SandboxInfo:
    async with Client(_config.resolve(options)) as client:
        return await _info(client, sandbox_id)


class AsyncSandbox(AsyncCodeInterpreter):
    """A machine of its own for code that is not trusted. Used as a context manager it ends with the block."""

    default_template: ClassVar[str] = _requests.DEFAULT_TEMPLATE

    def __init__(self, client: Client, record: SandboxRecord) -> None:
        """Speak to the sandbox of this record; use `create` or `connect` to get one."""
        self._attach(client, record)

    def _attach(self, client: Client, record: SandboxRecord) -> None:
        self._client = client
        self._session = Session(self._client, record)
        self._files = Files(self._session)
        self._commands = Commands(self._session)
        self._pty = Pty(self._session, self._commands)

    @classmethod
    def of(cls, client: Client, record: SandboxRecord) -> Self:
        """Return a sandbox object without asking the server."""
        sandbox = cls.__new__(cls)
        sandbox._attach(client, record)  # noqa: SLF001 - its own
        return sandbox

    @classmethod
    async def create(
        cls,
        template: str | None = None,
        timeout: int | None = None,
        metadata: Mapping[str, str] | None = None,
        envs: Mapping[str, str] | None = None,
        allow_internet_access: bool | None = None,
        idempotency_key: str | None = None,
        volume_mounts: Mapping[str, AsyncVolume | str] | None = None,
        on_timeout: Literal["kill", "pause"] = "kill",
        auto_resume: bool = False,
        keep_memory: bool = True,
        isolation: str | None = None,
        idle_after: int | None = None,
        on_idle: Literal["freeze", "pause"] = "freeze",
        **options: Unpack[ConnectionOptions],
    ) -> Self:
        """Create a sandbox; when this returns it takes commands and code.

        Args:
            template: Name or id of the template, or id of a snapshot; None for the code interpreter.
            timeout: Seconds it lives; None for the server's default, 300.
            metadata: Texts to find it by.
            envs: Variables of everything that runs in it.
            allow_internet_access: False cuts it off from the internet.
            idempotency_key: A key with which the same request returns the same sandbox; made if None.
            volume_mounts: Volumes, or their names, by the absolute paths where they are shown.
            on_timeout: What becomes of it when its time is over.
            auto_resume: Whether a request for it has it run again when it is paused.
            keep_memory: Whether processes go on after a pause at its time-out; otherwise its files are there
                alone, which every isolation can.
            isolation: `gvisor` gives it a kernel of its own; None for what the template and the server say.
            idle_after: Seconds without anything happening in it until it rests; the next request has it go
                on. 0 for never, None for what the server's settings say.
            on_idle: Whether it rests in memory, or on disk.
            options: Where the server is and who asks.

        Raises:
            TemplateNotFound: There is no such template, or no such volume.
            InvalidArgument: A value is out of range, its isolation cannot do that, or the server's machine
                lacks it.
            PermissionDenied: The isolation is weaker than the server permits.
            Unauthenticated: No key, or a wrong one.
            ResourceExhausted: The limit of sandboxes is reached.
            Unavailable: The server cannot be reached.
        """
        client = Client(_config.resolve(options))
        body = _requests.create_body(
            template or cls.default_template, timeout, metadata, envs, allow_internet_access
        )
        if volume_mounts:
            names = {path: at if isinstance(at, str) else at.name for path, at in volume_mounts.items()}
            body["volumeMounts"] = _volume_requests.mounts_body(names)
        body |= _requests.lifecycle_body(on_timeout, auto_resume, keep_memory=keep_memory)
        if isolation is not None:
            body["isolation"] = isolation
        if idle_after is not None:
            body["idle"] = {"afterSeconds": idle_after, "action": on_idle}
        return cls.of(client, await new_sandbox(client, body, idempotency_key))

    async def _connect_self(self, timeout: int | None = None, **options: Unpack[ConnectionOptions]) -> Self:
        """Make sure that the sandbox runs at least `timeout` seconds longer."""
        self._session.record = await _connected(self._client.with_options(options), self.sandbox_id, timeout)
        return self

    async def _kill_self(self, **options: Unpack[ConnectionOptions]) -> bool:
        """End the sandbox; False if it had ended already."""
        try:
            return await _killed(self._client.with_options(options), self.sandbox_id)
        finally:
            await self._client.aclose()

    async def _set_own_timeout(self, timeout: int, **options: Unpack[ConnectionOptions]) -> None:
        """Let the sandbox live `timeout` seconds from now, longer or shorter than before.

        Raises:
            SandboxNotFound: It has ended.
        """
        await _timeout_set(self._client.with_options(options), self.sandbox_id, timeout)

    async def _own_info(self, **options: Unpack[ConnectionOptions]) -> SandboxInfo:
        """Return what the server knows of the sandbox.

        Raises:
            SandboxNotFound: It has ended.
        """
        return await _info(self._client.with_options(options), self.sandbox_id)

    async def _pause_self(self, memory: bool = True, **options: Unpack[ConnectionOptions]) -> str:
        """Put the sandbox on disk, where it costs nothing, and return its id; `connect` has it run again.

        Args:
            memory: Whether its processes go on then; otherwise only its files are there.
            options: Where the server is and who asks.

        Raises:
            SandboxNotFound: It has ended.
            InvalidArgument: The server's isolation cannot; the message names one that can.
            NotEnoughSpace: The server's disk is full; the sandbox runs on.
        """
        return await keeping.paused(self._client.with_options(options), self.sandbox_id, memory=memory)

    async def freeze(self, **options: Unpack[ConnectionOptions]) -> None:
        """Have the sandbox stand still: its memory stays where it is, and it uses no CPU.

        Whatever it is asked has it go on first, within milliseconds; its time goes on all the while.

        Raises:
            SandboxNotFound: It has ended.
            Conflict: It is paused, or something else is being done with it.
        """
        await keeping.frozen(self._client.with_options(options), self.sandbox_id)

    async def create_snapshot(
        self, name: str | None = None, memory: bool = True, **options: Unpack[ConnectionOptions]
    ) -> SnapshotInfo:
        """Keep a copy of the sandbox, which runs on; its id is a template for others.

        Args:
            name: A name for it; None for none.
            memory: Whether processes go on in sandboxes that are made of it; otherwise only files are there.
            options: Where the server is and who asks.

        Raises:
            SandboxNotFound: It has ended.
            InvalidArgument: The server's isolation cannot; the message names one that can.
            NotEnoughSpace: The server's disk is full.
        """
        client = self._client.with_options(options)
        return await keeping.snapshot_of(client, self.sandbox_id, name, memory=memory)

    async def fork(
        self,
        count: int = 1,
        timeout: int | None = None,
        memory: bool = True,
        **options: Unpack[ConnectionOptions],
    ) -> list[Self | ClocheError]:
        """Make sandboxes that go on from where this one is now; it runs on itself.

        Args:
            count: How many, 1 to 100.
            timeout: Seconds that each lives.
            memory: Whether its processes go on in them; otherwise only its files are there.
            options: Where the server is and who asks.

        Returns:
            For each the sandbox, or the error that it could not be made for.

        Raises:
            SandboxNotFound: It has ended.
            InvalidArgument: `count` is out of range, or the server's isolation cannot; the message names one
                that can.
        """
        client = self._client.with_options(options)
        made = await keeping.forks_of(client, self.sandbox_id, count, timeout, memory=memory)
        resolved = self._client.with_options(options).connection
        return [one if isinstance(one, ClocheError) else self.of(Client(resolved), one) for one in made]

    @staticmethod
    async def delete_snapshot(snapshot_id: str, **options: Unpack[ConnectionOptions]) -> bool:
        """Delete a snapshot; sandboxes that were made of it live on. False where there is none."""
        async with Client(_config.resolve(options)) as client:
            return await keeping.snapshot_deleted(client, snapshot_id)

    connect = Either(_connect_by_id, _connect_self)
    resume = connect
    kill = Either(_kill_by_id, _kill_self)
    pause = Either(_pause_by_id, _pause_self)
    set_timeout = Either(set_timeout_by_id, _set_own_timeout)
    get_info = Either(_info_by_id, _own_info)

    @staticmethod
    def list(
        query: SandboxQuery | None = None,
        limit: int | None = None,
        next_token: str | None = None,
        order: str | None = None,
        **options: Unpack[ConnectionOptions],
    ) -> AsyncSandboxPaginator:
        """List the sandboxes of the key's team, newest first.

        Args:
            query: Which ones; None for all.
            limit: Sandboxes per page.
            next_token: Where to go on.
            order: `asc` for oldest first, `desc`.
            options: Where the server is and who asks.
        """
        return AsyncSandboxPaginator(query, limit, next_token, order, **options)

    @property
    def sandbox_id(self) -> str:
        """Id of the sandbox."""
        return self._session.record.sandbox_id

    @property
    def sandbox_domain(self) -> str:
        """Domain of its public ports."""
        return self._session.record.domain

    @property
    def traffic_access_token(self) -> str | None:
        """Token that requests to its ports need when they are not public."""
        return self._session.record.traffic_token

    @property
    def files(self) -> Files:
        """Its files."""
        return self._files

    @property
    def commands(self) -> Commands:
        """Its commands."""
        return self._commands

    @property
    def pty(self) -> Pty:
        """Its terminals."""
        return self._pty

    async def is_running(self, request_timeout: float | None = None) -> bool:
        """Whether it runs and answers."""
        return await self._session.is_running(request_timeout)

    async def wait_for_port(self, port: int, timeout: float = 5.0) -> bool:
        """Wait until something in the sandbox listens on a TCP port.

        Looks at the sandbox's own table of sockets, so that no server sees a connection it did not expect.

        Args:
            port: The port.
            timeout: Seconds to wait at most.

        Returns:
            Whether something listens.

        Raises:
            SandboxNotRunning: The sandbox has ended.
        """
        over_at = time.monotonic() + timeout
        while True:
            tables = await self._commands.run("cat /proc/net/tcp /proc/net/tcp6 2>/dev/null; true")
            if port in _requests.listening_ports(tables.stdout):
                return True
            if time.monotonic() >= over_at:
                return False
            await sleep(PORT_POLL_S)

    def get_host(self, port: int) -> str:
        """Return the public name of one of its ports, to be used as `https://{host}`."""
        return format_host(port, self.sandbox_id, self.sandbox_domain)

    def download_url(
        self, path: str, user: str | None = None, use_signature_expiration: int | None = None
    ) -> str:
        """Return a URL with which anyone may read one file.

        Args:
            path: The file.
            user: User of the sandbox; None for its default.
            use_signature_expiration: Seconds until the URL is dead; None for as long as the sandbox lives.
        """
        record, connection = self._session.record, self._client.connection
        return _requests.file_url(connection, record, path, "read", user, use_signature_expiration)

    def upload_url(
        self, path: str | None = None, user: str | None = None, use_signature_expiration: int | None = None
    ) -> str:
        """Return a URL with which anyone may write one file by a POST; see `download_url`."""
        record, connection = self._session.record, self._client.connection
        return _requests.file_url(connection, record, path or "", "write", user, use_signature_expiration)

    async def aclose(self) -> None:
        """Close idle connections; the sandbox runs on."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._kill_self()


async def new_sandbox(
    client: Client, body: Mapping[str, object], idempotency_key: str | None = None
) -> SandboxRecord:
    """Create a sandbox and return its record; a retried request does not create a second one."""
    response = await client.api(
        "POST",
        "/v2/sandboxes",
        body=body,
        headers={"Idempotency-Key": idempotency_key or str(uuid.uuid4())},
        missing=TemplateNotFound,
    )
    return _requests.read_record(response.json(), client.connection)


async def _connected(client: Client, sandbox_id: str, timeout: int | None) -> SandboxRecord:
    body = {} if timeout is None else {"timeout": timeout}
    path = f"/v2/sandboxes/{_requests.path_part(sandbox_id)}/connect"
    response = await client.api("POST", path, body=body, missing=SandboxNotFound)
    return _requests.read_record(response.json(), client.connection)


async def _killed(client: Client, sandbox_id: str) -> bool:
    try:
        await client.api("DELETE", f"/sandboxes/{_requests.path_part(sandbox_id)}", missing=SandboxNotFound)
    except NotFound:
        return False
    return True


async def _timeout_set(client: Client, sandbox_id: str, timeout: int) -> None:
    path = f"/sandboxes/{_requests.path_part(sandbox_id)}/timeout"
    await client.api("POST", path, body={"timeout": timeout}, missing=SandboxNotFound)


async def _info(client: Client, sandbox_id: str) -> SandboxInfo:
    path = f"/sandboxes/{_requests.path_part(sandbox_id)}"
    response = await client.api("GET", path, missing=SandboxNotFound)
    return _requests.read_info(response.json())
