"""A supervisor in a process of its own, whose processes answer just enough to be taken for ready.

`python -m tests.unit.cli.stub_server STATE`: each process leaves `<name>.json` there, the supervisor `ready`.
"""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import msgspec

from cloche_server import link
from cloche_server.cli import component, serve
from cloche_server.cli.component import Inheritance
from cloche_server.cli.supervisor import Supervisor
from cloche_server.config import Config
from cloche_server.node.runtime_tree import RuntimeTree
from cloche_wire.errors import Unavailable


class Seen(msgspec.Struct):
    """What a process finds when it begins."""

    pid: int
    group: int
    descriptors: dict[int, str]
    """Number -> what it is."""
    caught: list[str]
    """Signals that a function of Python's handles."""


async def _node(config: Config) -> None:
    async def handle(method: str, _: msgspec.Raw) -> link.Answer:
        if method == "drain":
            (config.state_dir / "drained").touch()
        return link.Answer({})

    listener = link.listen(config.node_socket, owner_uid=os.geteuid())
    with listener:
        await link.serve(listener, handle)


async def _edge(listener: socket.socket) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, sock=listener)
    await server.serve_forever()


def _look() -> Seen:
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the listing's own descriptor is among them
        path = Path("/proc/self/fd", name)
        if path.exists():
            found[int(name)] = str(path.readlink())
    caught = [number.name for number in signal.Signals if callable(signal.getsignal(number))]
    return Seen(os.getpid(), os.getpgid(0), found, caught)


def run(name: str, inherited: Inheritance) -> int:
    """Stand in for `component.run`."""
    state = inherited.config.state_dir
    staged = state / f"{name}.new"
    staged.write_bytes(msgspec.json.encode(_look()))
    staged.replace(state / f"{name}.json")
    if (state / f"{name}-cannot-run").exists():
        print("no such device", file=sys.stderr)
        return component.CANNOT_RUN
    print(f"{name} runs", file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    match name:
        case "node":
            asyncio.run(_node(inherited.config))
        case "edge":
            asyncio.run(_edge(inherited.listener))
        case _:
            signal.pause()
    return 0


def main() -> None:
    """Supervise until told to end; a refusal is the last line, and the status 1."""
    config = Config(state=sys.argv[1])
    # Inheritable, to see that a fork hands it down all the same unless it is closed.
    secret = os.open(config.state_dir / "secret", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(secret, True)
    with serve.listen("127.0.0.1", 0) as listener:
        inheritance = Inheritance(os.getpid(), config, listener, RuntimeTree(config.state_dir / "tree"))
        supervisor = Supervisor(inheritance, config.state_dir / "log", run)
        try:
            supervisor.run((config.state_dir / "ready").touch)
        except Unavailable as error:
            sys.exit(error.message)


if __name__ == "__main__":
    main()
