"""What sandboxes may reach, changed while they run."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import AddressValueError, IPv4Network, NetmaskValueError

import msgspec
import structlog

from cloche_server import domain_names
from cloche_server.addresses import EVERYWHERE
from cloche_server.node import threads
from cloche_server.node.journal import Record
from cloche_server.node.machine import Machine
from cloche_server.node.messages import AskPolicy, EgressPolicy, NamePolicy, SetEgress
from cloche_wire.errors import InvalidArgument, SandboxNotFound, Unavailable

log = structlog.get_logger()


async def set_egress(machine: Machine, order: SetEgress) -> None:
    """Replace what a running sandbox may reach.

    Leaves: journalled, and no packet passes by the old policy, also of connections open before. On any error
    what held before goes on.

    Raises:
        SandboxNotFound: It does not run.
        InvalidArgument: The order holds what the api should not have let through.
        Unavailable: The packet filter does not take it.
    """
    check_policy(order.egress)
    live = machine.find(order.sandbox_id)
    async with live.policy_turn:
        machine.find(order.sandbox_id)  # it may have ended while another change was under way
        before = live.record.egress
        machine.note(live, _with_egress(live.record, order))
        try:
            await threads.in_thread(
                machine.network.set_policy, live.record.slot, order.egress, online=order.allow_internet
            )
        except Unavailable:
            if live.record.state != "running":
                raise SandboxNotFound(f"no such sandbox: {order.sandbox_id}") from None
            machine.note(live, _with_egress(live.record, before))
            raise
    machine.publish_policy(live.record)
    log.info("sandbox.egress_set", sandbox_id=order.sandbox_id, online=order.allow_internet)


def policies(records: Iterable[Record]) -> dict[int, EgressPolicy]:
    """The policy of each slot in use, for the table that is loaded at start."""
    return {record.slot: record.request.egress for record in records if record.state != "paused"}


def may_ask(record: Record, asked: str | None) -> bool:
    """Whether the sandbox may have a name resolved.

    Names carry data out, so a sandbox that may reach a list only may ask for what stands in the list only.
    """
    policy = record.request.egress
    if not record.request.allow_internet:
        return False
    if not policy.domains:
        return EVERYWHERE not in policy.deny
    name = domain_names.normalise(asked or "")
    return policy.names and name is not None and domain_names.is_listed(name, policy.domains)


def name_policy(machine: Machine, ask: AskPolicy) -> NamePolicy:
    """What the sandbox at an address may reach by name.

    Raises:
        SandboxNotFound: None is there, or it may reach nothing so.
    """
    live = machine.at_address(ask.address)
    if live is None or live.record.state == "ending" or not live.record.request.allow_internet:
        raise SandboxNotFound(f"no sandbox at: {ask.address}")
    return NamePolicy(live.record.request.sandbox_id, live.record.request.egress.domains)


def check_policy(policy: EgressPolicy) -> None:
    """Refuse what would become a rule of another meaning: these texts go to nft, as root.

    Raises:
        InvalidArgument: Not networks in their plain form.
    """
    for text in policy.domains:
        if domain_names.normalise_pattern(text) != text:
            raise InvalidArgument(f"not a domain: {text[:80]!r}")
    for text in (*policy.allow, *policy.deny, *policy.dns_servers):
        try:
            is_plain = str(IPv4Network(text)) == text
        except (AddressValueError, NetmaskValueError, ValueError):
            is_plain = False
        if not is_plain:
            raise InvalidArgument(f"not an IPv4 network: {text[:80]!r}")


def _with_egress(record: Record, order: SetEgress) -> Record:
    request = msgspec.structs.replace(
        record.request, allow_internet=order.allow_internet, egress=order.egress
    )
    return msgspec.structs.replace(record, request=request)
