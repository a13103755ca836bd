"""`cloche env`: the variables that point unmodified E2B clients at the running server."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloche_server import config as configuration
from cloche_server.cli.lock import running_server
from cloche_server.cli.output import explain, state_option
from cloche_server.edge import tls
from cloche_wire.errors import NotFound, PermissionDenied

if TYPE_CHECKING:
    from cloche_server.cli.lock import RunningServer
    from cloche_server.config import Config

_LOCAL = "127.0.0.1,localhost,.localhost"


@click.command()
@state_option
def env(state: str | None) -> None:
    """Print the environment that points E2B clients here: eval "$(cloche env)"."""
    with explain():
        config = configuration.load({"state": state})
        for name, value in variables(config, running_server(config.state_dir)).items():
            click.echo(f"export {name}={shlex.quote(value)}")


def variables(config: Config, server: RunningServer) -> dict[str, str]:
    """Return the environment for clients of this server.

    Raises:
        PermissionDenied: The key's file is not ours to read.
        NotFound: The key's file is gone.
    """
    certificates = tls.files(tls.folder(config))
    return {
        "E2B_API_URL": server.url,
        "E2B_SANDBOX_URL": server.url,
        "E2B_VOLUME_API_URL": server.url,
        "E2B_API_KEY": api_key(config.state_dir / "api-key"),
        "E2B_DOMAIN": server.domain,
        **trust(certificates),
        "NO_PROXY": _LOCAL,
        "no_proxy": _LOCAL,
    }


def trust(certificates: tls.TlsFiles) -> dict[str, str]:
    """Return what lets clients open `https://{port}-{id}.{domain}`.

    Python reads one file, so it gets the machine's own roots and this server's authority; Node.js adds to
    its own.
    """
    return {
        "REQUESTS_CA_BUNDLE": str(certificates.bundle),
        "SSL_CERT_FILE": str(certificates.bundle),
        "NODE_EXTRA_CA_CERTS": str(certificates.authority),
    }


def api_key(path: Path) -> str:
    """Return the first key, as kept for the operator."""
    try:
        return path.read_text().strip()
    except PermissionError as error:
        raise PermissionDenied(f"not allowed to read the key: {path}", hint="run it with sudo") from error
    except FileNotFoundError as error:
        raise NotFound(f"no key is kept: {path}", hint="make one with `cloche key create`") from error
