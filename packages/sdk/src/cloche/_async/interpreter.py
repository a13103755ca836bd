"""Running code in the kernels of a sandbox."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Any

import httpx

from cloche import _requests
from cloche._async.client import Session
from cloche._callbacks import AsyncCallback, deliver_async
from cloche._requests import INTERPRETER_PORT
from cloche.errors import DeadlineExceeded, InvalidArgument
from cloche.models import Context
from cloche_wire.execution import (
    EndOfExecution,
    Event,
    Execution,
    ExecutionError,
    OutputMessage,
    Result,
    parse_event,
)
from cloche_wire.ndjson import LineDecoder

DEFAULT_TIMEOUT_S = 300.0


class AsyncCodeInterpreter:
    """The part of a sandbox that runs code, in contexts that keep their state."""

    _session: Session

    async def run_code(
        self,
        code: str,
        language: str | None = None,
        context: Context | None = None,
        on_stdout: AsyncCallback[OutputMessage] | None = None,
        on_stderr: AsyncCallback[OutputMessage] | None = None,
        on_result: AsyncCallback[Result] | None = None,
        on_error: AsyncCallback[ExecutionError] | None = None,
        envs: Mapping[str, str] | None = None,
        timeout: float | None = None,
        request_timeout: float | None = None,
    ) -> Execution:
        """Run code and gather what it prints and displays; its exception is a result, not an error.

        Args:
            code: The code; variables, imports and functions of earlier runs in the context are there.
            language: Language of the default context to use; not together with `context`.
            context: Where to run.
            on_stdout: Called with each piece of stdout.
            on_stderr: Called with each piece of stderr.
            on_result: Called with each displayed value.
            on_error: Called with the exception of the code.
            envs: Variables for this run alone.
            timeout: Seconds for the run, 300 by default, 0 for no limit. The code is interrupted when they
                are over; that is noticed at the latest with the next sign of life, every 5 seconds.
            request_timeout: Seconds until the server has to take the request.

        Raises:
            DeadlineExceeded: The run's time was over.
            NotFound: There is no such context.
            SandboxNotRunning: The sandbox has ended.
        """
        if language and context:
            raise InvalidArgument(
                "language and context given", hint="a context has a language already; give one"
            )
        limit_s = DEFAULT_TIMEOUT_S if timeout is None else timeout or None
        body = {
            "code": code,
            "context_id": context.id if context else None,
            "language": language,
            "env_vars": dict(envs) if envs else None,
        }
        execution = Execution()
        callbacks = (on_stdout, on_stderr, on_result, on_error)
        response = await self._open_execution(body, limit_s, request_timeout)
        over_at = None if limit_s is None else monotonic() + limit_s
        decoder = LineDecoder(_requests.MAX_LINE_BYTES)
        try:
            async for chunk in response.aiter_bytes():
                for line in decoder.feed(chunk):
                    event = parse_event(line)
                    if event is not None:
                        await _apply(execution, event, *callbacks)
                    if isinstance(event, EndOfExecution):
                        return execution
                if over_at is not None and monotonic() > over_at:
                    raise _time_is_over()
        except httpx.ReadTimeout as error:
            raise _time_is_over() from error
        except (httpx.TransportError, httpx.StreamError) as error:
            raise await self._session.explain(error) from error
        finally:
            await response.aclose()
        return execution

    async def create_code_context(
        self, cwd: str | None = None, language: str | None = None, request_timeout: float | None = None
    ) -> Context:
        """Start a kernel with a state of its own.

        Args:
            cwd: Folder it starts in; None for the interpreter's default.
            language: Its language; None for Python.
            request_timeout: Seconds for the request.
        """
        given = {"cwd": cwd, "language": language}
        body = {name: text for name, text in given.items() if text}
        response = await self._call("POST", "/contexts", body, request_timeout)
        return _context(response.json())

    async def list_code_contexts(self, request_timeout: float | None = None) -> list[Context]:
        """Return all contexts."""
        response = await self._call("GET", "/contexts", None, request_timeout)
        return [_context(item) for item in response.json()]

    async def remove_code_context(self, context: Context | str, request_timeout: float | None = None) -> None:
        """End a context and its kernel.

        Raises:
            NotFound: There is no such context.
        """
        await self._call("DELETE", f"/contexts/{_id(context)}", None, request_timeout)

    async def restart_code_context(
        self, context: Context | str, request_timeout: float | None = None
    ) -> None:
        """Give a context a fresh kernel; its state is lost.

        Raises:
            NotFound: There is no such context.
        """
        await self._call("POST", f"/contexts/{_id(context)}/restart", {}, request_timeout)

    async def _open_execution(
        self, body: dict[str, Any], limit_s: float | None, request_timeout: float | None
    ) -> httpx.Response:
        connect_s = self._session.client.connection.timeout_s(request_timeout)
        response = await self._session.open(
            "POST",
            "/execute",
            port=INTERPRETER_PORT,
            content=_requests.json_body(body),
            headers={"Content-Type": "application/json"},
            timeout=httpx.Timeout(limit_s, connect=connect_s),
        )
        if response.is_success:
            return response
        try:
            text = await response.aread()
        finally:
            await response.aclose()
        raise _requests.api_error(response.status_code, text)

    async def _call(
        self, method: str, path: str, body: dict[str, Any] | None, request_timeout: float | None
    ) -> httpx.Response:
        response = await self._session.request(
            method,
            path,
            port=INTERPRETER_PORT,
            content=None if body is None else _requests.json_body(body),
            headers={"Content-Type": "application/json"},
            request_timeout=request_timeout,
        )
        if not response.is_success:
            raise _requests.api_error(response.status_code, response.content)
        return response


async def _apply(
    execution: Execution,
    event: Event,
    on_stdout: AsyncCallback[OutputMessage] | None,
    on_stderr: AsyncCallback[OutputMessage] | None,
    on_result: AsyncCallback[Result] | None,
    on_error: AsyncCallback[ExecutionError] | None,
) -> None:
    execution.apply(event)
    match event:
        case OutputMessage():
            await deliver_async(on_stderr if event.error else on_stdout, event)
        case Result():
            await deliver_async(on_result, event)
        case ExecutionError():
            await deliver_async(on_error, event)
        case _:
            pass


def _context(fields: dict[str, Any]) -> Context:
    return Context(str(fields["id"]), str(fields["language"]), str(fields["cwd"]))


def _id(context: Context | str) -> str:
    return _requests.path_part(context.id if isinstance(context, Context) else context)


def _time_is_over() -> DeadlineExceeded:
    return DeadlineExceeded(
        "the run's time is over", hint="pass a larger timeout to run_code, or 0 for no limit"
    )
