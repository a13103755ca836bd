"""The filter that the kernel gets decides as the profile says: its instructions are run here, one by one."""

import ctypes
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.isolation.test_seccomp import decisions

from cloche_server.isolation.container import call_filter, seccomp

PROFILE = seccomp.profile()
PROGRAM = list(struct.iter_unpack("<HBBI", call_filter.compile_profile(PROFILE)))
X86_64, I386 = 0xC000_003E, 0x4000_0003
X32_BIT = 0x4000_0000
KILL_PROCESS, ALLOW, ERRNO = 0x8000_0000, 0x7FFF_0000, 0x0005_0000
LOAD, LOAD_NEXT_WORDS, AND, RETURN = 0x20, 0x00, 0x54, 0x06
JUMPS = {
    0x05: lambda a, k: True,
    0x15: lambda a, k: a == k,
    0x25: lambda a, k: a > k,
    0x35: lambda a, k: a >= k,
    0x45: lambda a, k: a & k != 0,
}
CALLS = sorted(
    {name for rule in PROFILE["syscalls"] for name in rule["names"]} | {"keyctl", "io_uring_setup"}
)

words = st.one_of(
    st.integers(0, 64), st.integers(0, (1 << 64) - 1), st.sampled_from([0x5412, 0x1_0000_5412, 1 << 28])
)


def answer(number: int, arguments: tuple[int, ...], architecture: int = X86_64) -> int:
    """What the kernel would make of a call (bpf(4), seccomp(2) `struct seccomp_data`)."""
    data = struct.pack("<IIQ6Q", number & 0xFFFF_FFFF, architecture, 0, *arguments)
    accumulator, at = 0, 0
    while True:
        code, yes, no, constant = PROGRAM[at]
        at += 1
        if code == RETURN:
            return constant
        if code == LOAD:
            (accumulator,) = struct.unpack_from("<I", data, constant)
        elif code == AND:
            accumulator &= constant
        elif code == 0x05:
            at += constant
        else:
            at += yes if JUMPS[code](accumulator, constant) else no


def number_of(name: str) -> int:
    return ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_name(name.encode())


def expected(name: str, arguments: tuple[int, ...]) -> set[int]:
    return {
        ALLOW if action == seccomp.ALLOW else ERRNO | (number or 0)
        for action, number in decisions(name, *arguments)
    }


@given(name=st.sampled_from(CALLS), arguments=st.tuples(*[words] * 6))
def test_every_call_gets_the_answer_of_the_profile(name: str, arguments: tuple[int, ...]) -> None:
    number = number_of(name)
    if number >= 0:
        assert answer(number, arguments) in expected(name, arguments)


def test_most_calls_of_the_profile_are_known_here() -> None:
    """Else the test above would be about nothing."""
    assert sum(number_of(name) >= 0 for name in CALLS) > 0.9 * len(CALLS)


@pytest.mark.parametrize(("number", "architecture"), [(20, I386), (39, 0), (39 | X32_BIT, X86_64)])
def test_another_architectures_door_ends_the_process(number: int, architecture: int) -> None:
    assert answer(number, (0,) * 6, architecture) == KILL_PROCESS


def test_a_number_that_nobody_knows_is_not_there() -> None:
    assert answer(9999, (0,) * 6) == ERRNO | PROFILE["defaultErrnoRet"]


def test_a_rule_that_libseccomp_refuses_is_an_error() -> None:
    rule = {"names": ["getpid"], "action": seccomp.ERRNO, "errnoRet": PROFILE["defaultErrnoRet"]}
    with pytest.raises(OSError, match="getpid"):
        call_filter.compile_profile({**PROFILE, "syscalls": [rule]})
