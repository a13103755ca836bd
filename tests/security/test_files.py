"""Boundary: the file API. A path means what it means inside the sandbox, to the user it is asked for."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.support import inside
from tests.support.fixtures import NEEDS_A_SERVER, MakeSandbox
from tests.support.server import Server

from cloche.errors import InvalidArgument, NotFound, PermissionDenied

pytestmark = NEEDS_A_SERVER

TRAVERSALS = [
    "../../etc/shadow", "/proc/1/root/{canary}", "/proc/self/root/../../../../../../{canary}", "{canary}",
    "/home/user/../../{canary}", "/.cloche/../{canary}", "/proc/self/cwd/{canary}", "%2e%2e/%2e%2e/{canary}",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(server: Server) -> Iterator[dict[str, str]]:
    """A sandbox as the control plane describes it: id and token."""
    created = server.request("POST", "/v2/sandboxes", json={"templateID": "base", "timeout": 300}).json()
    yield created
    server.request("DELETE", f"/sandboxes/{created['sandboxID']}")


@pytest.fixture
def canary() -> Iterator[Path]:
    """A file of this machine that no sandbox may read or change."""
    path = Path(f"/tmp/canary-{secrets.token_hex(8)}")
    path.write_text("of the host")
    yield path
    assert path.read_text() == "of the host"
    path.unlink()


def files(server: Server, made: dict[str, str], method: str, path: str, **options: object) -> httpx.Response:
    headers = {"E2b-Sandbox-Id": made["sandboxID"], "E2b-Sandbox-Port": "49983"}
    headers["X-Access-Token"] = made["envdAccessToken"]
    return server.request(method, "/files", headers=headers, params={"path": path}, **options)


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_path_leads_out_of_the_sandbox(
    server: Server, made: dict[str, str], canary: Path, path: str
) -> None:
    """Battery 60: reading ends with an error of the sandbox's own, and never with a byte of the host."""
    answer = files(server, made, "GET", path.format(canary=str(canary).lstrip("/")))
    assert answer.status_code in (400, 401, 403, 404), answer.text
    assert "of the host" not in answer.text
    assert files(server, made, "GET", "/etc/hostname").status_code == 200  # twin


@pytest.mark.parametrize("path", ["{canary}", "/proc/1/root/{canary}", "../../{canary}"])
def test_no_write_leads_out_of_the_sandbox(
    server: Server, made: dict[str, str], canary: Path, path: str
) -> None:
    """Battery 60: whatever a write does, it does inside; the fixture checks the host's file afterwards."""
    files(server, made, "POST", path.format(canary=canary), files={"file": ("x", b"changed")})
    written = files(server, made, "POST", "/home/user/own", files={"file": ("own", b"mine")})
    assert written.status_code == 200  # twin
    assert files(server, made, "GET", "/home/user/own").text == "mine"


def test_users_files_are_read_with_the_users_rights(server: Server, made: dict[str, str]) -> None:
    """Battery 60: `user` does not get root's files, nor writes into root's folders, by asking the agent."""
    assert files(server, made, "GET", "/etc/shadow").status_code in (400, 401, 403)
    assert files(server, made, "POST", "/etc/new", files={"file": ("new", b"x")}).status_code in (
        400,
        401,
        403,
    )
    assert files(server, made, "GET", "/etc/passwd").status_code == 200  # twin


@pytest.mark.parametrize("path", ["/home/user/a\0b", "/" + "d/" * 2500])
def test_impossible_paths_are_refused(server: Server, made: dict[str, str], path: str) -> None:
    """Battery 60: NUL bytes and 5,000 characters are answered with 4xx, and the agent lives on."""
    assert 400 <= files(server, made, "GET", path).status_code < 500
    assert files(server, made, "GET", "/etc/hostname").status_code == 200  # twin


def test_special_files_do_not_hang_the_agent(server: Server, made: dict[str, str]) -> None:
    """Battery 62 in part: a device without an end and a folder are refused at once."""
    for path in ("/dev/zero", "/tmp"):
        assert 400 <= files(server, made, "GET", path).status_code < 500
    assert files(server, made, "GET", "/etc/hostname").status_code == 200  # twin


SWAPPER = """
import os, shutil
def move(first, second):
    while True:
        try:
            return os.rename(f"/home/user/{first}", f"/home/user/{second}")
        except OSError:  # an upload has made the folder in between
            shutil.rmtree("/home/user/d", ignore_errors=True)
os.mkdir("/home/user/plain")
os.symlink("/etc", "/home/user/link")
os.rename("/home/user/plain", "/home/user/d")
print("swapping", flush=True)
while True:
    for first, second in (("d", "plain"), ("link", "d"), ("d", "link"), ("plain", "d")):
        move(first, second)
"""


def test_no_link_that_is_swapped_in_lends_the_rights_of_root(server: Server, sandboxes: MakeSandbox) -> None:
    """Battery 61: a folder and a link to /etc take turns under one name; the user writes as the user."""
    sandbox = sandboxes()
    sandbox.files.write("/tmp/swapper.py", SWAPPER)
    swapping = sandbox.commands.run("python3 /tmp/swapper.py", background=True, timeout=0)
    assert next(iter(swapping)).stdout == "swapping\n"
    outcomes: set[str] = set()
    for turn in range(6000):  # on a busy machine the two take turns seldom
        try:
            sandbox.files.write("/home/user/d/x", "as user")
            outcomes.add("written")
        except (PermissionDenied, NotFound, InvalidArgument) as refused:
            outcomes.add(type(refused).__name__)
        if turn >= 300 and {"written", "PermissionDenied"} <= outcomes:
            break
    swapping.kill()
    assert "written" in outcomes  # twin
    assert "PermissionDenied" in outcomes, "the race was never met"
    assert inside.root(sandbox, "ls /etc/x").code != 0
    assert inside.root(sandbox, "find /etc -newer /tmp/swapper.py -type f").out == ""
