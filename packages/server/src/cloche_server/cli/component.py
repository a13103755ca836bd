"""One of the server's processes: `python -m cloche_server.cli.component node|api|edge|egress|content`.

The supervisor starts it with its configuration in `CLOCHE_CONFIG_JSON`, for the edge also with the listening
socket. It ends with the supervisor, whatever happens to that one. Exit status 3 says that it cannot run on
this machine at all, so that trying again is of no use.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import msgspec
import structlog

from cloche_server.cli import logs, privileges
from cloche_server.config import API_UID, EDGE_UID, EGRESS_UID, VOLUMES_FIRST_ID, Config
from cloche_server.isolation import syscalls
from cloche_server.isolation.base import ID_RANGE
from cloche_wire.errors import ClocheError

CONFIG_VARIABLE = "CLOCHE_CONFIG_JSON"
LISTENER_VARIABLE = "CLOCHE_LISTENER_FD"
SUPERVISOR_VARIABLE = "CLOCHE_SUPERVISOR_PID"

CANNOT_RUN = 3
"""Exit status: this machine lacks something."""


def main() -> int:
    """Run the named process until it is told to end."""
    name = sys.argv[1]
    config = msgspec.json.decode(os.environ.pop(CONFIG_VARIABLE), type=Config)
    logs.configure(name)
    # Ctrl-C at the terminal is for the supervisor, which ends us in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o022)
    privileges.raise_open_files()
    try:
        _run(name, config)
    except ClocheError as error:
        structlog.get_logger().error(f"{name}.cannot_run", reason=error.message, hint=error.hint)
        return CANNOT_RUN
    return 0


def _run(name: str, config: Config) -> None:
    # Each process imports its own room only, and opens what only root can before it gives root up.
    match name:
        case "node":
            from cloche_server.node import service

            _settle(None, config)
            service.run(config)
        case "api":
            from cloche_server.api import app

            listener = app.listen(config)
            _settle(API_UID, config)
            app.run(config, listener)
        case "edge":
            from cloche_server.edge import listener as edge

            _settle(EDGE_UID, config)
            edge.run(config, int(os.environ.pop(LISTENER_VARIABLE)))
        case "egress":
            from cloche_server.egress import service as egress

            _settle(EGRESS_UID, config)
            egress.run(config)
        case "content":
            from cloche_server.volumes import service as content

            listener = content.listen(config)
            # After the confinement the folder is all there is, and the socket lies at its top.
            served = content.Service(Path("/", config.open_socket.name), listener)
            privileges.confine(config.content_dir, VOLUMES_FIRST_ID, ID_RANGE)
            _tie()
            served.run()
        case _:
            sys.exit(f"no such process: {name}")


def _settle(uid: int | None, config: Config) -> None:
    """Become the user that this process runs as, and tie its life to the supervisor's."""
    if uid is not None and os.geteuid() == 0:
        privileges.drop(uid, (config.state_dir, config.templates_dir.parent))
    _tie()


def _tie() -> None:
    # After the change of user, which would reset it (prctl(2), PR_SET_PDEATHSIG).
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ.pop(SUPERVISOR_VARIABLE)):
        sys.exit("the supervisor is gone")


if __name__ == "__main__":
    sys.exit(main())
