"""`cloche down`: end the running server in order, sandboxes included, and wait until it is gone."""

from __future__ import annotations

import os
import signal
import time

import click

from cloche_server import config as configuration
from cloche_server.cli.lock import is_held, running_server
from cloche_server.cli.output import explain, note, state_option
from cloche_server.isolation import identity
from cloche_wire.errors import NotFound, Unavailable

_WAIT_S = 60.0
_POLL_S = 0.05


@click.command()
@state_option
def down(state: str | None) -> None:
    """End the server and all its sandboxes."""
    with explain():
        folder = configuration.load({"state": state}).state_dir
        try:
            server = running_server(folder)
        except NotFound:
            note(f"no server runs on {folder}")
            return
        descriptor = identity.open_pidfd(server.supervisor)
        if descriptor is not None:
            try:
                # SAFETY: pid and start time were checked, and the descriptor keeps naming that very process.
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
            except PermissionError as error:
                raise Unavailable("not allowed to end the server", hint="run it with sudo") from error
            finally:
                os.close(descriptor)
        deadline_s = time.monotonic() + _WAIT_S
        while is_held(folder):
            if time.monotonic() > deadline_s:
                raise Unavailable(f"the server did not end within {_WAIT_S:.0f} s")
            time.sleep(_POLL_S)
        note("the server has ended")
