"""Removing what builds have left and nobody has used lately: old builds, known steps, and layers of neither.

Last use is written down where something is used: a step when a build asks for it, a build when a sandbox is
made of it. What a pinned template is made of, and can be built again from, stays. Where the disk is nearly as
full as builds may make it, what was used longest ago goes before its time.
"""

import shutil
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import NamedTuple

import anyio.to_thread
import structlog

from cloche_server.config import Config
from cloche_server.store.store import Store
from cloche_server.templates.workshop import Pruned, Workshop

MOST_AT_ONCE = 500
"""Layers and builds that one pass removes; the next one goes on."""
_BEFORE_THEIR_TIME = (timedelta(days=7), timedelta(days=1), timedelta(hours=1))
"""How long ago it must have been used to go when there is little room: the first that makes enough."""

log = structlog.get_logger()


class Collector(NamedTuple):
    """What a pass works with."""

    config: Config
    store: Store
    workshop: Workshop

    async def collect(self, now: datetime, *, dry_run: bool = False) -> Pruned:
        """Remove the layers that no template, sandbox or pin needs and whose step nobody has asked for.

        Raises:
            Unavailable: The node or the database does not answer.
        """
        return await self._prune(now - timedelta(days=self.config.builds.keep_steps_days), dry_run=dry_run)

    async def make_room(self, now: datetime, running_since: datetime | None) -> Pruned | None:
        """Do so before their time where the disk is nearly as full as builds may make it; else None.

        Args:
            now: The time.
            running_since: When the oldest build that runs has begun: what was used since then stays.

        Raises:
            Unavailable: The node or the database does not answer.
        """
        pruned = None
        for age in _BEFORE_THEIR_TIME:
            if not await anyio.to_thread.run_sync(self._is_tight):
                break
            pruned = await self._prune(min(now - age, running_since or now), dry_run=False)
            log.warning("layers.removed_early", age_s=age.total_seconds(), count=len(pruned.layers))
        return pruned

    async def remove_builds(self, published: Collection[str], now: datetime) -> list[str]:
        """Remove those of these builds to which no tag leads, and that nothing was made of for long.

        Raises:
            Unavailable: The node or the database does not answer.
        """
        before = now - timedelta(days=self.config.builds.keep_builds_days)
        unused = await self.store.builds.unused(published, before)
        for build_id in unused[:MOST_AT_ONCE]:
            await self.workshop.remove(build_id)
            log.info("build.removed_unused", build_id=build_id)
        return list(unused[:MOST_AT_ONCE])

    async def _prune(self, since: datetime, *, dry_run: bool) -> Pruned:
        pruned = await self._call(since, dry_run=True)
        if dry_run or not pruned.layers:
            return pruned
        # First the rows, then the layers: no build finds what is about to go, and what one has found
        # meanwhile was used just now, so that it is kept.
        await self.store.cached_steps.forget(set(pruned.layers), since)
        return await self._call(since, dry_run=False)

    async def _call(self, since: datetime, *, dry_run: bool) -> Pruned:
        kept = await self.store.cached_steps.layers_kept(since)
        return await self.workshop.prune(sorted(kept), most=MOST_AT_ONCE, dry_run=dry_run)

    def _is_tight(self) -> bool:
        free = shutil.disk_usage(self.config.state_dir).free
        return free < 2 * self.config.builds.min_free_mib << 20
