"""Network options: what is taken, what is refused by name, what the node is told, what is shown."""

from typing import Any

import httpx
import pytest
from tests.fakes.control_plane import assert_problem, create
from tests.fakes.placement import FakePlacement

from cloche_server.api import reconcile
from cloche_server.api.control import ControlPlane
from cloche_server.api.network_options import MAX_ENTRIES, shown_network
from cloche_server.node.messages import EgressPolicy, SetEgress

pytestmark = pytest.mark.anyio

EVERYTHING = "0.0.0.0/0"


@pytest.mark.parametrize(
    ("network", "allow_internet", "policy"),
    [
        ({}, True, EgressPolicy()),
        ({"denyOut": ["8.8.8.8"]}, True, EgressPolicy((), ("8.8.8.8/32",))),
        ({"denyOut": [EVERYTHING]}, False, EgressPolicy()),
        (
            {"denyOut": [EVERYTHING], "allowOut": ["1.1.1.1"]},
            True,
            EgressPolicy(("1.1.1.1/32",), (EVERYTHING,)),
        ),
        # Overlapping entries are one, and the bits of a host behind its mask do not matter.
        ({"denyOut": ["8.8.8.8", "8.8.8.9/24", "8.8.9.0/24"]}, True, EgressPolicy((), ("8.8.8.0/23",))),
        (
            {"denyOut": [EVERYTHING], "allowOut": ["OK.test.", "*.Wild.test", "1.1.1.1"]},
            True,
            EgressPolicy(("1.1.1.1/32",), (EVERYTHING,), ("ok.test", "*.wild.test")),
        ),
        (
            {"denyOut": [EVERYTHING], "allowOut": ["ok.test"], "dnsServers": ["9.9.9.9"]},
            True,
            EgressPolicy((), (EVERYTHING,), ("ok.test",), ("9.9.9.9/32",)),
        ),
        (
            {"denyOut": [EVERYTHING], "allowOut": ["ok.test"], "dnsServers": []},
            True,
            EgressPolicy((), (EVERYTHING,), ("ok.test",), (), names=False),
        ),
        # Without a domain the name servers have no effect, by contract.
        ({"denyOut": ["8.8.8.8"], "dnsServers": []}, True, EgressPolicy((), ("8.8.8.8/32",))),
        # Sandboxes have no IPv6: it is denied whatever is said of it.
        ({"denyOut": ["::/0"]}, True, EgressPolicy()),
        ({"denyOut": [EVERYTHING, "::/0"], "dnsServers": []}, False, EgressPolicy()),
    ],
)
async def test_lists_become_what_the_node_enforces_and_are_shown_as_given(
    client: httpx.AsyncClient,
    placement: FakePlacement,
    network: dict[str, Any],
    allow_internet: bool,
    policy: EgressPolicy,
) -> None:
    made = await create(client, network=network)
    order = placement.created[0]
    assert (order.allow_internet, order.egress) == (allow_internet, policy)
    detail = (await client.get(f"/sandboxes/{made}")).json()
    assert detail["network"] == {"allowPublicTraffic": True} | network


async def test_without_internet_what_is_allowed_is_still_reached(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    """`allow_internet_access` false is `denyOut` of everything, and allow wins over deny."""
    await create(client, allow_internet_access=False, network={"allowOut": ["1.1.1.1"]})
    order = placement.created[0]
    assert (order.allow_internet, order.egress) == (True, EgressPolicy(("1.1.1.1/32",), (EVERYTHING,)))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"allowOut": ["256.1.1.1"]}, "network.allowOut"),
    ({"allowOut": ["1.1.1.1/33"]}, "network.allowOut"),
    ({"allowOut": [""]}, "network.allowOut"),
    ({"allowOut": ["2606:4700::/32"]}, "network.allowOut"),
    ({"allowOut": ["169.254.169.254/32"]}, "network.allowOut"),
    ({"allowOut": ["10.0.0.0/8"]}, "network.allowOut"),
    ({"allowOut": "1.1.1.1"}, "network.allowOut"),
    ({"allowOut": ["ok.test"]}, "network.allowOut"),
    ({"allowOut": ["ok.test"], "denyOut": ["1.1.1.1"]}, "network.denyOut"),
    ({"allowOut": ["*"], "denyOut": [EVERYTHING]}, "network.allowOut"),
    ({"allowOut": ["*.test"], "denyOut": [EVERYTHING]}, "network.allowOut"),
    ({"allowOut": ["https://ok.test"], "denyOut": [EVERYTHING]}, "network.allowOut"),
    ({"allowOut": ["ok.test:443"], "denyOut": [EVERYTHING]}, "network.allowOut"),
    ({"denyOut": ["example.com"]}, "network.denyOut"),
    ({"denyOut": ["*.example.com"]}, "network.denyOut"),
    ({"denyOut": ["1.1.1.1; drop"]}, "network.denyOut"),
    ({"denyOut": ["1.1.1.1"] * (MAX_ENTRIES + 1)}, "network.denyOut"),
    ({"allowOut": ["1.1.1.1"] * 10_000}, "network.allowOut"),
    ({"dnsServers": ["::1"]}, "network.dnsServers"),
    ({"dnsServers": ["10.0.0.1"]}, "network.dnsServers"),
    ({"dnsServers": ["1.1.1.1"] * 11}, "network.dnsServers"),
    ({"rules": {"a.b": []}}, "network.rules"),
    ({"egressProxy": {"address": "x"}}, "network.egressProxy"),
]


@pytest.mark.parametrize(("network", "part"), REFUSED)
async def test_what_cannot_be_enforced_is_400_and_named(
    client: httpx.AsyncClient, placement: FakePlacement, network: dict[str, Any], part: str
) -> None:
    answer = await client.post("/v2/sandboxes", json={"templateID": "base", "network": network})
    assert_problem(answer, 400, part)
    assert placement.created == []


@pytest.mark.parametrize("ports", [[0], [65_536], [-1], [49_983], [49_999], ["443"], list(range(1, 200))])
async def test_ports_that_are_none_or_our_own_are_refused(
    client: httpx.AsyncClient, ports: list[object]
) -> None:
    body = {"templateID": "base", "network": {"httpsPorts": ports}}
    assert_problem(await client.post("/v2/sandboxes", json=body), 400, "httpsPorts")


async def test_ports_that_speak_tls_are_told_to_the_node(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    await create(client, network={"httpsPorts": [443, 8443]})
    assert placement.created[0].https_ports == (443, 8443)


async def test_an_update_replaces_the_egress_part_and_nothing_else(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    before = {"denyOut": [EVERYTHING], "allowOut": ["1.1.1.1"], "httpsPorts": [443]}
    made = await create(client, allow_internet_access=False, network=before)
    path = f"/sandboxes/{made}"
    answer = await client.put(f"{path}/network", json={"denyOut": ["8.8.8.8"]})
    assert (answer.status_code, answer.content) == (204, b"")
    assert placement.egress == [SetEgress(made, True, EgressPolicy((), ("8.8.8.8/32",)))]
    detail = (await client.get(path)).json()
    assert detail["network"] == {"allowPublicTraffic": True, "httpsPorts": [443], "denyOut": ["8.8.8.8"]}
    assert detail["allowInternetAccess"] is True
    await client.put(f"{path}/network", json={"allow_internet_access": False})
    assert placement.egress[1] == SetEgress(made, False, EgressPolicy())
    assert (await client.get(path)).json()["allowInternetAccess"] is False


@pytest.mark.parametrize(("network", "part"), REFUSED)
async def test_a_bad_update_is_400_and_changes_nothing(
    client: httpx.AsyncClient, placement: FakePlacement, network: dict[str, Any], part: str
) -> None:
    made = await create(client, network={"denyOut": ["8.8.8.8"]})
    assert_problem(await client.put(f"/sandboxes/{made}/network", json=network), 400)
    assert placement.egress == []
    detail = (await client.get(f"/sandboxes/{made}")).json()
    assert detail["network"]["denyOut"] == ["8.8.8.8"]


async def test_an_update_of_nobodys_sandbox_is_404(client: httpx.AsyncClient) -> None:
    assert_problem(await client.put("/sandboxes/i00000000000000000000/network", json={}), 404)


async def test_an_api_killed_in_an_update_is_made_to_agree_with_its_node(
    client: httpx.AsyncClient, placement: FakePlacement, control: ControlPlane
) -> None:
    """The node got the new policy, the row did not: nobody was answered, and what is shown is enforced."""
    made = await create(client, network={"denyOut": ["8.8.8.8"]})
    await reconcile.settle_network(control)
    assert placement.egress == []  # twin: nothing to do
    await placement.set_egress(SetEgress(made, True, EgressPolicy((), ("9.9.9.9/32",))))
    await reconcile.settle_network(control)
    assert placement.egress[1:] == [SetEgress(made, True, EgressPolicy((), ("8.8.8.8/32",)))]


def test_secrets_of_a_proxy_are_never_shown() -> None:
    proxy = {"address": "a:1", "username": "u", "password": "p", "tls": {"enabled": True, "caCert": "c"}}
    shown = shown_network({"egressProxy": proxy})["egressProxy"]
    assert shown == {"address": "a:1", "username": "u", "tls": {"enabled": True}}
