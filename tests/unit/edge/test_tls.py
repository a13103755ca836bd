"""Certificates that strict clients accept, on the port that also speaks plain http."""

import asyncio
import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from tests.unit.edge.world import DAEMON, World

from cloche_server.edge import tls
from cloche_server.edge.listener import Edge

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
    tls.ensure_certificates(folder, DOMAIN)
    world.edge = Edge(world.config, tls.load_context(folder))
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
    files = tls.ensure_certificates(tmp_path, DOMAIN)
    before = {path: path.read_bytes() for path in files}
    tls.ensure_certificates(tmp_path, "CLOCHE.localhost")
    assert {path: path.read_bytes() for path in files} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files)


def test_keys_are_private_and_certificates_public(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        files = tls.ensure_certificates(tmp_path / "tls", DOMAIN)
    finally:
        os.umask(old)
    assert [path.stat().st_mode & 0o777 for path in files] == [0o644, 0o600, 0o644, 0o600, 0o644]


def test_the_authority_may_sign_for_this_server_alone(tmp_path: Path) -> None:
    files = tls.ensure_certificates(tmp_path, DOMAIN)
    authority = x509.load_pem_x509_certificate(files.authority.read_bytes())
    constraints = authority.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    permitted = [str(name.value) for name in constraints.value.permitted_subtrees or ()]
    assert permitted == ["cloche.localhost", "localhost", "127.0.0.1/32", "::1/128"]


def test_a_leaf_near_its_end_is_renewed_by_the_same_authority(tmp_path: Path) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=800)
    files = tls.ensure_certificates(tmp_path, DOMAIN, now=long_ago)
    before = [path.read_bytes() for path in (files.authority, files.certificate)]
    tls.ensure_certificates(tmp_path, DOMAIN)
    after = [path.read_bytes() for path in (files.authority, files.certificate)]
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


@pytest.mark.parametrize("domain", ["sandboxes.example", "192.0.2.5:3000", "[2001:db8::5]:443"])
def test_another_domain_gets_certificates_of_its_own(tmp_path: Path, domain: str) -> None:
    first = tls.ensure_certificates(tmp_path, DOMAIN).certificate.read_bytes()
    files = tls.ensure_certificates(tmp_path, domain)
    assert files.certificate.read_bytes() != first
    assert tls.load_context(tmp_path) is not None


def test_torn_files_are_made_anew(tmp_path: Path) -> None:
    files = tls.ensure_certificates(tmp_path, DOMAIN)
    files.authority.write_text("torn")
    files.key.write_text("")
    tls.ensure_certificates(tmp_path, DOMAIN)
    assert tls.load_context(tmp_path) is not None


def test_the_bundle_adds_our_authority_to_the_roots_in_use_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = tmp_path / "roots.pem"
    other = tls.ensure_certificates(tmp_path / "other", DOMAIN).authority.read_bytes()
    roots.write_bytes(other)
    monkeypatch.setenv("SSL_CERT_FILE", str(roots))
    files = tls.ensure_certificates(tmp_path / "own", DOMAIN)
    assert files.bundle.read_bytes() == other + files.authority.read_bytes()
    monkeypatch.setenv("SSL_CERT_FILE", str(files.bundle))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(roots))
    tls.ensure_certificates(tmp_path / "own", DOMAIN)
    assert files.bundle.read_bytes().count(b"BEGIN CERTIFICATE") == 2
