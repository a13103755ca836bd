"""An interpreter service with real kernels of this environment's Python, called without HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import cloche_agent.kernels
from cloche_agent.http import Headers, Request, Response
from cloche_agent.init import Sandbox
from cloche_agent.kernels.service import InterpreterService
from cloche_agent.process.spawn import Reaper
from cloche_wire.execution import Execution, parse_event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

TOKEN = "token-of-the-sandbox"
KERNELS = Path(cloche_agent.kernels.__file__).parent
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


class Interpreter:
    """The service as a client sees it."""

    def __init__(self, service: InterpreterService, sandbox: Sandbox) -> None:
        self.service = service
        self.sandbox = sandbox
        self.was_cut = False
        """Whether connections that end from now on are ended by a checkpoint."""

    async def call(self, method: str, path: str, body: object = None, token: str | None = TOKEN) -> Response:
        pieces = [json.dumps(body).encode()] if body is not None else []

        async def receive() -> bytes:
            return pieces.pop() if pieces else b""

        headers = Headers([("X-Access-Token", token)] if token is not None else [])
        return await self.service.handle(Request(method, path, [], headers, receive, lambda: self.was_cut))

    async def stream(self, code: str, **fields: object) -> AsyncGenerator[bytes]:
        answer = await self.call("POST", "/execute", {"code": code, **fields})
        assert answer.status == 200, answer.body
        assert not isinstance(answer.body, bytes)
        return answer.body  # type: ignore[return-value]

    async def events(self, code: str, **fields: object) -> list[dict[str, Any]]:
        text = b"".join([piece async for piece in await self.stream(code, **fields)])
        assert text.endswith(b"\n")
        return [json.loads(line) for line in text.splitlines()]

    async def run(self, code: str, **fields: object) -> Execution:
        execution = Execution()
        events = await self.events(code, **fields)
        assert [event["type"] for event in events].count("end_of_execution") == 1
        assert events[-1] == {"type": "end_of_execution"}
        for event in events:
            parsed = parse_event(json.dumps(event).encode())
            assert parsed is not None
            execution.apply(parsed)
        return execution

    async def text(self, code: str, **fields: object) -> str | None:
        execution = await self.run(code, **fields)
        assert execution.error is None, execution.error
        return execution.text

    async def abandon(self, code: str, until: str, **fields: object) -> None:
        """Run code, and go away like a client whose time is over once `until` has been printed."""
        stream = await self.stream(code, **fields)
        async for piece in stream:
            if until.encode() in piece:
                break
        await stream.aclose()

    async def body(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        answer = await self.call(method, path, body)
        assert isinstance(answer.body, bytes)
        return answer.status, answer.body.decode()

    async def new_context(self, **fields: object) -> str:
        status, body = await self.body("POST", "/contexts", fields)
        assert status == 200, body
        return json.loads(body)["id"]


@asynccontextmanager
async def serving(sandbox: Sandbox, kernels: Path = KERNELS) -> AsyncIterator[Interpreter]:
    reaper = Reaper()
    reaper.install()
    service = InterpreterService(sandbox, reaper, kernels)
    try:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(service.run())
            await asyncio.sleep(0)
            yield Interpreter(service, sandbox)
            running.cancel()
    finally:
        reaper.remove()


def bound_sandbox(**env: str) -> Sandbox:
    sandbox = Sandbox()
    sandbox.apply({"accessToken": TOKEN, "envVars": {"PATH": PATH, **env}})
    return sandbox


@pytest.fixture
async def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Interpreter]:
    # No /home/user on the machine that runs the tests.
    monkeypatch.setattr("cloche_agent.kernels.service.DEFAULT_CWD", str(tmp_path))
    async with serving(bound_sandbox()) as served:
        yield served
