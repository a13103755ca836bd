"""Boundary: what root inside a sandbox may do, and that sudo works all the same."""

from tests.support.fixtures import NEEDS_A_SERVER, Pair
from tests.support.inside import root, run, statuses

pytestmark = NEEDS_A_SERVER

# CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE SYS_CHROOT SETFCAP
MASK = sum(1 << bit for bit in (0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31))


def _capabilities(text: str) -> dict[str, int]:
    return {line.split(":")[0]: int(line.split()[1], 16) for line in text.splitlines()}


def test_root_has_eleven_capabilities_and_no_way_to_more(pair: Pair) -> None:
    """Battery 4: bounding and permitted sets are exactly the eleven; nothing is inheritable or ambient."""
    sets = _capabilities(root(pair.a, "grep ^Cap /proc/self/status").out)
    assert sets == {"CapInh": 0, "CapPrm": MASK, "CapEff": MASK, "CapBnd": MASK, "CapAmb": 0}
    owned = "touch /tmp/owned && chown user /tmp/owned && stat -c %U /tmp/owned"
    assert root(pair.a, owned).out == "user\n"  # twin: those it has work


def test_user_has_no_capability(pair: Pair) -> None:
    """Battery 4: an ordinary process has none in effect, and the same bounding set."""
    sets = _capabilities(run(pair.a, "grep ^Cap /proc/self/status").out)
    assert (sets["CapEff"], sets["CapPrm"], sets["CapAmb"], sets["CapBnd"]) == (0, 0, 0, MASK)


def test_every_process_of_a_sandbox_has_the_same_bounding_set(pair: Pair) -> None:
    """Battery 4, from outside: the agent is bound like everybody else."""
    bounds = {int(value, 16) for value in statuses(pair.a, "CapBnd")}
    assert bounds == {MASK}


def test_sudo_gives_root_passes_exit_codes_and_pipes(pair: Pair) -> None:
    """Battery 5: sudo without a password, with the program's own exit code, output and input."""
    assert run(pair.a, "sudo -n id -u").out == "0\n"
    assert run(pair.a, "sudo -n sh -c 'exit 7'").code == 7
    assert run(pair.a, "echo hi | sudo -n cat").out == "hi\n"
    assert run(pair.a, "id -u").out == "1000\n"  # twin: without it, still `user`


def test_sudo_gains_nothing_but_the_id(pair: Pair) -> None:
    """Battery 5: a set-user-id program stays in the bounding set and under the filter."""
    text = run(pair.a, "sudo -n grep -E '^(CapBnd|Seccomp):' /proc/self/status").out
    fields = dict(line.split(":\t") for line in text.splitlines())
    assert int(fields["CapBnd"], 16) == MASK
    assert fields["Seccomp"] == "2"
