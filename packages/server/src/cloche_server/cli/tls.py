"""`cloche tls`: https for sandboxes' names, by the server's own authority or by a certificate of yours."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import socket
from pathlib import Path

import click
import msgspec
from cryptography import x509

from cloche_server import config as configuration
from cloche_server.cli import env
from cloche_server.cli.lock import running_server
from cloche_server.cli.output import explain, is_root, note, state_option
from cloche_server.config import Config
from cloche_server.edge import certificates
from cloche_server.edge.tls import TlsFiles
from cloche_server.edge.tls import folder as tls_folder
from cloche_wire.errors import InvalidArgument, NotFound, PermissionDenied

_RESOLUTION = Path(__file__).with_name("name_resolution")
_PROBE = "49983-i0"
"""A name as sandboxes have them: whether it resolves, all of them do."""

_domain_option = click.option(
    "--domain", help="Domain of the sandboxes' names.  [default: the server's setting]"
)


@click.group()
def tls() -> None:
    """Make or bring the certificate for the names of sandboxes."""


@tls.command()
@state_option
@_domain_option
def init(state: str | None, domain: str | None) -> None:
    """Make a local authority and a wildcard certificate; print what clients have to set.

    What is there and fits is kept. A running server uses the certificate from the next connection on. The
    output can be read by a shell: eval "$(cloche tls init)".
    """
    with explain():
        config = _load(state, domain)
        files = certificates.ensure_certificates(tls_folder(config), config.public_domain)
        leaf = x509.load_pem_x509_certificates(files.certificate.read_bytes())[0]
        host = _host(config)
        note(
            f"# https for {host} and *.{host} until {leaf.not_valid_after_utc:%Y-%m-%d}, by {files.authority}"
        )
        for name, value in env.trust(files).items():
            note(f"export {name}={shlex.quote(value)}")
        if not _resolves(f"{_PROBE}.{host}"):
            note(f"# Names below {host} do not resolve on this machine. For the programs of this shell:")
            for line in _resolution(config, host):
                note(line)
        for line in _advice(files, f"https://8000-SANDBOX.{config.public_domain}/"):
            note(f"# {line}")


@tls.command()
@click.option("--certificate", required=True, type=click.Path(path_type=Path), help="PEM, with its chain.")
@click.option("--key", required=True, type=click.Path(path_type=Path), help="PEM, without a password.")
@state_option
@_domain_option
def use(certificate: Path, key: Path, state: str | None, domain: str | None) -> None:
    """Serve a certificate of yours for `*.DOMAIN`; call it again after each renewal.

    A running server uses it from the next connection on.
    """
    with explain():
        config = _load(state, domain)
        chain, private = _read(certificate), _read(key)
        folder = tls_folder(config)
        leaf = certificates.use_certificate(folder, config.public_domain, chain, private)
        note(f"*.{_host(config)} is served with {certificate} until {leaf.not_valid_after_utc:%Y-%m-%d}")


def _load(state: str | None, domain: str | None) -> Config:
    """Return the settings, with the domain of the running server where none is asked for."""
    config = configuration.load({"state": state, "domain": domain})
    if not is_root():
        raise PermissionDenied("the certificates belong to the server", hint="run it with sudo")
    if domain:
        return config
    with contextlib.suppress(NotFound):
        server = running_server(config.state_dir)
        return msgspec.structs.replace(config, domain=server.domain, host=server.host)
    return config


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {error.strerror}") from error


def _host(config: Config) -> str:
    return config.public_domain.partition(":")[0].lower()


def _resolves(name: str) -> bool:
    try:
        socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return True


def _resolution(config: Config, host: str) -> list[str]:
    """Put our two small programs where every user may read them; return the lines that make them known."""
    folder = tls_folder(config) / "clients"
    folder.mkdir(mode=0o755, exist_ok=True)
    for name in ("sitecustomize.py", "resolve.cjs"):
        shutil.copyfile(_RESOLUTION / name, folder / name)
    preload = f"--require={folder / 'resolve.cjs'}"
    address = "127.0.0.1" if config.host in ("0.0.0.0", "::", "localhost") else config.host  # noqa: S104 - compared
    return [
        f"export CLOCHE_RESOLVE={shlex.quote(f'{host}={address}')}",
        f'export PYTHONPATH={shlex.quote(str(folder))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        f'export NODE_OPTIONS={shlex.quote(preload)}"${{NODE_OPTIONS:+ $NODE_OPTIONS}}"',
    ]


def _advice(files: TlsFiles, url: str) -> list[str]:
    digest = certificates.public_key_digest(files.authority)
    return [
        f"curl:     curl --cacert {files.authority} {url}",
        f'Chromium: certutil -d "sql:$HOME/.pki/nssdb" -A -t C,, -n cloche -i {files.authority}',
        f"or once:  chromium --ignore-certificate-errors-spki-list={digest} --user-data-dir=DIR {url}",
        f"Firefox:  Settings, Certificates, Authorities, Import: {files.authority}",
    ]
