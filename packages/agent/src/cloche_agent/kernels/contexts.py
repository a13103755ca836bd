"""A context: a namespace that code runs in, with the kernel process that holds it."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING
from uuid import uuid4

from cloche_agent.kernels.kernel import Kernel, KernelPlan, KernelStartError, start_kernel
from cloche_agent.kernels.languages import PYTHON
from cloche_agent.kernels.run import Run
from cloche_agent.kernels.zygote import read_at_start

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from cloche_agent.activity import Activity
    from cloche_agent.init import Sandbox
    from cloche_agent.kernels.languages import Language
    from cloche_agent.process.spawn import Reaper


class _Attempt:
    """One try to start a kernel, awaited by everybody who needs it."""

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self.failure = ""


class Context:
    """One context. Its runs take turns; runs of different contexts are parallel.

    States: no kernel (at first, and after a restart or a reported death); kernel starting; kernel usable;
    kernel dead (found so by the next run, which reports it); closed.
    """

    def __init__(
        self,
        language: Language,
        cwd: str,
        sandbox: Sandbox,
        reaper: Reaper,
        tasks: asyncio.TaskGroup,
        kernels: str,
    ) -> None:
        """Make the context; `begin` starts its kernel.

        `cwd` is the folder its code starts in, `kernels` that of the kernel programs; `tasks` outlives the
        context.
        """
        self.id = str(uuid4())
        self.language = language
        self.cwd = cwd
        self.tasks = tasks
        self.turn = asyncio.Lock()
        self.is_closed = False
        self._sandbox = sandbox
        self._reaper = reaper
        self._kernels = kernels
        self._run_ids = count(1)
        self._has_run = False
        self._kernel: Kernel | None = None
        self._attempt: _Attempt | None = None

    @property
    def activity(self) -> Activity:
        """Where runs write down how they went."""
        return self._sandbox.activity

    @property
    def sandbox_env(self) -> Mapping[str, str]:
        """The sandbox's variables as they are now."""
        return self._sandbox.env

    def execute(
        self, code: str, variables: Mapping[str, str], was_cut: Callable[[], bool]
    ) -> AsyncGenerator[bytes]:
        """Event lines of one run, which starts when they are asked for; see `Request` for `was_cut`."""
        self._has_run = True
        return Run(self, next(self._run_ids), code, variables, was_cut).lines()

    def begin(self, imports: tuple[str, ...] = ()) -> None:
        """Start the kernel in the background, unless it runs or starts already.

        Only a context that nobody waits for should be told to import: one that is restarted after a package
        was installed must not have it in its older version.
        """
        if self._kernel is None and self._attempt is None and not self.is_closed:
            self._attempt = _Attempt()
            self.tasks.create_task(self._start(self._attempt, imports))

    async def ready(self) -> Kernel:
        """The kernel, started first where there is none.

        Raises:
            KernelStartError: It cannot be started. The next call tries again.
        """
        self._leave_outdated()
        while self._kernel is None:
            self.begin()
            attempt = self._attempt
            if attempt is None:
                raise KernelStartError("the context was removed")
            await attempt.done.wait()
            if attempt.failure:
                raise KernelStartError(attempt.failure)
        return self._kernel

    def _leave_outdated(self) -> None:
        """Give up a kernel that nothing has run in, where variables that it reads at its start have changed.

        One made ahead has started before anybody said what they are.
        """
        kernel = self._kernel
        if (
            kernel is not None
            and not self._has_run
            and kernel.sandbox_env is not self.sandbox_env
            and read_at_start(kernel.sandbox_env) != read_at_start(self.sandbox_env)
        ):
            kernel.kill("it had started without its variables")
            self._kernel = None

    async def _start(self, attempt: _Attempt, imports: tuple[str, ...]) -> None:
        restores = self._sandbox.restores
        try:
            plan = KernelPlan(
                self.language, self._kernels, self._sandbox.env, self.cwd, imports,
                self._sandbox.zygote if self.language is PYTHON else None, self._sandbox.is_saved,
            )  # fmt: skip
            self._kernel = await start_kernel(plan, self._reaper, self.tasks)
            self._kernel.is_stale = restores != self._sandbox.restores
            if self.is_closed:
                self._kernel.kill("its context was removed")
        except (KernelStartError, OSError) as error:
            attempt.failure = str(error)
        finally:
            self._attempt = None
            attempt.done.set()

    async def renew(self) -> None:
        """Have the kernel renew what siblings of a checkpoint would share; one that starts is told later."""
        if self._kernel is not None:
            await self._kernel.renew()

    async def take_lost(self) -> str:
        """Why the kernel died while nothing ran, told once; empty when it did not."""
        kernel = self._kernel
        if kernel is None or kernel.is_usable:
            return ""
        reason = await kernel.wait_for_end("the kernel closed its connection")
        self.forget(kernel)
        return reason

    def forget(self, kernel: Kernel) -> None:
        """`kernel` is dead and somebody knows: the next run gets another one."""
        if self._kernel is kernel:
            self._kernel = None

    async def restart(self) -> None:
        """A fresh kernel, ready; a run in progress ends with an error.

        Raises:
            KernelStartError: It cannot be started.
        """
        if self._attempt is not None:
            await self._attempt.done.wait()
        kernel, self._kernel = self._kernel, None
        if kernel is not None:
            kernel.kill("its restart was asked for")
            await kernel.ended.wait()
        await self.ready()

    def close(self) -> None:
        """End the kernel and refuse further runs; a run in progress ends with an error."""
        self.is_closed = True
        if self._kernel is not None:
            self._kernel.kill("its context was removed")
