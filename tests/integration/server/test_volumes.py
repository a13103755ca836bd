"""Volumes on a real server: shared by sandboxes, held to their limits, and nothing left after a crash."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import census
from tests.support.fixtures import NEEDS_A_SERVER, STATES
from tests.support.inside import root, run
from tests.support.server import Server
from tests.support.volumes import Volume, ask_for_sandbox, make, sandbox_with
from tests.support.waiting import until

import cloche
from cloche_wire.errors import Conflict

pytestmark = [NEEDS_A_SERVER, pytest.mark.needs("loop"), pytest.mark.timeout(240)]

SIZE_MIB = 24
FILES = 300


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of this module alone, whose volumes are small."""
    state = tmp_path_factory.mktemp("small") / "state"
    state.mkdir()
    (state / "config.toml").write_text(f"[volumes]\nsize_mib = {SIZE_MIB}\nfiles = {FILES}\n")
    STATES.add(state)
    with census.nothing_left([state], within_s=20):
        server = Server(state)
        try:
            yield server.start()
        finally:
            server.stop()


@pytest.fixture
def volume(small_server: Server) -> Iterator[Volume]:
    made = make(small_server, "data")
    yield made
    made.remove()
    until(lambda: not loops(small_server), within_s=10, what="the end of the loop device")


def loops(server: Server) -> list[str]:
    return list(census.loops([server.state]))


def test_sandboxes_share_a_volume_and_see_the_same_owners(small_server: Server, volume: Volume) -> None:
    """What one writes the others read, under the ids that they all know, whatever their slot."""
    with (
        sandbox_with(small_server, {"/mnt/data": "data"}) as a,
        sandbox_with(small_server, {"/d": "data"}) as b,
    ):
        assert run(a, "echo of a > /mnt/data/a && mkdir /mnt/data/folder").code == 0
        assert root(b, "chown 33:34 /d/a && chmod 640 /d/a").code == 0
        assert root(a, "stat -c '%u:%g %a' /mnt/data/a").out.strip() == "33:34 640"
        assert run(a, "stat -c %U /mnt/data/folder").out.strip() == "user"
        told = volume.content("GET", "path", "/a").json()
        assert (told["uid"], told["gid"], told["mode"]) == (33, 34, 0o640)
        assert volume.read("/a") == b"of a\n"
        assert volume.write("/from/outside", b"x").status_code == 404
        assert volume.write("/outside", b"from outside", uid=1000, gid=1000).status_code == 201
        assert run(b, "cat /d/outside && echo >> /d/outside").out == "from outside"
        assert len(loops(small_server)) == 1
        a.kill(), b.kill()


def test_a_volume_outlives_its_sandboxes(small_server: Server, volume: Volume) -> None:
    """Written in one sandbox, read in the next, and over HTTP in between."""
    with sandbox_with(small_server, {"/home/user/data": "data"}) as first:
        assert run(first, "echo kept > /home/user/data/file").code == 0
        first.kill()
    until(lambda: not loops(small_server), within_s=15, what="an unused volume to be let go")
    assert volume.read("/file") == b"kept\n"
    with sandbox_with(small_server, {"/data": "data"}) as second:
        assert run(second, "cat /data/file").out == "kept\n"
        second.kill()


def test_bytes_are_limited_for_root_too_and_told_as_507(small_server: Server, volume: Volume) -> None:
    """ENOSPC inside, 507 over HTTP; what is removed can be written again."""
    with sandbox_with(small_server, {"/data": "data"}) as sandbox:
        full = root(sandbox, f"dd if=/dev/zero of=/data/big bs=1M count={SIZE_MIB + 8}")
        assert full.code != 0
        assert "No space left" in full.err
        used = int(root(sandbox, "stat -c %s /data/big").out)
        assert SIZE_MIB << 19 < used < SIZE_MIB << 20
        refused = volume.write("/more", b"x" * (1 << 20))
        assert (refused.status_code, refused.json()["code"]) == (507, "507")
        assert volume.content("GET", "path", "/more").status_code == 404
        image = small_server.state / "volumes" / volume.id / "image"
        assert image.stat().st_blocks * 512 <= SIZE_MIB << 20
        assert root(sandbox, "rm /data/big").code == 0
        assert volume.write("/more", b"x" * (1 << 20)).status_code == 201
        sandbox.kill()


def test_the_number_of_files_is_limited_for_root_too(small_server: Server, volume: Volume) -> None:
    """Empty files are files."""
    with sandbox_with(small_server, {"/data": "data"}) as sandbox:
        made = root(
            sandbox, f"for i in $(seq {2 * FILES}); do : > /data/f$i || break; done; ls /data | wc -l"
        )
        # mkfs rounds up to whole blocks of inodes.
        assert FILES // 2 < int(made.out) < FILES + 64
        assert volume.content("POST", "dir", "/one-more").status_code == 507
        assert volume.write("/one-more", b"").status_code == 507
        sandbox.kill()


def test_a_mounted_volume_is_not_deleted(small_server: Server, volume: Volume) -> None:
    """409 that names the sandbox; afterwards it works."""
    with sandbox_with(small_server, {"/data": "data"}) as sandbox:
        refused = small_server.request("DELETE", f"/volumes/{volume.id}")
        assert refused.status_code == 409
        assert sandbox.sandbox_id in refused.json()["message"]
        assert run(sandbox, "touch /data/still-there").code == 0
        sandbox.kill()


def test_a_deleted_volume_is_gone_for_tokens_and_creates(small_server: Server) -> None:
    """Neither its token nor its name opens anything, and its space is given back."""
    made = make(small_server, "short-lived")
    assert made.write("/a", b"x").status_code == 201
    made.remove()
    assert made.content("GET", "path", "/a").status_code == 401
    assert ask_for_sandbox(small_server, {"/data": "short-lived"}).status_code == 404
    until(lambda: not list(small_server.state.glob(f"*/{made.id}*")), within_s=10, what="its removal")


@pytest.mark.parametrize(
    ("path", "why"), [("/bin/x", "symbolic link"), ("/etc/passwd", "file"), ("/etc/passwd/x", "file")]
)
def test_a_path_over_a_link_or_a_file_is_refused_and_nothing_stays(
    small_server: Server, volume: Volume, path: str, why: str
) -> None:
    """400 with the name of what is in the way; the volume is free again."""
    refused = ask_for_sandbox(small_server, {path: volume.name})
    assert (refused.status_code, refused.json()["code"]) == (400, 400)
    assert why in refused.json()["message"]
    assert list(small_server.state.glob("sandboxes/*")) == []


def test_sixteen_volumes_in_one_sandbox(small_server: Server) -> None:
    """As many as are allowed, in folders that are made and folders that are there."""
    made = [make(small_server, f"v{number}") for number in range(16)]
    mounts = {f"/srv/deep/er/v{number}": f"v{number}" for number in range(15)} | {"/opt": "v15"}
    with sandbox_with(small_server, mounts) as sandbox:
        assert run(sandbox, "for p in /srv/deep/er/* /opt; do echo $p > $p/name || exit 1; done").code == 0
        assert made[3].read("/name") == b"/srv/deep/er/v3\n"
        sandbox.kill()
    for volume in made:
        volume.remove()


@pytest.mark.parametrize("part", ["node", "content", "api", "edge"])
def test_a_killed_part_breaks_no_mount(small_server: Server, volume: Volume, part: str) -> None:
    """The sandbox writes on; afterwards content and new sandboxes see one and the same file system."""
    with sandbox_with(small_server, {"/data": "data"}) as sandbox:
        assert volume.write("/before", b"1").status_code == 201
        small_server.kill_part(part)
        assert run(sandbox, "echo after > /data/after; cat /data/before").out == "1"
        assert volume.read("/after") == b"after\n"
        with sandbox_with(small_server, {"/d": "data"}) as other:
            assert run(other, "echo other >> /d/after && sync").code == 0
            assert run(sandbox, "cat /data/after").out == "after\nother\n"
            assert len(loops(small_server)) == 1
            other.kill()
        volume.remove(expected=409)
        sandbox.kill()


def test_a_killed_server_leaves_nothing_of_unused_volumes_and_finds_used_ones(
    small_server: Server, volume: Volume
) -> None:
    """The mount of the sandbox lives on, that of the content goes with its process."""
    unused = make(small_server, "unused")
    assert unused.write("/a", b"x").status_code == 201
    with sandbox_with(small_server, {"/data": "data"}) as sandbox:
        assert unused.read("/a") == b"x"  # it is let go when nobody has asked for it for a while
        assert len(loops(small_server)) == 2
        small_server.kill_supervisor()
        until(lambda: len(loops(small_server)) == 1, within_s=10, what="the end of the unused one's device")
        small_server.start()
        assert run(sandbox, "echo on > /data/file").code == 0
        assert volume.read("/file") == b"on\n"
        assert unused.read("/a") == b"x"
        sandbox.kill()
    unused.remove()


def test_without_a_quota_a_volume_is_a_plain_folder_that_works_the_same(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Where the operator chose so: shared, owned and served as ever, without a loop device or a limit."""
    state = tmp_path_factory.mktemp("none") / "state"
    state.mkdir()
    (state / "config.toml").write_text('[volumes]\nquota = "none"\n')
    STATES.add(state)
    server = Server(state).start()
    try:
        made = make(server, "plain")
        with sandbox_with(server, {"/data": "plain"}) as a, sandbox_with(server, {"/d": "plain"}) as b:
            assert root(a, "echo x > /data/file && chown 33:34 /data/file").code == 0
            assert run(b, "stat -c %u:%g /d/file && touch /d/own").out.strip() == "33:34"
            told = made.content("GET", "path", "/file").json()
            assert (told["uid"], told["gid"]) == (33, 34)
            assert loops(server) == []
            a.kill(), b.kill()
        assert made.content("DELETE", "path", "/file").status_code == 204
        made.remove()
    finally:
        server.stop()


def test_our_own_client_mounts_writes_and_reads(server: Server) -> None:
    """The same through `cloche`: a volume object at a path, content from inside and outside."""
    options = {"api_url": server.url, "sandbox_url": server.url, "api_key": server.key}
    made = cloche.Volume.create("own-client", **options)
    with cloche.Sandbox.create(volume_mounts={"/data": made}, **options) as sandbox:
        sandbox.files.write("/data/inside", "inside")
        made.write_file("/outside", io.BytesIO(b"outside"))
        assert made.read_file("/inside") == "inside"
        assert sandbox.files.read("/data/outside") == "outside"
        assert [entry.name for entry in made.list("/")] == ["inside", "outside"]
        with pytest.raises(Conflict):
            cloche.Volume.destroy(made.volume_id, **options)
    assert cloche.Volume.destroy(made.volume_id, **options) is True
    made.close()


def test_a_large_file_passes_in_constant_memory(server: Server) -> None:
    """200 MiB up and down in pieces: the process of the content grows by at most 16 MiB."""
    made = make(server, "large")
    made.write("/first", b"x")
    before = peak_kib(server)
    block = b"0123456789abcdef" * 4096
    sent = made.content("PUT", "file", "/large", content=(block for _ in range(200 * 16)))
    assert (sent.status_code, sent.json()["size"]) == (201, 200 << 20)
    assert made.read("/large") == block * 200 * 16
    assert peak_kib(server) - before < 16 << 10
    made.remove()


def peak_kib(server: Server) -> int:
    status = Path(f"/proc/{server.part('content')}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
