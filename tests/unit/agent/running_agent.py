"""The agent as a child process behind Unix sockets, and a small client of it."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

from tests.support import own_network
from tests.support.waiting import until

import cloche_agent.kernels
from cloche_wire import connect

TOKEN = "the-token-of-this-sandbox"
STREAM_DEADLINE_S = 20


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class StreamError(Exception):
    """The error in the last envelope of a stream."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("agent", timeout=STREAM_DEADLINE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(STREAM_DEADLINE_S)
        self.sock.connect(str(self._path))


class Stream:
    """One open server stream: messages as they come."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response

    def header(self, name: str) -> str | None:
        return self._response.headers[name]

    def __iter__(self) -> Generator[dict[str, Any], None, None]:
        while True:
            head = self._response.read(5)
            if len(head) < 5:
                raise ConnectionError("stream ends without its last envelope")
            body = json.loads(self._response.read(int.from_bytes(head[1:], "big")))
            if not head[0] & connect.FLAG_END_STREAM:
                yield body
                continue
            if "error" in body:
                raise StreamError(body["error"]["code"], body["error"]["message"])
            return

    def close(self) -> None:
        self._response.close()
        self._connection.close()


class Agent:
    def __init__(self, socket_path: Path, pid: int) -> None:
        self.socket_path = socket_path
        self.pid = pid
        self.token: str | None = TOKEN

    def connection(self) -> http.client.HTTPConnection:
        return _UnixConnection(self.socket_path)

    def request(self, method: str, target: str, body: Any = None, **headers: str) -> Answer:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token is not None:
            fields.setdefault("X-Access-Token", self.token)
        with contextlib.closing(self.connection()) as connection:
            connection.request(method, target, body, fields, encode_chunked=hasattr(body, "__next__"))
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())

    def initialise(self, workdir: Path) -> None:
        settings = {
            "accessToken": TOKEN,
            "envVars": {"FROM_SANDBOX": "1", "OVERRIDDEN": "sandbox"},
            "defaultUser": own_name(),
            "defaultWorkdir": str(workdir),
            "sandboxId": "isandbox",
            "templateId": "template",
        }
        assert self.request("POST", "/init", json.dumps(settings)).status == 204

    def call(self, method: str, message: dict[str, Any], **headers: str) -> Answer:
        return self.request(
            "POST", f"/{method}", json.dumps(message), Content_Type=connect.UNARY_JSON, **headers
        )

    def stream(self, method: str, *messages: dict[str, Any], **headers: str) -> Stream:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        body = b"".join(connect.encode_envelope(0, json.dumps(message).encode()) for message in messages)
        connection = self.connection()
        connection.request(
            "POST",
            f"/{method}",
            body,
            {"Content-Type": connect.STREAM_JSON, "X-Access-Token": TOKEN, **fields},
        )
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return Stream(connection, response)

    def start(self, *argv: str, headers: dict[str, str] | None = None, **fields: Any) -> Stream:
        config = {"cmd": argv[0], "args": list(argv[1:]), **fields.pop("process", {})}
        return self.stream("process.Process/Start", {"process": config, **fields}, **(headers or {}))

    def run(self, *argv: str, headers: dict[str, str] | None = None, **fields: Any) -> Result:
        return collect(self.start(*argv, headers=headers, **{"stdin": False, **fields}))


class Result(NamedTuple):
    pid: int
    stdout: bytes
    stderr: bytes
    pty: bytes
    end: dict[str, Any]


def collect(stream: Stream) -> Result:
    """Everything of one process's stream; fails when anything comes before the start or after the end."""
    pid = 0
    end: dict[str, Any] = {}
    output = {"stdout": bytearray(), "stderr": bytearray(), "pty": bytearray()}
    with contextlib.closing(stream):
        for message in stream:
            event = message["event"]
            assert not end, f"after the end: {event}"
            if "start" in event:
                pid = event["start"]["pid"]
            assert pid, f"before the start: {event}"
            for name, data in event.get("data", {}).items():
                output[name] += base64.b64decode(data)
            end = event.get("end", end)
    return Result(pid, bytes(output["stdout"]), bytes(output["stderr"]), bytes(output["pty"]), end)


class Way(NamedTuple):
    """Addresses of a connection."""

    client: str
    agent: str


WITHIN = Way("127.0.0.1", "127.0.0.1")
FROM_OUTSIDE = Way("198.18.0.1", "198.18.0.2")
"""To an agent that is PID 1, for which "inside" is where both ends of a connection are."""


class PortAgent(Agent):
    """One that listens on ports of its own."""

    def __init__(self, envd: int, interpreter: int, folder: Path, pid: int, way: Way) -> None:
        super().__init__(folder, pid)
        self.envd = envd
        self.interpreter = interpreter
        self.way = way

    def connection(self) -> http.client.HTTPConnection:
        return self._connection(self.envd)

    def _connection(self, port: int) -> http.client.HTTPConnection:
        client, agent = self.way
        return http.client.HTTPConnection(agent, port, timeout=STREAM_DEADLINE_S, source_address=(client, 0))

    def interpret(
        self, method: str, target: str, body: str | None = None, token: str | None = None
    ) -> tuple[int, bytes]:
        """A request to the code interpreter."""
        with contextlib.closing(self._connection(self.interpreter)) as connection:
            connection.request(method, target, body, {"X-Access-Token": token} if token else {})
            answer = connection.getresponse()
            return answer.status, answer.read()


@contextlib.contextmanager
def agent_on_ports(folder: Path, *, is_pid_1: bool = False) -> Generator[PortAgent]:
    """An agent of its own with all kernels, without a token yet; ends with it.

    As PID 1 it is in a network of its own, and so is the calling thread until it ends.
    """
    with contextlib.ExitStack() as stack:
        inside: list[str] = []
        if is_pid_1:
            stack.enter_context(own_network.entered())
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            for address in FROM_OUTSIDE:
                subprocess.run(["ip", "addr", "add", f"{address}/32", "dev", "lo"], check=True)
            inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "--"]
        yield from _on_ports(folder, inside)


def _on_ports(folder: Path, inside: list[str]) -> Generator[PortAgent]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = one.getsockname()[1], other.getsockname()[1]
    child = subprocess.Popen(
        [*inside, sys.executable, "-m", "cloche_agent", "--envd-port", str(ports[0]), "--interpreter-port",
         str(ports[1]), "--kernels", str(Path(cloche_agent.kernels.__file__).parent)],
    )  # fmt: skip
    try:
        for port in ports:
            until(functools.partial(_listens, port), within_s=STREAM_DEADLINE_S, what=f"port {port}")
        yield PortAgent(*ports, folder, child.pid, FROM_OUTSIDE if inside else WITHIN)
    finally:
        child.send_signal(signal.SIGKILL if inside else signal.SIGTERM)  # unshare takes its child along
        assert child.wait(10) == (-signal.SIGKILL if inside else 0)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    return listener


@contextlib.contextmanager
def running_agent(folder: Path, *, initialise: bool = True) -> Generator[Agent]:
    """An agent of its own; ends with it."""
    envd, interpreter = _listener(folder / "envd.sock"), _listener(folder / "interpreter.sock")
    with envd, interpreter:
        child = subprocess.Popen(
            [sys.executable, "-m", "cloche_agent", "--envd-fd", str(envd.fileno()), "--interpreter-fd",
             str(interpreter.fileno()), "--kernels", str(folder)],
            pass_fds=(envd.fileno(), interpreter.fileno()),
        )  # fmt: skip
    try:
        agent = Agent(folder / "envd.sock", child.pid)
        if initialise:
            agent.initialise(folder)
        yield agent
    finally:
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0


def own_name() -> str:
    lines = (line.split(":") for line in Path("/etc/passwd").read_text().splitlines())
    return next(fields[0] for fields in lines if fields[2] == str(os.geteuid()))
