"""The builds that run in this process: so many at once, the others in the order in which they came.

A build ends with the api, and its row says so at the next start; what its finished steps have left is kept,
so that the next one goes on from there.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import NamedTuple

import anyio
import anyio.abc
import msgspec
import structlog

from cloche_server.api.auth import Caller
from cloche_server.api.build_log import BuildLog
from cloche_server.api.template_bases import TemplateBases
from cloche_server.api.template_registry import TemplateRegistry
from cloche_server.api.uploads import Uploads
from cloche_server.clock import Clock
from cloche_server.config import Config
from cloche_server.ids import TeamId
from cloche_server.store.builds import BuildRecord
from cloche_server.store.cached_steps import CachedStep, CachedSteps
from cloche_server.store.store import Store
from cloche_server.templates.build import Builder, Kept, Target
from cloche_server.templates.images.bases import ImageBases
from cloche_server.templates.step_run import BuildFailed
from cloche_server.templates.steps import Context, Description
from cloche_server.templates.workshop import Finished, Workshop

CLEAN_UP_TIMEOUT_S = 30.0

log = structlog.get_logger()


class _Job(NamedTuple):
    caller: Caller
    build: BuildRecord
    name: str
    description: Description
    scope: anyio.CancelScope
    """Cancelled from outside: somebody does not want it any more, and has said so in its row."""
    begun_at: datetime


class BuildRuns:
    """Builds from their start to their end."""

    def __init__(
        self,
        config: Config,
        store: Store,
        clock: Clock,
        registry: TemplateRegistry,
        uploads: Uploads,
        workshop: Workshop,
    ) -> None:
        """Work with these parts; nothing runs until `serve`."""
        self._config = config
        self._store = store
        self._clock = clock
        self._registry = registry
        self._uploads = uploads
        self._workshop = workshop
        self._jobs: dict[str, _Job] = {}
        self._turns = anyio.CapacityLimiter(config.builds.at_once)
        self._tasks: anyio.abc.TaskGroup | None = None

    def __contains__(self, build_id: object) -> bool:
        """Whether a build is in work here: what is on disk of it is not left behind."""
        return build_id in self._jobs

    @property
    def running_since(self) -> datetime | None:
        """When the oldest build that is in work here was begun; None: there is none."""
        return min((job.begun_at for job in self._jobs.values()), default=None)

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        """Let builds run within this block; at its end those that do are stopped.

        Leaves: what an api that is gone was building has failed.
        """
        now = self._clock.now()
        left = await self._store.builds.fail_unfinished("the server was stopped during this build", now)
        if left:
            log.warning("build.left_unfinished", count=left)
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                yield
            finally:
                self._tasks = None
                tasks.cancel_scope.cancel()

    async def start(self, caller: Caller, build: BuildRecord, name: str, description: Description) -> bool:
        """Begin a build whose row is `waiting`; False when it is not. Earlier ones in its way are stopped.

        Requires: within `serving`.
        """
        assert self._tasks is not None
        if not await self._store.builds.begin(build.team_id, build.id, self._clock.now()):
            return False
        for other in [job.build for job in self._jobs.values()]:
            if other.template_id == build.template_id and set(other.tags) & set(build.tags):
                await self.stop(other, f"stopped: a newer build of this template has begun: {build.id}")
        job = _Job(caller, build, name, description, anyio.CancelScope(), self._clock.now())
        self._jobs[build.id] = job
        self._tasks.start_soon(self._run, job)
        return True

    async def stop(self, build: BuildRecord, reason: str) -> None:
        """End a build that runs or waits for its turn; its row fails, or is gone. Idempotent."""
        job = self._jobs.get(build.id)
        if job is None:
            return
        await self._store.builds.fail(build.team_id, build.id, reason, None, self._clock.now())
        job.scope.cancel()

    async def _run(self, job: _Job) -> None:
        build_log = BuildLog(self._store.builds, job.build.id, self._clock)
        try:
            with job.scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(build_log.flush_regularly)
                    await self._take_turn(job, build_log)
                    tasks.cancel_scope.cancel()
        except Exception:
            log.exception("build.failed", build_id=job.build.id)
            await self._fail(job, "internal error", None)
        finally:
            del self._jobs[job.build.id]

    async def _take_turn(self, job: _Job, build_log: BuildLog) -> None:
        if self._turns.available_tokens == 0:
            await build_log.write("waiting for other builds to end", "base")
        async with self._turns:
            began_s = self._clock.boot_s()
            made = await self._make(job, build_log)
            failure = made if isinstance(made, BuildFailed) else None
            took_s = self._clock.boot_s() - began_s
            if failure is None:
                await build_log.write(f"Build finished, took {took_s:.1f} s", "finalize")
            else:
                await build_log.write(f"Build failed: {failure.message}", failure.step, "error")
            # Before the row says that it has ended: who reads that reads no further.
            await build_log.flush()
            if isinstance(made, Finished):
                await self._finish(job, made.isolation)
                log.info("build.finished", build_id=job.build.id, ms=round(1000 * took_s))
            else:
                await self._fail(job, made.message, made.step)

    async def _make(self, job: _Job, build_log: BuildLog) -> Finished | BuildFailed:
        build = job.build
        team = TeamId(build.team_id)
        target = Target(build.template_id, build.id, team, job.name, build.cpu_count, build.memory_mib)
        memory = _Memory(self._store.cached_steps, build, self._clock)
        images = ImageBases(self._config.builds, target, self._workshop, memory, build_log)
        builder = Builder(
            target,
            self._uploads.folder_of(team),
            workshop=self._workshop,
            bases=TemplateBases(self._config, self._registry, job.caller, images),
            memory=memory,
            log=build_log,
        )
        limit_s = self._config.builds.timeout_s
        with anyio.move_on_after(limit_s):
            try:
                return await builder.make(job.description)
            except BuildFailed as failure:
                return failure
        return BuildFailed(f"the build took longer than {limit_s} s", builder.at_step)

    async def _finish(self, job: _Job, isolation: str) -> None:
        """Have the tags lead to it; nobody may stop it between that and what the node has published."""
        with anyio.CancelScope(shield=True):
            if not await self._store.builds.finish(job.build, self._clock.now(), isolation):
                await self._workshop.remove(job.build.id)  # it was stopped in the last moment

    async def _fail(self, job: _Job, message: str, step: str | None) -> None:
        now = self._clock.now()
        fail = partial(self._store.builds.fail, job.build.team_id, job.build.id, message, step, now)
        with anyio.move_on_after(CLEAN_UP_TIMEOUT_S, shield=True):
            await fail()
        log.info("build.failed", build_id=job.build.id, step=step, reason=message[:200])


class _Memory:
    """See `templates.build.Memory`."""

    def __init__(self, cached: CachedSteps, build: BuildRecord, clock: Clock) -> None:
        self._cached = cached
        self._team = build.team_id
        self._template = build.template_id
        self._clock = clock

    async def find(self, key: str) -> Kept | None:
        step = await self._cached.find(self._team, key, self._template, self._clock.now())
        return None if step is None else Kept(tuple(step.layers), msgspec.convert(step.context, Context))

    async def keep(self, key: str, kept: Kept) -> None:
        step = CachedStep(list(kept.layers), msgspec.structs.asdict(kept.context))
        await self._cached.keep(self._team, key, step, self._template, self._clock.now())
