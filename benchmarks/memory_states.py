"""What `cloche bench` measures of sandboxes whose memory goes to disk and back: pause, resume, copies."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise

import the_server
from costs import Act, Costs, timed

from e2b_code_interpreter import Sandbox

LIFE_S = 3600
PATIENCE_S = 120
COPIES = 5
IMPORTS = "import IPython, numpy, pandas, matplotlib.pyplot"
TICKS = "/tmp/ticks"
TICKER = f"""
import os, time
with open({TICKS!r}, "w", buffering=1) as file:
    while not os.path.exists({TICKS!r} + ".end"):
        print(time.time(), file=file)
        time.sleep(0.005)
os.close(os.open({TICKS!r} + ".done", os.O_CREAT))
"""
"""Says the time every 5 ms; the longest gap is how long the sandbox stood still."""


@cache
def loaded() -> Sandbox:
    """The sandbox that goes to disk again and again, with the usual packages in its interpreter."""
    sandbox = Sandbox.create(timeout=LIFE_S, request_timeout=PATIENCE_S)
    answers(sandbox, IMPORTS + "\n1+1")
    return sandbox


def answers(sandbox: Sandbox, code: str = "1+1") -> None:
    """Have it work out something.

    Raises:
        AssertionError: It has another answer, or none.
    """
    answer = sandbox.run_code(code, timeout=PATIENCE_S)
    assert answer.text == "2", answer


def awake() -> Sandbox:
    """The same, running, on a server that has nothing else to do; also where the last act failed halfway."""
    sandbox = loaded()
    sandbox.connect(timeout=LIFE_S)
    answers(sandbox)
    the_server.until_quiet()
    return sandbox


def pause() -> float:
    """Have it put on disk, until that is answered."""
    sandbox = awake()
    began = time.perf_counter()
    sandbox.pause()
    took = time.perf_counter() - began
    sandbox.connect(timeout=LIFE_S)
    return took


def resume() -> float:
    """Have it run again, to its first answer."""
    sandbox = awake()
    sandbox.pause()
    the_server.until_quiet()
    began = time.perf_counter()
    sandbox.connect(timeout=LIFE_S)
    answers(sandbox)
    return time.perf_counter() - began


def snapshot() -> float:
    """Have a copy of it kept while it runs, until that is answered."""
    sandbox = awake()
    began = time.perf_counter()
    taken = sandbox.create_snapshot()
    took = time.perf_counter() - began
    Sandbox.delete_snapshot(taken.snapshot_id)
    return took


def fork() -> Costs:
    """Make five of it, until each of them has answered; then how long it stands still for a copy.

    One after the other: what says the time would go on in the copies and take theirs: a process that wakes
    every 5 ms uses most of a core under gVisor, and with it the five took four times as long.
    """
    took_ms = copy(awake(), COPIES)
    sandbox = awake()
    with ticking(sandbox):
        copy(sandbox, 1)
    said_s = [float(line) for line in sandbox.files.read(TICKS).splitlines()]
    return {"ms": [took_ms], "stall": [1000 * max(after - before for before, after in pairwise(said_s))]}


def copy(sandbox: Sandbox, count: int) -> float:
    """Make copies, and end them; milliseconds until all have answered."""
    began = time.perf_counter()
    copies = sandbox.fork(count=count, request_timeout=PATIENCE_S)
    with ThreadPoolExecutor(count) as threads:
        try:
            failed = [one for one in copies if isinstance(one, Exception)]
            assert not failed, failed
            list(threads.map(answers, copies))
            return (time.perf_counter() - began) * 1000
        finally:
            list(threads.map(Sandbox.kill, (one for one in copies if isinstance(one, Sandbox))))


@contextmanager
def ticking(sandbox: Sandbox) -> Iterator[None]:
    """Have it say the time meanwhile."""
    sandbox.commands.run(f"rm -f {TICKS}*")
    sandbox.files.write(f"{TICKS}.py", TICKER)
    # Without a stream to it, which a copy would cut.
    sandbox.commands.run(f"python3 {TICKS}.py < /dev/null > /dev/null 2>&1 &")
    until(lambda: sandbox.files.exists(TICKS))
    try:
        yield
    finally:
        sandbox.files.write(f"{TICKS}.end", "")
        until(lambda: sandbox.files.exists(f"{TICKS}.done"))


def until(is_so: Callable[[], bool]) -> None:
    """Wait for something.

    Raises:
        TimeoutError: It does not come.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() > deadline_s:
            raise TimeoutError
        time.sleep(the_server.LOOK_EVERY_S)


def clean_up() -> None:
    """End what was kept."""
    if loaded.cache_info().currsize:
        loaded().kill()


ACTS: dict[str, Act] = {act.__name__: timed(act) for act in (pause, resume, snapshot)} | {"fork": fork}
