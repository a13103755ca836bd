"""Host names of sandbox ports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche_wire.hostname import format_host, parse_host, parse_port, parse_sandbox_id

IDS = st.from_regex(r"[a-z0-9]{1,40}", fullmatch=True)


@given(
    st.integers(1, 65535), IDS, st.sampled_from(["cloche.localhost", "cloche.localhost:3000", "a.b.example"])
)
def test_what_is_formatted_is_parsed(port: int, sandbox_id: str, domain: str) -> None:
    assert parse_host(format_host(port, sandbox_id, domain)) == (port, sandbox_id)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("49983-iabc.cloche.localhost:3000", (49983, "iabc")),
        ("49983-IABC.Cloche.LocalHost", (49983, "iabc")),
        ("8000-iabc-6532622b.e2b.app", (8000, "iabc")),
        ("65535-a.b.", (65535, "a")),
    ],
)
def test_hosts_of_sandboxes_are_recognised(host: str, address: tuple[int, str]) -> None:
    assert parse_host(host) == address


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost:3000",
        "127.0.0.1:3000",
        "[::1]:3000",
        "8000-iabc",
        "8000-iabc:3000",
        "8000-iabc.",
        "8000-iabc..localhost",
        "0-iabc.localhost",
        "08000-iabc.localhost",
        "+80-iabc.localhost",
        "-80-iabc.localhost",
        "65536-iabc.localhost",
        "99999-iabc.localhost",
        "123456-iabc.localhost",
        "٨-iabc.localhost",
        "80-i_abc.localhost",
        "80-.localhost",
        "80-a-b-c.localhost",
        "user@80-iabc.localhost",
        "80-iabc\n.localhost",
        "api.e2b.app",
        "80-" + "a" * 41 + ".localhost",
    ],
)
def test_other_hosts_name_no_sandbox(host: str) -> None:
    assert parse_host(host) is None


@given(st.text())
def test_no_host_makes_the_parser_fail(host: str) -> None:
    address = parse_host(host)
    assert address is None or 1 <= address.port <= 65535


@pytest.mark.parametrize(("text", "port"), [("1", 1), ("49983", 49983), ("65535", 65535)])
def test_ports_are_plain_decimals(text: str, port: int) -> None:
    assert parse_port(text) == port


@pytest.mark.parametrize("text", ["", "0", "01", "+1", "-1", " 1", "1 ", "1\n", "65536", "1e3", "٣", "0x1"])
def test_other_texts_are_no_ports(text: str) -> None:
    assert parse_port(text) is None


@pytest.mark.parametrize(("text", "sandbox_id"), [("iabc", "iabc"), ("iabc-6532622b", "iabc")])
def test_ids_lose_the_client_part_of_old_clients(text: str, sandbox_id: str) -> None:
    assert parse_sandbox_id(text) == sandbox_id


@pytest.mark.parametrize("text", ["", "-", "a-", "a-b-c", "A", "a/b", "a\n", "..", "a" * 41])
def test_other_texts_are_no_ids(text: str) -> None:
    assert parse_sandbox_id(text) is None
