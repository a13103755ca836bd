"""Network options of a create and of an update: checked, stored as given, and what the node enforces of them.

They are shown without what is secret. An option that could not be enforced is refused by its name.
See: wire contract 2.5.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import Any, NamedTuple

import msgspec

from cloche_server.addresses import EVERYWHERE, is_always_denied
from cloche_server.api.shapes import NetworkConfig, NetworkUpdate, NewSandbox
from cloche_server.node.messages import EgressPolicy
from cloche_wire.errors import InvalidArgument, UnsupportedOption

MAX_ENTRIES = 1000
"""Of allowOut and of denyOut: the packet filter loads that many in a few milliseconds."""
MAX_DNS_SERVERS = 10
MAX_HTTPS_PORTS = 100
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?\Z")
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
    _check_dns_servers(options.dns_servers, exceptions)
    denied = _networks("denyOut", options.deny_out or [])
    denied += [] if allow_internet else [IPv4Network(EVERYWHERE)]
    allowed = _networks("allowOut", options.allow_out or [], exceptions)
    deny = _collapsed(network for network in denied if isinstance(network, IPv4Network))
    allow = _collapsed(network for network in allowed if isinstance(network, IPv4Network))
    if deny == (EVERYWHERE,) and not allow:
        return Egress(allow_internet=False, policy=EgressPolicy())
    return Egress(allow_internet=True, policy=EgressPolicy(allow, deny))


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
    if looks_like_a_name:
        return UnsupportedOption(said, hint="domains in allowOut are not supported by this server yet")
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


def _check_dns_servers(servers: list[str] | msgspec.UnsetType, exceptions: Sequence[str]) -> None:
    if servers is msgspec.UNSET:
        return
    if len(servers) > MAX_DNS_SERVERS:
        raise InvalidArgument(f"network.dnsServers has more than {MAX_DNS_SERVERS} entries: {len(servers)}")
    for server in servers:
        try:
            address = IPv4Address(server)
        except ValueError as error:
            raise InvalidArgument(f"network.dnsServers is not IPv4 addresses: {server[:80]!r}") from error
        _refuse_unreachable("dnsServers", server, IPv4Network(address), exceptions)


def _collapsed(networks: Iterable[IPv4Network]) -> tuple[str, ...]:
    """Without overlaps, which the packet filter's intervals do not take."""
    return tuple(map(str, collapse_addresses(networks)))


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
