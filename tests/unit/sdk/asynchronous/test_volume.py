"""Volumes of our client, over a server that only answers what it is told to."""

from __future__ import annotations

import io

import httpx
import pytest
from tests.fakes.sandbox_server import RECORD, SandboxServer, body_of

from cloche import FileType
from cloche._async.sandbox import AsyncSandbox
from cloche._async.volume import AsyncVolume
from cloche.errors import AlreadyExists, Conflict, NotEnoughSpace, PathNotFound, VolumeNotFound

pytestmark = pytest.mark.anyio

VOLUME = {"volumeID": "v1", "name": "data", "token": "vol_t"}
ENTRY = {
    "name": "a", "type": "file", "path": "/a", "size": 5, "mode": 420, "uid": 1, "gid": 2,
    "atime": "2026-01-02T03:04:05Z", "mtime": "2026-01-02T03:04:05.5Z", "ctime": "2026-01-02T03:04:05Z",
}  # fmt: skip


@pytest.fixture
async def volume(server: SandboxServer) -> AsyncVolume:
    server.on("POST /volumes", httpx.Response(201, json=VOLUME))
    return await AsyncVolume.create("data")


async def test_volumes_are_made_found_and_destroyed(server: SandboxServer, volume: AsyncVolume) -> None:
    assert (volume.volume_id, volume.name, volume.token) == ("v1", "data", "vol_t")
    server.on("GET /volumes/v1", httpx.Response(200, json=VOLUME))
    assert (await AsyncVolume.connect("v1")).token == "vol_t"
    assert (await AsyncVolume.get_info("v1")).name == "data"
    server.on("GET /volumes", httpx.Response(200, json=[{"volumeID": "v1", "name": "data"}]))
    assert [info.volume_id for info in await AsyncVolume.list()] == ["v1"]
    server.on("DELETE /volumes/v1", httpx.Response(204), httpx.Response(404, json={}))
    assert await AsyncVolume.destroy("v1") is True
    assert await AsyncVolume.destroy("v1") is False


async def test_what_the_server_refuses_has_a_class(server: SandboxServer, volume: AsyncVolume) -> None:
    taken = {"code": 409, "message": "Volume with name 'data' already exists"}
    server.on("POST /volumes", httpx.Response(409, json=taken))
    with pytest.raises(AlreadyExists):
        await AsyncVolume.create("data")
    used = {"code": 409, "message": "volume is mounted in 1 sandboxes"}
    server.on("DELETE /volumes/v1", httpx.Response(409, json=used))
    with pytest.raises(Conflict):
        await AsyncVolume.destroy("v1")
    with pytest.raises(VolumeNotFound):
        await AsyncVolume.connect("none")
    full = {"code": "507", "message": "the volume is full"}
    server.on("PUT /volumecontent/v1/file", httpx.Response(507, json=full))
    with pytest.raises(NotEnoughSpace):
        await volume.write_file("/a", "x")
    with pytest.raises(PathNotFound):
        await volume.read_file("/none", format="stream")


async def test_content_is_asked_for_with_the_volumes_own_token(
    server: SandboxServer, volume: AsyncVolume
) -> None:
    server.on("PUT /volumecontent/v1/file", httpx.Response(201, json=ENTRY))
    written = await volume.write_file("/a", io.BytesIO(b"hello"), uid=0, force=True)
    (asked,) = server.asked("PUT /volumecontent/v1/file")
    assert dict(asked.url.params) == {"path": "/a", "uid": "0", "force": "true"}
    assert (asked.content, asked.headers["authorization"]) == (b"hello", "Bearer vol_t")
    assert "x-api-key" not in asked.headers
    assert (written.type, written.size, written.mtime.microsecond) == (FileType.FILE, 5, 500_000)


async def test_content_is_read_in_every_form(server: SandboxServer, volume: AsyncVolume) -> None:
    server.on("GET /volumecontent/v1/file", httpx.Response(200, content=b"gr\xc3\xbc\xc3\x9fe"))
    assert await volume.read_file("/a") == "grüße"
    assert await volume.read_file("/a", format="bytes") == "grüße".encode()
    pieces = [piece async for piece in await volume.read_file("/a", format="stream")]
    assert b"".join(pieces) == "grüße".encode()


async def test_entries_are_looked_at_changed_and_removed(server: SandboxServer, volume: AsyncVolume) -> None:
    path = "/volumecontent/v1/path"
    server.on(f"GET {path}", httpx.Response(200, json={**ENTRY, "type": "symlink", "target": "b"}))
    link = await volume.get_info("/a")
    assert (link.type, link.target) == (FileType.SYMLINK, "b")
    server.on(f"GET {path}", httpx.Response(404, json={}))
    assert await volume.exists("/a") is False
    server.on(f"PATCH {path}", httpx.Response(200, json=ENTRY))
    await volume.update_metadata("/a", mode=0o644)
    assert body_of(server.asked(f"PATCH {path}")[0]) == {"mode": 0o644}
    server.on(f"DELETE {path}", httpx.Response(204))
    await volume.remove("/a")
    server.on("GET /volumecontent/v1/dir", httpx.Response(200, json=[ENTRY]))
    assert [entry.path for entry in await volume.list("/", depth=2)] == ["/a"]
    assert server.asked("GET /volumecontent/v1/dir")[0].url.params["depth"] == "2"
    server.on("POST /volumecontent/v1/dir", httpx.Response(201, json={**ENTRY, "type": "directory"}))
    assert (await volume.make_dir("/d", force=True)).type == FileType.DIR


async def test_a_sandbox_is_asked_for_with_volumes(server: SandboxServer, volume: AsyncVolume) -> None:
    server.on("POST /v2/sandboxes", httpx.Response(201, json=RECORD))
    await AsyncSandbox.create(volume_mounts={"/a": volume, "/b": "other"})
    body = body_of(server.asked("POST /v2/sandboxes")[0])
    assert body["volumeMounts"] == [{"name": "data", "path": "/a"}, {"name": "other", "path": "/b"}]  # type: ignore[index]
