"""Does one thing to one sandbox through the unmodified official client: `file_states.py STEP SANDBOX_ID`.

Run by test_file_states.py under the interpreter that has that client; prints what came of it.
"""

import sys
from collections.abc import Callable

from e2b_code_interpreter import Sandbox

CHANGE = (
    "mkdir -p work && echo kept > work/file && chmod 750 work/file && ln -s work link"
    " && sudo sh -c 'echo mine > /etc/motd; rm /etc/debian_version; id -u > /root/whose; chmod 2771 /srv'"
)
LOOK = (
    "cat link/file /etc/motd; stat -c '%a %U' work/file; test -e /etc/debian_version || echo gone;"
    " sudo stat -c '%U %a' /root/whose /srv; grep -c $(hostname) /etc/hosts"
)
RUNS = "pgrep -fc '[s]leep 43210' || true"


def look(sandbox: Sandbox) -> str:
    """What is left of its files, its processes and its variables."""
    files = " ".join(sandbox.commands.run(LOOK).stdout.split())
    processes = sandbox.commands.run(RUNS).stdout.strip()
    variable = sandbox.run_code("'x' in globals()").text
    return f"{files} {processes} {variable}"


def begin(**options: object) -> str:
    """Change files, start a process and set a variable; the id of the sandbox, which runs."""
    sandbox = Sandbox.create(timeout=300, **options)
    sandbox.commands.run(CHANGE)
    sandbox.commands.run("sleep 43210", background=True)
    sandbox.run_code("x = 41")
    return sandbox.sandbox_id


def copies(sandbox_id: str) -> str:
    """Three of one snapshot, which is deleted while they run; each writes where the others do."""
    snapshot = Sandbox.connect(sandbox_id).create_snapshot(mode="filesystem")
    made = [Sandbox.create(snapshot.snapshot_id, timeout=60) for _ in range(3)]
    Sandbox.delete_snapshot(snapshot.snapshot_id)
    for number, copy in enumerate(made):
        copy.files.write("work/own", str(number))
    seen = [f"{look(copy)} {copy.files.read('work/own')}" for copy in made]
    for copy in made:
        copy.kill()
    return ", ".join(seen)


def paused_by_time(sandbox_id: str) -> str:
    """Have its time be over, and say how it comes back."""
    sandbox = Sandbox.connect(sandbox_id)
    sandbox.set_timeout(1)
    while Sandbox.get_info(sandbox_id).state.value != "paused":
        pass
    return look(Sandbox.connect(sandbox_id, timeout=300))


PAUSES = {"on_timeout": {"action": "pause", "mode": "filesystem"}}
STEPS: dict[str, Callable[[str], object]] = {
    "begin": lambda _: begin(),
    "begin_with_pause": lambda _: begin(lifecycle=PAUSES),
    "pause": lambda sandbox_id: Sandbox.pause(sandbox_id, mode="filesystem"),
    "pause_memory": lambda sandbox_id: Sandbox.pause(sandbox_id),
    "snapshot_memory": lambda sandbox_id: Sandbox.connect(sandbox_id).create_snapshot().snapshot_id,
    "fork": lambda sandbox_id: len(Sandbox.connect(sandbox_id).fork(count=2)),
    "look": lambda sandbox_id: look(Sandbox.connect(sandbox_id, timeout=300)),
    "copies": copies,
    "paused_by_time": paused_by_time,
}


def act(step: str, sandbox_id: str) -> str:
    """One step; a failure is told by the name of its class and its text, which begins with the status."""
    try:
        return str(STEPS[step](sandbox_id))
    except Exception as error:  # noqa: BLE001 - told, whatever it is
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    print(act(sys.argv[1], sys.argv[2]))
