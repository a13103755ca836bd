"""The packet filter of one block as text for nft: one table, and a chain for each sandbox with a policy.

Sandboxes without a policy share the rules that stand here once, so that making one asks nothing of nft. A
policy is a chain of its own, found by the sandbox's address in a verdict map: packets of a sandbox never pass
the rules of another. The chain looks at the first packet's addresses (`ct original`), not at those of the
packet at hand, so that it is the same for both directions, and it stands before any shortcut for established
connections: a new policy holds for open ones too.
"""

from __future__ import annotations

from collections.abc import Mapping

from cloche_server.addresses import ALWAYS_DENIED, collapsed
from cloche_server.config import EDGE_UID
from cloche_server.node.messages import EgressPolicy
from cloche_server.node.slots import Block

ONLINE_GROUP, OFFLINE_GROUP = 0x636C6F01, 0x636C6F00
"""Groups of our ends of the veth pairs; what is not online sends and gets nothing from outside."""
_FIRST_LEAVING_GROUP = 0x636C_7000
EGRESS_PORT = 3129
"""On the gateway address: where connections to ports 80 and 443 of sandboxes with domains are led."""
_CHAINS = ("sandbox", "redirect")
MAX_CONNECTIONS = 4096
"""Of one sandbox at a time, so that none fills the table that all connections of the machine stand in."""


def leaving_group(block: Block) -> int:
    """The group of what this server's node has removed, until the kernel has let go of it."""
    return _FIRST_LEAVING_GROUP + block.number


class Ruleset:
    """Texts for one block. Each is loaded as one transaction: all of it holds, or nothing."""

    def __init__(self, block: Block, exceptions: tuple[str, ...]) -> None:
        """Take the block that gives addresses and names, and the operator's exceptions to `ALWAYS_DENIED`."""
        self._block = block
        self._exceptions = exceptions
        self.table = f"cloche_{block.number}"
        """Name of our nftables table, family inet."""

    def whole(self, policies: Mapping[int, EgressPolicy]) -> str:
        """The whole table with the policies of these slots, in place of an older one."""
        own, gateway = f'"{self._block.interface_prefix}*"', self._block.gateway
        excepted = f"ip daddr {{ {', '.join(self._exceptions)} }} return" if self._exceptions else ""
        return f"""
table inet {self.table}
delete table inet {self.table}
table inet {self.table} {{
    map policies {{
        type ipv4_addr : verdict
    }}
    map redirects {{
        type ipv4_addr : verdict
    }}
    set connections {{
        type ipv4_addr
        size 1024
        flags dynamic
    }}
    chain input {{
        type filter hook input priority -10; policy accept;
        iifname != {own} accept
        meta nfproto ipv6 drop
        ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 accept
        ip daddr {gateway} tcp dport {EGRESS_PORT} iifgroup {ONLINE_GROUP} ct status dnat accept
        ip daddr {gateway} icmp type echo-request accept
        ct state established,related accept
        drop
    }}
    chain output {{
        type filter hook output priority -10; policy accept;
        oifname {own} meta l4proto {{ tcp, udp }} ct state new meta skuid != {{ 0, {EDGE_UID} }} drop
    }}
    chain forward {{
        type filter hook forward priority -10; policy accept;
        iifname {own} jump outward
        oifname {own} jump inward
    }}
    chain outward {{
        iifgroup != {ONLINE_GROUP} drop
        meta nfproto ipv6 drop
        oifname "cl*" drop
        ct state invalid drop
        jump never
        ct original ip saddr vmap @policies
        ct state new add @connections {{ ip saddr ct count over {MAX_CONNECTIONS} }} drop
        accept
    }}
    chain inward {{
        oifgroup != {ONLINE_GROUP} drop
        ct state != {{ established, related }} drop
        ct original ip saddr vmap @policies
        accept
    }}
    chain never {{
        {excepted}
        ip daddr {{ {", ".join(ALWAYS_DENIED)} }} drop
        tcp dport 25 drop
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        iifname {own} ip saddr vmap @redirects
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {self._block.network} oifname != {own} masquerade
    }}
}}
""" + "".join(self.policy(slot, policy) for slot, policy in policies.items() if policy != EgressPolicy())

    def policy(self, slot: int, policy: EgressPolicy) -> str:
        """The policy of one slot, in place of an older one of that slot."""
        address = self._block.address(slot)
        rules = [f"add rule inet {self.table} sandbox_{slot} {rule}" for rule in _rules(policy)]
        if policy.domains:
            redirect = f"add rule inet {self.table} redirect_{slot}"
            if policy.allow or policy.dns_servers:
                direct = ", ".join(collapsed(policy.allow, policy.dns_servers))
                rules.append(f"{redirect} ip daddr {{ {direct} }} return")
            to = f"{self._block.gateway}:{EGRESS_PORT}"
            rules.append(f"{redirect} tcp dport {{ 80, 443 }} dnat ip to {to}")
        lines = [
            *(
                f"{verb} chain inet {self.table} {chain}_{slot}"
                for verb in ("add", "flush")
                for chain in _CHAINS
            ),
            *rules,
            f"add element inet {self.table} policies {{ {address} : jump sandbox_{slot} }}",
            f"add element inet {self.table} redirects {{ {address} : jump redirect_{slot} }}",
        ]
        return "\n".join(lines) + "\n"

    def no_policy(self, slot: int) -> str:
        """Take the policy of one slot away; it has one, or had one when the table was loaded."""
        address = self._block.address(slot)
        lines = [
            *(
                f"delete element inet {self.table} {name} {{ {address} }}"
                for name in ("policies", "redirects")
            ),
            *(
                f"{verb} chain inet {self.table} {chain}_{slot}"
                for verb in ("flush", "delete")
                for chain in _CHAINS
            ),
        ]
        return "\n".join(lines) + "\n"


def _rules(policy: EgressPolicy) -> list[str]:
    """The rules of one sandbox, in order."""
    rules: list[str] = []
    if policy.domains:
        # Names are checked where they are asked for and where they are connected to: the ways around that are
        # foreign name servers and QUIC, whose names egress does not read.
        if policy.dns_servers:
            rules.append(f"ct original ip daddr {{ {', '.join(policy.dns_servers)} }} return")
        rules += ["meta l4proto { tcp, udp } th dport 53 drop", "udp dport 443 drop"]
    if policy.allow:
        rules.append(f"ct original ip daddr {{ {', '.join(policy.allow)} }} return")
    if policy.deny:
        rules.append(f"ct original ip daddr {{ {', '.join(policy.deny)} }} drop")
    return rules
