"""One of the server's processes, in the child that the supervisor has forked for it.

It ends with the supervisor, whatever happens to that one. Exit status 3 says that it cannot run on this
machine at all, so that trying again is of no use.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
from pathlib import Path
from typing import NamedTuple

import structlog

from cloche_server.api import app as api
from cloche_server.cli import privileges
from cloche_server.config import API_UID, EDGE_UID, EGRESS_UID, VOLUMES_FIRST_ID, Config
from cloche_server.edge import listener as edge
from cloche_server.egress import service as egress
from cloche_server.isolation import syscalls
from cloche_server.isolation.base import ID_RANGE
from cloche_server.node import service as node
from cloche_server.node.runtime_tree import RuntimeTree
from cloche_server.volumes import service as content
from cloche_wire.errors import ClocheError, Unavailable

NAMES = ("node", "api", "edge", "egress", "content")

CANNOT_RUN = 3
"""Exit status: this machine lacks something."""

_LOADED_LATE = (
    "anyio._backends._asyncio",
    "concurrent.futures.thread",
    "sqlalchemy.dialects.sqlite",
    "uvicorn.protocols.http.h11_impl",
)
"""What libraries import at their first use."""


def load_late_code() -> None:
    """Complete the code of all processes before the first fork.

    An import in a child costs more than what it loads: it touches all names that were known already, and a
    page that is touched is shared no more (5 MiB for the four of `_LOADED_LATE`).
    """
    for name in _LOADED_LATE:
        importlib.import_module(name)


class Inheritance(NamedTuple):
    """What the supervisor has for the processes that it forks."""

    supervisor_pid: int
    config: Config
    listener: socket.socket
    """The public socket; open in the edge only."""
    tree: RuntimeTree
    """What agents run on; for the node. Made with the code that runs, whatever was installed since."""


def run(name: str, inherited: Inheritance) -> int:
    """Be the named process until told to end; return its exit status.

    Args:
        name: One of `NAMES`.
        inherited: From the supervisor, our parent as long as it lives.
    """
    # Tells the processes apart in `ps -o comm` and `top`: they share their command line.
    Path("/proc/self/comm").write_text(f"cloche-{name}")
    structlog.contextvars.bind_contextvars(component=name)
    # Ctrl-C at the terminal is for the supervisor, which ends us in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o022)
    privileges.raise_open_files()
    try:
        _run(name, inherited)
    except ClocheError as error:
        structlog.get_logger().error(f"{name}.cannot_run", reason=error.message, hint=error.hint)
        return CANNOT_RUN
    return 0


def _run(name: str, inherited: Inheritance) -> None:
    config = inherited.config
    # Each process opens what only root can before it gives root up.
    match name:
        case "node":
            _tie(inherited)
            node.run(config, inherited.tree)
        case "api":
            own_socket = api.listen(config)
            _settle(API_UID, inherited)
            api.run(config, own_socket)
        case "edge":
            _settle(EDGE_UID, inherited)
            edge.run(config, inherited.listener)
        case "egress":
            _settle(EGRESS_UID, inherited)
            egress.run(config)
        case "content":
            own_socket = content.listen(config)
            # After the confinement the folder is all there is, and the socket lies at its top.
            served = content.Service(Path("/", config.open_socket.name), own_socket)
            privileges.confine(config.content_dir, VOLUMES_FIRST_ID, ID_RANGE)
            _tie(inherited)
            served.run()
        case _:
            raise ValueError(f"no such process: {name}")


def _settle(uid: int, inherited: Inheritance) -> None:
    """Become the user that this process runs as, and tie its life to the supervisor's."""
    config = inherited.config
    if os.geteuid() == 0:
        privileges.drop(uid, (config.state_dir, config.templates_dir.parent))
    _tie(inherited)


def _tie(inherited: Inheritance) -> None:
    # After the change of user, which would reset it (prctl(2), PR_SET_PDEATHSIG).
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != inherited.supervisor_pid:
        raise Unavailable("the supervisor is gone")
