"""The system call filter: a small reader of the profile decides calls as libseccomp documents it."""

import errno
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche_server.isolation.container import seccomp

PROFILE = seccomp.profile()
WORD = 0xFFFF_FFFF
CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWTIME, CLONE_VM = 0x1000_0000, 0x2_0000, 0x80, 0x100
TIOCSTI, TIOCGWINSZ = 0x5412, 0x5413
AF_UNIX, AF_INET, AF_NETLINK, AF_ALG, AF_VSOCK = 1, 2, 16, 38, 40
ALLOWED = (seccomp.ALLOW, None)

words = st.integers(0, WORD)


def decisions(name: str, *arguments: int) -> set[tuple[str, int | None]]:
    """Every outcome that some rule gives for the call; the default when there is none."""
    found = {
        (rule["action"], rule.get("errnoRet"))
        for rule in PROFILE["syscalls"]
        if name in rule["names"] and all(_holds(condition, arguments) for condition in rule.get("args", ()))
    }
    return found or {(PROFILE["defaultAction"], PROFILE["defaultErrnoRet"])}


def _holds(condition: dict[str, Any], arguments: tuple[int, ...]) -> bool:
    value = arguments[condition["index"]]
    match condition["op"]:
        case "SCMP_CMP_EQ":
            return value == condition["value"]
        case "SCMP_CMP_NE":
            return value != condition["value"]
        case "SCMP_CMP_MASKED_EQ":
            return value & condition["value"] == condition["valueTwo"]
        case other:
            raise AssertionError(other)


def refused(number: int) -> set[tuple[str, int | None]]:
    return {(seccomp.ERRNO, number)}


@given(excluded=st.sets(words, min_size=1, max_size=6), word=words)
def test_prefixes_cover_exactly_everything_else(excluded: set[int], word: int) -> None:
    prefixes = seccomp.prefixes_without(excluded)
    for candidate in {word, *excluded, *(one ^ 1 for one in excluded)}:
        matches = [pair for pair in prefixes if candidate & pair[0] == pair[1]]
        assert len(matches) == (0 if candidate in excluded else 1)


def test_no_call_is_named_twice_without_a_condition() -> None:
    unconditional = [name for rule in PROFILE["syscalls"] if "args" not in rule for name in rule["names"]]
    assert [name for name, count in Counter(unconditional).items() if count > 1] == []
    conditional = {name for rule in PROFILE["syscalls"] if "args" in rule for name in rule["names"]}
    assert conditional.isdisjoint(unconditional)


def test_no_rule_has_two_conditions_on_one_argument() -> None:
    for rule in PROFILE["syscalls"]:
        indexes = [condition["index"] for condition in rule.get("args", ())]
        assert len(indexes) == len(set(indexes)), rule


@given(flags=words)
def test_every_clone_and_unshare_has_one_outcome(flags: int) -> None:
    for name in ("clone", "unshare"):
        assert len(decisions(name, flags)) == 1
    named = 0x7E02_0000  # every CLONE_NEW* but time
    assert (decisions("clone", flags) == {ALLOWED}) == (flags & named == 0)
    assert (decisions("unshare", flags) == {ALLOWED}) == (flags & (named | CLONE_NEWTIME) == 0)


@given(family=words, protocol=words)
def test_every_socket_has_one_outcome(family: int, protocol: int) -> None:
    assert len(decisions("socket", family, 1, protocol)) == 1


@given(upper=st.integers(0, WORD), command=st.sampled_from([TIOCSTI, TIOCGWINSZ, 0x541C, 0x5423, 0]))
def test_upper_half_of_a_command_changes_nothing(upper: int, command: int) -> None:
    assert decisions("ioctl", 0, command | upper << 32) == decisions("ioctl", 0, command)


@pytest.mark.parametrize("name", ["read", "execve", "ptrace", "landlock_restrict_self", "memfd_create"])
def test_everyday_calls_are_allowed(name: str) -> None:
    assert decisions(name) == {ALLOWED}


@pytest.mark.parametrize("name", ["mount", "bpf", "setns", "umount2", "open_tree", "userfaultfd", "reboot"])
def test_calls_of_an_administrator_are_refused(name: str) -> None:
    assert decisions(name) == refused(errno.EPERM)


@pytest.mark.parametrize(
    "name", ["clone3", "keyctl", "add_key", "io_uring_setup", "memfd_secret", "a_new_call"]
)
def test_unknown_calls_do_not_exist(name: str) -> None:
    assert decisions(name) == refused(errno.ENOSYS)


def test_namespaces_are_refused_and_threads_are_not() -> None:
    assert decisions("clone", CLONE_VM) == {ALLOWED}
    assert decisions("clone", CLONE_NEWUSER) == refused(errno.EPERM)
    assert decisions("unshare", CLONE_NEWUSER | CLONE_NEWNS) == refused(errno.EPERM)
    assert decisions("unshare", CLONE_NEWTIME) == refused(errno.EPERM)


def test_sockets_of_ordinary_families_only() -> None:
    assert decisions("socket", AF_UNIX, 1, 0) == decisions("socket", AF_INET, 1, 6) == {ALLOWED}
    assert decisions("socket", AF_NETLINK, 3, 0) == {ALLOWED}
    assert decisions("socket", AF_NETLINK, 3, 9) == refused(errno.EAFNOSUPPORT)
    for family in (AF_ALG, AF_VSOCK, AF_ALG | 1 << 32):
        assert decisions("socket", family, 1, 0) == refused(errno.EAFNOSUPPORT)


def test_typing_into_a_terminal_is_refused() -> None:
    assert decisions("ioctl", 0, TIOCSTI) == refused(errno.EPERM)
    assert decisions("ioctl", 0, TIOCGWINSZ) == {ALLOWED}


def test_other_architectures_have_no_way_in() -> None:
    assert PROFILE["architectures"] == ["SCMP_ARCH_X86_64"]
