"""What a zygote is allowed, looked at by a program in its place; and how a bad one is given up."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.integration.isolation.conftest import NEEDS_CONTAINERS, Workshop, plain_rootfs
from tests.support.waiting import until

from cloche_server.isolation import posture
from cloche_server.isolation.base import Family, FamilySpec, ResourceLimits, first_id
from cloche_server.isolation.container import family as container_family
from cloche_wire.errors import Internal

pytestmark = [pytest.mark.anyio, NEEDS_CONTAINERS]
SANDBOXES = 3

_REPORT = """
import ctypes, errno, json, os, resource, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    return errno.errorcode[ctypes.get_errno()] if libc.syscall(number, *arguments) < 0 else "done"
def tried(act):
    try:
        act()
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]
host, capability_data = int(sys.argv[1]), (ctypes.c_uint32 * 6)()
libc.syscall(125, ctypes.byref((ctypes.c_uint32 * 2)(0x20080522, 0)), capability_data)
interface = socket.if_nameindex()
print_to = socket.socket(fileno=3)
print_to.send(json.dumps({
    "ids": [os.getuid(), os.getgid(), os.getgroups()],
    "capabilities": capability_data[0] | capability_data[3] << 32,
    "proc": os.listdir("/proc"),
    "sys": os.path.exists("/sys/kernel"),
    "interfaces": [name for _, name in interface],
    "fds": [n for n in range(40) if tried(lambda: os.fstat(n)) == "done"],
    "mount": call(165, b"x", b"/tmp", b"tmpfs", 0, 0),
    "unshare": call(272, 0x10000000),
    "open_tree": call(428, -100, b"/", 1),
    "bpf": call(321, 0, 0, 0),
    "keyctl": call(250, 0, 0),
    "ptrace": call(101, 16, host, 0, 0),
    "kill host": tried(lambda: os.kill(host, 0)),
    "kill init": tried(lambda: os.kill(int(sys.argv[2]), 0)),
    "kill stranger": tried(lambda: os.kill(int(sys.argv[3]), 0)),
    "trace init": call(101, 16, int(sys.argv[2]), 0, 0),
    "become a stranger": tried(lambda: os.setresuid(-1, 65536 * 40, -1)),
    "enter nothing": call(308, 0, 0),
}).encode())
"""


def spec(workshop: Workshop, argv: tuple[str, ...], rootfs: Path | None = None) -> FamilySpec:
    folder = workshop.folder / "family"
    folder.mkdir()
    first = workshop.block * 1024 + 700
    return FamilySpec(
        family_id="zygote-0000",
        slots=tuple(range(first, first + 1 + SANDBOXES)),
        layers=(rootfs or plain_rootfs(workshop.folder / "family.rootfs"),),
        folder=folder,
        runtime_tree=workshop.tree.path,
        limits=ResourceLimits(1, 256, 20),
        argv=argv,
        env={"PATH": "/usr/bin:/bin"},
    )


async def reported(workshop: Workshop, *arguments: str) -> dict[str, Any]:
    """What the program said; anything but `ready` is taken for the reason why there is no zygote."""
    argv = (*workshop.tree.python(), "-c", _REPORT, *arguments)
    with pytest.raises(Internal, match="cannot be forked") as refused:
        await workshop.driver.open_family(spec(workshop, argv))
    await workshop.driver.destroy("zygote-0000", workshop.folder / "family", None)
    found: dict[str, Any] = json.loads(str(refused.value).partition("forked: ")[2])
    return found


async def test_a_zygote_can_enter_its_sandboxes_and_nothing_else(container: Workshop) -> None:
    """Confined like a sandbox, but for five capabilities in a user namespace that has nothing else."""
    stranger = await container.start()
    found = await reported(container, str(os.getpid()), str(stranger.init.pid), str(stranger.init.pid))
    assert found["ids"] == [0, 0, []]
    assert found["capabilities"] == sum(1 << number for number in posture.ZYGOTE_CAPABILITIES.values())
    assert found["proc"] == []
    assert found["sys"] is False
    assert found["interfaces"] == ["lo"]
    assert found["fds"] == [0, 1, 2, 3, 4]
    refused = ("mount", "unshare", "open_tree", "bpf", "ptrace", "kill host", "kill init", "trace init")
    assert {name: found[name] for name in refused} == dict.fromkeys(refused, "EPERM")
    assert found["kill stranger"] == "EPERM"
    assert found["keyctl"] == "ENOSYS"
    assert found["become a stranger"] == "EINVAL"  # an id that its namespace does not map
    assert found["enter nothing"] == "EINVAL"  # twin: setns is the one call that is not refused


async def test_a_zygote_s_ids_are_those_of_its_slots(container: Workshop) -> None:
    opened = await ready(container)
    wanted = [
        [65_536 * position, first_id(container.block * 1024 + 700 + position), 65_536]
        for position in range(1 + SANDBOXES)
    ]
    for name in ("uid_map", "gid_map"):
        lines = of_process(opened.init.pid, name).splitlines()
        assert [[int(word) for word in line.split()] for line in lines] == wanted
    await closed(container, opened)


_READY = "import socket; s = socket.socket(fileno=3); s.send(b'ready'); s.recv(9)"


async def ready(workshop: Workshop) -> Family:
    return await workshop.driver.open_family(spec(workshop, (*workshop.tree.python(), "-c", _READY)))


async def closed(workshop: Workshop, opened: Family) -> None:
    opened.close()
    async with asyncio.timeout(10):
        await workshop.driver.wait(opened.init)
    await workshop.driver.destroy("zygote-0000", workshop.folder / "family", opened.init)


async def test_a_sandbox_of_a_family_has_its_own_ids_below_the_family_s(container: Workshop) -> None:
    """Host ids as ever, and a network of its own; and it outlives the family."""
    opened = await ready(container)
    slot = container.block * 1024 + 702
    namespace = await opened.network_namespace()
    other = await opened.network_namespace()
    sandbox = await container.start(
        slot=slot, family=opened, network_namespace=namespace, argv=accepting(container)
    )
    assert os.fstat(namespace).st_ino != os.fstat(other).st_ino
    assert f"net:[{os.fstat(namespace).st_ino}]" == str(network_of(sandbox.init.pid))
    os.close(namespace)
    os.close(other)
    status = of_process(sandbox.init.pid, "status")
    assert f"Uid:\t{first_id(slot)}\t{first_id(slot)}" in status
    assert sandbox.run("result = [os.getuid(), open('/proc/self/uid_map').read().split()[2]]") == [0, "65536"]
    await closed(container, opened)
    assert sandbox.run("result = 1") == 1


def accepting(workshop: Workshop) -> tuple[str, ...]:
    """The workshop's program, which is given the arguments that a family adds."""
    return workshop.spec().argv


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os; os._exit(1)", "it ended while it imported"),
        ("import os; os.abort()", "it ended while it imported"),
        ("import socket; socket.socket(fileno=3).send(b'no')", "cannot be forked: no"),
    ],
)
async def test_one_that_ends_while_it_imports_says_why(
    container: Workshop, program: str, reason: str
) -> None:
    with pytest.raises(Internal, match=reason):
        await container.driver.open_family(spec(container, (*container.tree.python(), "-c", program)))
    await container.driver.destroy("zygote-0000", container.folder / "family", None)


async def test_one_that_hangs_while_it_imports_is_given_up(
    container: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container_family, "PRELOAD_TIMEOUT_S", 0.5)
    program = "import time; time.sleep(600)"
    with pytest.raises(Internal, match="took longer"):
        await container.driver.open_family(spec(container, (*container.tree.python(), "-c", program)))
    await container.driver.destroy("zygote-0000", container.folder / "family", None)


async def test_a_launcher_that_was_killed_is_started_again(container: Workshop) -> None:
    """Battery 87, for the agent's zygote: the next start works, and the sandboxes before go on."""
    before = await container.start()
    (launcher,) = launchers()
    os.kill(launcher, 9)
    # A request that it still takes, as the last of its life, is refused: that one is not claimed.
    until(lambda: not launchers(), within_s=10, what="the end of the launcher")
    after = await container.start()
    assert (before.run("result = 1"), after.run("result = 2")) == (1, 2)


def launchers() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if is_launcher_of_ours(path)]


def of_process(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def network_of(pid: int) -> Path:
    return Path(f"/proc/{pid}/ns/net").readlink()


def is_launcher_of_ours(process: Path) -> bool:
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        name = (process / "cmdline").read_bytes()
    except OSError:  # it has ended since it was listed
        return False
    return fields[0] not in "ZX" and int(fields[1]) == os.getpid() and b".launcher" in name
