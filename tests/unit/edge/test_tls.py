"""Certificates that strict clients accept, on the port that also speaks plain http."""

import asyncio
import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.unit.edge.world import DAEMON, World

from cloche_server.edge import certificates, tls
from cloche_server.edge.listener import Edge
from cloche_wire.errors import InvalidArgument

pytestmark = pytest.mark.anyio
DOMAIN = "cloche.localhost:3000"


def strict_client(files: tls.TlsFiles) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(files.authority))
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT | ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


@pytest.fixture
def secure_world(world: World) -> World:
    folder = tls.folder(world.config)
    certificates.ensure_certificates(folder, DOMAIN)
    world.edge = Edge(world.config, tls.ServerCertificate(folder))
    return world


@pytest.mark.parametrize(
    "name",
    [
        f"{DAEMON}-ione.cloche.localhost",
        "cloche.localhost",
        "api.cloche.localhost",
        "localhost",
        "127.0.0.1",
        "::1",
    ],
)
async def test_a_strict_client_trusts_every_name_of_the_server(secure_world: World, name: str) -> None:
    files = tls.files(tls.folder(secure_world.config))
    async with secure_world.running() as world:
        await world.add_sandbox("ione")
        reader, writer = await asyncio.open_connection(
            *world.address, ssl=strict_client(files), server_hostname=name
        )
        writer.write(
            f"GET /x HTTP/1.1\r\nHost: {DAEMON}-ione.cloche.localhost\r\nConnection: close\r\n\r\n".encode()
        )
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        plain = await world.get(f"{DAEMON}-ione.cloche.localhost", "/x")
    assert b"X-Forwarded-Proto: https" in answer
    assert b"X-Forwarded-Proto: http\r\n" in plain


@pytest.mark.parametrize("name", ["other.localhost.example", "a.b.cloche.localhost", "10.0.0.1"])
async def test_a_client_refuses_the_server_under_other_names(secure_world: World, name: str) -> None:
    files = tls.files(tls.folder(secure_world.config))
    async with secure_world.running() as world:
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection(*world.address, ssl=strict_client(files), server_hostname=name)


async def test_without_certificates_https_is_refused_and_http_served(world: World) -> None:
    async with world.running():
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(
                *world.address, ssl=ssl.create_default_context(), server_hostname="localhost"
            )
        assert (await world.get("80-inone.x.y")).startswith(b"HTTP/1.1 502")


def test_a_second_call_changes_nothing(tmp_path: Path) -> None:
    files = certificates.ensure_certificates(tmp_path, DOMAIN)
    before = {path: path.read_bytes() for path in files}
    certificates.ensure_certificates(tmp_path, "CLOCHE.localhost")
    assert {path: path.read_bytes() for path in files} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files)


def test_keys_are_private_and_certificates_public(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        files = certificates.ensure_certificates(tmp_path / "tls", DOMAIN)
    finally:
        os.umask(old)
    assert [path.stat().st_mode & 0o777 for path in files] == [0o644, 0o600, 0o644, 0o600, 0o644]


def test_the_authority_may_sign_for_this_server_alone(tmp_path: Path) -> None:
    files = certificates.ensure_certificates(tmp_path, DOMAIN)
    authority = x509.load_pem_x509_certificate(files.authority.read_bytes())
    constraints = authority.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    permitted = [str(name.value) for name in constraints.value.permitted_subtrees or ()]
    assert permitted == ["cloche.localhost", "localhost", "127.0.0.1/32", "::1/128"]


def test_a_leaf_near_its_end_is_renewed_by_the_same_authority(tmp_path: Path) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=800)
    files = certificates.ensure_certificates(tmp_path, DOMAIN, now=long_ago)
    before = [path.read_bytes() for path in (files.authority, files.certificate)]
    certificates.ensure_certificates(tmp_path, DOMAIN)
    after = [path.read_bytes() for path in (files.authority, files.certificate)]
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


@pytest.mark.parametrize("domain", ["sandboxes.example", "192.0.2.5:3000", "[2001:db8::5]:443"])
def test_another_domain_gets_certificates_of_its_own(tmp_path: Path, domain: str) -> None:
    first = certificates.ensure_certificates(tmp_path, DOMAIN).certificate.read_bytes()
    files = certificates.ensure_certificates(tmp_path, domain)
    assert files.certificate.read_bytes() != first
    assert tls.ServerCertificate(tmp_path).context() is not None


def test_torn_files_are_made_anew(tmp_path: Path) -> None:
    files = certificates.ensure_certificates(tmp_path, DOMAIN)
    files.authority.write_text("torn")
    files.key.write_text("")
    certificates.ensure_certificates(tmp_path, DOMAIN)
    assert tls.ServerCertificate(tmp_path).context() is not None


def test_the_bundle_adds_our_authority_to_the_roots_in_use_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = tmp_path / "roots.pem"
    other = certificates.ensure_certificates(tmp_path / "other", DOMAIN).authority.read_bytes()
    roots.write_bytes(other)
    monkeypatch.setenv("SSL_CERT_FILE", str(roots))
    files = certificates.ensure_certificates(tmp_path / "own", DOMAIN)
    assert files.bundle.read_bytes() == other + files.authority.read_bytes()
    monkeypatch.setenv("SSL_CERT_FILE", str(files.bundle))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(roots))
    certificates.ensure_certificates(tmp_path / "own", DOMAIN)
    assert files.bundle.read_bytes().count(b"BEGIN CERTIFICATE") == 2


def bought(names: list[str], *, days: int = 90) -> tuple[bytes, bytes]:
    """A certificate and key of an authority that is not ours."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Somebody's authority")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=200))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    return made.public_bytes(serialization.Encoding.PEM), private


def test_a_certificate_of_the_operators_is_kept_over_restarts(tmp_path: Path) -> None:
    certificates.ensure_certificates(tmp_path, DOMAIN)
    chain, key = bought(["cloche.localhost", "*.cloche.localhost"])
    certificates.use_certificate(tmp_path, DOMAIN, chain, key)
    files = certificates.ensure_certificates(tmp_path, DOMAIN)
    assert (files.certificate.read_bytes(), files.key.read_bytes()) == (chain, key)
    assert files.key.stat().st_mode & 0o777 == 0o600


def test_for_another_domain_the_operators_certificate_gives_way(tmp_path: Path) -> None:
    chain, key = bought(["*.cloche.localhost"])
    certificates.use_certificate(tmp_path, DOMAIN, chain, key)
    assert certificates.ensure_certificates(tmp_path, "box.example").certificate.read_bytes() != chain


@pytest.mark.parametrize(
    ("names", "days", "other_key", "told"),
    [
        (["cloche.localhost"], 90, False, r"does not cover \*\.cloche\.localhost"),
        (["*.cloche.localhost"], -1, False, "ended on"),
        (["*.cloche.localhost"], 90, True, "not the certificate's"),
    ],
)
def test_an_unfit_certificate_is_refused_and_nothing_changes(
    names: list[str], days: int, other_key: bool, told: str, tmp_path: Path
) -> None:
    files = certificates.ensure_certificates(tmp_path, DOMAIN)
    before = files.certificate.read_bytes(), files.key.read_bytes()
    chain, key = bought(names, days=days)
    with pytest.raises(InvalidArgument, match=told):
        certificates.use_certificate(tmp_path, DOMAIN, chain, bought(names)[1] if other_key else key)
    assert (files.certificate.read_bytes(), files.key.read_bytes()) == before


@pytest.mark.parametrize("chain", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused(chain: bytes, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="cannot read"):
        certificates.use_certificate(tmp_path, DOMAIN, chain, bought(["*.x"])[1])


async def test_a_renewed_certificate_is_served_without_a_restart(secure_world: World) -> None:
    """Issue 4, part 5: the deploy hook of an ACME client only calls `cloche tls use`."""
    folder = tls.folder(secure_world.config)
    async with secure_world.running() as world:
        for _ in range(2):
            chain, key = bought(["*.cloche.localhost"])
            certificates.use_certificate(folder, DOMAIN, chain, key)
            assert await served(world) == ssl.PEM_cert_to_DER_cert(chain.decode())
        tls.files(folder).certificate.write_text("torn")
        assert await served(world) == ssl.PEM_cert_to_DER_cert(chain.decode())


async def test_the_edge_ends_well_while_https_clients_are_idle(secure_world: World) -> None:
    """A second close of a TLS transport made the abort that follows raise, which ended the edge."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with secure_world.running() as world:
        clients = [await asyncio.open_connection(*world.address, ssl=context) for _ in range(3)]
        clients[0][1].close()
        await clients[0][1].wait_closed()
        assert (await world.get("80-inone.x.y")).startswith(b"HTTP/1.1 502")
    for _, writer in clients[1:]:
        writer.close()


async def served(world: World) -> bytes:
    """The certificate a client is shown, DER."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection(*world.address, ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return shown
