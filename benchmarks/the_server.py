"""What a worker of `cloche bench` sees of the measured server from outside: processes, journal of sandboxes.

Against the stub there is neither: nothing is made ahead, and nothing has to be waited for.
"""

import contextlib
import json
import os
import time
from collections import Counter
from pathlib import Path

import processes

MOST_AHEAD = int(os.environ.get("CLOCHE_MOST_AHEAD", "0"))
"""How many sandboxes it keeps ready at most."""
JOURNAL = Path(os.environ.get("CLOCHE_JOURNAL", "/nonexistent"))
SUPERVISOR = int(os.environ.get("CLOCHE_SUPERVISOR", "0"))
ZYGOTE = "zygote-"
"""How the names of their control groups begin."""
LOOK_EVERY_S = 0.01
QUIET_S = 1.0
PATIENCE_S = 60.0


def records() -> dict[str, dict[str, object]]:
    """The journal: a record of each sandbox by its id."""
    found: dict[str, dict[str, object]] = {}
    for path in sorted(JOURNAL.glob("*.json"), key=lambda path: len(path.name)):
        with contextlib.suppress(FileNotFoundError):
            found[path.name.partition(".")[0]] = json.loads(path.read_text())
    return found


def states() -> Counter[str]:
    """How many sandboxes are in which state."""
    return Counter(str(record["state"]) for record in records().values())


def until_one_is_ready() -> None:
    """Wait for a sandbox made ahead; in vain where none is wanted, because memory is short, say.

    Whoever creates without a pause uses up what is there and measures something else from then on.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    while MOST_AHEAD and not states()["ready"] and time.monotonic() < deadline_s:
        time.sleep(LOOK_EVERY_S)


def until_quiet() -> None:
    """Wait until it makes no sandbox and ends none."""
    deadline_s = time.monotonic() + PATIENCE_S
    seen, since_s = states(), time.monotonic()
    while time.monotonic() < deadline_s:
        time.sleep(LOOK_EVERY_S * 10)
        now = states()
        if now != seen or now["creating"]:
            seen, since_s = now, time.monotonic()
        if time.monotonic() - since_s > QUIET_S:
            return


def own_processes() -> list[int]:
    """Its processes; those of sandboxes are in pid namespaces or at least in control groups of their own."""
    here, others = processes.namespace(SUPERVISOR), {*sandboxes_processes(list(records())), *zygotes()}
    found = [pid for pid in processes.descendants(SUPERVISOR) if processes.namespace(pid) == here]
    return [pid for pid in found if pid not in others]


def zygotes() -> list[int]:
    """The processes that interpreters of its sandboxes are forked from."""
    groups = processes.by_group()
    return [pid for name, pids in groups.items() if name.startswith(ZYGOTE) for pid in pids]


def sandboxes_pss_mib(ids: list[str]) -> list[float]:
    """Memory of each of these sandboxes, over all of its processes."""
    return [sum(map(processes.pss_mib, pids)) for pids in _by_sandbox(ids)]


def sandboxes_processes(ids: list[str]) -> list[int]:
    """Processes of these sandboxes."""
    return [pid for pids in _by_sandbox(ids) for pid in pids]


def _by_sandbox(ids: list[str]) -> list[list[int]]:
    members = processes.by_group()
    return [members.get(name, []) for name in ids]
