"""Boundary: system calls. What only attackers need is refused before the kernel looks at it."""

import json

from tests.support.fixtures import NEEDS_A_SERVER, Pair
from tests.support.inside import python

pytestmark = NEEDS_A_SERVER

_SOCKETS = """
import json, socket
made = []
for family in range(46):
    for kind in (1, 2, 5, 3):
        for protocol in ((0, 9, 12, 15) if family == 16 else (0,)):
            try:
                socket.socket(family, kind, protocol).close()
            except OSError:
                continue
            made.append([family, kind, protocol])
print(json.dumps(made))
"""


def test_only_four_socket_families_exist(pair: Pair) -> None:
    """Battery 11: UNIX, INET, INET6 and routing NETLINK; no ALG, VSOCK, PACKET, KEY or raw, for root."""
    for user in ("root", "user"):
        made = json.loads(python(pair.a, _SOCKETS, user=user).out)
        families = {family for family, _, _ in made}
        assert families <= {1, 2, 10, 16}
        assert {1, 2, 16} <= families  # twin
        assert not [entry for entry in made if entry[0] == 16 and entry[2] != 0]
        assert not [entry for entry in made if entry[0] in (2, 10) and entry[1] == 3]


_CALLS = """
import ctypes, errno, json
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {'mount': 165, 'umount2': 166, 'pivot_root': 155, 'init_module': 175, 'kexec_load': 246, 'bpf': 321,
           'perf_event_open': 298, 'userfaultfd': 323, 'keyctl': 250, 'add_key': 248, 'io_uring_setup': 425,
           'open_by_handle_at': 304, 'ptrace_none': 599, 'fsopen': 430, 'move_mount': 429, 'open_tree': 428,
           'swapon': 167, 'reboot': 169, 'settimeofday': 164, 'clock_settime': 227, 'acct': 163}
found = {}
for name, number in NUMBERS.items():
    ctypes.set_errno(0)
    result = libc.syscall(number, 0, 0, 0, 0, 0, 0)
    found[name] = errno.errorcode.get(ctypes.get_errno(), '') if result == -1 else 'done'
found['getpid'] = 'done' if libc.syscall(39) > 0 else 'refused'
print(json.dumps(found))
"""


def test_dangerous_calls_are_refused_for_root(pair: Pair) -> None:
    """Battery 10 in part: mounts, modules, bpf, perf, keys, io_uring and clocks: EPERM or ENOSYS."""
    found = json.loads(python(pair.a, _CALLS, user="root").out)
    assert found.pop("getpid") == "done"  # twin
    assert not {name: error for name, error in found.items() if error not in ("EPERM", "ENOSYS")}
    assert found["io_uring_setup"] == found["keyctl"] == found["ptrace_none"] == "ENOSYS"
