"""Network options of a create and of an update: checked, stored as given, and what the node enforces of them.

They are shown without what is secret. An option that could not be enforced is refused by its name.
See: wire contract 2.5.
"""

import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from typing import Any, NamedTuple

import msgspec

from cloche_server import domain_names
from cloche_server.addresses import EVERYWHERE, collapsed, is_always_denied
from cloche_server.api.shapes import NetworkConfig, NetworkUpdate, NewSandbox
from cloche_server.node.messages import EgressPolicy
from cloche_wire.errors import InvalidArgument, UnsupportedOption

MAX_ENTRIES = 1000
"""Of allowOut and of denyOut: the packet filter loads that many in a few milliseconds."""
MAX_DNS_SERVERS = 10
MAX_HTTPS_PORTS = 100
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?\Z")
_EVERYWHERE = IPv4Network(EVERYWHERE)
_OWN_PORTS = frozenset((49983, 49999))
"""The daemon's and the interpreter's: both speak plain HTTP to the edge."""


class Egress(NamedTuple):
    """What a sandbox may reach, as the node is told."""

    allow_internet: bool
    """False where nothing outside may be reached at all: the cheapest policy there is."""
    policy: EgressPolicy


class NetworkOptions(NamedTuple):
    """The checked network options of one create."""

    allow_internet: bool
    """As it is shown: what the creator said of `allow_internet_access`."""
    egress: Egress
    allow_public_traffic: bool
    mask_request_host: str | None
    https_ports: tuple[int, ...]
    as_given: dict[str, Any]
    """What is stored, in the spelling of the wire."""


def check_network(body: NewSandbox, exceptions: Sequence[str]) -> NetworkOptions:
    """Return what the create asks of the network.

    Args:
        body: The create.
        exceptions: The operator's, to what is always denied.

    Raises:
        InvalidArgument: A value that can never be right.
        UnsupportedOption: An option that this server does not honour; the message names it.
    """
    network = body.network or NetworkConfig()
    given: dict[str, Any] = {"allowPublicTraffic": network.allow_public_traffic}
    host = network.mask_request_host
    if host is not None:
        if _HOST.match(host.replace("${PORT}", "65535")) is None:
            raise InvalidArgument("network.maskRequestHost is not host[:port] in ASCII")
        given["maskRequestHost"] = host
    ports = tuple(network.https_ports or ())
    if len(ports) > MAX_HTTPS_PORTS or not all(1 <= port <= 65_535 for port in ports):
        raise InvalidArgument(f"network.httpsPorts is not a list of at most {MAX_HTTPS_PORTS} ports")
    if own := _OWN_PORTS.intersection(ports):
        raise InvalidArgument(f"network.httpsPorts names a port of the sandbox's own services: {min(own)}")
    if ports:
        given["httpsPorts"] = list(ports)
    allow_internet = body.allow_internet_access is not False
    egress = _check_egress(network, allow_internet=allow_internet, exceptions=exceptions)
    return NetworkOptions(
        allow_internet, egress, network.allow_public_traffic, host, ports, given | _egress_as_given(network)
    )


def check_update(
    body: NetworkUpdate, stored: Mapping[str, Any], exceptions: Sequence[str]
) -> tuple[Egress, dict[str, Any]]:
    """Return what the node is to enforce from now on, and what is to be stored in place of `stored`.

    What is left out of the body is cleared; what is no part of egress stays as it was.

    Raises:
        InvalidArgument: A value that can never be right.
        UnsupportedOption: An option that this server does not honour; the message names it.
    """
    allow_internet = body.allow_internet_access is not False
    egress = _check_egress(body, allow_internet=allow_internet, exceptions=exceptions)
    kept = {name: value for name, value in stored.items() if name not in _EGRESS_FIELDS}
    return egress, kept | _egress_as_given(body)


def egress_of(stored: Mapping[str, Any], exceptions: Sequence[str], *, allow_internet: bool) -> Egress:
    """Return what the node has to enforce for options that were stored before.

    Raises:
        InvalidArgument: The operator has taken back an exception since.
    """
    options = msgspec.convert(stored, NetworkConfig)
    return _check_egress(options, allow_internet=allow_internet, exceptions=exceptions)


def shown_network(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a sandbox's creator is shown again: all that was given but secrets."""
    shown: dict[str, Any] = {"allowPublicTraffic": True, **stored}
    if proxy := shown.get("egressProxy"):
        shown["egressProxy"] = _without_secrets(proxy)
    return shown


# --- egress --------------------

_EGRESS_FIELDS = frozenset(("allowOut", "denyOut", "dnsServers", "rules", "egressProxy"))


def _check_egress(
    options: NetworkConfig | NetworkUpdate, *, allow_internet: bool, exceptions: Sequence[str]
) -> Egress:
    for option, value in (("rules", options.rules), ("egressProxy", options.egress_proxy)):
        if value:
            raise UnsupportedOption(
                f"network.{option} is not supported by this server", hint=f"leave out network.{option}"
            )
    servers = _check_dns_servers(options.dns_servers, exceptions)
    names, allowed = _split_names(options.allow_out or [])
    denied = _networks("denyOut", options.deny_out or []) + ([] if allow_internet else [_EVERYWHERE])
    deny = collapsed(network for network in denied if isinstance(network, IPv4Network))
    reachable = _networks("allowOut", allowed, exceptions)
    allow = collapsed(network for network in reachable if isinstance(network, IPv4Network))
    if names and EVERYWHERE not in deny:
        raise InvalidArgument(
            f"network.allowOut has a domain: {names[0]}", hint="domains need 0.0.0.0/0 in network.denyOut"
        )
    if deny == (EVERYWHERE,) and not (allow or names):
        return Egress(allow_internet=False, policy=EgressPolicy())
    policy = EgressPolicy(
        allow, deny, names, (servers or ()) if names else (), names=not names or servers != ()
    )
    return Egress(allow_internet=True, policy=policy)


def _split_names(entries: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """Domains of allowOut in their one spelling, and what is not a domain."""
    if len(entries) > MAX_ENTRIES:
        raise InvalidArgument(f"network.allowOut has more than {MAX_ENTRIES} entries: {len(entries)}")
    by_entry = {entry: domain_names.normalise_pattern(entry) for entry in entries}
    return tuple(filter(None, by_entry.values())), [entry for entry, name in by_entry.items() if name is None]


def _networks(
    option: str, entries: list[str], exceptions: Sequence[str] | None = None
) -> list[IPv4Network | IPv6Network]:
    """Read the entries; with `exceptions` they are to be allowed, so that each has to be reachable."""
    if len(entries) > MAX_ENTRIES:
        raise InvalidArgument(f"network.{option} has more than {MAX_ENTRIES} entries: {len(entries)}")
    networks: list[IPv4Network | IPv6Network] = []
    for entry in entries:
        try:
            network = ip_network(entry, strict=False)
        except ValueError as error:
            raise _not_a_network(option, entry) from error
        if exceptions is not None:
            _refuse_unreachable(option, entry, network, exceptions)
        networks.append(network)
    return networks


def _not_a_network(option: str, entry: str) -> InvalidArgument:
    said = f"network.{option} has an entry that is no address or CIDR block: {entry[:80]!r}"
    looks_like_a_name = entry.strip("*.").replace(".", "").replace("-", "").isalnum() and "/" not in entry
    if looks_like_a_name and option == "denyOut":
        return InvalidArgument(said, hint="domains can be allowed only: deny 0.0.0.0/0 and allow the rest")
    return InvalidArgument(said)


def _refuse_unreachable(
    option: str, entry: str, network: IPv4Network | IPv6Network, exceptions: Sequence[str]
) -> None:
    if isinstance(network, IPv6Network):
        raise UnsupportedOption(
            f"network.{option} allows an IPv6 address: {entry[:80]!r}", hint="sandboxes have IPv4 only"
        )
    if is_always_denied(network, exceptions):
        raise InvalidArgument(
            f"network.{option} allows an address that no sandbox may reach: {entry[:80]!r}",
            hint="private, link-local and metadata ranges can be opened by the operator only",
        )


def _check_dns_servers(
    servers: list[str] | msgspec.UnsetType, exceptions: Sequence[str]
) -> tuple[str, ...] | None:
    """Return the servers in CIDR form; None where nothing was said of them."""
    if servers is msgspec.UNSET:
        return None
    if len(servers) > MAX_DNS_SERVERS:
        raise InvalidArgument(f"network.dnsServers has more than {MAX_DNS_SERVERS} entries: {len(servers)}")
    networks: list[IPv4Network] = []
    for server in servers:
        try:
            network = IPv4Network(IPv4Address(server))
        except ValueError as error:
            raise InvalidArgument(f"network.dnsServers is not IPv4 addresses: {server[:80]!r}") from error
        _refuse_unreachable("dnsServers", server, network, exceptions)
        networks.append(network)
    return collapsed(networks)


def _egress_as_given(options: NetworkConfig | NetworkUpdate) -> dict[str, Any]:
    given: dict[str, Any] = {"allowOut": options.allow_out, "denyOut": options.deny_out}
    kept = {name: value for name, value in given.items() if value}
    if options.dns_servers is not msgspec.UNSET:
        kept["dnsServers"] = options.dns_servers
    return kept


def _without_secrets(proxy: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: value for name, value in proxy.items() if name != "password"}
    if tls := shown.get("tls"):
        shown["tls"] = {name: value for name, value in tls.items() if name != "caCert"}
    return shown
