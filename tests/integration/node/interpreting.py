"""Sandboxes of a node, spoken to as the edge does, and what is kept of them on disk."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from tests.integration.node.conftest import NodeProcess

from cloche_server import link
from cloche_server.ids import new_access_token
from cloche_server.node import messages


class Inside:
    """One sandbox, and its interpreter spoken to as the edge does."""

    def __init__(self, node: NodeProcess, sandbox_id: str, token: str) -> None:
        self.node = node
        self.sandbox_id = sandbox_id
        self.token = token

    async def run(self, code: str) -> str:
        """What the code prints."""
        routes = await anext(link.subscribe(self.node.config.edge_socket, "routes", list[messages.Route]))
        (route,) = [found for found in routes if found.sandbox_id == self.sandbox_id]  # type: ignore[union-attr]
        address: str = route.interpreter_address  # type: ignore[union-attr]
        if address.startswith("/"):
            reader, writer = await asyncio.open_unix_connection(address)
        else:
            host, _, port = address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps({"code": code}).encode()
        head = f"POST /execute HTTP/1.1\r\nHost: a\r\nX-Access-Token: {self.token}\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await reader.read()).decode()
        writer.close()
        lines = [json.loads(line) for line in answer.splitlines() if line.startswith("{")]
        assert not [line for line in lines if line["type"] == "error"], answer
        return "".join(line["text"] for line in lines if line["type"] == "stdout").strip()

    async def pause(self, *, memory: bool = True) -> None:
        await self.node.call("pause", messages.PauseSandbox(self.sandbox_id, memory))

    async def resume(self) -> None:
        await self.node.call("resume", messages.ResumeSandbox(self.sandbox_id, 600), messages.SandboxState)

    async def state(self) -> str:
        states = await self.node.call("list", {}, list[messages.SandboxState])
        return {found.sandbox_id: found.state for found in states}[self.sandbox_id]


async def started(node: NodeProcess, **changes: Any) -> Inside:
    token = new_access_token()
    sandbox_id = await node.create(access_token=token, memory_mib=512, **changes)
    return Inside(node, sandbox_id, token)


def flip(path: Path) -> None:
    """Change one bit in the middle, or change it back."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def images(node: NodeProcess) -> set[str]:
    """What is kept of sandboxes, without what is made for a template or is on its way out."""
    folder: Path = node.state / "images"
    others = ("agent-", "snapshot-", "warm-")
    return {path.name for path in folder.iterdir() if not path.name.startswith(others)}
