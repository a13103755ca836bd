"""A sandbox of a server that only answers what a test told it to."""

from __future__ import annotations

import httpx
import pytest
from tests.fakes.sandbox_server import RECORD, SandboxServer

from cloche._async import client
from cloche._async.client import Client
from cloche._async.sandbox import AsyncSandbox
from cloche._config import Connection, resolve
from cloche._requests import read_record


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> SandboxServer:
    made = SandboxServer()

    def new_http(connection: Connection) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(made), timeout=connection.request_timeout_s)

    monkeypatch.setattr(client, "new_http", new_http)
    monkeypatch.setenv("CLOCHE_API_KEY", "e2b_key")
    return made


@pytest.fixture
def sandbox(server: SandboxServer) -> AsyncSandbox:
    connection = resolve({})
    return AsyncSandbox.of(Client(connection), read_record(RECORD, connection))
