"""The sandbox under E2B's name: the constructor creates one, and what the documents print works."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import ClassVar, Self, Unpack

import cloche
from cloche.errors import ClocheError
from cloche.extending import (
    Callback,
    Client,
    Either,
    SandboxRecord,
    create_body,
    new_sandbox,
    resolve,
    set_timeout_by_id,
)
from cloche_wire.execution import OutputMessage
from e2b import _loopback
from e2b.execution import Execution
from e2b.files import Files

PORT_WAIT_S = 5.0
"""How long `get_host` waits for a server that was just started in the background."""


class Sandbox(cloche.Sandbox):
    """A sandbox, created by the constructor or by `create`, ended by the end of its `with` block."""

    default_template: ClassVar[str] = "base"

    def __init__(
        self,
        template: str | None = None,
        timeout: int | None = None,
        metadata: Mapping[str, str] | None = None,
        envs: Mapping[str, str] | None = None,
        secure: bool | None = None,
        allow_internet_access: bool | None = None,
        **options: Unpack[cloche.ConnectionOptions],
    ) -> None:
        """Create a sandbox; see `cloche.Sandbox.create`. Every sandbox is secured, whatever `secure` says."""
        del secure
        client = Client(resolve(options))
        body = create_body(template or self.default_template, timeout, metadata, envs, allow_internet_access)
        self._attach(client, new_sandbox(client, body))

    @classmethod
    def create(  # pyright: ignore[reportIncompatibleMethodOverride] - one more option that changes nothing
        cls,
        template: str | None = None,
        timeout: int | None = None,
        metadata: Mapping[str, str] | None = None,
        envs: Mapping[str, str] | None = None,
        secure: bool | None = None,
        allow_internet_access: bool | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[cloche.ConnectionOptions],
    ) -> Self:
        """Create a sandbox; see `cloche.Sandbox.create`. Every sandbox is secured, whatever `secure` says."""
        del secure
        return super().create(
            template, timeout, metadata, envs, allow_internet_access, idempotency_key, **options
        )

    def _attach(self, client: Client, record: SandboxRecord) -> None:
        super()._attach(client, record)
        self._readable_files = Files(self._session)
        self._ended_by_block = False

    @property
    def files(self) -> Files:
        """Its files."""
        return self._readable_files

    def run_code(
        self,
        code: str,
        language: str | None = None,
        context: cloche.Context | None = None,
        on_stdout: Callback[OutputMessage] | None = None,
        on_stderr: Callback[OutputMessage] | None = None,
        on_result: Callback[cloche.Result] | None = None,
        on_error: Callback[cloche.ExecutionError] | None = None,
        envs: Mapping[str, str] | None = None,
        timeout: float | None = None,
        request_timeout: float | None = None,
    ) -> Execution:
        """Run code; see `cloche.Sandbox.run_code`. The result's `text` falls back to what was printed."""
        return Execution.of(
            super().run_code(
                code,
                language,
                context,
                on_stdout,
                on_stderr,
                on_result,
                on_error,
                envs,
                timeout,
                request_timeout,
            )
        )

    def get_host(self, port: int) -> str:
        """Return the public name of a port, for `https://{host}`.

        While a command runs in the sandbox and nothing listens on the port, waits up to 5 seconds: programs
        ask for the name right after they started their server, and use it at once.
        """
        host = super().get_host(port)
        if _loopback.is_loopback_name(self.sandbox_domain.partition(":")[0]):
            _loopback.install()
        try:
            if self.commands.list():
                self.wait_for_port(port, PORT_WAIT_S)
        except ClocheError:
            # The name is right whether or not the sandbox can be asked; the request to it will tell.
            return host
        return host

    def _set_timeout_unless_ended(self, timeout: int, **options: Unpack[cloche.ConnectionOptions]) -> None:
        """Let the sandbox live `timeout` seconds from now.

        After the end of its `with` block this only warns: the documents call it there, and there is nothing
        left that could live longer.
        """
        if self._ended_by_block:
            warnings.warn(
                "set_timeout has no effect: the sandbox ended with its block", RuntimeWarning, stacklevel=2
            )
            return
        self._set_own_timeout(timeout, **options)

    set_timeout = Either(set_timeout_by_id, _set_timeout_unless_ended)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._ended_by_block = True
