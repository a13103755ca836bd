"""Volumes on this machine: made, mounted, removed.

The node opens the root of a volume and hands it on as a descriptor. It opens nothing inside, since what lies
there was written by sandboxes, and looks at names there only where a resume has failed (`volume_requests`).
A mount it makes stands nowhere and goes with its descriptor, so nothing is left of it after a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import hmac
import os
from pathlib import Path

import msgspec
import structlog

from cloche_server.config import Volumes as VolumeSettings
from cloche_server.ids import is_volume_id
from cloche_server.isolation import syscalls
from cloche_server.node.messages import CreateVolume, OpenVolume
from cloche_server.node.volume_storage import Kind, Storage, storage_of
from cloche_wire.errors import (
    AlreadyExists,
    InvalidArgument,
    NotEnoughSpace,
    Unauthenticated,
    Unavailable,
    VolumeNotFound,
)

KEEP_S = 10.0
"""How long a volume stays mounted after a request for its content: the first mount costs 11 ms, more 0.1."""
_RECORD = "volume.json"
_UNFINISHED = ".new"

log = structlog.get_logger()


class Record(msgspec.Struct, frozen=True):
    """What the node knows of one volume, in its folder."""

    volume_id: str
    team_id: str
    token_sha256: str
    quota: Kind


class Volumes:
    """The volumes of this node, and those of them that are kept mounted."""

    def __init__(self, folder: Path, settings: VolumeSettings, user_namespace: int | None) -> None:
        """Take the folder of volumes.

        Args:
            folder: Made here, for root alone: files in it are owned by ids that mean other users outside.
            settings: Limits of new volumes.
            user_namespace: Of the process that serves their content; None where nobody does.
        """
        self._folder = folder
        self._settings = settings
        self._user_namespace = user_namespace
        self._kept: dict[str, int] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._making: set[str] = set()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)

    def unfinished(self) -> list[Path]:
        """Folders of volumes that a killed node was making."""
        return list(self._folder.glob(f"*{_UNFINISHED}"))

    def find(self, volume_id: str) -> Record:
        """The record of a volume.

        Raises:
            VolumeNotFound: There is none.
        """
        if is_volume_id(volume_id):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                text = (self._folder / volume_id / _RECORD).read_bytes()
                return msgspec.json.decode(text, type=Record)
        raise VolumeNotFound(f"no such volume: {volume_id[:80]}")

    async def create(self, request: CreateVolume) -> None:
        """Make an empty volume: all of it, or nothing.

        Raises:
            InvalidArgument: Not a volume id.
            AlreadyExists: There is one of that id.
            NotEnoughSpace: The disk is too full.
            Unavailable: This machine cannot hold volumes to a limit.
        """
        if not is_volume_id(request.volume_id):
            raise InvalidArgument(f"not a volume id: {request.volume_id[:80]!r}")
        digest = _digest(request.token)
        record = Record(request.volume_id, request.team_id, digest, self._settings.quota)
        self._making.add(record.volume_id)
        try:
            await asyncio.to_thread(self._make, record)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise NotEnoughSpace("no space left for a volume") from error
            log.exception("volume.not_created", volume_id=record.volume_id)
            raise Unavailable("the volume cannot be made", hint="the node's log has the reason") from error
        finally:
            self._making.discard(record.volume_id)
        log.info("volume.created", volume_id=request.volume_id)

    def _make(self, record: Record) -> None:
        folder = self._folder / record.volume_id
        if folder.exists():
            raise AlreadyExists(f"volume exists: {record.volume_id}")
        staged = folder.with_name(folder.name + _UNFINISHED)
        staged.mkdir(mode=0o700)
        try:
            self._storage(record).make(staged)
            (staged / _RECORD).write_bytes(msgspec.json.encode(record))
        except BaseException:
            for name in ("image", _RECORD):
                (staged / name).unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                (staged / "files").rmdir()
            staged.rmdir()
            raise
        # An answer means that it is there, also after a power cut.
        _sync(staged / _RECORD)
        _sync(staged)
        staged.rename(folder)
        _sync(self._folder)

    async def mount(self, record: Record) -> int:
        """Return a descriptor of a new mount of the volume, which stands nowhere; the caller closes it.

        Raises:
            Unavailable: It cannot be mounted.
        """
        folder = self._folder / record.volume_id
        # One at a time: two that both find no loop device would make two.
        async with self._locks.setdefault(record.volume_id, asyncio.Lock()):
            try:
                return await _mounted(self._storage(record), folder)
            except OSError as error:
                log.exception("volume.not_mounted", volume_id=record.volume_id)
                hint = "the node's log has the reason; docs/volumes.md says how to repair it"
                raise Unavailable("the volume cannot be mounted", hint=hint) from error

    async def open(self, request: OpenVolume) -> int:
        """Return a mount of the volume for the process that serves its content; the caller closes it.

        Raises:
            Unauthenticated: No such volume, or not its token: the two look alike.
            Unavailable: Nobody serves content here.
        """
        try:
            record = self.find(request.volume_id)
        except VolumeNotFound:
            record = None
        known = "" if record is None else record.token_sha256
        if not hmac.compare_digest(known, _digest(request.token)) or record is None:
            raise Unauthenticated("unknown volume, or wrong token")
        if self._user_namespace is None:
            raise Unavailable("this node serves no content of volumes")
        if record.volume_id not in self._kept:
            self._keep(record.volume_id, await self.mount(record))
        mount = await self.mount(record)
        try:
            syscalls.map_ids(
                mount, self._user_namespace, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
            )
        except BaseException:
            os.close(mount)
            raise
        return mount

    def _keep(self, volume_id: str, mount: int) -> None:
        if volume_id in self._kept:
            os.close(mount)
            return
        self._kept[volume_id] = mount
        asyncio.get_running_loop().call_later(KEEP_S, self.let_go, volume_id)

    def let_go(self, volume_id: str) -> None:
        """Keep the volume mounted no longer than others do. Idempotent."""
        mount = self._kept.pop(volume_id, None)
        if mount is not None:
            # The last one writes everything to the disk, which may take a while.
            asyncio.get_running_loop().run_in_executor(None, os.close, mount)

    def forget(self, volume_id: str) -> Path:
        """Return the folder of a volume that is to go to the trash.

        Raises:
            Unavailable: It is still being made, for whoever has given up waiting for it.
        """
        if volume_id in self._making:
            raise Unavailable(f"volume is still being made: {volume_id}")
        self.let_go(volume_id)
        self._locks.pop(volume_id, None)
        return self._folder / volume_id

    def _storage(self, record: Record) -> Storage:
        return storage_of(record.quota, self._settings)


async def _mounted(storage: Storage, folder: Path) -> int:
    """Mount on a thread; a descriptor that comes after a cancellation is closed."""
    step = asyncio.get_running_loop().run_in_executor(None, storage.mount, folder)
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        step.add_done_callback(_close_late)
        raise


def _close_late(step: asyncio.Future[int]) -> None:
    if not step.cancelled() and step.exception() is None:
        os.close(step.result())


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
