"""What a request makes the machine do, in counts that hardly change when it is busy: no time is measured.

`tasks` are the processes and threads that were started, in sandboxes too. For each part of the server and for
what lives in the sandbox: `wakes`, how often a thread slept and was woken, once or twice for each message and
each hop to a thread; `calls` and `bytes`, reads and writes of files and pipes, those of programs that it ran
and waited for included (nobody counts what goes through sockets).
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

from cloche import Sandbox
from tests.support.inside import host_processes
from tests.support.server import PARTS, Server

Work = dict[str, float]
"""Counts by their names: `tasks`, `node calls`, ..."""


def of_one(
    server: Server, act: Callable[[], object], *, batches: int, times: int, sandbox: Sandbox | None = None
) -> Work:
    """What one act makes: the least of several batches, since whatever else goes on only adds to it.

    Args:
        server: Whose parts are looked at.
        act: Done `times` times in each batch.
        batches: How many.
        times: So many that little of a batch comes after it was counted.
        sandbox: Whose processes are looked at too, those that live all the time.
    """
    pids = {name: [server.part(name)] for name in PARTS}
    if sandbox:
        pids["sandbox"] = [process.pid for process in host_processes(sandbox)]
    counted: list[Work] = []
    for _ in range(batches):
        before = _count(pids)
        for _ in range(times):
            act()
        after = _count(pids)
        counted.append({name: (count - before[name]) / times for name, count in after.items()})
    return {name: min(batch[name] for batch in counted) for name in counted[0]}


def _count(pids: dict[str, list[int]]) -> dict[str, int]:
    # The pid that this pid namespace gave out last: where nobody else lives in it, nobody else's are counted.
    found = {"tasks": int(Path("/proc/loadavg").read_text().split()[4])}
    for name, members in pids.items():
        wakes, calls, moved = (sum(column) for column in zip(*map(_of_process, members), strict=True))
        found |= {f"{name} wakes": wakes, f"{name} calls": calls, f"{name} bytes": moved}
    return found


def _of_process(pid: int) -> tuple[int, int, int]:
    wakes = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            wakes += int(status.read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return (
        wakes,
        int(fields["syscr"]) + int(fields["syscw"]),
        int(fields["rchar"]) + int(fields["wchar"]),
    )
