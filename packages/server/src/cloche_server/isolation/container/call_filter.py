"""A system call filter as the kernel takes it, made of the profile by libseccomp.

See: seccomp_init(3), seccomp_rule_add(3), seccomp_export_bpf(3).
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from cloche_server.isolation.container import seccomp

INSTRUCTION_BYTES = 8
_LIBRARY = "libseccomp.so.2"
_KILL_PROCESS, _ALLOW, _ERRNO = 0x8000_0000, 0x7FFF_0000, 0x0005_0000
_BAD_ARCHITECTURE = 2
_OPERATORS = {"SCMP_CMP_NE": 1, "SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}


class _Condition(ctypes.Structure):
    """`struct scmp_arg_cmp`."""

    _fields_ = (
        ("index", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def compile_profile(profile: dict[str, Any]) -> bytes:
    """Return the filter's instructions (`struct sock_filter`), for the machine's own architecture.

    Calls that this libseccomp has no name for get the default action, as those that no rule names. A call
    through another architecture's door ends the process: its numbers and arguments would walk around the
    rules.

    Raises:
        OSError: No libseccomp, or it takes a rule for wrong.
    """
    library = ctypes.CDLL(_LIBRARY)
    library.seccomp_init.restype = ctypes.c_void_p
    default = _ERRNO | int(profile["defaultErrnoRet"])
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(default)))
    if not context:
        raise OSError("libseccomp cannot make a filter")
    try:
        _check(
            library.seccomp_attr_set(context, _BAD_ARCHITECTURE, ctypes.c_uint32(_KILL_PROCESS)),
            "another architecture",
        )
        for rule in profile["syscalls"]:
            _add(library, context, rule)
        return _export(library, context)
    finally:
        library.seccomp_release(context)


def _add(library: ctypes.CDLL, context: ctypes.c_void_p, rule: dict[str, Any]) -> None:
    action = _ALLOW if rule["action"] == seccomp.ALLOW else _ERRNO | int(rule["errnoRet"])
    conditions = [
        _Condition(one["index"], _OPERATORS[one["op"]], one["value"], one.get("valueTwo", 0))
        for one in rule.get("args", ())
    ]
    array = (_Condition * len(conditions))(*conditions)
    for name in rule["names"]:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            continue
        result = library.seccomp_rule_add_array(
            context, ctypes.c_uint32(action), number, len(conditions), array
        )
        _check(result, name)


def _export(library: ctypes.CDLL, context: ctypes.c_void_p) -> bytes:
    memory = os.memfd_create("filter")
    try:
        _check(library.seccomp_export_bpf(context, memory), "export")
        return os.pread(memory, os.fstat(memory).st_size, 0)
    finally:
        os.close(memory)


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(-result, f"libseccomp: {what}: {os.strerror(-result)}")
