"""Boundary: volumes. Their trees are hostile; nobody leaves them, nobody enters a foreign one."""

import contextlib
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.block import number_of, sandbox_processes
from tests.support.census import processes
from tests.support.fixtures import NEEDS_A_SERVER
from tests.support.inside import python, root, run
from tests.support.server import Server
from tests.support.volumes import Volume, ask_for_sandbox, make, sandbox_with
from tests.support.waiting import until

from cloche import Sandbox
from cloche_server.config import VOLUMES_FIRST_ID
from cloche_server.isolation.base import ID_RANGE

pytestmark = [NEEDS_A_SERVER, pytest.mark.needs("loop")]

_LINKS = {
    "absolute": "/etc", "proc": "/proc/self/root", "cwd": "/proc/self/cwd", "up": "../../../../../../etc",
    "node": "/node.sock", "self": "self", "fd": "/proc/self/fd/3",
}  # fmt: skip
_SWAP = """
import os
os.makedirs('/data/a/inner', exist_ok=True)
open('/data/a/inner/hostname', 'w').write('of the volume')
os.symlink('/', '/data/link')
while True:
    os.rename('/data/a', '/data/real'); os.rename('/data/link', '/data/a')
    os.rename('/data/a', '/data/link'); os.rename('/data/real', '/data/a')
"""


@pytest.fixture(scope="module")
def volume(server: Server) -> Iterator[Volume]:
    made = make(server, "shared")
    yield made
    made.remove()


@pytest.fixture(scope="module")
def holders(server: Server, volume: Volume) -> Iterator[tuple[Sandbox, Sandbox]]:
    """Two sandboxes that have the volume."""
    a, b = (sandbox_with(server, {"/data": volume.name}) for _ in "ab")
    yield a, b
    a.kill()
    b.kill()


@pytest.mark.parametrize("kind", _LINKS)
def test_the_content_api_follows_no_link_out(
    volume: Volume, holders: tuple[Sandbox, Sandbox], kind: str
) -> None:
    """A link of a sandbox leads nowhere but into its volume, for every method."""
    name = f"/link-{kind}"
    assert root(holders[0], f"ln -s {_LINKS[kind]} /data{name}").code == 0
    for method, resource, path in (
        ("GET", "file", name), ("GET", "dir", name), ("GET", "file", f"{name}/hostname"),
        ("GET", "path", f"{name}/hostname"), ("PUT", "file", f"{name}/new"), ("POST", "dir", f"{name}/new"),
        ("DELETE", "path", f"{name}/hostname"), ("PATCH", "path", f"{name}/hostname"),
    ):  # fmt: skip
        options = {"json": {"mode": 0o777}} if method == "PATCH" else {}
        assert volume.content(method, resource, path, **options).status_code in {400, 404}, (method, resource)
    assert volume.content("GET", "path", name).json()["target"] == _LINKS[kind]
    assert root(holders[0], "mkdir -p /data/etc && echo own > /data/etc/hostname").code == 0
    if kind in {"absolute", "up"}:  # twin: inside the volume the same link is followed
        assert volume.read(f"{name}/hostname") == b"own\n"
    assert volume.content("DELETE", "path", "/etc").status_code == 204


def test_renames_in_the_middle_of_a_lookup_lead_nowhere(
    volume: Volume, holders: tuple[Sandbox, Sandbox]
) -> None:
    """While a folder and a link to `/` change places, each read gives the volume's file or none."""
    holders[0].files.write("/tmp/swap.py", _SWAP)
    swapping = holders[0].commands.run("python3 /tmp/swap.py", background=True, timeout=0, user="root")
    until(lambda: run(holders[0], "test -L /data/link -o -L /data/a").code == 0, within_s=20, what="the swap")
    seen: set[tuple[int, bytes]] = set()
    whole = {(200, b"of the volume"), (404, b"")}

    def read() -> None:
        for number in range(5000):
            answer = volume.content("GET", "file", "/a/inner/hostname")
            seen.add((answer.status_code, answer.content if answer.status_code == 200 else b""))
            if number >= 100 and seen >= whole:
                return

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    swapping.kill()
    # 409: the kernel gives up a lookup after 128 renames under it.
    assert whole <= seen <= whole | {(400, b""), (409, b"")}


def test_special_files_hold_nothing_up(volume: Volume, holders: tuple[Sandbox, Sandbox]) -> None:
    """A fifo, a socket and the longest names are told and removed, and never waited for."""
    made = python(
        holders[0],
        "import os, socket\nos.makedirs('/data/odd')\nos.chdir('/data/odd')\nos.mkfifo('fifo')\n"
        "socket.socket(socket.AF_UNIX).bind('socket')\nos.mkdir('n' * 255)\n"
        "os.close(os.open(b'\\xff\\n\\x1b[2J', os.O_CREAT))\nos.chmod('.', 0)\n",
    )
    assert made.code == 0, made.err
    listed = volume.content("GET", "dir", "/odd").json()
    # On gVisor fifos and sockets are its kernel's own, and never reach the volume.
    special = [] if volume.server.isolation == "gvisor" else ["unknown", "unknown"]
    assert sorted(entry["type"] for entry in listed) == ["directory", "file", *special]
    for name in ("fifo", "socket"):
        assert volume.content("GET", "file", f"/odd/{name}").status_code == 404
    assert volume.content("DELETE", "path", "/odd").status_code == 204


def test_devices_cannot_be_made_and_would_not_open(volume: Volume, holders: tuple[Sandbox, Sandbox]) -> None:
    """No sandbox makes a device in a volume; the mount would not let one be opened either."""
    for kind in ("c 1 3", "b 7 0"):
        assert root(holders[0], f"mknod /data/device {kind}").code != 0
    assert root(holders[0], "mknod /data/pipe p && rm /data/pipe").code == 0  # twin: a fifo is no device
    on_gvisor = volume.server.isolation == "gvisor"
    if on_gvisor:
        shown = _options_of_gofers(volume.server)
        assert len(shown) >= len(holders)
    else:
        shown = [
            root(sandbox, "awk '$5 == \"/data\" {print $6}' /proc/self/mountinfo").out for sandbox in holders
        ]
    for options in shown:
        assert {"nodev", "nosuid", "idmapped"} <= set(options.strip().split(","))
    for sandbox in holders:
        assert root(sandbox, "ls /dev | grep -c loop").out.strip() == "0"


def _options_of_gofers(server: Server) -> list[str]:
    """How the volume is mounted in the processes that serve files to the kernels of the sandboxes."""
    found: list[str] = []
    for pid in sandbox_processes(number_of(server.state)):
        with contextlib.suppress(OSError):
            fields = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
            found += [parts[5] for parts in fields if parts[4] in ("/data", "/root/data")]
    return found


def test_a_link_or_dots_in_a_volume_stay_in_the_sandbox(holders: tuple[Sandbox, Sandbox]) -> None:
    """What a volume's links and `..` lead to is the sandbox's own, whoever opens it there."""
    links = "ln -s /etc/hostname /data/away && ln -s ../../../../../etc/hostname /data/above"
    assert root(holders[0], links).code == 0
    for sandbox in holders:
        for path in ("/data/away", "/data/above", "/data/../etc/hostname"):
            assert root(sandbox, f"cat {path}").out.strip() == sandbox.sandbox_id
        assert root(sandbox, "ls /data/..").out == root(sandbox, "ls /").out
    assert root(holders[0], "rm /data/away /data/above").code == 0


def test_setuid_bits_of_a_volume_raise_nobody(volume: Volume, holders: tuple[Sandbox, Sandbox]) -> None:
    """A setuid program that one sandbox's root leaves there runs as its caller everywhere."""
    made = "cp /usr/bin/id /data/id && chmod 4755 /data/id && cp /usr/bin/id /usr/local/bin/suid-id"
    assert root(holders[0], f"{made} && chmod 4755 /usr/local/bin/suid-id").code == 0
    assert volume.content("GET", "path", "/id").json()["mode"] == 0o4755
    for sandbox in holders:
        assert run(sandbox, "/data/id -u").out.strip() == "1000"
    if volume.server.isolation == "container":  # runsc as packaged has no such programs at all
        assert run(holders[0], "/usr/local/bin/suid-id -u").out.strip() == "0"  # twin: elsewhere it works
    assert volume.content("PATCH", "path", "/id", json={"mode": 0o6755}).status_code == 200
    assert run(holders[1], "/data/id -u -r; /data/id -u; /data/id -g").out.split() == ["1000", "1000", "1000"]


def test_root_of_a_sandbox_can_neither_unmount_nor_remount_a_volume(
    volume: Volume, holders: tuple[Sandbox, Sandbox]
) -> None:
    """The mount stays as it is, with the flags it has."""
    del volume
    for command in ("umount -l /data", "mount -o remount,suid,dev /data", "mount --move /data /mnt"):
        assert root(holders[0], command).code != 0
    assert root(holders[0], "mountpoint /data && touch /data/x && rm /data/x").code == 0  # twin


def test_another_team_neither_sees_mounts_deletes_nor_opens_it(server: Server, volume: Volume) -> None:
    """Every way to a foreign volume looks like one to a volume that is not there."""
    key = server.new_key("strangers")
    assert server.request("GET", "/volumes", key=key).json() == []
    for method in ("GET", "DELETE"):
        foreign = server.request(method, f"/volumes/{volume.id}", key=key)
        unknown = server.request(method, f"/volumes/{volume.id[::-1]}", key=key)
        assert foreign.status_code == unknown.status_code == 404
    foreign, unknown = (ask_for_sandbox(server, {"/d": name}, key=key) for name in (volume.name, "unknown"))
    assert foreign.status_code == unknown.status_code == 404
    assert foreign.text.replace(volume.name, "") == unknown.text.replace("unknown", "")
    own = server.request("POST", "/volumes", json={"name": volume.name}, key=key)
    assert own.status_code == 201
    own_id, own_token = own.json()["volumeID"], own.json()["token"]
    assert volume.content("GET", "path", "/", token=own_token).status_code == 401
    assert volume.content("GET", "path", "/", token=key).status_code == 401
    twin = Volume(server, own_id, volume.name, own_token)
    assert twin.content("GET", "path", "/").status_code == 200
    assert server.request("DELETE", f"/volumes/{own_id}", key=key).status_code == 204


def test_a_sandbox_without_the_volume_does_not_have_it(server: Server, volume: Volume) -> None:
    """Only who names a volume gets it."""
    del volume
    answer = ask_for_sandbox(server, {})
    assert answer.status_code == 201
    assert answer.json().get("volumeMounts") is None
    sandbox_id = answer.json()["sandboxID"]
    assert server.request("GET", f"/sandboxes/{sandbox_id}").json()["volumeMounts"] == []
    server.request("DELETE", f"/sandboxes/{sandbox_id}")


def test_who_serves_the_content_is_nobody_on_this_machine(server: Server, volume: Volume) -> None:
    """Its ids are its own, it has no capability outside, sees one socket, and has no network."""
    assert volume.content("GET", "path", "/").status_code == 200
    pid = server.part("content")
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == fields["Gid"].split() == [str(VOLUMES_FIRST_ID)] * 4
    assert fields["Groups"].strip() == ""
    assert fields["NoNewPrivs"] == "1"
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0b11011
    assert int(fields["CapInh"], 16) == int(fields["CapAmb"], 16) == 0
    ids = Path(f"/proc/{pid}/uid_map").read_text().split()
    assert ids == ["0", str(VOLUMES_FIRST_ID), str(ID_RANGE)]
    assert [path.name for path in Path(f"/proc/{pid}/root").iterdir()] == ["node.sock"]
    assert len(Path(f"/proc/{pid}/net/dev").read_text().splitlines()) == 3  # two lines of heading, and lo
    assert Path(f"/proc/{pid}/ns/user").readlink() != Path("/proc/self/ns/user").readlink()


def test_nobody_else_on_this_machine_has_a_volume_mounted_or_can_reach_its_image(
    server: Server, volume: Volume, holders: tuple[Sandbox, Sandbox]
) -> None:
    """The mounts stand in the sandboxes alone, and the folder of the images is root's."""
    assert root(holders[0], "mountpoint /data").code == 0
    folder = server.state / "volumes"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / volume.id / "image").stat().st_mode) == 0o600
    views = {
        line
        for pid, uid in processes()
        if uid < VOLUMES_FIRST_ID + ID_RANGE
        for line in mount_table(pid)
        if " ext4 /proc/self/fd/" in line
    }
    assert views == set()


def mount_table(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    except OSError:
        return []
