"""Only what the operator configured is handed on to template builds."""

from pathlib import Path

import pytest

from cloche_server.edge import certificates
from cloche_server.templates import host_settings

_FIRST = b"-----BEGIN CERTIFICATE-----\nMIIBfirst\n-----END CERTIFICATE-----"
_SECOND = b"-----BEGIN CERTIFICATE-----\nMIIBsecond\n-----END CERTIFICATE-----"


@pytest.fixture(autouse=True)
def _machine_without_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("local", "packaged"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(host_settings, "_LOCAL_AUTHORITIES", tmp_path / "local")
    monkeypatch.setattr(host_settings, "_PACKAGED_AUTHORITIES", tmp_path / "packaged")
    monkeypatch.setattr(host_settings, "_output", lambda *_: "")


def test_machine_with_no_settings_uses_the_public_registries(tmp_path: Path) -> None:
    assert host_settings.read({"HOME": str(tmp_path)}) == host_settings.HostSettings()


def test_authorities_beyond_the_packaged_ones_are_taken_once(tmp_path: Path) -> None:
    (tmp_path / "packaged" / "known.crt").write_bytes(_FIRST)
    (tmp_path / "local" / "own.crt").write_bytes(_SECOND)
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(_FIRST + b"\n" + _SECOND.replace(b"\n", b"\r\n"))
    assert host_settings.extra_certificates({"SSL_CERT_FILE": str(bundle)}) == (_SECOND,)


def test_the_authority_of_a_server_of_ours_is_none_of_the_machines(tmp_path: Path) -> None:
    """After `eval "$(cloche env)"` the next build took it in, and its recipe no longer matched."""
    files = certificates.ensure_certificates(tmp_path / "tls", "cloche.localhost:3000")
    (tmp_path / "local" / "own.crt").write_bytes(_SECOND)
    assert host_settings.extra_certificates({"SSL_CERT_FILE": str(files.authority)}) == (_SECOND,)


def test_operator_can_keep_the_authorities_out(tmp_path: Path) -> None:
    (tmp_path / "local" / "own.crt").write_bytes(_SECOND)
    assert host_settings.extra_certificates({"CLOCHE_TEMPLATE_HOST_CA": "no"}) == ()


def test_bundle_that_does_not_exist_is_no_error(tmp_path: Path) -> None:
    assert host_settings.extra_certificates({"SSL_CERT_FILE": str(tmp_path / "none.pem")}) == ()


@pytest.mark.parametrize("url", ["file:///srv/wheels", "/srv/wheels", ""])
def test_folder_is_never_taken_for_a_package_index(url: str, tmp_path: Path) -> None:
    assert host_settings.read({"PIP_INDEX_URL": url, "HOME": str(tmp_path)}).pip_index_url is None


def test_npm_registry_is_read_from_the_users_file(tmp_path: Path) -> None:
    (tmp_path / ".npmrc").write_text("audit=false\nregistry = https://npm.example.com/\n")
    assert host_settings.read({"HOME": str(tmp_path)}).npm_registry == "https://npm.example.com"


def test_proxies_are_taken_in_either_case_and_from_apt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host_settings, "_output", lambda *_: "value='http://apt-proxy:3142'\n")
    settings = host_settings.read({"HTTPS_PROXY": "http://proxy:3128", "HOME": str(tmp_path)})
    assert settings.proxies == {"https_proxy": "http://proxy:3128", "http_proxy": "http://apt-proxy:3142"}
