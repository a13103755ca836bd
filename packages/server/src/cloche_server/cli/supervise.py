"""What `cloche serve` becomes when everything is prepared: the supervisor, in a program of its own.

It is executed in the same process, which keeps its id, its mount namespace, the lock and the public socket,
and loses the rest: the code and the memory of the preparation, keys among it, and the environment of whoever
typed the command.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

import msgspec

from cloche_server.cli import component, logs
from cloche_server.cli.component import Inheritance
from cloche_server.cli.lock import StateLock
from cloche_server.cli.output import explain, note
from cloche_server.cli.supervisor import Supervisor
from cloche_server.config import Config
from cloche_server.node.runtime_tree import RuntimeTree

_HANDOVER_VARIABLE = "CLOCHE_HANDOVER"
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TERM", "TMPDIR", "TZ", logs.LEVEL_VARIABLE)
"""All that the server's processes see of the environment."""


class Handover(msgspec.Struct, frozen=True):
    """What the program that prepared everything leaves to the one that serves."""

    config: Config
    listener: int
    """Descriptor of the public socket."""
    lock: int
    """Descriptor that holds the lock on the state folder."""
    tree: str
    """The runtime tree of the agents."""
    is_detached: bool
    """Log into files, and let go of the terminal when ready."""


def become(
    config: Config, listener: socket.socket, lock: StateLock, tree: RuntimeTree, *, is_detached: bool
) -> NoReturn:
    """Replace this program by the supervisor. On any error: nothing is replaced.

    Args:
        config: Settled; given to every process.
        listener: The public socket.
        lock: On the state folder, as long as the process lives.
        tree: Made by the code that is installed now.
        is_detached: See `Handover`.
    """
    handover = Handover(config, listener.fileno(), lock.fileno(), str(tree.path), is_detached)
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    environment[_HANDOVER_VARIABLE] = msgspec.json.encode(handover).decode()
    # SAFETY: these two alone stay open over the exec. In the supervisor's children both are closed again, but
    # for the socket in the edge.
    for descriptor in (handover.listener, handover.lock):
        os.set_inheritable(descriptor, True)
    os.execve(sys.executable, [sys.executable, "-I", "-m", __name__], environment)  # noqa: S606 - an argv list


def main() -> None:
    """Supervise until told to end."""
    Path("/proc/self/comm").write_text("cloche")  # as `ps -o comm` and `top` call us; else `python`
    handover = msgspec.json.decode(os.environ.pop(_HANDOVER_VARIABLE), type=Handover)
    for descriptor in (handover.listener, handover.lock):
        os.set_inheritable(descriptor, False)
    lock = StateLock(handover.lock)
    with explain(), socket.socket(fileno=handover.listener) as listener:
        try:
            _supervise(handover, listener, lock)
        finally:
            lock.release()


def _supervise(handover: Handover, listener: socket.socket, lock: StateLock) -> None:
    config = handover.config
    logs.configure("supervisor")
    log_dir = config.state_dir / "log" if handover.is_detached else None
    inheritance = Inheritance(os.getpid(), config, listener, RuntimeTree(Path(handover.tree)))
    supervisor = Supervisor(inheritance, log_dir)
    component.load_late_code()
    # What is loaded now the collector never looks at again, in no child: its marks would unshare every page.
    gc.collect()
    gc.freeze()

    def announce() -> None:
        lock.publish(config, is_ready=True)
        note(f"cloche serves on http://{config.host}:{config.port} (isolation: {config.isolation})")
        note(f"API key kept in {config.state_dir / 'api-key'}; environment for clients: `cloche env`")
        if log_dir is not None:
            _let_go_of_the_terminal(log_dir)

    supervisor.run(announce)


def _let_go_of_the_terminal(log_dir: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    descriptor = os.open(log_dir / "supervisor.log", flags, 0o600)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)


if __name__ == "__main__":
    main()
