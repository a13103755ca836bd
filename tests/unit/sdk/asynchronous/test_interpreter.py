"""Running code."""

from __future__ import annotations

import httpx
import pytest
from tests.fakes.sandbox_server import GONE, SandboxServer, body_of, lines

from cloche import Context, DeadlineExceeded, InvalidArgument, SandboxNotRunning
from cloche._async import interpreter
from cloche._async.sandbox import AsyncSandbox
from cloche.errors import NotFound
from cloche_wire.execution import (
    EndOfExecution,
    ExecutionCount,
    ExecutionError,
    KeepAlive,
    OutputMessage,
    Result,
)

pytestmark = pytest.mark.anyio

EXECUTE = "POST /execute"


async def test_a_run_gives_results_logs_and_the_error(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    error = ExecutionError("ZeroDivisionError", "division by zero", "trace")
    server.on(
        EXECUTE,
        lines(
            ExecutionCount(4),
            OutputMessage("out"),
            OutputMessage("err", error=True),
            Result(text="2", is_main_result=True),
            KeepAlive(),
            error,
            EndOfExecution(),
        ),
    )
    seen: list[object] = []
    add = seen.append
    execution = await sandbox.run_code("1 + 1", on_stdout=add, on_stderr=add, on_result=add, on_error=add)
    assert (execution.text, execution.error, execution.execution_count) == ("2", error, 4)
    assert (execution.logs.stdout, execution.logs.stderr) == (["out"], ["err"])
    assert [str(item) for item in seen[:2]] == ["out", "err"]
    assert seen[2:] == [execution.results[0], error]


async def test_a_run_says_where_and_with_what(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    server.on(EXECUTE, lines(EndOfExecution()))
    await sandbox.run_code("x", context=Context("c1", "python", "/"), envs={"A": "b"})
    (request,) = server.requests
    assert request.headers["e2b-sandbox-port"] == "49999"
    assert request.headers["x-access-token"] == "token-of-iabc"
    assert body_of(request) == {"code": "x", "context_id": "c1", "language": None, "env_vars": {"A": "b"}}


async def test_language_and_context_exclude_each_other(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    with pytest.raises(InvalidArgument):
        await sandbox.run_code("x", language="python", context=Context("c1", "python", "/"))
    assert server.requests == []


async def test_a_run_that_lasts_too_long_is_given_up(
    server: SandboxServer, sandbox: AsyncSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 5.0, 11.0])
    monkeypatch.setattr(interpreter, "monotonic", lambda: next(times))

    def two_signs_of_life(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Pieces([b'{"type":"keepalive"}\n', b'{"type":"keepalive"}\n']))

    server.on(EXECUTE, two_signs_of_life)
    with pytest.raises(DeadlineExceeded, match="run_code"):
        await sandbox.run_code("while True: pass", timeout=10)


async def test_silence_for_the_whole_time_is_the_same(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    server.on(EXECUTE, lambda request: httpx.Response(200, stream=Pieces([], httpx.ReadTimeout("silence"))))
    with pytest.raises(DeadlineExceeded, match="run_code"):
        await sandbox.run_code("while True: pass", timeout=1)
    assert server.requests[0].extensions["timeout"]["read"] == 1


async def test_a_run_cut_by_the_end_of_the_sandbox_says_so(
    server: SandboxServer, sandbox: AsyncSandbox
) -> None:
    server.on(
        EXECUTE, lambda request: httpx.Response(200, stream=Pieces([], httpx.RemoteProtocolError("cut")))
    )
    server.on("GET /health", httpx.Response(502, json=GONE))
    with pytest.raises(SandboxNotRunning, match="killed"):
        await sandbox.run_code("x")


async def test_an_unknown_context_is_not_found(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    server.on(EXECUTE, httpx.Response(404, text="Context c9 not found"))
    with pytest.raises(NotFound, match="Context c9 not found"):
        await sandbox.run_code("x", context=Context("c9", "python", "/"))


async def test_contexts_are_made_listed_restarted_and_ended(
    server: SandboxServer, sandbox: AsyncSandbox
) -> None:
    fields = {"id": "c1", "language": "python", "cwd": "/tmp"}
    server.on("POST /contexts", httpx.Response(200, json=fields))
    server.on("GET /contexts", httpx.Response(200, json=[fields]))
    server.on("POST /contexts/c1/restart", httpx.Response(200, text="null"))
    server.on("DELETE /contexts/c1", httpx.Response(200, text="null"))
    context = await sandbox.create_code_context(cwd="/tmp")
    assert body_of(server.requests[0]) == {"cwd": "/tmp"}
    assert await sandbox.list_code_contexts() == [context] == [Context("c1", "python", "/tmp")]
    await sandbox.restart_code_context(context)
    await sandbox.remove_code_context("c1")
    assert len(server.requests) == 4


class Pieces(httpx.AsyncByteStream):
    """A body that comes in pieces and may end in an error."""

    def __init__(self, pieces: list[bytes], error: Exception | None = None) -> None:
        self._pieces = pieces
        self._error = error

    async def __aiter__(self):  # noqa: ANN204 - an iterator of bytes
        for piece in self._pieces:
            yield piece
        if self._error is not None:
            raise self._error

    async def aclose(self) -> None:
        self._pieces = []
