"""https at the edge: which files its certificate lies in, and the certificate as it is now."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import structlog

if TYPE_CHECKING:
    from cloche_server.config import Config

log = structlog.get_logger()


class TlsFiles(NamedTuple):
    """Where the certificates lie."""

    authority: Path
    """Certificate of the local authority; readable by everybody."""
    authority_key: Path
    """Its key; root only."""
    certificate: Path
    """Certificate of the edge."""
    key: Path
    """Its key; for the edge's user only."""
    bundle: Path
    """The roots this machine trusts and the local authority: for `SSL_CERT_FILE` and `REQUESTS_CA_BUNDLE` of
    clients."""


def folder(config: Config) -> Path:
    """Return where the certificates of a server lie."""
    return config.state_dir / "tls"


def files(folder: Path) -> TlsFiles:
    """Return the paths of all files, whether they exist or not."""
    names = ("ca.pem", "ca.key", "edge.pem", "edge.key", "ca-bundle.pem")
    return TlsFiles(*(folder / name for name in names))


class ServerCertificate:
    """The certificate of the https server, followed as its files change: no restart for a renewal.

    The first handshake loads it: a context takes OpenSSL 3 MiB, and many servers are never asked for one.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is read yet; `folder` holds the files, or will."""
        self._folder = folder
        self._context: ssl.SSLContext | None = None
        self._loaded: tuple[int, int] | None = None

    def context(self) -> ssl.SSLContext | None:
        """Return the context for the next handshake, None if there never was a certificate.

        Files that cannot be used (a pair seen in the middle of its exchange) leave the one before in use.
        """
        try:
            paths = files(self._folder)
            status = paths.certificate.stat()
            if self._loaded != (seen := (status.st_ino, status.st_mtime_ns)):
                self._context = _load_context(paths)
                self._loaded = seen
        except FileNotFoundError:
            pass
        except OSError as error:  # ssl.SSLError is one
            log.warning("edge.certificate_unusable", error=str(error))
        return self._context


def _load_context(paths: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(paths.certificate, paths.key)
    return context
