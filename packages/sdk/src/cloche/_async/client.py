"""The way to the server: control-plane requests, calls and streams to one sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio
import httpx

from cloche import _requests
from cloche._config import Connection, ConnectionOptions, tls_context
from cloche._requests import ENVD_PORT, SandboxRecord
from cloche.errors import ClocheError, DeadlineExceeded, NotFound, SandboxNotRunning, Unavailable
from cloche_wire import connect, proto_json
from cloche_wire.messages.schema import Message, Rpc

M = TypeVar("M", bound=Message)


def new_http(connection: Connection) -> httpx.AsyncClient:
    """Open a connection pool. A server on this machine is never asked for through a proxy."""
    return httpx.AsyncClient(
        trust_env=not connection.is_local,
        verify=tls_context(),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        timeout=connection.request_timeout_s,
    )


async def sleep(seconds: float) -> None:
    """Wait."""
    await anyio.sleep(seconds)


class Client:
    """Speaks to the control plane. Closing only drops idle connections: the next request opens new ones."""

    def __init__(self, connection: Connection, pool: Client | None = None) -> None:
        """Use this connection; nothing is opened before the first request. With `pool`, share that one's."""
        self.connection = connection
        self._pool = pool
        self._http: httpx.AsyncClient | None = None

    def with_options(self, options: ConnectionOptions) -> Client:
        """Return a client with other options over the same connection pool."""
        return Client(self.connection.with_options(options), self) if options else self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def http(self) -> httpx.AsyncClient:
        """The open connection pool."""
        if self._pool is not None:
            return self._pool.http
        if self._http is None:
            self._http = new_http(self.connection)
        return self._http

    async def aclose(self) -> None:
        """Close the pool if it is open."""
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    async def api(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        request_timeout: float | None = None,
        missing: type[NotFound] = NotFound,
    ) -> httpx.Response:
        """Send one control-plane request; busy answers are retried as the server asks.

        Raises:
            Unavailable: The server cannot be reached.
            ClocheError: The server refused; the class says why.
        """
        request = self.http.build_request(
            method,
            self.connection.api_url + path,
            json=body,
            params=params,
            headers={**_requests.api_headers(self.connection), **(headers or {})},
            timeout=self.connection.timeout_s(request_timeout),
        )
        attempt = 0
        while True:
            response = await self.send(request)
            if response.is_success:
                return response
            wait_s = _requests.retry_wait_s(response.status_code, response.headers, attempt)
            if wait_s is None:
                raise _requests.api_error(response.status_code, response.content, missing=missing)
            attempt += 1
            await sleep(wait_s)

    async def send(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        """Send a request and name the failures of the way.

        Raises:
            DeadlineExceeded: No answer in time.
            Unavailable: The server cannot be reached, or hung up.
        """
        try:
            return await self.http.send(request, stream=stream)
        except httpx.ConnectError as error:
            raise Unavailable(
                f"cannot reach the server: {self.connection.api_url}",
                hint="is `cloche serve` running, and does CLOCHE_API_URL or E2B_API_URL name it?",
            ) from error
        except httpx.TimeoutException as error:
            raise DeadlineExceeded(
                f"no answer in time: {request.method} {request.url.path}",
                hint="pass a larger request_timeout",
            ) from error
        except httpx.TransportError as error:
            raise Unavailable(f"connection lost: {request.method} {request.url.path}") from error


class Session:
    """Speaks to one sandbox."""

    def __init__(self, client: Client, record: SandboxRecord) -> None:
        """Use this client for that sandbox."""
        self.client = client
        self.record = record

    async def open(
        self,
        method: str,
        path: str,
        *,
        port: int = ENVD_PORT,
        params: Mapping[str, str] | None = None,
        content: bytes | AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: httpx.Timeout,
    ) -> httpx.Response:
        """Send a request to a port of the sandbox; the body of the answer is still to be read.

        Raises:
            SandboxNotRunning: The sandbox has ended.
            DeadlineExceeded: No answer in time.
            Unavailable: The server cannot be reached.
        """
        request = self.client.http.build_request(
            method,
            self.client.connection.sandbox_url + path,
            params=params,
            content=content,
            headers={**_requests.sandbox_headers(self.record, port), **(headers or {})},
            timeout=timeout,
        )
        try:
            return await self.client.send(request, stream=True)
        except Unavailable as error:
            raise await self.explain(error) from error

    async def request(
        self,
        method: str,
        path: str,
        *,
        port: int = ENVD_PORT,
        params: Mapping[str, str] | None = None,
        content: bytes | AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        request_timeout: float | None = None,
    ) -> httpx.Response:
        """Send a request to a port of the sandbox and read the whole answer, whatever its status.

        Raises:
            SandboxNotRunning: The sandbox has ended.
            DeadlineExceeded: No answer in time.
            Unavailable: The server cannot be reached.
        """
        timeout = httpx.Timeout(self.client.connection.timeout_s(request_timeout))
        response = await self.open(
            method, path, port=port, params=params, content=content, headers=headers, timeout=timeout
        )
        try:
            await response.aread()
        except httpx.TransportError as error:
            raise await self.explain(error) from error
        finally:
            await response.aclose()
        return response

    async def call(
        self,
        rpc: Rpc,
        message: Message,
        answer: type[M],
        *,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> M:
        """Call one method of the daemon.

        Raises:
            ClocheError: The daemon refused; the class says why.
        """
        timeout_s = self.client.connection.timeout_s(request_timeout)
        response = await self.request(
            "POST",
            rpc.path,
            content=proto_json.encode(message),
            headers=_requests.rpc_headers(connect.UNARY_JSON, user, timeout_s),
            request_timeout=request_timeout,
        )
        if response.status_code != 200:
            raise _requests.rpc_error(response.status_code, response.content)
        return proto_json.decode(answer, response.content)

    async def stream(
        self,
        rpc: Rpc,
        message: Message,
        answer: type[M],
        *,
        user: str | None = None,
        timeout_s: float | None = None,
        request_timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> MessageStream[M]:
        """Call a method of the daemon that answers with a stream.

        Args:
            rpc: The method.
            message: The request.
            answer: Class of the streamed messages.
            user: User of the sandbox; None for its default.
            timeout_s: Seconds for the whole stream, kept by the daemon; None for no limit.
            request_timeout: Seconds until the server has to take the request.
            headers: Further headers.

        Raises:
            ClocheError: The daemon refused; the class says why.
        """
        connect_s = self.client.connection.timeout_s(request_timeout)
        response = await self.open(
            "POST",
            rpc.path,
            content=connect.encode_envelope(0, proto_json.encode(message)),
            headers={**_requests.rpc_headers(connect.STREAM_JSON, user, timeout_s), **(headers or {})},
            timeout=httpx.Timeout(connect_s, read=_requests.STREAM_SILENCE_S),
        )
        if response.status_code != 200:
            try:
                body = await response.aread()
            finally:
                await response.aclose()
            raise _requests.rpc_error(response.status_code, body)
        return MessageStream(self, response, answer)

    async def is_running(self, request_timeout: float | None = None) -> bool:
        """Ask the sandbox's daemon whether it lives.

        Raises:
            Unavailable: The server cannot be reached.
            DeadlineExceeded: No answer in time.
        """
        request = self.client.http.build_request(
            "GET",
            f"{self.client.connection.sandbox_url}/health",
            headers=_requests.sandbox_headers(self.record, ENVD_PORT),
            timeout=self.client.connection.timeout_s(request_timeout),
        )
        response = await self.client.send(request)
        if response.status_code == 502:
            return False
        if not response.is_success:
            raise _requests.api_error(response.status_code, response.content)
        return True

    async def explain(self, error: Exception) -> ClocheError:
        """Return what a lost connection means: that the sandbox has ended, or that the way is broken."""
        if isinstance(error, httpx.TimeoutException):
            return DeadlineExceeded("no answer in time")
        try:
            running = await self.is_running(request_timeout=5.0)
        except ClocheError:
            return error if isinstance(error, ClocheError) else Unavailable(f"connection lost: {error}")
        if not running:
            return SandboxNotRunning("the sandbox was killed or reached its end of life during the request")
        return error if isinstance(error, ClocheError) else Unavailable(f"connection lost: {error}")


class MessageStream(Generic[M]):
    """The messages of a streamed answer. Closing it early does not stop what the daemon does."""

    def __init__(self, session: Session, response: httpx.Response, answer: type[M]) -> None:
        """Read the open answer as messages of a class."""
        self._response = response
        # The reader does not know this object: without a ring, an abandoned stream ends when its last user
        # lets go of it, not in a garbage collection, which may run while this thread has the pool locked.
        self._messages = _read(session, response, answer)

    def __aiter__(self) -> AsyncIterator[M]:
        return self

    async def __anext__(self) -> M:
        return await self._messages.__anext__()

    def header(self, name: str) -> str | None:
        """A header of the answer."""
        return self._response.headers.get(name)

    async def aclose(self) -> None:
        """Hang up."""
        await self._response.aclose()


async def _read(session: Session, response: httpx.Response, answer: type[M]) -> AsyncIterator[M]:
    decoder = connect.EnvelopeDecoder(_requests.MAX_MESSAGE_BYTES)
    try:
        async for chunk in response.aiter_bytes():
            for envelope in decoder.feed(chunk):
                if not envelope.is_end:
                    yield proto_json.decode(answer, envelope.data)
                    continue
                error = connect.read_end_stream(envelope.data)
                if error is not None:
                    raise error
                return
    except (httpx.TransportError, httpx.StreamError) as error:
        raise await session.explain(error) from error
    finally:
        await response.aclose()
    raise await session.explain(Unavailable("the stream was cut off"))
