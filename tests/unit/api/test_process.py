"""The api as a process of its own: it answers on its socket and ends when it is told to."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import msgspec
import pytest

from cloche_server.config import Config
from cloche_server.store.first_key import ensure_first_key

PROGRAM = """
import sys, msgspec
from cloche_server.api import app
from cloche_server.config import Config
config = msgspec.json.decode(sys.argv[1], type=Config)
listener = app.listen(config)
print("listening", flush=True)
app.run(config, listener)
"""


@pytest.fixture
def process(config: Config) -> Iterator[subprocess.Popen[bytes]]:
    config.run_dir.mkdir()
    command = [sys.executable, "-c", PROGRAM, msgspec.json.encode(config).decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"listening\n"
        yield started
        started.kill()


def client_of(config: Config, key: str) -> httpx.Client:
    transport = httpx.HTTPTransport(uds=str(config.api_socket))
    headers = {"X-API-KEY": key}
    return httpx.Client(transport=transport, base_url="http://api.test", headers=headers, timeout=30)


def test_it_serves_without_a_node_and_ends_on_sigterm(
    config: Config, process: subprocess.Popen[bytes]
) -> None:
    key = ensure_first_key(config)
    assert key is not None
    with client_of(config, key) as client:
        assert client.get("/health").status_code == 204
        assert client.get("/v2/sandboxes").json() == []
        answer = client.post("/v2/sandboxes", json={"templateID": "base"})
        assert (answer.status_code, answer.headers["should-retry"]) == (503, "false")
        assert client.get("/v2/sandboxes").json() == []
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
