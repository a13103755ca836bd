"""Who a process is."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cloche_server.isolation import identity
from cloche_server.isolation.base import ProcessIdentity

pytestmark = pytest.mark.anyio

Child = subprocess.Popen[bytes]


@pytest.fixture
def child() -> Iterator[Child]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def known(process: Child) -> ProcessIdentity:
    found = identity.identify(process.pid)
    assert found is not None
    return found


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_process_is_itself(child: Child) -> None:
    assert identity.is_same(known(child))
    assert known(child) == known(child)


def test_same_pid_of_another_time_is_somebody_else(child: Child) -> None:
    other = msgspec.structs.replace(known(child), start_ticks=known(child).start_ticks - 1)
    assert not identity.is_same(other)
    assert identity.open_pidfd(other) is None
    identity.kill(other)
    assert child.poll() is None


def test_same_pid_of_another_boot_is_somebody_else(child: Child) -> None:
    assert not identity.is_same(msgspec.structs.replace(known(child), boot_id="another"))


def test_zombie_is_nobody(child: Child) -> None:
    init = known(child)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert identity.identify(child.pid) is None
    assert not identity.is_same(init)


def test_pid_that_is_free_is_nobody(child: Child) -> None:
    init = known(child)
    child.kill()
    child.wait()
    assert identity.identify(child.pid) is None
    assert identity.open_pidfd(init) is None
    identity.kill(init)


def test_name_with_brackets_and_blanks_is_read_right() -> None:
    program = "import ctypes; ctypes.CDLL(None).prctl(15, b') R 1 (x', 0, 0, 0); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        before = identity.identify(process.pid)
        assert process.stdout is not None
        process.stdout.readline()
        assert before is not None
        assert identity.identify(process.pid) == before
        process.kill()


async def test_waiting_ends_with_the_process(child: Child) -> None:
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(identity.wait_for_exit(known(child)))
        await asyncio.sleep(0)
        assert not waiting.done()
        identity.kill(known(child))
    assert not identity.identify(child.pid)


async def test_waiting_for_a_process_that_is_gone_ends_at_once(child: Child) -> None:
    init = known(child)
    child.kill()
    child.wait()
    await identity.wait_for_exit(init)


async def test_waiting_that_is_cancelled_leaks_no_descriptor(child: Child) -> None:
    before = open_descriptors()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await identity.wait_for_exit(known(child))
    assert open_descriptors() == before
