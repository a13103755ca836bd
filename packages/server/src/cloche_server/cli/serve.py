"""`cloche serve`: check the machine, prepare the state folder, then supervise until told to stop."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import click

from cloche_server import config as configuration
from cloche_server.cli import logs, prepare
from cloche_server.cli.lock import StateLock, already_running, is_held
from cloche_server.cli.output import explain, note, state_option
from cloche_server.cli.supervisor import Supervisor
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
@click.option("--isolation", type=click.Choice(["auto", "container"]), help="Driver.  [default: auto]")
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
        lock = StateLock(config.state_dir)
        try:
            _serve_locked(config, lock, listener)
        finally:
            lock.release()


def _serve_locked(config: Config, lock: StateLock, listener: socket.socket) -> None:
    config = prepare.settle_isolation(config)
    _publish(config, lock, ready=False)
    prepare.ensure_template(config, note)
    for build_id in prepare.remove_superseded_templates(config):
        note(f"removed the superseded template build {build_id}")
    prepare.ensure_certificates(config)
    # Before the api starts: as its own user it could not read the migrations of a checkout below /root.
    new_key = prepare.ensure_key(config)
    log_dir = config.state_dir / "log" if os.environ.pop(_DETACHED, None) else None
    supervisor = Supervisor(config, listener, log_dir)

    def announce() -> None:
        _publish(config, lock, ready=True)
        _announce(config, new_key)
        if log_dir is not None:
            _let_go_of_the_terminal(config)

    supervisor.run(announce)


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


def _publish(config: Config, lock: StateLock, *, ready: bool) -> None:
    lock.publish(
        host=config.host,
        port=config.port,
        domain=config.public_domain,
        isolation=config.isolation,
        ready=ready,
    )


def _announce(config: Config, new_key: str | None) -> None:
    note(f"cloche serves on http://{config.host}:{config.port} (isolation: {config.isolation})")
    if new_key:
        note(f"API key, shown this once: {new_key}")
    note(f"API key kept in {config.state_dir / 'api-key'}; environment for clients: `cloche env`")


def _let_go_of_the_terminal(config: Config) -> None:
    descriptor = os.open(
        config.state_dir / "log" / "supervisor.log",
        os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND,
        0o600,
    )
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)


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
