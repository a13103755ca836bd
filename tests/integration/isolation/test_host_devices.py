"""The devices that a sandbox is shown are the host's own: nothing inside may come to own one."""

from pathlib import Path

import pytest
from tests.integration.isolation.conftest import NEEDS_CONTAINERS, Workshop

pytestmark = [pytest.mark.anyio, NEEDS_CONTAINERS]

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


def owners() -> dict[str, tuple[int, int]]:
    """Owner and mode of each device, as the host sees them."""
    found = {name: (Path("/dev") / name).stat() for name in DEVICES}
    return {name: (status.st_uid, status.st_mode) for name, status in found.items()}


async def test_no_device_of_the_host_changes_hands_when_a_sandbox_starts(container: Workshop) -> None:
    """Whatever its standard streams are: the host's device is not given away for one."""
    before = owners()
    assert before["null"][0] == 0
    await container.start()
    assert owners() == before


async def test_root_inside_can_use_the_null_device_and_not_change_it(container: Workshop) -> None:
    """The same inode as the host's: a chmod inside would take it from every program of the machine."""
    before = owners()
    started = await container.start()
    assert started.run("result = open('/dev/null', 'w').write('x')") == 1
    refused = started.run(
        "result = []\n"
        "for act in (lambda: os.chmod('/dev/null', 0), lambda: os.chown('/dev/null', 0, 0)):\n"
        "    try:\n"
        "        act()\n"
        "    except OSError as error:\n"
        "        result.append(errno.errorcode[error.errno])\n"
    )
    assert refused == ["EPERM", "EPERM"]
    assert owners() == before
