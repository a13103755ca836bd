"""The official client's volumes: made, mounted, written and read from both sides, destroyed."""

import asyncio
import uuid
from collections.abc import Iterator
from io import BytesIO, StringIO

import pytest

from e2b import AsyncVolume, Volume
from e2b.exceptions import (
    AuthenticationException,
    NotFoundException,
    SandboxException,
    VolumeException,
    VolumeNotFoundException,
)
from e2b_code_interpreter import AsyncSandbox, Sandbox


@pytest.fixture
def volume() -> Iterator[Volume]:
    made = Volume.create(f"compat-{uuid.uuid4().hex}")
    yield made
    Volume.destroy(made.volume_id)


def test_a_volume_is_made_found_and_destroyed() -> None:
    name = f"life-{uuid.uuid4().hex}"
    made = Volume.create(name)
    assert made.name == name
    assert made.token
    info = Volume.get_info(made.volume_id)
    assert (info.volume_id, info.name, info.token) == (made.volume_id, name, made.token)
    assert name in [volume.name for volume in Volume.list()]
    assert Volume.connect(made.volume_id).token == made.token
    assert Volume.destroy(made.volume_id) is True
    assert Volume.destroy(made.volume_id) is False
    with pytest.raises(VolumeNotFoundException):
        Volume.get_info(made.volume_id)


def test_a_name_is_used_once_and_well_formed(volume: Volume) -> None:
    with pytest.raises(VolumeException, match="already exists"):
        Volume.create(volume.name)
    with pytest.raises(VolumeException):
        Volume.create("not a name")


def test_one_sandbox_writes_another_reads(volume: Volume) -> None:
    with Sandbox.create(volume_mounts={"/mnt/data": volume}) as writer:
        writer.files.write("/mnt/data/from-files.txt", "files")
        writer.commands.run("echo commands > /mnt/data/from-commands.txt")
        writer.run_code("open('/mnt/data/from-code.txt', 'w').write('code')")
        assert writer.get_info().volume_mounts == [{"name": volume.name, "path": "/mnt/data"}]
    with Sandbox.create(volume_mounts={"/home/user/data": volume.name}) as reader:
        assert reader.files.read("/home/user/data/from-files.txt") == "files"
        assert reader.commands.run("cat data/from-commands.txt data/from-code.txt").stdout == "commands\ncode"
        volume.write_file("/from-outside.txt", "outside", uid=1000, gid=1000)
        assert reader.files.read("/home/user/data/from-outside.txt") == "outside"
        assert reader.files.get_info("/home/user/data/from-outside.txt").owner == "user"
        with pytest.raises(VolumeException, match="mounted"):
            Volume.destroy(volume.volume_id)
    assert volume.read_file("/from-commands.txt") == "commands\n"


def test_a_mount_that_cannot_be_is_refused(volume: Volume) -> None:
    with pytest.raises(SandboxException, match="/proc"):
        Sandbox.create(volume_mounts={"/proc": volume})
    with pytest.raises(SandboxException, match=r"404.*no-such-volume"):
        Sandbox.create(volume_mounts={"/data": "no-such-volume"})


def test_text_bytes_and_streams_come_back_as_they_were_written(volume: Volume) -> None:
    blob = bytes(range(256)) * 4000
    volume.write_file("/text", "grüße")
    volume.write_file("/bytes", blob)
    volume.write_file("/stream", BytesIO(blob))
    volume.write_file("/text-stream", StringIO("grüße" * 1000))
    volume.write_file("/empty", "")
    assert volume.read_file("/text") == "grüße"
    assert volume.read_file("/bytes", format="bytes") == blob
    assert b"".join(volume.read_file("/stream", format="stream")) == blob
    assert volume.read_file("/text-stream") == "grüße" * 1000
    assert volume.read_file("/empty") == ""


def test_a_file_is_overwritten_with_force_only(volume: Volume) -> None:
    volume.write_file("/file", "old")
    with pytest.raises(VolumeException):
        volume.write_file("/file", "new", force=False)
    volume.write_file("/file", "new", force=True)
    assert volume.read_file("/file") == "new"


def test_metadata_is_given_told_and_changed(volume: Volume) -> None:
    made = volume.write_file("/file", "x", uid=1000, gid=1001, mode=0o640)
    assert (made.uid, made.gid, made.mode, made.type.value) == (1000, 1001, 0o640, "file")
    changed = volume.update_metadata("/file", uid=7, mode=0o755)
    assert (changed.path, changed.uid, changed.gid, changed.mode) == ("/file", 7, 1001, 0o755)
    assert volume.get_info("/file").mtime.tzinfo is not None
    with pytest.raises(NotFoundException):
        volume.update_metadata("/none", mode=0o644)


def test_folders_are_made_listed_and_removed(volume: Volume) -> None:
    volume.make_dir("/deep/er/folder", force=True)
    with pytest.raises(VolumeException):
        volume.make_dir("/deep", force=False)
    volume.write_file("/deep/er/folder/file", "x")
    assert [entry.path for entry in volume.list("/deep")] == ["/deep/er"]
    assert [entry.path for entry in volume.list("/deep", depth=3)] == [
        "/deep/er", "/deep/er/folder", "/deep/er/folder/file",
    ]  # fmt: skip
    volume.remove("/deep")
    assert volume.exists("/deep") is False
    for act in (volume.list, volume.remove, volume.read_file):
        with pytest.raises(NotFoundException):
            act("/deep")


def test_another_token_opens_nothing(volume: Volume) -> None:
    stranger = Volume(volume.volume_id, volume.name, token="vol_wrong")
    with pytest.raises(AuthenticationException):
        stranger.list("/")


def test_the_asynchronous_client_does_the_same() -> None:
    async def walk() -> None:
        made = await AsyncVolume.create(f"async-{uuid.uuid4().hex}")
        await made.write_file("/a", b"x" * 300_000)
        sandbox = await AsyncSandbox.create(volume_mounts={"/data": made})
        try:
            assert (await sandbox.commands.run("stat -c %s /data/a")).stdout.strip() == "300000"
        finally:
            await sandbox.kill()
        stream = await made.read_file("/a", format="stream")
        assert sum([len(chunk) async for chunk in stream]) == 300_000
        assert await AsyncVolume.destroy(made.volume_id) is True

    asyncio.run(walk())
