"""One run of code in a context, from the wait for its turn to its last event line."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from cloche_agent.kernels.channel import KernelProtocolError, Message, number_of
from cloche_agent.kernels.kernel import Kernel, KernelStartError, environment
from cloche_agent.kernels.results import line_of
from cloche_wire.execution import EndOfExecution, ExecutionError, KeepAlive, event_line

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from cloche_agent.kernels.contexts import Context

KEEPALIVE_S = 5.0
_KEEPALIVE = event_line(KeepAlive())
_END = event_line(EndOfExecution())
_INTERRUPT_PAUSES_S = (0.1, 0.2, 0.5, 1.0, 1.0, 2.0, 2.0, 3.0)
"""Between the interrupts of code whose client has gone; after the last one the kernel is killed. The first
repeats are for CPython: a signal that comes just before the main thread enters a sleep does not end it. The
kernel ignores those that it does not need."""
_GENTLE_INTERRUPTS = 5


class Run:
    """Runs code once. Iterate `lines`; closing that iterator early interrupts the code."""

    def __init__(
        self,
        context: Context,
        run_id: int,
        code: str,
        variables: Mapping[str, str],
        was_cut: Callable[[], bool],
    ) -> None:
        """Nothing happens before `lines` is iterated: a client that is gone by then costs nothing.

        Where `was_cut` says that a checkpoint has closed it, not a client that went, the code runs on.
        """
        self._context = context
        self._id = run_id
        self._code = code
        self._variables = variables
        self._was_cut = was_cut
        self._kernel: Kernel | None = None
        self._has_turn = False
        self._is_over = False
        self._has_error = False
        self._error_name = ""
        self._began_s = 0.0

    async def lines(self) -> AsyncGenerator[bytes]:
        """Event lines, several in one piece where several have arrived."""
        try:
            while not self._is_over:
                try:
                    async with asyncio.timeout(KEEPALIVE_S):
                        piece = await self._advance()
                except TimeoutError:
                    piece = _KEEPALIVE
                yield piece
        finally:
            # No await here: this may be the unwinding of a cancelled task.
            self._note_end()
            if self._kernel is not None and not self._is_over:
                self._start_recovery(self._kernel)
            elif self._has_turn:
                self._context.turn.release()

    async def _advance(self) -> bytes:
        """The next event lines. May be cancelled at any await and called again: nothing is lost."""
        if not self._has_turn:
            await self._context.turn.acquire()
            self._has_turn = True
        if self._kernel is None:
            if self._context.is_closed:
                return self._end_closed()
            if lost := await self._context.take_lost():
                return self._end_restarted(lost)
            try:
                kernel = await self._context.ready()
            except KernelStartError as error:
                return self._end(ExecutionError("KernelStartError", str(error), str(error)))
            self._post(kernel)
        assert self._kernel is not None
        try:
            if messages := await self._kernel.channel.receive():
                return b"".join([self._line(message) for message in messages])
        except KernelProtocolError as error:
            self._kernel.kill(f"the kernel broke the protocol: {error}")
        return await self._end_dead(self._kernel)

    def _post(self, kernel: Kernel) -> None:
        env = self._context.sandbox_env
        is_new = env is not kernel.sandbox_env
        kernel.sandbox_env = env
        is_stale, kernel.is_stale = kernel.is_stale, False
        kernel.channel.open_run()
        kernel.channel.post(
            {
                "id": self._id,
                "code": self._code,
                "env": environment(env) if is_new else None,
                "env_vars": dict(self._variables),
                "settle": kernel.was_interrupted,
                "renew": is_stale,
            }
        )
        kernel.was_interrupted = False
        self._kernel = kernel
        self._began_s = time.monotonic()

    def _note_end(self) -> None:
        if not self._has_turn:
            return
        took_ms = round(1000 * (time.monotonic() - self._began_s)) if self._began_s else 0
        fields = {"context": self._context.id, "language": self._context.language.name, "ms": took_ms}
        if not self._is_over and self._was_cut():
            self._context.activity.note("info", "cell", "cell runs on: its client was cut off", **fields)
        elif not self._is_over:
            self._context.activity.note("warn", "cell", "cell interrupted: its client has gone", **fields)
        elif self._error_name:
            self._context.activity.note("info", "cell", "cell failed", **fields, error=self._error_name)
        else:
            self._context.activity.note("info", "cell", "cell ended", **fields)

    def _line(self, message: Message) -> bytes:
        if self._is_over:
            return b""
        match message.get("type"):
            case "done":
                self._is_over = number_of(message, "id") == self._id
                if self._is_over and self._kernel is not None:
                    self._kernel.channel.close_run()
                return _END if self._is_over else b""
            case "error" if self._has_error:
                return b""
            case kind:
                if kind == "error":
                    self._has_error, self._error_name = True, str(message.get("name") or "error")[:80]
                return line_of(message)

    # --- ends that are none of the code's own

    async def _end_dead(self, kernel: Kernel) -> bytes:
        reason = await kernel.wait_for_end("the kernel closed its connection")
        if self._context.is_closed:
            return self._end_closed()
        self._context.forget(kernel)
        return self._end_restarted(reason)

    def _end_restarted(self, reason: str) -> bytes:
        self._context.begin()  # ready, or nearly, when the next run comes
        return self._end(ExecutionError("ContextRestarting", f"Context was restarted: {reason}", ""))

    def _end_closed(self) -> bytes:
        value = "Connection to the execution was closed before the execution was finished"
        return self._end(ExecutionError("UnexpectedEndOfExecution", value, ""))

    def _end(self, error: ExecutionError) -> bytes:
        self._is_over, self._error_name = True, error.name
        return (b"" if self._has_error else event_line(error)) + _END

    # --- after the client

    def _start_recovery(self, kernel: Kernel) -> None:
        recovery = self._recover(kernel)
        try:
            self._context.tasks.create_task(recovery)
        except RuntimeError:  # the service ends, and its kernels with it
            recovery.close()

    async def _recover(self, kernel: Kernel) -> None:
        """End the code of a client that has gone, keeping the context's state; then pass the turn on.

        Code whose client was cut off ends by itself, and what it says is for nobody.
        """
        try:
            if self._was_cut():
                await self._drain(kernel)
                return
            for number, pause_s in enumerate(_INTERRUPT_PAUSES_S):
                kernel.interrupt(everything=number >= _GENTLE_INTERRUPTS)
                try:
                    async with asyncio.timeout(pause_s):
                        await self._drain(kernel)
                        return
                except TimeoutError:
                    continue
            kernel.kill("the code of a client that had gone could not be interrupted")
        finally:
            self._context.turn.release()

    async def _drain(self, kernel: Kernel) -> None:
        try:
            while not self._is_over and (messages := await kernel.channel.receive()):
                self._is_over = any(
                    message.get("type") == "done" and message.get("id") == self._id for message in messages
                )
            kernel.channel.close_run()
        except KernelProtocolError as error:
            kernel.kill(f"the kernel broke the protocol: {error}")
