"""GET, HEAD and POST /files, end to end."""

from __future__ import annotations

import gzip
import json
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from tests.unit.agent.running_agent import TOKEN, Agent, Answer, own_name

from cloche_wire import signature

OCTETS = "application/octet-stream"
BOUNDARY = "5f1c"


def _target(path: object, **more: object) -> str:
    return "/files?" + urlencode({"path": str(path), **more})


def _multipart(*parts: tuple[str, str, bytes]) -> bytes:
    body = b""
    for name, filename, data in parts:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
        body += head.encode() + data + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


def _upload(agent: Agent, target: str, body: object, **headers: str) -> Answer:
    kind = headers.pop("Content_Type", f"multipart/form-data; boundary={BOUNDARY}")
    return agent.request("POST", target, body, Content_Type=kind, **headers)


def test_upload_makes_folders_and_answers_with_the_path(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    answer = _upload(agent, _target(path), b"hello", Content_Type=OCTETS)
    assert (answer.status, answer.json) == (200, [{"path": str(path), "name": "c.txt", "type": "file"}])
    assert path.read_bytes() == b"hello"
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.parent.stat().st_mode & 0o777 == 0o755
    assert _upload(agent, _target(path), b"x", Content_Type=OCTETS).status == 200
    assert path.read_bytes() == b"x"


def test_multipart_writes_every_file_in_order(agent: Agent, tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("z", "a", "m m")]
    parts = [("file", name, name.encode() * 100) for name in names]
    answer = _upload(agent, "/files", _multipart(("other", "ignored", b"x"), *parts))
    assert [entry["path"] for entry in answer.json] == names
    assert all(Path(name).read_bytes() == name.encode() * 100 for name in names)


def test_path_of_the_query_wins_over_the_part(agent: Agent, tmp_path: Path) -> None:
    answer = _upload(agent, _target(tmp_path / "query"), _multipart(("file", str(tmp_path / "part"), b"1")))
    assert answer.json[0]["name"] == "query"
    assert not (tmp_path / "part").exists()


def test_same_path_twice_in_one_upload_is_refused(agent: Agent, tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    assert _upload(agent, "/files", _multipart(("file", path, b"1"), ("file", path, b"2"))).status == 400


def test_relative_paths_lie_under_the_home(agent: Agent) -> None:
    answer = _upload(agent, _target("/../nowhere/../etc/passwd/x"), b"", Content_Type=OCTETS)
    assert (answer.status, answer.json["code"]) == (400, 400)
    missing = agent.request("GET", _target("~/no-such-file-of-cloche"))
    assert missing.json["message"] == f"path '{Path('~').expanduser()}/no-such-file-of-cloche' does not exist"
    assert agent.request("GET", _target("no-such-file-of-cloche")).json == missing.json


def test_chunked_and_packed_uploads_are_unpacked(agent: Agent, tmp_path: Path) -> None:
    data = os.urandom(300_000) + bytes(3_000_000)
    packed = gzip.compress(data[:1000]) + gzip.compress(data[1000:])

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(packed), 7777):
            yield packed[at : at + 7777]

    path = tmp_path / "big"
    answer = _upload(agent, _target(path), pieces(), Content_Type=OCTETS, Content_Encoding="gzip")
    assert answer.status == 200
    assert path.read_bytes() == data
    cut = _upload(agent, _target(path), packed[:-9], Content_Type=OCTETS, Content_Encoding="gzip")
    assert (cut.status, cut.json["message"]) == (400, "gzip body ends early")
    assert _upload(agent, _target(path), b"x", Content_Type=OCTETS, Content_Encoding="br").status == 400


def test_metadata_goes_with_the_file_and_is_replaced(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "tagged"
    answer = _upload(
        agent, _target(path), b"", Content_Type=OCTETS, X_Metadata_Origin="a b", X_Metadata_Two="2"
    )
    assert answer.json[0]["metadata"] == {"origin": "a b", "two": "2"}
    entry = agent.call("filesystem.Filesystem/Stat", {"path": str(path)}).json["entry"]
    assert entry["metadata"] == {"origin": "a b", "two": "2"}
    _upload(agent, _target(path), b"", Content_Type=OCTETS, X_Metadata_Three="3")
    entry = agent.call("filesystem.Filesystem/Stat", {"path": str(path)}).json["entry"]
    assert entry["metadata"] == {"three": "3"}
    assert _upload(agent, _target(path), b"", Content_Type=OCTETS, X_Metadata_A="x" * 5000).status == 400


@pytest.mark.parametrize(
    ("content_type", "query"),
    [("text/plain", "?path=/tmp/x"), (OCTETS, ""), ("multipart/form-data", "?path=/tmp/x")],
)
def test_upload_of_another_form_is_refused(agent: Agent, content_type: str, query: str) -> None:
    assert _upload(agent, "/files" + query, b"x", Content_Type=content_type).status == 400


def test_cut_multipart_body_is_refused(agent: Agent, tmp_path: Path) -> None:
    body = _multipart(("file", str(tmp_path / "x"), b"abc"))
    assert _upload(agent, "/files", body[:-8]).status == 400


def test_empty_file_has_a_length(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    answer = agent.request("GET", _target(tmp_path / "empty"))
    assert (answer.status, answer.headers["Content-Length"], answer.body) == (200, "0", b"")


def test_download_tells_type_name_and_length(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / 'a "b".json'
    path.write_bytes(b"{}")
    answer = agent.request("GET", _target(path))
    assert answer.body == b"{}"
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Content-Disposition"] == r'inline; filename="a \"b\".json"'
    assert answer.headers["Vary"] == "Accept-Encoding"
    head = agent.request("HEAD", _target(path))
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", "2")


def test_name_with_a_line_break_cannot_add_a_header(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "a\r\nX-Evil: 1é"
    path.write_bytes(b"x")
    answer = agent.request("GET", _target(path))
    assert answer.status == 200
    assert answer.headers["X-Evil"] is None
    assert answer.headers["Content-Disposition"] == "inline; filename*=utf-8''a%0D%0AX-Evil%3A%201%C3%A9"


def test_large_file_comes_whole_and_packed_only_when_preferred(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "large"
    data = os.urandom(1_000_003) + bytes(2_000_000)
    path.write_bytes(data)
    assert agent.request("GET", _target(path)).body == data
    plain = agent.request("GET", _target(path), Accept_Encoding="gzip, deflate")
    assert (plain.headers["Content-Encoding"], plain.body) == (None, data)
    packed = agent.request("GET", _target(path), Accept_Encoding="gzip")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.body) == data
    part = agent.request("GET", _target(path), Accept_Encoding="gzip", Range="bytes=5-9")
    assert (part.status, part.body, part.headers["Content-Encoding"]) == (206, data[5:10], None)


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-2", 206, b"89"),
        ("bytes=8-100", 206, b"89"),
        ("bytes=4-2", 200, b"0123456789"),
        ("bytes=3-4, 20-30", 206, b"34"),
        ("bytes=0-8,1-9", 200, b"0123456789"),
        ("bytes=0-1,x", 200, b"0123456789"),
        ("lines=0-1", 200, b"0123456789"),
        ("bytes=10-", 416, None),
        ("bytes=10-,20-30", 416, None),
        ("bytes=-0", 416, None),
    ],
)
def test_ranges(agent: Agent, tmp_path: Path, asked: str, status: int, expected: bytes | None) -> None:
    (tmp_path / "digits").write_bytes(b"0123456789")
    answer = agent.request("GET", _target(tmp_path / "digits"), Range=asked)
    assert answer.status == status
    if expected is not None:
        assert answer.body == expected
    else:
        assert answer.headers["Content-Range"] == "bytes */10"


def test_several_ranges_come_as_one_multipart_body(agent: Agent, tmp_path: Path) -> None:
    data = os.urandom(1_000_000)
    (tmp_path / "x.json").write_bytes(data)
    answer = agent.request("GET", _target(tmp_path / "x.json"), Range="bytes=0-1, 300000-899999,-3")
    kind, _, boundary = answer.headers["Content-Type"].partition("; boundary=")
    assert (answer.status, kind) == (206, "multipart/byteranges")
    assert answer.headers["Content-Range"] is None
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    spans = [(0, 2), (300_000, 900_000), (999_997, 1_000_000)]
    expected = b"".join(
        f"--{boundary}\r\nContent-Type: application/json\r\n"
        f"Content-Range: bytes {start}-{end - 1}/1000000\r\n\r\n".encode()
        + data[start:end]
        + b"\r\n"
        for start, end in spans
    )
    assert answer.body == expected + f"--{boundary}--\r\n".encode()


def test_head_ignores_a_range_and_leaves_no_file_open(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(1_000_000))
    answer = agent.request("HEAD", _target(tmp_path / "x"), Range="bytes=0-599999")
    assert (answer.status, answer.headers["Content-Length"]) == (200, "1000000")
    held = [entry.readlink() for entry in Path(f"/proc/{agent.pid}/fd").iterdir() if entry.exists()]
    assert tmp_path / "x" not in held


@pytest.mark.parametrize(
    ("accepted", "status", "encoding"),
    [
        ("identity;q=0", 406, None),
        ("*;q=0", 406, None),
        ("br, *;q=0", 406, None),
        ("identity;q=0, gzip;q=0.5", 200, "gzip"),
        ("*;q=0, identity", 200, None),
        ("gzip;q=0", 200, None),
        ("", 200, None),
    ],
)
def test_encoding_that_is_accepted_is_used_or_refused(
    agent: Agent, tmp_path: Path, accepted: str, status: int, encoding: str | None
) -> None:
    (tmp_path / "x").write_bytes(b"x")
    answer = agent.request("GET", _target(tmp_path / "x"), Accept_Encoding=accepted)
    assert (answer.status, answer.headers["Content-Encoding"]) == (status, encoding)
    part = agent.request("GET", _target(tmp_path / "x"), Accept_Encoding=accepted, Range="bytes=0-0")
    refuses_identity = status == 406 or encoding is not None
    assert part.status == (406 if refuses_identity else 206)


def test_unchanged_file_is_not_sent_again(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x")
    first = agent.request("GET", _target(path))
    tag, date = first.headers["ETag"], first.headers["Last-Modified"]
    assert agent.request("GET", _target(path), If_None_Match=f'"other", {tag}').status == 304
    assert agent.request("GET", _target(path), If_Modified_Since=date).status == 304
    assert agent.request("GET", _target(path), If_Match='"other"').status == 412
    assert (
        agent.request("GET", _target(path), If_Unmodified_Since="Thu, 01 Jan 1970 00:00:00 GMT").status == 412
    )
    assert agent.request("GET", _target(path), Range="bytes=0-0", If_Range='"other"').status == 200
    assert agent.request("GET", _target(path), Range="bytes=0-0", If_Range=tag).status == 206
    assert agent.request("GET", _target(path), Range="bytes=0-0", If_Range=date).status == 206
    os.utime(path, (1, 1))
    assert agent.request("GET", _target(path), If_None_Match=tag).status == 200


def test_special_files_are_refused_at_once(agent: Agent, tmp_path: Path) -> None:
    """A FIFO, a device, a folder, a socket, a dangling link: an answer of 4xx, never a wait."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    begun = time.monotonic()
    expected = {tmp_path / "fifo": 400, "/dev/zero": 400, tmp_path: 400, agent.socket_path: 400,
                tmp_path / "dangling": 404, tmp_path / "loop": 400, tmp_path / "nope" / "x": 404}  # fmt: skip
    assert {path: agent.request("GET", _target(path)).status for path in expected} == expected
    for path in (tmp_path / "fifo", tmp_path, agent.socket_path):
        assert _upload(agent, _target(path), b"x", Content_Type=OCTETS).status == 400
    assert agent.request("GET", "/files?path=a%00b").status == 400
    assert agent.request("GET", _target("/" + "x" * 5000)).status == 400
    assert agent.request("GET", _target("~root/x")).status == 400
    assert time.monotonic() - begun < 5


def test_range_of_a_huge_sparse_file_is_bounded(agent: Agent, tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    answer = agent.request("GET", _target(tmp_path / "sparse"), Range="bytes=0-9")
    assert (answer.status, answer.body) == (206, bytes(10))
    assert answer.headers["Content-Range"] == f"bytes 0-9/{1 << 40}"


def test_files_without_a_size_of_their_own_are_read(agent: Agent) -> None:
    assert agent.request("GET", _target("/proc/self/status")).body.startswith(b"Name:")


def test_signed_urls_open_one_file_for_one_purpose(agent: Agent, tmp_path: Path) -> None:
    path = str(tmp_path / "a b+c")
    Path(path).write_bytes(b"signed")
    anonymous = Agent(agent.socket_path, agent.pid)
    anonymous.token = None
    now = int(time.time())

    def status(method: str, signed: str, **more: object) -> int:
        target = _target(path, signature=signed, **more)
        return anonymous.request(
            method, target, b"x" if method == "POST" else None, Content_Type=OCTETS
        ).status

    assert status("GET", signature.sign(path, "read", None, TOKEN)) == 200
    assert (
        status("GET", signature.sign(path, "read", None, TOKEN, now + 60), signature_expiration=now + 60)
        == 200
    )
    assert status("GET", signature.sign(path, "read", own_name(), TOKEN), username=own_name()) == 200
    assert (
        status("GET", signature.sign(path, "read", None, TOKEN, now - 60), signature_expiration=now - 60)
        == 401
    )
    assert status("GET", signature.sign(path, "write", None, TOKEN)) == 401
    assert status("GET", signature.sign(path, "read", None, "other token")) == 401
    assert status("POST", signature.sign(path, "read", None, TOKEN)) == 401
    assert status("POST", signature.sign(path, "write", None, TOKEN)) == 200
    assert Path(path).read_bytes() == b"x"


def test_wrong_token_is_not_made_good_by_a_signature(agent: Agent, tmp_path: Path) -> None:
    signed = signature.sign(str(tmp_path / "x"), "read", None, TOKEN)
    answer = agent.request("GET", _target(tmp_path / "x", signature=signed), X_Access_Token="wrong")
    assert (answer.status, answer.json["code"]) == (401, 401)


def test_unknown_user_is_told_in_words_of_e2b(agent: Agent) -> None:
    answer = agent.request("GET", _target("/etc/passwd", username="nobody-here"))
    assert answer.status == 401
    assert answer.json["message"].startswith("error looking up user 'nobody-here':")


def test_compose_joins_and_removes_the_sources(agent: Agent, tmp_path: Path) -> None:
    sources = [tmp_path / name for name in "cab"]
    for source in sources:
        source.write_text(source.name)
    order = {
        "source_paths": [str(source) for source in sources],
        "destination": str(tmp_path / "new" / "all"),
    }
    answer = agent.request("POST", "/files/compose", json.dumps(order))
    assert answer.json == {"name": "all", "path": order["destination"], "type": "file"}
    assert (tmp_path / "new" / "all").read_text() == "cab"
    assert not any(source.exists() for source in sources)
    assert agent.request("POST", "/files/compose", json.dumps(order)).status == 404


def test_file_that_finds_no_space_is_not_left_half_written(agent: Agent, tmp_path: Path) -> None:
    """The limit on the size of files stands for a full disk: the kernel refuses both in the same place."""
    (tmp_path / "old").write_text("old")
    boundless = resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    try:
        for name in ("old", "new"):
            answer = _upload(agent, _target(tmp_path / name), bytes(2_000_000), Content_Type=OCTETS)
            assert (answer.status, answer.json["code"]) == (507, 507)
        parts = [
            ("file", str(tmp_path / name), bytes(size)) for name, size in (("fits", 5), ("not", 2_000_000))
        ]
        assert _upload(agent, "/files", _multipart(*parts)).status == 507
    finally:
        resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, boundless)
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == {"old": 0, "fits": 5}
