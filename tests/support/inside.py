"""Looking into sandboxes: from within by commands, from outside by what the kernel says of them."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cloche import Sandbox
from cloche.errors import CommandExit


class Outcome(NamedTuple):
    """How a command ended; failing is a result here, not an error."""

    code: int
    out: str
    err: str


class HostProcess(NamedTuple):
    """A process of a sandbox as this machine sees it."""

    pid: int
    uid: int
    comm: str


def run(sandbox: Sandbox, command: str, *, user: str = "user", timeout: float = 60) -> Outcome:
    """Run a command as `user` and return how it ended."""
    try:
        done = sandbox.commands.run(command, user=user, timeout=timeout)
    except CommandExit as failed:
        return Outcome(failed.exit_code, failed.stdout or "", failed.stderr or "")
    return Outcome(done.exit_code, done.stdout, done.stderr)


def root(sandbox: Sandbox, command: str, *, timeout: float = 60) -> Outcome:
    """Run a command as the sandbox's root."""
    return run(sandbox, command, user="root", timeout=timeout)


def python(sandbox: Sandbox, program: str, *, user: str = "user") -> Outcome:
    """Run a Python program in the sandbox, outside of the interpreter service."""
    name = f"/tmp/program-{user}.py"
    sandbox.files.write(name, program)
    return run(sandbox, f"python3 {name}", user=user)


def host_processes(sandbox: Sandbox) -> list[HostProcess]:
    """Every process of the sandbox: those in its control group, by their ids on this machine.

    One after the other: where processes start and end just now it is no count (`process_count`).
    """
    found: dict[int, HostProcess] = {}
    for group in _groups(sandbox.sandbox_id):
        for line in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                status = Path(f"/proc/{line}/status").read_text()
                uid = int(_field(status, "Uid").split()[0])
                found[int(line)] = HostProcess(int(line), uid, _field(status, "Name"))
    return sorted(found.values())


class ProcessCount(NamedTuple):
    """What the kernel counts of a sandbox's processes and threads, at one moment."""

    current: int
    limit: int
    refused: int
    """How many could not be started since the sandbox began, because of the limit."""


def process_count(sandbox: Sandbox) -> ProcessCount:
    """The kernel's count. See: Documentation/admin-guide/cgroup-v1/pids.rst."""
    (group,) = (path.parent for path in _files(sandbox.sandbox_id, "pids.current"))
    events = dict(line.split() for line in (group / "pids.events").read_text().splitlines())
    current, limit = ((group / f"pids.{name}").read_text() for name in ("current", "max"))
    return ProcessCount(int(current), int(limit), int(events["max"]))


def init_pid(sandbox: Sandbox) -> int:
    """The sandbox's first process, as this machine sees it: it is 1 in the innermost namespace."""
    inits: list[int] = []
    for process in host_processes(sandbox):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            status = Path(f"/proc/{process.pid}/status").read_text()
            if _field(status, "NSpid").split()[-1] == "1":
                inits.append(process.pid)
    assert len(inits) == 1, inits
    return inits[0]


def status(pid: int, field: str, *, thread: int | None = None) -> str:
    """A field of a process's (or thread's) status."""
    return _field(Path(f"/proc/{pid}/task/{thread or pid}/status").read_text(), field)


def statuses(sandbox: Sandbox, field: str) -> set[str]:
    """A field of every process of the sandbox, each value once."""
    found: set[str] = set()
    for process in host_processes(sandbox):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            found.add(status(process.pid, field))
    return found


def namespaces(pid: int | str) -> dict[str, str]:
    """The namespaces a process is in, by kind."""
    kinds = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
    return {kind: str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in kinds}


def _groups(sandbox_id: str) -> Iterator[Path]:
    for pattern in ("cloche-*/{}", "*/cloche-*/{}"):
        yield from Path("/sys/fs/cgroup").glob(pattern.format(sandbox_id))


def _files(sandbox_id: str, name: str) -> list[Path]:
    return [group / name for group in _groups(sandbox_id) if (group / name).exists()]


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{name}:\s*(.*)$", text, re.MULTILINE)
    assert found, name
    return found[1]
