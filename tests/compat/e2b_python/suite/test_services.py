"""What is a command plus a port: background services behind `get_host`, the git helper, an MCP gateway."""

import base64
import hashlib
import json
import os
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from e2b_code_interpreter import CommandExitException, Sandbox

WEB_SERVICE = Path(__file__).parents[3] / "support" / "web_service.py"
PORT = 6080
GATEWAY = """#!/usr/bin/python3
# The gateway of E2B's template in small: goes into the background, leaves its token, answers its bearer.
import http.server, json, os, pathlib, sys

token, config = os.environ["GATEWAY_ACCESS_TOKEN"], json.loads(sys.argv[sys.argv.index("--config") + 1])

class Mcp(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        allowed = self.path == "/mcp" and self.headers["Authorization"] == f"Bearer {token}"
        body = json.dumps({"servers": sorted(config)}).encode() if allowed else b"{}"
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

server = http.server.HTTPServer(("127.0.0.1", 50005), Mcp)
folder = pathlib.Path("/etc/mcp-gateway")
folder.mkdir()
(folder / ".token").write_text(token)
if os.fork() == 0:
    os.setsid()
    server.serve_forever()
"""


def _server_address() -> tuple[str, int]:
    url = httpx.URL(os.environ["E2B_API_URL"])
    return url.host, url.port or 80


def _ask(host: str, path: str, method: str = "GET", **fields: str) -> httpx.Response:
    """A request to the public name of a port; the name leads to this machine in any case."""
    address, port = _server_address()
    url = f"http://{address}:{port}{path}"
    return httpx.request(method, url, headers={"Host": host, **fields}, trust_env=False, timeout=30)


@pytest.fixture
def service(sandbox: Sandbox) -> Iterator[str]:
    """A page, events and a WebSocket on one port, as a desktop's viewer has them: the public name."""
    sandbox.files.write("/tmp/service.py", WEB_SERVICE.read_text())
    command = sandbox.commands.run(f"python3 /tmp/service.py {PORT}", background=True, timeout=0)
    assert next(iter(command))[0] == "ready\n"
    command.disconnect()
    yield sandbox.get_host(PORT)
    assert sandbox.commands.kill(command.pid)


def test_a_background_service_answers_on_its_public_name(sandbox: Sandbox, service: str) -> None:
    assert service == f"{PORT}-{sandbox.sandbox_id}.{os.environ['E2B_DOMAIN']}"
    assert _ask(service, "/host").text == service
    assert "<title>service</title>" in _ask(service, "/").text
    assert _ask(service, "/upload", "PUT", **{"Content-Length": "0"}).text == "0 bytes"


def test_a_background_service_speaks_websocket_on_its_public_name(service: str) -> None:
    key = base64.b64encode(os.urandom(16))
    head = f"GET /echo HTTP/1.1\r\nHost: {service}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    head += f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key.decode()}\r\n\r\n"
    with socket.create_connection(_server_address(), timeout=30) as connection:
        stream = connection.makefile("rwb")
        stream.write(head.encode())
        stream.flush()
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += stream.readline()
        digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        assert answer.startswith(b"HTTP/1.1 101")
        assert b"Sec-WebSocket-Accept: " + base64.b64encode(digest) in answer
        for text in (b"one", b"two"):
            mask = os.urandom(4)
            masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(text))
            stream.write(bytes([0x81, 0x80 | len(text)]) + mask + masked)
            stream.flush()
            assert stream.read(2 + len(text)) == bytes([0x81, len(text)]) + text
        stream.close()


def test_a_service_that_was_killed_is_gone_from_its_port(sandbox: Sandbox) -> None:
    answer = _ask(sandbox.get_host(PORT + 1), "/")
    assert (answer.status_code, answer.json()["port"]) == (502, PORT + 1)
    assert "port is not open" in answer.json()["message"]


def test_git_commits_pushes_and_clones(own_sandbox: Sandbox) -> None:
    git = own_sandbox.git
    git.init("/home/user/origin.git", bare=True)
    git.init("/home/user/work", initial_branch="main")
    git.configure_user("A User", "a@example.com")
    own_sandbox.files.write("/home/user/work/it's a file.txt", "one")
    assert not git.status("/home/user/work").is_clean
    git.add("/home/user/work")
    git.commit("/home/user/work", 'it\'s the "first"')
    git.remote_add("/home/user/work", "origin", "/home/user/origin.git")
    git.push("/home/user/work", remote="origin", branch="main")
    git.create_branch("/home/user/work", "more")
    assert sorted(git.branches("/home/user/work").branches) == ["main", "more"]
    git.clone("/home/user/origin.git", path="/home/user/copy", branch="main")
    assert git.status("/home/user/copy").is_clean
    assert own_sandbox.files.read("/home/user/copy/it's a file.txt") == "one"
    with pytest.raises(CommandExitException, match="does not exist"):
        git.clone("/home/user/none.git", path="/home/user/nowhere")


def test_an_mcp_gateway_starts_as_the_client_starts_it(own_sandbox: Sandbox) -> None:
    """The steps of `Sandbox.create(mcp=...)`, which needs a template that has the program, one by one."""
    own_sandbox.files.write("/usr/local/bin/mcp-gateway", GATEWAY, user="root")
    own_sandbox.commands.run("chmod 755 /usr/local/bin/mcp-gateway", user="root")
    config = shlex.quote(json.dumps({"it's one": {"key": "v"}}))
    started = own_sandbox.commands.run(
        f"mcp-gateway --config {config}", user="root", envs={"GATEWAY_ACCESS_TOKEN": "the-token"}
    )
    assert started.exit_code == 0
    assert own_sandbox.get_mcp_url() == f"https://{own_sandbox.get_host(50005)}/mcp"
    assert own_sandbox.get_mcp_token() == "the-token"
    host = own_sandbox.get_host(50005)
    allowed = _ask(host, "/mcp", "POST", Authorization=f"Bearer {own_sandbox.get_mcp_token()}")
    assert allowed.json() == {"servers": ["it's one"]}
    assert _ask(host, "/mcp", "POST").status_code == 401


def test_a_gateway_that_is_not_there_fails_with_the_words_of_the_shell(sandbox: Sandbox) -> None:
    with pytest.raises(CommandExitException, match="mcp-gateway") as failed:
        sandbox.commands.run("mcp-gateway --config '{}'", user="root")
    assert failed.value.exit_code == 127
