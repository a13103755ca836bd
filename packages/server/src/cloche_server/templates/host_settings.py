"""What this machine is configured with to reach package registries, handed on to template builds.

A machine behind a proxy or with a certificate authority of its own can install packages only with these
settings, so its sandboxes need the authorities too. Only what the operator configured is used; nothing is
guessed, and a `file:` index is never passed on, since it would name a folder that a sandbox does not have.
"""

from __future__ import annotations

import os
import re
import ssl
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cloche_server.config import LOCAL_AUTHORITY

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOCAL_AUTHORITIES = Path("/usr/local/share/ca-certificates")
_PACKAGED_AUTHORITIES = Path("/usr/share/ca-certificates")
_BUNDLE_VARIABLES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
)
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----\s.+?\s-----END CERTIFICATE-----", re.DOTALL)
_COMMAND_TIMEOUT_S = 20


class HostSettings(NamedTuple):
    """How packages are reached from here."""

    proxies: Mapping[str, str] = {}
    """Proxy variables, in lower case."""
    pip_index_url: str | None = None
    npm_registry: str = "https://registry.npmjs.org"
    debian_mirror: str = "http://deb.debian.org/debian"
    debian_security_mirror: str = "http://deb.debian.org/debian-security"


def read(environment: Mapping[str, str] | None = None) -> HostSettings:
    """Return how this machine reaches its registries; asks apt and pip, which takes half a second.

    Args:
        environment: Stands in for the process's own in tests. `CLOCHE_DEBIAN_MIRROR` and
            `CLOCHE_DEBIAN_SECURITY_MIRROR` name other mirrors than Debian's own.
    """
    given = os.environ if environment is None else environment
    return HostSettings(
        proxies=_proxies(given),
        pip_index_url=_pip_index_url(given),
        npm_registry=_npm_registry(given) or HostSettings().npm_registry,
        debian_mirror=given.get("CLOCHE_DEBIAN_MIRROR") or HostSettings().debian_mirror,
        debian_security_mirror=given.get("CLOCHE_DEBIAN_SECURITY_MIRROR")
        or HostSettings().debian_security_mirror,
    )


def certificates_in(bundle: bytes) -> set[bytes]:
    """Return the certificates of a PEM bundle, with plain line ends, so that equal ones compare equal."""
    return {block.replace(b"\r\n", b"\n") for block in _CERTIFICATE.findall(bundle)}


def extra_certificates(environment: Mapping[str, str] | None = None) -> tuple[bytes, ...]:
    """Return the authorities this machine trusts beyond those its distribution ships, one PEM block each.

    Args:
        environment: Stands in for the process's own in tests. `CLOCHE_TEMPLATE_HOST_CA=no` says that
            templates are to trust none of them.
    """
    given = os.environ if environment is None else environment
    if given.get("CLOCHE_TEMPLATE_HOST_CA", "yes").lower() in {"no", "0", "false"}:
        return ()
    files = [path for path in sorted(_LOCAL_AUTHORITIES.rglob("*")) if path.suffix in {".crt", ".pem"}]
    files += [Path(given[name]) for name in _BUNDLE_VARIABLES if given.get(name)]
    trusted: set[bytes] = set()
    for path in files:
        trusted |= _certificates_of(path)
    for path in _PACKAGED_AUTHORITIES.rglob("*.crt"):
        trusted -= _certificates_of(path)
    # After `eval "$(cloche env)"` a variable names a bundle with a server's own authority: for clients only.
    return tuple(sorted(block for block in trusted if not _is_local_authority(block)))


def _is_local_authority(block: bytes) -> bool:
    try:
        return LOCAL_AUTHORITY.encode() in ssl.PEM_cert_to_DER_cert(block.decode("ascii"))
    except ValueError:
        return False


def _certificates_of(path: Path) -> set[bytes]:
    try:
        return certificates_in(path.read_bytes())
    except OSError:
        return set()  # a variable that points nowhere would not have worked for the host either


def _proxies(given: Mapping[str, str]) -> dict[str, str]:
    found = {name: given.get(name) or given.get(name.upper()) or "" for name in _PROXY_VARIABLES}
    for name, option in (("http_proxy", "Acquire::http::Proxy"), ("https_proxy", "Acquire::https::Proxy")):
        answer = _output("apt-config", "shell", "value", option)  # value='http://...'
        found[name] = found[name] or answer.partition("'")[2].partition("'")[0]
    return {name: value for name, value in found.items() if value and value != "DIRECT"}


def _pip_index_url(given: Mapping[str, str]) -> str | None:
    url = (
        given.get("PIP_INDEX_URL")
        or given.get("UV_DEFAULT_INDEX")
        or _output("pip3", "config", "get", "global.index-url")
    )
    return url.strip() if url.strip().startswith(("http://", "https://")) else None


def _npm_registry(given: Mapping[str, str]) -> str | None:
    url = given.get("npm_config_registry") or given.get("NPM_CONFIG_REGISTRY")
    for path in (Path(given.get("HOME", "/root")) / ".npmrc", Path("/etc/npmrc")):
        if not url and path.is_file():
            match = re.search(r"^registry\s*=\s*(\S+)", path.read_text(errors="replace"), re.MULTILINE)
            url = match[1] if match else None
    return url.rstrip("/") if url and url.startswith(("http://", "https://")) else None


def _output(*command: str) -> str:
    """What a command prints; nothing where it fails or is not installed."""
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""
