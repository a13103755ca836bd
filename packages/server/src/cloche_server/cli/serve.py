"""`cloche serve`: check the machine, prepare the state folder, then become the supervisor."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import click

from cloche_server import config as configuration
from cloche_server.cli import logs, prepare, supervise
from cloche_server.cli.lock import StateLock, already_running, is_held
from cloche_server.cli.output import explain, note, state_option
from cloche_server.isolation import syscalls
from cloche_wire.errors import Conflict, InvalidArgument

if TYPE_CHECKING:
    from cloche_server.config import Config

BACKLOG = 4096
_DETACHED = "CLOCHE_DETACHED"
"""Set for the server that `--detach` starts: log into files, let go of the terminal when ready."""


@click.command()
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port for http and https.  [default: 3000]")
@state_option
@click.option(
    "--isolation", type=click.Choice(["auto", "container", "gvisor"]), help="Driver.  [default: auto]"
)
@click.option("--domain", help="Domain of sandbox addresses: PORT-ID.DOMAIN.")
@click.option("--ahead", type=click.IntRange(0, 100), help="Sandboxes kept ready at most.  [default: 8]")
@click.option("--detach", is_flag=True, help="Return when the server is ready; it goes on in the background.")
def serve(*, detach: bool, **options: str | int | None) -> None:
    """Run the server until Ctrl-C or `cloche down`."""
    with explain():
        config = configuration.load(options)
        if detach:
            _start_detached(options)
        else:
            _serve(config)


def _serve(config: Config) -> None:
    prepare.check_machine(config)
    if is_held(config.state_dir):
        raise already_running(config.state_dir)
    # SAFETY: before anything else that could mount: from here on no mount of ours, of the node's or of the
    # template builder's can reach the machine's own mount table.
    syscalls.enter_private_mounts()
    logs.configure("supervisor")
    with listen(config.host, config.port) as listener:
        prepare.make_folders(config)
        lock = StateLock.take(config.state_dir)
        try:
            config = _prepare(config, lock)
            tree = prepare.ensure_runtime_tree(config)
            supervise.become(config, listener, lock, tree, is_detached=_DETACHED in os.environ)
        finally:
            lock.release()


def _prepare(config: Config, lock: StateLock) -> Config:
    """Make what has to be there before the first process; return the configuration, settled."""
    config = prepare.settle_isolation(config)
    lock.publish(config, is_ready=False)
    prepare.ensure_template(config, note)
    for build_id in prepare.remove_superseded_templates(config):
        note(f"removed the superseded template build {build_id}")
    prepare.ensure_certificates(config)
    # Before the api starts: as its own user it could not read the migrations of a checkout below /root.
    if new_key := prepare.ensure_key(config):
        note(f"API key, shown this once: {new_key}")
    return config


def listen(host: str, port: int) -> socket.socket:
    """Return the public listening socket.

    Raises:
        Conflict: The port is taken.
        InvalidArgument: This machine has no such address, or may not use the port.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                f"port {port} is in use on {host}", hint="choose another one with --port"
            ) from error
        raise InvalidArgument(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return listener


def _start_detached(options: dict[str, str | int | None]) -> None:
    """Start the server in a session of its own; what it says until it is ready goes to our own output."""
    command = [sys.executable, "-m", "cloche_server.cli.main", "serve"]
    for name, value in options.items():
        if value is not None:
            command += [f"--{name}", str(value)]
    server = subprocess.Popen(
        command,
        env=os.environ | {_DETACHED: "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert server.stdout is not None, "a pipe was asked for"
    with server.stdout as output:
        for line in output:  # ends when the server lets go of the pipe, or with it
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
    # Still there: it is ready. A server that fails has said why in one sentence.
    status = server.poll() if _lives(server.pid) else server.wait()
    if status is not None:
        sys.exit(status or 1)


def _lives(pid: int) -> bool:
    from cloche_server.isolation.identity import identify

    return identify(pid) is not None
