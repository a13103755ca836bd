"""Files."""

from __future__ import annotations

import io
from pathlib import Path

import httpx
import pytest
from tests.fakes.sandbox_server import SandboxServer, body_of, refused, unary

from cloche import FilesystemEventType, FileType, InvalidArgument, NotEnoughSpace, PathNotFound
from cloche._async.sandbox import AsyncSandbox
from cloche.errors import AlreadyExists, NotFound
from cloche_wire.messages.filesystem import (
    CreateWatcherResponse,
    EntryInfo,
    EventType,
    FilesystemEvent,
    GetWatcherEventsResponse,
    ListDirResponse,
    MakeDirResponse,
    MoveResponse,
    RemoveResponse,
    RemoveWatcherResponse,
    StatResponse,
)
from cloche_wire.messages.filesystem import FileType as WireType
from cloche_wire.messages.timestamp import Timestamp

pytestmark = pytest.mark.anyio

FILE = EntryInfo(
    "a", WireType.FILE_TYPE_FILE, "/a", 5, 0o644, "-rw-r--r--", "user", "user", Timestamp(1_700_000_000)
)
LINK = EntryInfo("l", WireType.FILE_TYPE_UNSPECIFIED, "/l", symlink_target="/gone")
WRITTEN = httpx.Response(200, json=[{"path": "/home/user/a", "name": "a", "type": "file"}])


async def test_read_gives_text_bytes_or_pieces(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    server.on("GET /files", httpx.Response(200, content=b"h\xffi"))
    assert await sandbox.files.read("/a b", user="root") == "h\ufffdi"
    assert await sandbox.files.read("/a b", format="bytes") == b"h\xffi"
    pieces = await sandbox.files.read("/a b", format="stream")
    assert b"".join([piece async for piece in pieces]) == b"h\xffi"
    params = server.requests[0].url.params
    assert (params["path"], params["username"]) == ("/a b", "root")
    assert "username" not in server.requests[1].url.params


@pytest.mark.parametrize("form", ["text", "stream"])
async def test_a_missing_file_is_path_not_found(
    server: SandboxServer, sandbox: AsyncSandbox, form: str
) -> None:
    server.on("GET /files", httpx.Response(404, json={"code": 404, "message": "path '/x' does not exist"}))
    with pytest.raises(PathNotFound, match="does not exist"):
        await sandbox.files.read("/x", format=form)  # pyright: ignore[reportArgumentType, reportCallIssue]


@pytest.mark.parametrize(
    "data", ["text", b"text", bytearray(b"text"), io.BytesIO(b"text"), io.StringIO("text"), [b"te", b"xt"]]
)
async def test_write_takes_text_bytes_files_and_pieces(
    server: SandboxServer, sandbox: AsyncSandbox, data: object
) -> None:
    server.on("POST /files", WRITTEN)
    info = await sandbox.files.write("a", data)  # pyright: ignore[reportArgumentType]
    assert (info.name, info.type, info.path) == ("a", FileType.FILE, "/home/user/a")
    (request,) = server.requests
    assert request.content == b"text"
    assert request.headers["content-type"] == "application/octet-stream"


async def test_an_open_file_is_streamed(server: SandboxServer, sandbox: AsyncSandbox, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 3_000_000)
    server.on("POST /files", WRITTEN)
    with (tmp_path / "big").open("rb") as big:
        await sandbox.files.write("a", big)
    assert len(server.requests[0].content) == 3_000_000
    assert server.requests[0].headers["transfer-encoding"] == "chunked"


async def test_a_full_disk_is_not_enough_space(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    server.on("POST /files", httpx.Response(507, json={"code": 507, "message": "no space left"}))
    with pytest.raises(NotEnoughSpace):
        await sandbox.files.write("a", "x")


async def test_several_files_are_written_in_order(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    server.on("POST /files", WRITTEN)
    await sandbox.files.write_files([{"path": "1", "data": "a"}, {"path": "2", "data": b"b"}])
    assert [request.url.params["path"] for request in server.requests] == ["1", "2"]


async def test_list_shows_files_and_broken_links(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    server.on("POST /filesystem.Filesystem/ListDir", unary(ListDirResponse([FILE, LINK])))
    file, link = await sandbox.files.list("/", depth=2)
    assert (file.name, file.type, f"{file.type}", file.size) == ("a", FileType.FILE, "file", 5)
    assert (link.type, link.symlink_target) == (FileType.SYMLINK, "/gone")
    assert body_of(server.requests[0]) == {"path": "/", "depth": 2}


async def test_a_depth_below_one_is_refused_at_once(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    with pytest.raises(InvalidArgument):
        await sandbox.files.list("/", depth=0)
    assert server.requests == []


async def test_exists_and_info(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    server.on(
        "POST /filesystem.Filesystem/Stat", unary(StatResponse(FILE)), refused(NotFound("no such path"))
    )
    assert await sandbox.files.exists("/a")
    assert not await sandbox.files.exists("/b")
    with pytest.raises(PathNotFound, match="no such path"):
        await sandbox.files.get_info("/b")


async def test_entries_are_made_moved_and_removed(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    server.on(
        "POST /filesystem.Filesystem/MakeDir", unary(MakeDirResponse(FILE)), refused(AlreadyExists("there"))
    )
    server.on("POST /filesystem.Filesystem/Move", unary(MoveResponse(FILE)))
    server.on("POST /filesystem.Filesystem/Remove", unary(RemoveResponse()))
    assert await sandbox.files.make_dir("/d")
    assert not await sandbox.files.make_dir("/d")
    assert (await sandbox.files.rename("/b", "/a")).path == "/a"
    await sandbox.files.remove("/a")
    assert body_of(server.asked("POST /filesystem.Filesystem/Move")[0]) == {
        "source": "/b",
        "destination": "/a",
    }


async def test_a_watch_gathers_changes(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    server.on("POST /filesystem.Filesystem/CreateWatcher", unary(CreateWatcherResponse("w1")))
    change = FilesystemEvent("a", EventType.EVENT_TYPE_WRITE, FILE)
    server.on(
        "POST /filesystem.Filesystem/GetWatcherEvents",
        unary(GetWatcherEventsResponse([change, FilesystemEvent("b", 99)])),
        refused(NotFound("no such watcher")),
    )
    server.on("POST /filesystem.Filesystem/RemoveWatcher", unary(RemoveWatcherResponse()))
    handle = await sandbox.files.watch_dir("/d", recursive=True)
    (event,) = await handle.get_new_events()
    assert (event.name, event.type) == ("a", FilesystemEventType.WRITE)
    assert event.entry is not None
    await handle.stop()
    with pytest.raises(NotFound):
        await handle.get_new_events()
