"""What builds leave behind when something died in their midst, and what nobody asks for any more."""

from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from cloche_server.api.control import ControlPlane
from cloche_server.templates import manifest
from cloche_wire.errors import ClocheError

EVERY_S = 3600.0

log = structlog.get_logger()


async def tidy_regularly(control: ControlPlane) -> None:
    """Tidy now and every hour, until cancelled; what cannot be done is tried again the next time."""
    while True:
        try:
            await tidy(control)
        except (ClocheError, OSError) as error:
            log.warning("build.not_tidied", error=str(error))
        await anyio.sleep(EVERY_S)


async def tidy(control: ControlPlane) -> None:
    """Remove builds that are published and belong to no template, and archives that no build asks for.

    Such a build is left when the api dies between its publishing and the row that says so.

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


def _published(folder: Path) -> list[manifest.Manifest]:
    """Builds of teams; what cannot be read is left alone."""
    found: list[manifest.Manifest] = []
    for path in folder.glob(f"[!.]*/{manifest.MANIFEST_NAME}"):
        try:
            found.append(manifest.read(path))
        except (ClocheError, OSError) as error:
            log.warning("build.manifest_skipped", path=str(path), error=str(error))
    return [made for made in found if made.team_id]
