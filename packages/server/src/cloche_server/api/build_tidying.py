"""What builds leave behind when something died in their midst, and what nobody asks for any more."""

from collections.abc import Coroutine
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from cloche_server.api.control import ControlPlane
from cloche_server.api.layer_collection import Collector
from cloche_server.templates import manifest
from cloche_wire.errors import ClocheError

EVERY_S = 3600.0
ROOM_EVERY_S = 60.0
"""Between two looks whether there is still room on the disk."""

log = structlog.get_logger()


async def tidy_regularly(control: ControlPlane) -> None:
    """Tidy now and every hour, and as soon as there is little room, until cancelled.

    What cannot be done is tried again the next time.
    """
    while True:
        await _tried(tidy(control))
        for _ in range(round(EVERY_S / ROOM_EVERY_S)):
            await _tried(make_room(control))
            await anyio.sleep(ROOM_EVERY_S)


async def _tried(work: Coroutine[object, object, None]) -> None:
    try:
        await work
    except (ClocheError, OSError) as error:
        log.warning("build.not_tidied", error=str(error))


async def make_room(control: ControlPlane) -> None:
    """Remove what was used longest ago where the disk is nearly as full as builds may make it.

    Raises:
        Unavailable: The node or the database does not answer.
    """
    await _collector(control).make_room(control.clock.now(), control.builds.running_since)


def _collector(control: ControlPlane) -> Collector:
    return Collector(control.config, control.store, control.workshop)


async def tidy(control: ControlPlane) -> None:
    """Remove archives, builds and layers that nobody asks for any more.

    A build that belongs to no template is left when the api dies after its publishing and before its row.

    Raises:
        Unavailable: The node or the database does not answer.
    """
    await control.uploads.clean(keep_days=control.config.builds.keep_uploads_days)
    published = await anyio.to_thread.run_sync(_published, control.config.templates_dir)
    for made in published:
        if made.build_id in control.builds:
            continue
        if not await control.store.builds.is_ready(made.build_id):
            await control.workshop.remove(made.build_id)
            log.info("build.orphan_removed", build_id=made.build_id)
    collector, now = _collector(control), control.clock.now()
    await collector.remove_builds([made.build_id for made in published], now)
    await collector.collect(now)


def _published(folder: Path) -> list[manifest.Manifest]:
    """Builds of teams; what cannot be read is left alone."""
    found: list[manifest.Manifest] = []
    for path in folder.glob(f"[!.]*/{manifest.MANIFEST_NAME}"):
        try:
            found.append(manifest.read(path))
        except (ClocheError, OSError) as error:
            log.warning("build.manifest_skipped", path=str(path), error=str(error))
    return [made for made in found if made.team_id]
