"""What `cloche bench` measures through the official Python client: one act for each line that it reads.

It runs under the client's own environment and speaks with the server as any client would. Only the act itself
is timed: making what it needs and removing what it made are not.
"""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import crowds
import data_path
import memory_states
import templates
import the_server
from costs import Act, Costs, ms_of, serve, timed

from e2b_code_interpreter import Sandbox

LIFE_S = 600
BURST = 100
LOOP, PARALLEL = 25, 5
FIRST_CODE = "import pandas as pd\nint(pd.DataFrame({'a': [40, 2]})['a'].sum())"


@cache
def kept() -> Sandbox:
    """The sandbox that hot calls go to; warm before the first timed one."""
    sandbox = Sandbox.create(timeout=LIFE_S)
    sandbox.run_code("1")
    return sandbox


def create() -> float:
    """Ask for a sandbox and have it."""
    the_server.until_one_is_ready()
    began = time.perf_counter()
    sandbox = Sandbox.create(timeout=LIFE_S)
    took = time.perf_counter() - began
    sandbox.kill()
    return took


def create_cold() -> float:
    """Ask for sandboxes until we get one that was not there before, made ahead: it is made while we wait.

    Counting them is not enough: another one may be made ahead in the time that taking one takes.
    """
    taken: list[Sandbox] = []
    try:
        while True:
            there = the_server.records().keys()
            began = time.perf_counter()
            taken.append(Sandbox.create(timeout=LIFE_S))
            took = time.perf_counter() - began
            if taken[-1].sandbox_id not in there:
                return took
    finally:
        for sandbox in taken:
            sandbox.kill()
        the_server.until_quiet()


def create_and_node() -> float:
    """Ask for a sandbox and have Node.js say its version in it: what computesdk's benchmark counts."""
    the_server.until_one_is_ready()
    began = time.perf_counter()
    sandbox = Sandbox.create(timeout=LIFE_S)
    try:
        assert sandbox.commands.run("node -v").stdout.startswith("v")
        return time.perf_counter() - began
    finally:
        sandbox.kill()


def burst() -> Costs:
    """The same a hundred times at once: until the last one has answered, and each create of it.

    How evenly they are served is a figure of each burst: samples of several, taken together, would show how
    the machine was from one to the next.
    """
    creates_ms: list[float] = []
    made: list[Sandbox] = []

    def one(_: int) -> None:
        began = time.perf_counter()
        sandbox = Sandbox.create(timeout=LIFE_S, request_timeout=120)
        creates_ms.append((time.perf_counter() - began) * 1000)
        made.append(sandbox)
        assert sandbox.commands.run("node -v", timeout=120).stdout.startswith("v")

    try:
        with ThreadPoolExecutor(BURST) as threads:
            took_ms = ms_of(lambda: list(threads.map(one, range(BURST))))
    finally:
        with ThreadPoolExecutor(BURST) as threads:  # one that failed must not leave a crowd to the next
            list(threads.map(Sandbox.kill, made))
    the_server.until_quiet()
    last_but_one = sorted(creates_ms)[BURST * 99 // 100 - 1]
    return {"ms": [took_ms], "create": creates_ms, "spread": [last_but_one / statistics.median(creates_ms)]}


def first_run_code() -> float:
    """The first cell of a new sandbox, which uses pandas."""
    the_server.until_one_is_ready()
    sandbox = Sandbox.create(timeout=LIFE_S)
    try:
        began = time.perf_counter()
        answer = sandbox.run_code(FIRST_CODE)
        took = time.perf_counter() - began
    finally:
        sandbox.kill()
    assert answer.text == "42", answer
    return took


def run_code_hot() -> float:
    """A cell in an interpreter that has run others."""
    sandbox = kept()
    began = time.perf_counter()
    answer = sandbox.run_code("1+1")
    took = time.perf_counter() - began
    assert answer.text == "2", answer
    return took


def exec_echo() -> float:
    """A command, from the call to its output."""
    sandbox = kept()
    began = time.perf_counter()
    answer = sandbox.commands.run("echo 1")
    took = time.perf_counter() - began
    assert answer.stdout == "1\n", answer
    return took


def exec_loop() -> Costs:
    """Commands one after the other, then a few at the same time: what an agent at work does."""
    sandbox = kept()

    def one(_: int) -> None:
        assert sandbox.commands.run("echo 1").stdout == "1\n"

    one(0)
    each_ms = [ms_of(lambda: one(0)) for _ in range(LOOP)]
    with ThreadPoolExecutor(PARALLEL) as threads:
        parallel_ms = ms_of(lambda: list(threads.map(one, range(PARALLEL))))
    return {"each": [statistics.median(each_ms)], "parallel": [parallel_ms]}


TIMED: dict[str, Callable[[], float]] = {
    "create_warm": create,
    "create_new_client": create,
    "create_cold": create_cold,
    "create_and_node": create_and_node,
    "first_run_code": first_run_code,
    "run_code_hot": run_code_hot,
    "exec_echo": exec_echo,
    **data_path.ACTS,
}
ACTS: dict[str, Act] = {
    **{name: timed(act) for name, act in TIMED.items()},
    "burst": burst,
    "exec_loop": exec_loop,
    **crowds.ACTS,
    **memory_states.ACTS,
    **templates.ACTS,
}


def main() -> None:
    """Answer until the input ends."""
    serve(ACTS)
    if kept.cache_info().currsize:
        kept().kill()
    data_path.clean_up()
    memory_states.clean_up()


main()
