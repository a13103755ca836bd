"""What every worker of `cloche bench` speaks: an act for each line that it reads, what it cost in return.

A cost is a number of which less is better: milliseconds, MiB, percent of a core. An act gives one or more by
name, each with one sample or several: `{"costs": {"ms": [12.3]}}`, or `{"error": ...}`.
"""

import json
import sys
import time
from collections.abc import Callable

Costs = dict[str, list[float]]
Act = Callable[[], Costs]


def timed(act: Callable[[], float]) -> Act:
    """An act of which only the time counts; it says itself how many seconds that was."""
    return lambda: {"ms": [act() * 1000]}


def ms_of(act: Callable[[], object]) -> float:
    """How long one call takes, in milliseconds."""
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1000


def serve(acts: dict[str, Act]) -> None:
    """Answer until the input ends."""
    for line in sys.stdin:
        try:
            answer: dict[str, object] = {"costs": acts[line.strip()]()}
        except Exception as error:  # noqa: BLE001 - a failure is counted, whatever it was
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(answer), flush=True)
