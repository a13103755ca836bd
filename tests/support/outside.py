"""The world outside of sandboxes, played by a network namespace of our own: public and private hosts."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.waiting import until

PUBLIC = "203.0.113.10"
"""TEST-NET-3: public by its looks, used by nobody."""
PUBLIC_TOO = "203.0.113.20"
"""Another one, by which a policy that names the first can be told from one that names all."""
DENIED = ("10.213.0.10", "172.31.213.10", "192.168.213.10", "100.64.213.10", "169.254.213.10")
PORT = 8080
ECHO_PORT = 8081
"""Sends back what it gets."""
_OWN = "203.0.113.99"
"""Where the tests themselves connect to, to learn that all before them have been told of."""
NEAR, _FAR = "outside0", "outside1"
"""Interfaces of this machine and of that world to each other."""

_LISTENER = """
import os, socket, socketserver, sys, threading
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(4096):
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    daemon_threads = allow_reuse_address = True
    def handle_error(self, *_): pass
print('up', flush=True)
sys.stdin.readline()  # the pair of interfaces is there now
threading.Thread(target=Server(('', int(sys.argv[2])), Echo).serve_forever, daemon=True).start()
listener = socket.create_server(('0.0.0.0', int(sys.argv[1])), backlog=64)
print('listening', flush=True)
while True:
    connection, _ = listener.accept()
    print('reached', connection.getsockname()[0], flush=True)
    connection.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\noutside\\n')
    connection.close()
"""


class Outside(NamedTuple):
    """The played world; `reached` is what got through to it."""

    log: Path
    pid: int
    """A process in its namespace, for servers of its own there."""

    def reached(self, *, after: int = 0) -> list[str]:
        """Addresses that somebody has connected to until now, in order, without the first `after` of them."""
        # The kernel makes a connection before the listener knows of it. It takes them one after the other and
        # tells of each before it answers: when ours is answered, all earlier ones are in the log.
        with socket.create_connection((_OWN, PORT), timeout=10) as own:
            while own.recv(4096):
                pass
        lines = self.log.read_text().splitlines()
        found = [line.split()[1] for line in lines if line.startswith("reached")]
        return [address for address in found if address != _OWN][after:]


@contextlib.contextmanager
def played(folder: Path) -> Iterator[Outside]:
    """Make the namespace, interfaces into it, and a listener on all its addresses; remove all of it after."""
    log = folder / "outside.log"
    argv = [
        "unshare",
        "--net",
        "--kill-child",
        "--fork",
        sys.executable,
        "-c",
        _LISTENER,
        str(PORT),
        str(ECHO_PORT),
    ]
    with log.open("w") as output:
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=output)
    try:
        until(lambda: "up" in log.read_text(), within_s=10, what="the outside's process")
        pid = _child(process.pid)
        _connect(pid)
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.flush()
        until(lambda: "listening" in log.read_text(), within_s=10, what="the outside's listener")
        yield Outside(log, pid)
    finally:
        process.kill()
        process.wait(timeout=10)
        subprocess.run(["ip", "link", "del", NEAR], check=False, capture_output=True)
        assert process.stdin
        process.stdin.close()


def _connect(pid: int) -> None:
    _ip("link", "add", NEAR, "type", "veth", "peer", "name", _FAR, "netns", str(pid))
    _ip("addr", "add", "203.0.113.1/24", "dev", NEAR)
    _ip("link", "set", NEAR, "up")
    inside = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip"]
    for address in (PUBLIC, PUBLIC_TOO, _OWN, *DENIED):
        subprocess.run([*inside, "addr", "add", f"{address}/24", "dev", _FAR], check=True, timeout=10)
    subprocess.run([*inside, "link", "set", _FAR, "up"], check=True, timeout=10)
    for address in DENIED:
        _ip("route", "add", f"{address}/32", "dev", NEAR, "src", "203.0.113.1")
    subprocess.run([*inside, "route", "add", "203.0.113.1/32", "dev", _FAR], check=False, timeout=10)


def _ip(*arguments: str) -> None:
    subprocess.run(
        ["ip", *arguments], check=True, timeout=10, env=os.environ | {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}
    )


def _child(pid: int) -> int:
    """The process that unshare forked: the one in the new namespace."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0])
