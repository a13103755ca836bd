"""What `cloche bench` measures through the official Python client: one act for each line that it reads.

It runs under the client's own environment and knows the server only by the client's variables. A line of the
input is the name of an act; a line of the output is `{"ms": ...}` or `{"error": ...}`. Only the act itself is
timed: making what it needs and removing what it made are not.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import cache

import data_path

from e2b_code_interpreter import Sandbox

LIFE_S = 600
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
    "create_cold": create,
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
