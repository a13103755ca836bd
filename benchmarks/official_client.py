"""What `cloche bench` measures through the official Python client: one act for each line that it reads.

It runs under the client's own environment and knows the server only by the client's variables. A line of the
input is the name of an act; a line of the output is `{"ms": ...}` or `{"error": ...}`. Only the act itself is
timed: making what it needs and removing what it made are not.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import data_path

from e2b_code_interpreter import Sandbox

LIFE_S = 600
BURST = 100
MOST_AHEAD = int(os.environ["CLOCHE_MOST_AHEAD"])
SETTLE_S = 0.7 * MOST_AHEAD
"""After an act that takes all that the server has ready, so that the next one finds it as it should."""
FIRST_CODE = "import pandas as pd\nint(pd.DataFrame({'a': [40, 2]})['a'].sum())"


@cache
def kept() -> Sandbox:
    """The sandbox that hot calls go to; warm before the first timed one."""
    sandbox = Sandbox.create(timeout=LIFE_S)
    sandbox.run_code("1")
    return sandbox


def create() -> float:
    """Ask for a sandbox and have it."""
    began = time.perf_counter()
    sandbox = Sandbox.create(timeout=LIFE_S)
    took = time.perf_counter() - began
    sandbox.kill()
    return took


def create_cold() -> float:
    """Ask for one more sandbox than the server has made ahead, so that it is made while we wait."""
    taken = [Sandbox.create(timeout=LIFE_S) for _ in range(MOST_AHEAD)]
    try:
        return create()
    finally:
        for sandbox in taken:
            sandbox.kill()
        time.sleep(SETTLE_S)


def create_and_node() -> float:
    """Ask for a sandbox and have Node.js say its version in it: what computesdk's benchmark counts."""
    began = time.perf_counter()
    sandbox = Sandbox.create(timeout=LIFE_S)
    try:
        assert sandbox.commands.run("node -v").stdout.startswith("v")
        return time.perf_counter() - began
    finally:
        sandbox.kill()


def burst() -> float:
    """The same a hundred times at once; until the last one has answered."""

    def one(_: int) -> Sandbox:
        sandbox = Sandbox.create(timeout=LIFE_S, request_timeout=120)
        assert sandbox.commands.run("node -v", timeout=120).stdout.startswith("v")
        return sandbox

    with ThreadPoolExecutor(BURST) as threads:
        began = time.perf_counter()
        made = list(threads.map(one, range(BURST)))
        took = time.perf_counter() - began
        list(threads.map(Sandbox.kill, made))
    time.sleep(SETTLE_S)
    return took


def first_run_code() -> float:
    """The first cell of a new sandbox, which uses pandas."""
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


ACTS: dict[str, Callable[[], float]] = {
    "create_warm": create,
    "create_new_client": create,
    "create_cold": create_cold,
    "create_and_node": create_and_node,
    "burst": burst,
    "first_run_code": first_run_code,
    "run_code_hot": run_code_hot,
    "exec_echo": exec_echo,
    **data_path.ACTS,
}


def main() -> None:
    """Answer until the input ends."""
    for line in sys.stdin:
        try:
            answer: dict[str, object] = {"ms": ACTS[line.strip()]() * 1000}
        except Exception as error:  # noqa: BLE001 - a failure is counted, whatever it was
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(answer), flush=True)
    if kept.cache_info().currsize:
        kept().kill()
    data_path.clean_up()


main()
