"""Stands in for `cloche_server.cli.component`: answers just enough to be taken for ready."""

import asyncio
import os
import signal
import socket
import sys

import msgspec

from cloche_server import link
from cloche_server.cli import component
from cloche_server.config import Config


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


def main() -> int:
    name = sys.argv[1]
    config = msgspec.json.decode(os.environ[component.CONFIG_VARIABLE], type=Config)
    (config.state_dir / f"{name}.pid").write_text(str(os.getpid()))
    if (config.state_dir / f"{name}-cannot-run").exists():
        print("no such device", file=sys.stderr)
        return component.CANNOT_RUN
    print(f"{name} runs", file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    match name:
        case "node":
            asyncio.run(_node(config))
        case "edge":
            asyncio.run(_edge(socket.socket(fileno=int(os.environ[component.LISTENER_VARIABLE]))))
        case _:
            signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
