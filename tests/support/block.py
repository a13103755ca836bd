"""What is left of one server's sandboxes, told apart from those of other servers by its block."""

import contextlib
import json
import re
from pathlib import Path

from cloche_server.isolation.base import ID_RANGE, first_id
from cloche_server.node.slots import SLOTS
from tests.support.waiting import until

_CLAIMS = Path("/run/cloche/blocks")


def number_of(state: Path) -> int:
    """The block of the server that runs on this state folder."""
    for path in _CLAIMS.iterdir():
        if owner_of(int(path.name)) == str(state):
            return int(path.name)
    raise LookupError(f"no server runs on {state}")


def owner_of(number: int) -> str | None:
    """The state folder of the server that has claimed a block; None where nobody has."""
    try:
        claim = (_CLAIMS / str(number)).read_text()
    except FileNotFoundError:
        return None
    return json.loads(claim)["state"] if claim else None


def remains(number: int) -> list[str]:
    """Every process, control group and interface of the block's sandboxes."""
    groups = [
        *Path("/sys/fs/cgroup").glob(f"*/cloche-{number}/*/"),
        *Path("/sys/fs/cgroup").glob(f"cloche-{number}/*/"),
    ]
    interfaces = Path("/sys/class/net").glob(f"cl{number}-*")
    processes = (f"process {pid} {name}" for pid, name in sandbox_processes(number).items())
    return [*processes, *map(str, groups), *map(str, interfaces)]


def await_nothing(number: int) -> None:
    """Return when nothing of the block's sandboxes is left; what ends off the request path has 10 s."""
    found: list[str] = []

    def clean() -> bool:
        found[:] = remains(number)
        return not found

    with contextlib.suppress(AssertionError):
        until(clean, within_s=10, what="a clean block")
    assert found == [], f"left behind: {found}"


def sandbox_processes(number: int) -> dict[int, str]:
    """Processes of the block's sandboxes, with their names."""
    found: dict[int, str] = {}
    uids = range(first_id(number * SLOTS), first_id(number * SLOTS) + SLOTS * ID_RANGE)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                status = dict(re.findall(r"^(\w+):\s+(\S+)", (entry / "status").read_text(), re.MULTILINE))
                # A zombie is no process of a sandbox any more: it waits for whoever adopted it.
                if int(status["Uid"]) in uids and status["State"] != "Z":
                    found[int(entry.name)] = status["Name"]
    return found
