"""The sandbox's system call filter, made from data, as the OCI runtime specification writes it.

See: runtime-spec, config-linux.md "Seccomp"; seccomp_rule_add(3): rules of one call are alternatives,
conditions in one rule all hold, and each argument may stand in one condition of a rule only. That last
point is why "any value but these" is written as a set of bit prefixes here.
"""

from __future__ import annotations

import errno
import tomllib
from importlib import resources
from typing import Any

ALLOW, ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
_WORD = 0xFFFF_FFFF

Rule = dict[str, Any]


def profile(*, enters_namespaces: bool = False) -> dict[str, Any]:
    """Return the `linux.seccomp` object of config.json; for a zygote with setns, and nothing else more."""
    folder = resources.files("cloche_server.isolation.container")
    entered = ["setns"] if enters_namespaces else []
    data = tomllib.loads(folder.joinpath("seccomp.toml").read_text())
    rules = [
        _rule(data["allow"].split() + entered, ALLOW),
        _rule([name for name in data["refuse"].split() if name not in entered], ERRNO, errno.EPERM),
        *(_rule(["personality"], ALLOW, args=[_equal(0, value)]) for value in data["personalities"]),
        *_namespaces(data["namespace_bits"], data["time_namespace_bit"]),
        *_sockets(data["families"], data["netlink_family"]),
        *_ioctls(data["ioctls"]),
    ]
    return {
        # x32 and i386 are left out: libseccomp ends a process that calls through them, for their numbers
        # and arguments would walk around this list.
        "architectures": ["SCMP_ARCH_X86_64"],
        "defaultAction": ERRNO,
        "defaultErrnoRet": errno.ENOSYS,
        "syscalls": rules,
    }


def _namespaces(bits: list[int], time_bit: int) -> list[Rule]:
    every = sum(bits)
    refused = [_rule(["clone", "unshare"], ERRNO, errno.EPERM, [_masked(0, bit, bit)]) for bit in bits]
    return [
        _rule(["clone"], ALLOW, args=[_masked(0, every, 0)]),
        _rule(["unshare"], ALLOW, args=[_masked(0, every | time_bit, 0)]),
        *refused,
        _rule(["unshare"], ERRNO, errno.EPERM, [_masked(0, time_bit, time_bit)]),
    ]


def _sockets(families: list[int], netlink: int) -> list[Rule]:
    rules = [_rule(["socket"], ALLOW, args=[_masked(0, _WORD, family)]) for family in families]
    rules.append(_rule(["socket"], ALLOW, args=[_masked(0, _WORD, netlink), _masked(2, _WORD, 0)]))
    not_route = {"index": 2, "value": 0, "op": "SCMP_CMP_NE"}
    rules.append(_rule(["socket"], ERRNO, errno.EAFNOSUPPORT, [_masked(0, _WORD, netlink), not_route]))
    rules.extend(
        _rule(["socket"], ERRNO, errno.EAFNOSUPPORT, [_masked(0, mask, value)])
        for mask, value in prefixes_without({*families, netlink})
    )
    return rules


def _ioctls(refused: list[int]) -> list[Rule]:
    return [
        *(_rule(["ioctl"], ERRNO, errno.EPERM, [_masked(1, _WORD, command)]) for command in refused),
        *(
            _rule(["ioctl"], ALLOW, args=[_masked(1, mask, value)])
            for mask, value in prefixes_without(set(refused))
        ),
    ]


def prefixes_without(excluded: set[int]) -> list[tuple[int, int]]:
    """Cover every 32-bit word outside `excluded` by `(mask, value)` pairs that match none inside.

    Only the low 32 bits are compared: the kernel ignores the upper half of an `int` argument, so a filter
    that looked at it could be walked around by setting it.
    """
    found: list[tuple[int, int]] = []
    level = {0}  # prefixes that still contain an excluded word
    for length in range(1, 33):
        shift = 32 - length
        mask = (_WORD << shift) & _WORD
        children = {value | (bit << shift) for value in level for bit in (0, 1)}
        level = {value for value in children if any(word & mask == value for word in excluded)}
        found.extend((mask, value) for value in sorted(children - level))
    return found


def _rule(names: list[str], action: str, number: int | None = None, args: list[Rule] | None = None) -> Rule:
    rule: Rule = {"names": names, "action": action}
    if number is not None:
        rule["errnoRet"] = number
    if args:
        rule["args"] = args
    return rule


def _equal(index: int, value: int) -> Rule:
    return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}


def _masked(index: int, mask: int, value: int) -> Rule:
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
