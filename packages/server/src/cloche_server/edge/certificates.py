"""Certificates for `*.{domain}`: the operator's own, or those of an authority of this server alone.

The authority may sign for this server's own names only (name constraints), so that trusting it risks nothing
else, and its key is readable by root alone. Commands make them; the edge only serves them (`tls`), and has
neither this code nor the library for it in its memory.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloche_server.config import EDGE_UID, LOCAL_AUTHORITY
from cloche_server.edge.tls import TlsFiles, files
from cloche_wire.errors import InvalidArgument

_AUTHORITY_LIFE = timedelta(days=3650)
_LEAF_LIFE = timedelta(days=820)
"""Some clients refuse leaves that live longer than 825 days."""
_RENEW_BEFORE = timedelta(days=30)
_BUNDLE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_LOOPBACK = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))

Key = ec.EllipticCurvePrivateKey


class _Names(NamedTuple):
    dns: tuple[str, ...]
    addresses: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]

    def alternatives(self) -> list[x509.GeneralName]:
        """Return what the leaf is for."""
        return [*map(x509.DNSName, self.dns), *map(x509.IPAddress, self.addresses)]

    @property
    def wildcards(self) -> set[str]:
        """Return the names that stand for every port of every sandbox."""
        return {name for name in self.dns if name.startswith("*.")}

    def constraints(self) -> list[x509.GeneralName]:
        """Return what the authority may sign: a DNS constraint covers all names below it."""
        roots = [name for name in self.dns if not name.startswith("*.")]
        networks = [ipaddress.ip_network(address) for address in self.addresses]
        return [*map(x509.DNSName, roots), *map(x509.IPAddress, networks)]


def ensure_certificates(folder: Path, domain: str, *, now: datetime | None = None) -> TlsFiles:
    """Make what is missing, renew what ends within 30 days or does not fit the domain; else change nothing.

    Leaves: keys with mode 0600, the edge's key owned by the edge's user when called as root, the rest
        readable by all.

    Args:
        folder: Where the files lie; made if need be.
        domain: The public domain, perhaps with a port; it and all names below it are covered, and this
            machine's loopback.
        now: Time of issue; None for the present.
    """
    now = now or datetime.now(UTC)
    paths = files(folder)
    names = _names(domain)
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    authority, authority_key, is_new = _ensure_authority(paths, names, now)
    if not _is_own_leaf(paths, names) and (is_new or not _is_good_leaf(paths, names, now)):
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = _sign_leaf(names, key, authority, authority_key, now)
        _write(paths.key, _key_bytes(key), mode=0o600, owner=EDGE_UID)
        _write(paths.certificate, _pem(leaf) + _pem(authority), mode=0o644)
    bundle = _trusted_roots(paths.bundle) + _pem(authority)
    if not paths.bundle.exists() or paths.bundle.read_bytes() != bundle:
        _write(paths.bundle, bundle, mode=0o644)
    return paths


def use_certificate(
    folder: Path, domain: str, chain: bytes, key: bytes, *, now: datetime | None = None
) -> x509.Certificate:
    """Serve the operator's own certificate from the next handshake on.

    It stays in use, expired or not, as long as it covers the domain: renewing it is the operator's.

    Args:
        folder: Where the files lie; made if need be.
        domain: The public domain, perhaps with a port.
        chain: The certificate and whatever leads to its root, PEM.
        key: Its private key without a password, PEM.
        now: Time of the check; None for the present.

    Returns:
        The certificate.

    Raises:
        InvalidArgument: One of them cannot be read, they do not belong together, the certificate has ended or
            does not cover all names below the domain. Nothing has changed.
    """
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidArgument(
            f"cannot read the certificate or its key: {error}", hint="both in PEM, the key without a password"
        ) from error
    if leaf.public_key() != private.public_key():
        raise InvalidArgument("the key is not the certificate's")
    if leaf.not_valid_after_utc <= (now or datetime.now(UTC)):
        raise InvalidArgument(f"the certificate ended on {leaf.not_valid_after_utc:%Y-%m-%d}")
    names = _names(domain)
    if missing := names.wildcards - _covered(leaf):
        wanted = ", ".join(sorted(missing))
        raise InvalidArgument(
            f"the certificate does not cover {wanted}",
            hint="every port of a sandbox is a name of its own below the domain",
        )
    paths = files(folder)
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    # The key first: the edge looks at the certificate's file to see that something is new.
    _write(paths.key, key, mode=0o600, owner=EDGE_UID)
    _write(paths.certificate, chain, mode=0o644)
    return leaf


def public_key_digest(certificate: Path) -> str:
    """Return the base64 SHA-256 of a certificate's public key, by which browsers can be told to trust it.

    Args:
        certificate: A PEM file (`SubjectPublicKeyInfo` fingerprint, RFC 7469 2.4).
    """
    public_key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    digest = hashlib.sha256(public_key.public_bytes(serialization.Encoding.DER, kind)).digest()
    return base64.b64encode(digest).decode()


# --- authority ----------------------------------------------------------------------------------------------


def _ensure_authority(paths: TlsFiles, names: _Names, now: datetime) -> tuple[x509.Certificate, Key, bool]:
    known = _load_authority(paths, names, now)
    if known is not None:
        return (*known, False)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{LOCAL_AUTHORITY} {os.urandom(4).hex()}")])
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    certificate = (
        _builder(name, name, key, now, _AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.NameConstraints(names.constraints(), None), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(paths.authority_key, _key_bytes(key), mode=0o600)
    _write(paths.authority, _pem(certificate), mode=0o644)
    return certificate, key, True


def _load_authority(paths: TlsFiles, names: _Names, now: datetime) -> tuple[x509.Certificate, Key] | None:
    if not (paths.authority.exists() and paths.authority_key.exists()):
        return None
    try:
        certificate = x509.load_pem_x509_certificate(paths.authority.read_bytes())
        key = serialization.load_pem_private_key(paths.authority_key.read_bytes(), None)
        allowed = certificate.extensions.get_extension_for_class(
            x509.NameConstraints
        ).value.permitted_subtrees
    except (ValueError, x509.ExtensionNotFound):
        return None  # torn or foreign: make it anew
    fits = set(names.constraints()) <= set(allowed or ())
    if not isinstance(key, Key) or not fits or certificate.not_valid_after_utc < now + _LEAF_LIFE:
        return None
    return (certificate, key) if certificate.public_key() == key.public_key() else None


# --- leaf ---------------------------------------------------------------------------------------------------


def _sign_leaf(
    names: _Names, key: Key, authority: x509.Certificate, authority_key: Key, now: datetime
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names.dns[0][:64])])
    issuer_key = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        _builder(subject, authority.subject, key, now, _LEAF_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(names.alternatives()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def _is_own_leaf(paths: TlsFiles, names: _Names) -> bool:
    """Whether the edge has a certificate of the operator's that covers the domain."""
    try:
        leaf = x509.load_pem_x509_certificate(paths.certificate.read_bytes())
        key = serialization.load_pem_private_key(paths.key.read_bytes(), None)
        issuer = leaf.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    is_ours = bool(issuer) and str(issuer[0].value).startswith(LOCAL_AUTHORITY)
    return not is_ours and leaf.public_key() == key.public_key() and names.wildcards <= _covered(leaf)


def _covered(leaf: x509.Certificate) -> set[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {name.lower() for name in names.get_values_for_type(x509.DNSName)}


def _is_good_leaf(paths: TlsFiles, names: _Names, now: datetime) -> bool:
    if not (paths.certificate.exists() and paths.key.exists()):
        return False
    try:
        leaf = x509.load_pem_x509_certificate(paths.certificate.read_bytes())
        key = serialization.load_pem_private_key(paths.key.read_bytes(), None)
        covered = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(paths.authority.read_bytes()))
    except Exception:  # noqa: BLE001 - whatever is wrong with it, the cure is a new one
        return False
    fits = set(names.alternatives()) <= set(covered)
    return (
        isinstance(key, Key)
        and fits
        and leaf.public_key() == key.public_key()
        and leaf.not_valid_after_utc > now + _RENEW_BEFORE
    )


# --- parts --------------------------------------------------------------------------------------------------


def _names(domain: str) -> _Names:
    host = domain.strip().lower()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        return _Names(("localhost",), tuple(dict.fromkeys((*_LOOPBACK, ipaddress.ip_address(host)))))
    except ValueError:
        pass
    name = host.strip(".")
    return _Names(tuple(dict.fromkeys((name, f"*.{name}", "localhost"))), _LOOPBACK)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Key, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # a client's clock may be a little behind
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _trusted_roots(own_bundle: Path) -> bytes:
    """Return the roots that programs of this machine trust now: as the environment says, else OpenSSL's."""
    named = [Path(value) for variable in _BUNDLE_VARIABLES if (value := os.environ.get(variable))]
    defaults = ssl.get_default_verify_paths()
    usual = [
        defaults.cafile,
        defaults.openssl_cafile,
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/cert.pem",
    ]
    for path in [*named, *(Path(text) for text in usual if text)]:
        is_own = path.exists() and own_bundle.exists() and path.samefile(own_bundle)
        if path.is_file() and not is_own:  # the variables may name our own bundle of an earlier start
            return path.read_bytes().rstrip() + b"\n"
    return b""


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_bytes(key: Key) -> bytes:
    kind = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())


def _write(path: Path, content: bytes, *, mode: int, owner: int | None = None) -> None:
    """Replace a file in one step, never readable by more than its final mode."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        if owner is not None and os.geteuid() == 0:
            # SAFETY: the file was just made by us (O_EXCL) in a folder of root's, so no link can stand in its
            # place.
            os.fchown(file.fileno(), owner, owner)
        file.write(content)
        os.fsync(file.fileno())
    temporary.chmod(mode)  # the umask may have taken bits away
    temporary.replace(path)
