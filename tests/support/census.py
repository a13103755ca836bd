"""What sandboxes can leave behind on this machine, counted from the outside.

Everything is found by what it is, not by the server's own books: processes by the user they run as,
cgroups, interfaces and firewall rules by their names, mounts in any process's view, folders on disk, loop
devices by the files behind them.
Nothing that belongs to the server itself counts: it may be running before, after and meanwhile. Of several
servers on one machine only those of this session count, told apart by their blocks.
"""

import contextlib
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from cloche_server.isolation.base import first_id
from cloche_server.node.slots import SLOTS
from tests.support.block import number_of, owner_of
from tests.support.waiting import until

SANDBOX_UIDS = range(0x1000_0000, 0xFFFF_0000)
"""Users that only sandboxes have: no account and no server process lies in it."""
SANDBOX_ID = r"i[a-z0-9]{20}"
_blocks: dict[int, Path] = {}
"""Blocks that servers of this session have had, with their state folders."""


class Census(NamedTuple):
    """One count: what there is, by name, so that a failure says what was left and not how much."""

    processes: frozenset[str]
    cgroups: frozenset[str]
    interfaces: frozenset[str]
    rules: frozenset[str]
    mounts: frozenset[str]
    folders: frozenset[str]
    loops: frozenset[str]

    def beyond(self, before: "Census") -> dict[str, list[str]]:
        """What is here and was not there before."""
        pairs = zip(self._fields, self, before, strict=True)
        return {kind: sorted(now - then) for kind, now, then in pairs if now - then}


def count(states: Iterable[Path] = ()) -> Census:
    """Count now.

    Args:
        states: State folders whose sandbox folders count too.
    """
    return Census(
        processes=frozenset(_sandbox_processes()),
        cgroups=frozenset(_named_folders(Path("/sys/fs/cgroup"))),
        interfaces=frozenset(_interfaces()),
        rules=frozenset(_rules()),
        mounts=frozenset(_mounts()),
        folders=frozenset(str(path) for state in states for path in state.glob("sandboxes/*")),
        loops=frozenset(loops(states)),
    )


def loops(states: Iterable[Path]) -> Iterator[str]:
    """Loop devices with an image of a volume below one of these state folders."""
    folders = [f"{state}/" for state in states]
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            image = entry.read_text().strip()
            if any(folder in image for folder in folders):
                yield f"{entry.parent.parent.name}: {image}"


def watch(state: Path) -> int:
    """Count what belongs to the server that runs on this state folder, from now on; return its block."""
    number = number_of(state)
    _blocks[number] = state
    return number


def _own_blocks() -> list[int]:
    """Those that no server of somebody else's has claimed since: what is in these is not ours to judge."""
    return [number for number, state in _blocks.items() if owner_of(number) in (None, str(state))]


def traces(number: int) -> list[str]:
    """What a server itself has while it runs, and gives back at its end: its table and its parent groups."""
    if number not in _own_blocks():
        return []
    groups = Path("/sys/fs/cgroup")
    found = [str(path) for above in ("", "*/") for path in groups.glob(f"{above}cloche-{number}")]
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout
    return found + [line for line in tables.splitlines() if line.endswith(f" cloche_{number}")]


@contextlib.contextmanager
def nothing_left(states: Iterable[Path] = (), *, within_s: float = 10.0) -> Iterator[None]:
    """Claim that the block leaves nothing behind; what goes off the request path has `within_s` to go."""
    states = tuple(states)
    before = count(states)
    yield
    seen: dict[str, list[str]] = {}

    def clean() -> bool:
        nonlocal seen
        seen = count(states).beyond(before)
        return not seen

    with contextlib.suppress(AssertionError):
        until(clean, within_s=within_s, what="a clean machine")
    assert not seen, f"left behind: {seen}"


def _sandbox_processes() -> Iterator[str]:
    ranges = [range(first_id(number * SLOTS), first_id((number + 1) * SLOTS)) for number in _own_blocks()]
    for pid, uid in processes():
        if any(uid in ids for ids in ranges):
            with contextlib.suppress(OSError):
                yield f"{pid} {Path(f'/proc/{pid}/comm').read_text().strip()}"


def processes() -> Iterator[tuple[int, int]]:
    """Every process of this machine and the user it runs as.

    A dead one that waits for process 1 to collect it is left out: it has nothing any more, and collecting
    is the duty of the machine's init (which, in a container, may be a program that does not know it).
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                status = (entry / "status").read_text()
                found = re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)
                if found and not re.search(r"^State:\s+Z.*\n(.*\n)*PPid:\s+1$", status, re.MULTILINE):
                    yield int(entry.name), int(found[1])


def _named_folders(root: Path) -> Iterator[str]:
    numbers = "|".join(map(str, _own_blocks())) or "none"
    named = re.compile(rf"/cloche-({numbers})/")
    pending = [root]
    while pending:
        folder = pending.pop()
        with contextlib.suppress(OSError):
            for child in folder.iterdir():
                if child.is_dir() and not child.is_symlink():
                    pending.append(child)
                    if named.search(str(child)):
                        yield str(child)


def _interfaces() -> Iterator[str]:
    own = tuple(f"cl{number}-" for number in _own_blocks())
    for line in Path("/proc/net/dev").read_text().splitlines()[2:]:
        name = line.split(":")[0].strip()
        if name.startswith(own):
            yield name


def _rules() -> Iterator[str]:
    """Lines of our tables that name one sandbox: its interface or its id."""
    with contextlib.suppress(FileNotFoundError):
        done = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=False)
        table, own = "", [str(number) for number in _own_blocks()]
        for line in done.stdout.splitlines():
            table = line if line.startswith("table ") else table
            owner = table.strip(" {").rpartition("cloche_")[2]
            if owner in own and re.search(rf'"cl\w+-\d+"|chain sandbox_|{SANDBOX_ID}', line):
                yield f"{table.strip(' {')}: {line.strip()}"


def _mounts() -> Iterator[str]:
    """Mounts of sandboxes as processes outside of them see them; one view for each mount namespace."""
    views: dict[str, int] = {}
    for pid, uid in processes():
        if uid not in SANDBOX_UIDS:
            with contextlib.suppress(OSError):
                views.setdefault(str(Path(f"/proc/{pid}/ns/mnt").readlink()), pid)
    for view, pid in views.items():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
                target = line.split()[4]
                if re.search(rf"/{SANDBOX_ID}(/|$)", target):
                    yield f"{view} {target}"
