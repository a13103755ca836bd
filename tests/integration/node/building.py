"""Builds of templates by a node, as the api has them made."""

import contextlib
import io
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from tests.integration.node.conftest import NodeProcess, newest_build

from cloche_server import link
from cloche_server.node import build_messages as messages


class Ran(NamedTuple):
    """What a command has come to."""

    status: int
    stdout: list[str]
    stderr: list[str]


class Build:
    """The sandbox of one, open."""

    def __init__(self, node: NodeProcess, sandbox_id: str) -> None:
        self.node = node
        self.sandbox_id = sandbox_id

    async def run(self, *argv: str, **changes: Any) -> Ran:
        request = messages.RunInBuild(self.sandbox_id, argv, **changes)
        said: dict[str, list[str]] = {"stdout": [], "stderr": []}
        feed = link.subscribe(self.node.config.node_socket, "build_run", dict, request)
        async with aclosing(feed):
            async for item in feed:
                if isinstance(item, dict):
                    continue
                name, data = item
                if name == "exited":
                    return Ran(msgspec.json.decode(data, type=messages.BuildExited).status, **said)
                line = msgspec.json.decode(data, type=messages.BuildLine)
                said[line.stream].append(line.text)
        raise AssertionError("no exit")

    async def shell(self, script: str, **changes: Any) -> Ran:
        return await self.run("/bin/sh", "-euc", script, **changes)

    async def put(self, archive: bytes, source: str, target: str, **changes: Any) -> None:
        folder = self.node.config.uploads_dir / "team"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "archive").write_bytes(archive)
        request = messages.PutInBuild(self.sandbox_id, "team/archive", source, target, **changes)
        await self.node.call("build_put", request)

    async def commit(self, **changes: Any) -> messages.LayerMade:
        request = messages.CommitBuild(self.sandbox_id, **changes)
        return await self.node.call("build_commit", request, messages.LayerMade)


@asynccontextmanager
async def building(node: NodeProcess, *layers: str, **changes: Any) -> AsyncIterator[Build]:
    """A sandbox over these layers and the default template; it ends with the block."""
    request = messages.OpenBuild("build", "team", (*layers, newest_build()), memory_mib=512, **changes)
    feed = link.subscribe(node.config.node_socket, "build_open", messages.BuildOpened, request)
    async with aclosing(feed):
        opened = await anext(feed)
        assert isinstance(opened, messages.BuildOpened)
        yield Build(node, opened.sandbox_id)


def layer_files(node: NodeProcess, layer: messages.LayerMade) -> Path:
    return node.state / "layers" / layer.layer_id / "fs"


Change = Callable[[tarfile.TarInfo], None]


class Archive:
    """A tar file, entry by entry, as a hostile client writes one."""

    def __init__(self, mode: Any = "w:gz", **options: Any) -> None:
        self._content = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._content, mode=mode, **options)  # noqa: SIM115 - closed by `bytes`

    def add(self, name: str, content: bytes = b"", **fields: Any) -> "Archive":
        member = tarfile.TarInfo(name)
        member.size = len(content)
        for field, value in fields.items():
            setattr(member, field, value)
        self._tar.addfile(member, io.BytesIO(content))
        return self

    def bytes(self) -> bytes:
        with contextlib.suppress(OSError):
            self._tar.close()
        return self._content.getvalue()
