"""Network options of a create: checked here, stored as they were given, shown without what is secret."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from cloche_server.api.shapes import NetworkConfig, NewSandbox
from cloche_wire.errors import InvalidArgument, UnsupportedOption

_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?\Z")


class NetworkOptions(NamedTuple):
    """The checked network options of one create."""

    allow_internet: bool
    allow_public_traffic: bool
    mask_request_host: str | None
    as_given: dict[str, Any]
    """What is stored, in the spelling of the wire."""


def check_network(body: NewSandbox) -> NetworkOptions:
    """Return what the create asks of the network.

    Raises:
        InvalidArgument: A value that can never be right.
        UnsupportedOption: An option that this server does not honour; the message names it.
    """
    network = body.network or NetworkConfig()
    refused = {
        "allowOut": network.allow_out,
        "denyOut": network.deny_out,
        "dnsServers": network.dns_servers is not msgspec.UNSET,
        "httpsPorts": network.https_ports,
        "rules": network.rules,
        "egressProxy": network.egress_proxy,
    }
    for option, value in refused.items():
        if value:
            raise UnsupportedOption(
                f"network.{option} is not supported by this server yet", hint=f"leave out network.{option}"
            )
    host = network.mask_request_host
    if host is not None and _HOST.match(host.replace("${PORT}", "65535")) is None:
        raise InvalidArgument("network.maskRequestHost is not host[:port] in ASCII")
    given: dict[str, Any] = {"allowPublicTraffic": network.allow_public_traffic}
    if host is not None:
        given["maskRequestHost"] = host
    return NetworkOptions(
        allow_internet=body.allow_internet_access is not False,
        allow_public_traffic=network.allow_public_traffic,
        mask_request_host=host,
        as_given=given,
    )


def shown_network(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a sandbox's creator is shown again: all that was given but secrets."""
    shown: dict[str, Any] = {"allowPublicTraffic": True, **stored}
    if proxy := shown.get("egressProxy"):
        shown["egressProxy"] = _without_secrets(proxy)
    return shown


def _without_secrets(proxy: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: value for name, value in proxy.items() if name != "password"}
    if tls := shown.get("tls"):
        shown["tls"] = {name: value for name, value in tls.items() if name != "caCert"}
    return shown
