"""Does one thing to one sandbox through the unmodified official client: `memory_states.py STEP SANDBOX_ID`.

Run by test_memory_states.py under the interpreter that has that client; prints what came of it.
"""

import sys
import time

from e2b_code_interpreter import Sandbox

COUNTER = "while true; do n=$((n + 1)); echo $n > /tmp/next; mv /tmp/next /tmp/counter; sleep 0.02; done"
FRAME = "import pandas as pd; frame = pd.DataFrame({'a': [1, 2], 'b': ['x', 'y']})"


def begin() -> str:
    """Start a counter and make a data frame; the id of the sandbox, which runs."""
    sandbox = Sandbox.create(timeout=300)
    sandbox.run_code(FRAME)
    sandbox.commands.run(COUNTER, background=True)
    _wait_for_more_than(sandbox, 0)
    return sandbox.sandbox_id


def go_on(sandbox_id: str) -> str:
    """Resume it, and say how the counter and the data frame do."""
    sandbox = Sandbox.connect(sandbox_id, timeout=300)
    _wait_for_more_than(sandbox, _counted(sandbox))
    counters = [process for process in sandbox.commands.list() if "/tmp/counter" in " ".join(process.args)]
    frame = sandbox.run_code("frame.to_csv(index=False)").text
    return f"{len(counters)} {frame}"


def act(step: str, sandbox_id: str) -> str:
    """One step; a failure is told by the name of its class and its text, which begins with the status."""
    try:
        match step:
            case "begin":
                return begin()
            case "go_on":
                return go_on(sandbox_id)
            case "pause":
                return str(Sandbox.pause(sandbox_id))
            case "connect":
                return Sandbox.connect(sandbox_id, timeout=60).sandbox_id
            case "fork_101":
                return str(len(Sandbox.connect(sandbox_id).fork(count=101)))
            case _:
                raise SystemExit(f"no such step: {step}")
    except Exception as error:  # noqa: BLE001 - told, whatever it is
        return f"{type(error).__name__}: {error}"


def _counted(sandbox: Sandbox) -> int:
    return int(sandbox.commands.run("cat /tmp/counter 2>/dev/null || echo 0").stdout)


def _wait_for_more_than(sandbox: Sandbox, count: int) -> None:
    deadline = time.monotonic() + 30
    while _counted(sandbox) <= count:
        assert time.monotonic() < deadline, "the counter stands still"


if __name__ == "__main__":
    print(act(sys.argv[1], sys.argv[2]))
