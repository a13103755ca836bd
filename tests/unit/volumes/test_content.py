"""What the content of a volume answers, and that no answer comes from outside of it."""

import fcntl
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.volumes.conftest import Content

from cloche_server.volumes import changes, entries

pytestmark = pytest.mark.anyio


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_what_is_written_is_read_back(content: Content) -> None:
    made = await content.write("/a.txt", b"hello")
    assert made.status_code == 201
    assert made.json()["path"] == "/a.txt"
    read = await content.ask("GET", "file", "/a.txt")
    assert (read.status_code, read.content, read.headers["content-length"]) == (200, b"hello", "5")


async def test_an_upload_in_pieces_is_stored_whole(content: Content) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(40):
            yield bytes([number]) * 20_000

    assert (await content.ask("PUT", "file", "/big", content=pieces())).status_code == 201
    assert (content.folder / "big").read_bytes() == b"".join(bytes([n]) * 20_000 for n in range(40))


async def test_a_file_that_is_there_is_replaced_by_force_only(content: Content) -> None:
    await content.write("/a", b"old", mode=0o640)
    assert (await content.write("/a", b"new")).status_code == 409
    assert (content.folder / "a").read_bytes() == b"old"
    replaced = await content.write("/a", b"new", force="true")
    assert (replaced.status_code, replaced.json()["mode"]) == (201, 0o640)
    assert (content.folder / "a").read_bytes() == b"new"
    assert names(content.folder) == ["a"]


async def test_an_upload_that_breaks_off_leaves_what_was_there(content: Content) -> None:
    (content.folder / "a").write_bytes(b"old")

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 300_000
        raise ConnectionResetError

    answer = await content.ask("PUT", "file", "/a", content=broken(), params={"force": "true"})
    assert answer.status_code == 500
    assert names(content.folder) == ["a"]
    assert (content.folder / "a").read_bytes() == b"old"


async def test_an_entry_is_told_with_owner_mode_and_times(content: Content) -> None:
    await content.write("/d.txt", b"12345", mode=0o604)
    os.utime(content.folder / "d.txt", (1, 2))
    told = (await content.ask("GET", "path", "d.txt")).json()
    assert {key: told[key] for key in ("name", "type", "path", "size", "mode", "uid", "gid")} == {
        "name": "d.txt", "type": "file", "path": "/d.txt", "size": 5, "mode": 0o604,
        "uid": os.geteuid(), "gid": os.getegid(),
    }  # fmt: skip
    assert told["atime"] == "1970-01-01T00:00:01Z"
    assert told["mtime"] == "1970-01-01T00:00:02Z"


@pytest.mark.parametrize("time_ns", [-(10**27), -1, 10**27])
def test_any_time_a_tenant_sets_can_be_told(time_ns: int) -> None:
    assert 1 <= entries._time(time_ns).year <= 9999


async def test_the_root_is_a_folder_that_stays(content: Content) -> None:
    told = (await content.ask("GET", "path", "/")).json()
    assert (told["name"], told["type"], told["path"]) == ("/", "directory", "/")
    assert (await content.ask("DELETE", "path", "/")).status_code == 400


async def test_a_link_stands_for_itself_where_it_is_told_and_removed(content: Content) -> None:
    (content.folder / "target").write_text("stays")
    (content.folder / "link").symlink_to("target")
    told = (await content.ask("GET", "path", "/link")).json()
    assert (told["type"], told["target"]) == ("symlink", "target")
    assert (await content.ask("DELETE", "path", "/link")).status_code == 204
    assert names(content.folder) == ["target"]


async def test_folders_are_made_with_those_above_by_force_only(content: Content) -> None:
    assert (await content.ask("POST", "dir", "/a/b/c")).status_code == 404
    made = await content.ask("POST", "dir", "/a/b/c", params={"force": "true", "mode": 0o700})
    assert (made.status_code, made.json()["type"], made.json()["mode"]) == (201, "directory", 0o700)
    assert (await content.ask("POST", "dir", "/a/b/c")).status_code == 409
    assert (await content.ask("POST", "dir", "/a/b/c", params={"force": "true"})).status_code == 201
    await content.write("/a/file", b"")
    assert (await content.ask("POST", "dir", "/a/file/x", params={"force": "true"})).status_code == 409


async def test_a_listing_goes_as_deep_as_asked(content: Content) -> None:
    (content.folder / "a/b/c").mkdir(parents=True)
    (content.folder / "a/b/c/file").touch()
    (content.folder / "z").symlink_to("a")

    async def listed(path: str, **params: Any) -> list[str]:
        answer = await content.ask("GET", "dir", path, params=params)
        assert answer.status_code == 200
        return [entry["path"] for entry in answer.json()]

    assert await listed("/") == ["/a", "/z"]
    assert await listed("/", depth=3) == ["/a", "/a/b", "/a/b/c", "/z"]
    assert await listed("/z") == ["/z/b"]
    assert await listed("/a/b/c", depth=9) == ["/a/b/c/file"]
    (content.folder / "empty").mkdir()
    assert await listed("/empty") == []
    assert (await content.ask("GET", "dir", "/a/b/c/file")).status_code == 404
    assert (await content.ask("GET", "dir", "/", params={"depth": 1000})).status_code == 400


async def test_a_long_listing_is_told_in_batches(content: Content) -> None:
    count = 2 * entries.BATCH + 7
    for number in range(count):
        (content.folder / f"f{number}").touch()
    listed = (await content.ask("GET", "dir", "/")).json()
    assert len({entry["name"] for entry in listed}) == count


async def test_names_that_are_no_text_are_told_with_replacements(content: Content) -> None:
    os.close(os.open(os.fsencode(content.folder) + b"/\xff\xfe", os.O_CREAT))
    (entry,) = (await content.ask("GET", "dir", "/")).json()
    assert entry["name"] == "\ufffd\ufffd"


async def test_a_tree_is_removed_however_deep_it_is(content: Content) -> None:
    depth = 3000  # beyond what a path can name, and beyond the recursion that Python allows
    folder = os.open(content.folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 50, dir_fd=folder)
        os.close(os.open("file", os.O_CREAT, dir_fd=folder))
        inner = os.open("d" * 50, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    assert (await content.ask("DELETE", "path", "/" + "d" * 50)).status_code == 204
    assert names(content.folder) == ["file"]


async def test_removing_follows_no_link(content: Content, outside: Path) -> None:
    (content.folder / "tree").mkdir()
    (content.folder / "tree" / "out").symlink_to(outside)
    assert (await content.ask("DELETE", "path", "/tree")).status_code == 204
    assert (outside / "secret").exists()


@pytest.mark.parametrize("target", ["{outside}", "../outside", "/proc/self/cwd", "/proc/self/root"])
async def test_no_link_leads_out(content: Content, outside: Path, target: str) -> None:
    (content.folder / "out").symlink_to(target.format(outside=outside))
    for method, resource, path in (
        ("GET", "file", "/out/secret"), ("GET", "path", "/out/secret"), ("GET", "dir", "/out"),
        ("DELETE", "path", "/out/secret"), ("PUT", "file", "/out/new"), ("POST", "dir", "/out/new"),
        ("PATCH", "path", "/out/secret"),
    ):  # fmt: skip
        answer = await content.ask(method, resource, path, **({"json": {}} if method == "PATCH" else {}))
        assert answer.status_code in {400, 404}, (method, resource)
    assert names(outside) == ["secret"]


async def test_a_link_inside_the_volume_is_followed_from_its_root(content: Content) -> None:
    (content.folder / "etc").mkdir()
    (content.folder / "etc" / "passwd").write_text("of the volume")
    (content.folder / "link").symlink_to("/etc/passwd")
    assert (await content.ask("GET", "file", "/link")).content == b"of the volume"


async def test_what_is_no_file_is_not_read_and_holds_nothing_up(content: Content) -> None:
    os.mkfifo(content.folder / "fifo")
    (content.folder / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(content.folder / "socket"))
        for name in ("fifo", "folder", "socket", "absent"):
            assert (await content.ask("GET", "file", f"/{name}")).status_code == 404, name
        told = (await content.ask("GET", "path", "/fifo")).json()
        assert told["type"] == "unknown"
        assert (await content.ask("PATCH", "path", "/socket", json={"mode": 0o777})).status_code == 400


async def test_a_lease_of_a_sandbox_holds_nothing_up(content: Content) -> None:
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    leased = os.open(content.folder / "leased", os.O_RDWR | os.O_CREAT)
    fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    assert (await content.ask("GET", "file", "/leased")).status_code == 409
    assert (await content.ask("GET", "path", "/leased")).status_code == 200
    assert (await content.write("/leased", b"x", force="true")).status_code == 201
    os.close(leased)


async def test_modes_and_owners_are_changed(content: Content) -> None:
    await content.write("/a", b"")
    own = {"uid": os.geteuid(), "gid": os.getegid(), "mode": 0o711}
    changed = await content.ask("PATCH", "path", "/a", json=own)
    assert changed.status_code == 200
    assert {key: changed.json()[key] for key in own} == own
    for wrong in ({"uid": -1}, {"gid": 65_536}, {"mode": 0o10000}, {"mode": "x"}, [], 1):
        assert (await content.ask("PATCH", "path", "/a", json=wrong)).status_code == 400, wrong
    assert (await content.ask("PATCH", "path", "/none", json={"mode": 1})).status_code == 404


async def test_a_full_volume_is_told_as_507(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(changes.Upload, "write", full)
    answer = await content.write("/a", b"data")
    assert (answer.status_code, answer.json()["code"]) == (507, "507")
    assert names(content.folder) == []


async def test_errors_have_a_code_in_text_and_a_message(content: Content) -> None:
    answer = await content.ask("GET", "path", "/none")
    assert answer.status_code == 404
    assert answer.json() == {"code": "404", "message": "no such file or directory: /none"}


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer other", "Basic dm9sX3Rva2Vu", "vol_token"])
async def test_without_the_volumes_token_nothing_is_told(content: Content, authorization: str) -> None:
    headers = {"Authorization": authorization}
    seen = [
        (await content.client.get(f"/volumecontent/{volume}/path?path=/", headers=headers)).status_code
        for volume in ("v1", "v2")
    ]
    assert seen == [401, 401]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/volumecontent/v1/path", 400),
        ("GET", "/volumecontent/v1/path?path=", 400),
        ("GET", "/volumecontent/v1/path?path=%00", 400),
        ("GET", "/volumecontent/v1/path?path=/%ff", 404),
        ("GET", "/volumecontent/v1/path?path=" + "x" * 300, 400),
        ("GET", "/volumecontent/v1/path?path=" + "x/" * 3000, 400),
        ("PUT", "/volumecontent/v1/file?path=/a&mode=99999999", 400),
        ("PUT", "/volumecontent/v1/file?path=/a&uid=x", 400),
        ("PUT", "/volumecontent/v1/file?path=/a&force=maybe", 400),
        ("PUT", "/volumecontent/v1/file?path=/", 409),
        ("PUT", "/volumecontent/v1/file?path=/no/a", 404),
        ("POST", "/volumecontent/v1/file?path=/a", 405),
        ("DELETE", "/volumecontent/v1/dir?path=/a", 405),
        ("GET", "/volumecontent/v1", 404),
        ("GET", "/volumecontent/v1/path/x?path=/", 404),
        ("GET", "/volumecontent/..%2f/path?path=/", 404),
        ("GET", "/", 404),
    ],
)
async def test_bad_requests_are_refused(content: Content, method: str, path: str, status: int) -> None:
    answer = await content.client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["code"] == str(status)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["GET", "PUT", "POST", "PATCH", "DELETE"]),
    resource=st.sampled_from(["path", "dir", "file"]),
    path=st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "a", "out", ""])).map("/".join),
    query=st.dictionaries(st.sampled_from(["uid", "gid", "mode", "force", "depth"]), st.text(max_size=5)),
    body=st.binary(max_size=30),
)
async def test_whatever_is_asked_is_no_failure_and_stays_inside(
    content: Content, outside: Path, method: str, resource: str, path: str, query: Any, body: bytes
) -> None:
    if not (content.folder / "out").is_symlink():
        (content.folder / "out").symlink_to(outside)
    params = {"path": path.encode(errors="replace").decode(), **query}
    answer = await content.client.request(
        method, f"/volumecontent/v1/{resource}", params=params, content=body
    )
    assert answer.status_code < 500
    assert names(outside) == ["secret"]
    assert (outside / "secret").read_text() == "of the host"
