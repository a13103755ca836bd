"""The floor under the data path figures of `cloche bench`: a server that does no work.

The official client is measured against it in turn with the real server, so that what is left is the client's
own time. It answers at once, keeps nothing, starts no process: uploads are dropped, downloads and output are
the same bytes over and over, input comes back as output. Prints its port, then serves until its input ends.
"""

import base64
import json
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import BinaryIO

DATA_BYTES = 100_000_000
BLOCK = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\n" * 15625
"""A MB of lines, of which everything that is large here consists."""
FRAME_BYTES = 32_000
SANDBOX = {
    "sandboxID": "stub",
    "templateID": "stub",
    "clientID": "stub",
    "envdVersion": "0.6.13",
    "envdAccessToken": "stub",
    "domain": None,
}
CELL = b"".join(
    json.dumps(event).encode() + b"\n"
    for event in (
        {"type": "number_of_executions", "execution_count": 1},
        {"type": "result", "text": "2", "is_main_result": True},
        {"type": "end_of_execution"},
    )
)
"""What came of a cell, whichever it was."""
END = {"end": {"exitCode": 0, "exited": True, "status": "exit status 0"}}


def envelope(message: object, flags: int = 0) -> bytes:
    """One message of a Connect stream."""
    data = json.dumps(message, separators=(",", ":")).encode()
    return struct.pack(">BI", flags, len(data)) + data


def chunk(data: bytes) -> bytes:
    """One chunk of an HTTP body; an empty one ends the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(fields: dict[str, object]) -> bytes:
    """One event of a process, ready to be sent."""
    return chunk(envelope({"event": fields}))


def output(kind: str, data: bytes) -> bytes:
    """Output of a process, ready to be sent."""
    return event({"data": {kind: base64.b64encode(data).decode()}})


class Streams:
    """The streams that are open, by the id of their process or of their watch."""

    def __init__(self) -> None:
        self._ids = count(1)
        self._open: dict[int, tuple[BinaryIO, threading.Event]] = {}

    def open(self, sink: BinaryIO) -> tuple[int, threading.Event]:
        """Take one up; the event is set when it is to end."""
        ended = threading.Event()
        number = next(self._ids)
        self._open[number] = (sink, ended)
        return number, ended

    def send(self, number: int, data: bytes) -> None:
        """Send on one of them."""
        self._open[number][0].write(data)

    def end(self, number: int) -> None:
        """Let one end."""
        if number in self._open:
            self._open.pop(number)[1].set()


processes, watches = Streams(), Streams()
large_output = b"".join(
    output("stdout", BLOCK[start : start + FRAME_BYTES]) for start in range(0, len(BLOCK), FRAME_BYTES)
)
watching: list[int] = []


class Stub(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = 0
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class named it
        """Say nothing."""

    def do_GET(self) -> None:
        """A download."""
        self._head("application/octet-stream", [("Content-Length", str(DATA_BYTES))])
        for _ in range(DATA_BYTES // len(BLOCK)):
            self.wfile.write(BLOCK)

    def do_DELETE(self) -> None:
        """A sandbox is killed."""
        self.send_response(204)
        self.end_headers()

    def do_POST(self) -> None:
        """Everything else."""
        match self.path.partition("?")[0].rpartition("/")[2]:
            case "sandboxes" | "connect":
                self._read()
                self._answer(SANDBOX, 201)
            case "execute":
                self._read()
                self._head("application/json", [("Content-Length", str(len(CELL)))], data=CELL)
            case "files":
                self._upload()
            case "Start":
                self._start()
            case "WatchDir":
                self._watch()
            case "SendInput":
                self._input()
            case "SendSignal":
                processes.end(int(json.loads(self._read())["process"]["pid"]))
                self._answer({})
            case name:
                raise ValueError(name)

    def _start(self) -> None:
        request = json.loads(self._read()[5:])
        command = request["process"].get("args", [""])[-1]
        number, ended = processes.open(self.wfile)
        self._head("application/connect+json", [("Transfer-Encoding", "chunked")])
        self.wfile.write(event({"start": {"pid": number}}))
        if command.startswith("cat /"):
            for _ in range(DATA_BYTES // len(BLOCK)):
                self.wfile.write(large_output)
        elif "pty" not in request and command != "cat":
            self.wfile.write(output("stdout", b"1\n"))
        if command.startswith("cat /") or command == "echo 1":
            processes.end(number)
        ended.wait()
        self.wfile.write(event(END) + chunk(envelope({}, 2)) + chunk(b""))

    def _input(self) -> None:
        request = json.loads(self._read())
        (kind, data), *_ = request["input"].items()
        kind = "stdout" if kind == "stdin" else kind
        processes.send(int(request["process"]["pid"]), output(kind, base64.b64decode(data)))
        self._answer({})

    def _watch(self) -> None:
        self._read()
        number, ended = watches.open(self.wfile)
        self._head("application/connect+json", [("Transfer-Encoding", "chunked")])
        self.wfile.write(chunk(envelope({"start": {}})))
        watching.append(number)
        ended.wait()

    def _upload(self) -> None:
        left = int(self.headers["Content-Length"])
        small = self.rfile.read(left) if left < len(BLOCK) else b""
        left -= len(small)
        room = memoryview(bytearray(1 << 20))
        while left:
            left -= self.rfile.readinto(room[:left])
        for number in watching if b"watched" in small else ():
            name = small.partition(b"watched/")[2].partition(b'"')[0].decode()
            watches.send(number, chunk(envelope({"filesystem": {"name": name, "type": "EVENT_TYPE_CREATE"}})))
        self._answer([{"name": "x", "path": "/x", "type": "file"}])

    def _read(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        pieces: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _answer(self, value: object, status: int = 200) -> None:
        data = b"" if value is None else json.dumps(value).encode()
        self._head("application/json", [("Content-Length", str(len(data)))], status, data)

    def _head(self, kind: str, fields: list[tuple[str, str]], status: int = 200, data: bytes = b"") -> None:
        lines = [
            f"HTTP/1.1 {status} OK",
            f"Content-Type: {kind}",
            *(f"{name}: {value}" for name, value in fields),
        ]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode() + data)


class Server(ThreadingHTTPServer):
    """As many connections as there are streams."""

    request_queue_size = 512
    daemon_threads = True


def main() -> None:
    """Serve until the input ends."""
    with Server(("127.0.0.1", 0), Stub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_port, flush=True)
        sys.stdin.read()
        server.shutdown()


main()
