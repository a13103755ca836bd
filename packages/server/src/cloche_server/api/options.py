"""What a create may ask for. What cannot be honoured is refused by name, never ignored."""

import re
from typing import NamedTuple

import msgspec

from cloche_server.api.shapes import NetworkConfig, NewSandbox
from cloche_server.config import Limits
from cloche_wire.errors import InvalidArgument, UnsupportedOption

MAX_OPTIONS_BYTES = 1 << 20
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?\Z")


class Options(NamedTuple):
    """The checked options of one create."""

    timeout_s: int
    allow_internet: bool
    allow_public_traffic: bool
    mask_request_host: str | None


def check_options(body: NewSandbox, limits: Limits, *, default_timeout_s: int) -> Options:
    """Return what the create asks for.

    Raises:
        InvalidArgument: A value that can never be right.
        UnsupportedOption: An option that this server does not honour; the message names it.
    """
    timeout_s = default_timeout_s if body.timeout is msgspec.UNSET else body.timeout
    check_timeout(timeout_s, limits)
    _check_lifecycle(body)
    for option, value in (("mcp", body.mcp), ("iam", body.iam), ("volumeMounts", body.volume_mounts)):
        if value:
            raise _unsupported(option)
    _check_texts(body)
    network = body.network or NetworkConfig()
    _check_network(network)
    return Options(
        timeout_s,
        allow_internet=body.allow_internet_access is not False,
        allow_public_traffic=network.allow_public_traffic,
        mask_request_host=network.mask_request_host,
    )


def check_timeout(timeout_s: int, limits: Limits) -> None:
    """Refuse a life that is no life or too long.

    Raises:
        InvalidArgument: Out of range.
    """
    if timeout_s <= 0:
        raise InvalidArgument("Timeout must be greater than 0 seconds")
    if timeout_s > limits.max_timeout_s:
        hours, rest = divmod(limits.max_timeout_s, 3600)
        longest = f"{limits.max_timeout_s} seconds" if rest else f"{hours} hours"
        raise InvalidArgument(f"Timeout cannot be greater than {longest}")


def _check_lifecycle(body: NewSandbox) -> None:
    keeps = "needs an isolation that keeps memory, which this server does not have"
    if body.auto_pause:
        raise UnsupportedOption("autoPause is not supported", hint=f"pausing {keeps}")
    if body.auto_resume.enabled:
        raise UnsupportedOption("autoResume is not supported", hint=f"resuming {keeps}")
    if not body.auto_pause_memory:
        raise InvalidArgument("autoPauseMemory false needs autoPause")


def _check_texts(body: NewSandbox) -> None:
    texts = [*body.metadata.items(), *body.env_vars.items()]
    if sum(len(name.encode()) + len(value.encode()) for name, value in texts) > MAX_OPTIONS_BYTES:
        raise InvalidArgument(f"metadata and envVars are larger than {MAX_OPTIONS_BYTES} bytes together")
    for name, value in body.env_vars.items():
        if not name or "=" in name or "\0" in name:
            raise InvalidArgument(f"bad name in envVars: {name[:80]!r}", hint="no '=', no NUL, not empty")
        if "\0" in value:
            raise InvalidArgument(f"value in envVars holds a NUL: {name[:80]!r}")


def _check_network(network: NetworkConfig) -> None:
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
            raise _unsupported(f"network.{option}")
    host = network.mask_request_host
    if host is not None and _HOST.match(host.replace("${PORT}", "65535")) is None:
        raise InvalidArgument("network.maskRequestHost is not host[:port] in ASCII")


def _unsupported(option: str) -> UnsupportedOption:
    return UnsupportedOption(f"{option} is not supported by this server yet", hint=f"leave out {option}")
