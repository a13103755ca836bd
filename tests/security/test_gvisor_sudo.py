"""Boundary: who becomes root by `sudo` in a sandbox with a kernel of its own, with setuid bits or without."""

from collections.abc import Iterator

import pytest
from tests.support.fixtures import NEEDS_A_SERVER, connect_options
from tests.support.inside import root, run
from tests.support.server import Server

from cloche import Sandbox

pytestmark = [NEEDS_A_SERVER, pytest.mark.needs("runsc"), pytest.mark.timeout(300)]

CLAIM_TO_BE_ROOT = """
import os, socket, struct
def ask(*control):
    try:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20)
        connection.connect("/run/cloche/sudo.sock")
        body = b"\\0".join([b"sudo", b"", b"/", b"2", b"touch", b"/root/owned"])
        streams = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("3i", 0, 1, 2))
        connection.sendmsg([struct.pack("!I", len(body)) + body], [streams, *control])
        return connection.recv(1000).decode()
    except OSError as error:
        return f"error {error}"
print(ask())
for pid in (1, os.getppid(), os.getpid()):
    print(ask((socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("3I", pid, 0, 0))))
"""


@pytest.fixture(scope="module")
def sandbox(gvisor_server: Server) -> Iterator[Sandbox]:
    made = connect_options(gvisor_server, Sandbox.create, timeout=600)
    yield made
    made.kill()


def test_sudo_is_for_those_whom_the_sandbox_s_root_has_given_it_to(sandbox: Sandbox) -> None:
    """By the real program's own policy; twin: `user`, whom the template has given it."""
    assert run(sandbox, "sudo -n id -u").out == "0\n"
    refused = run(sandbox, "sudo -n id -u", user="nobody")
    assert (refused.code, refused.out) == (1, "")
    root(sandbox, "echo 'nobody ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/nobody")
    assert run(sandbox, "sudo -n id -u", user="nobody").out == "0\n"
    root(sandbox, "rm /etc/sudoers.d/nobody")
    assert run(sandbox, "sudo -n id -u", user="nobody").code == 1


def test_nobody_is_taken_for_another_one(sandbox: Sandbox) -> None:
    """Asking the agent directly, also with ids that are not one's own, makes no file of root's."""
    sandbox.files.write("/tmp/claim.py", CLAIM_TO_BE_ROOT)
    answers = run(sandbox, "python3 /tmp/claim.py", user="nobody").out.splitlines()
    assert len(answers) == 4
    assert all(answer.startswith("error ") for answer in answers), answers
    assert root(sandbox, "ls /root/owned").code != 0


def test_sudo_works_after_a_pause_and_in_a_copy(sandbox: Sandbox) -> None:
    """What the agent listens on inside is restored with it; twin: so is the refusal."""
    sandbox.pause()
    sandbox.resume(timeout=600)
    (copy,) = sandbox.fork(timeout=600)
    assert isinstance(copy, Sandbox)
    try:
        for one in (sandbox, copy):
            assert run(one, "sudo -n id -u").out == "0\n"
            assert run(one, "sudo -n id -u", user="nobody").code == 1
    finally:
        copy.kill()
