"""What `cloche bench` measures with many sandboxes at once, and of the server itself."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

import processes
import the_server
from costs import Act, Costs, ms_of

from e2b_code_interpreter import Sandbox

LIFE_S = 3600
PATIENCE_S = 120
CROWD = int(os.environ.get("CLOCHE_CROWD", "0"))
"""How many sandboxes `density` and `create_many` keep alive."""
SAMPLES = int(os.environ.get("CLOCHE_SAMPLES", "30"))
WARM_UPS = 3
AT_ONCE = 4
CREATES = 60
"""Creates and kills of one sample of `creates_per_s`."""
IDLE_S = 10.0
INTERPRETER = "import numpy, pandas, matplotlib.pyplot"
"""What the server imports in interpreters that it makes ahead."""


def new() -> Sandbox:
    """One more sandbox."""
    return Sandbox.create(timeout=LIFE_S, request_timeout=PATIENCE_S)


@contextmanager
def crowd(count: int) -> Iterator[list[Sandbox]]:
    """So many sandboxes, and a server that is done with making them."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        futures = [threads.submit(new) for _ in range(count)]
        try:
            made = [future.result() for future in futures]
            the_server.until_quiet()
            yield made
        finally:
            wait(futures)
            list(threads.map(Sandbox.kill, (one.result() for one in futures if not one.exception())))
            the_server.until_quiet()


def creates_per_s() -> Costs:
    """Creates and kills, a few at a time, one after the other; those that were ready are used up before."""

    def one(_: int) -> None:
        new().kill()

    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(one, range(the_server.MOST_AHEAD)))
        took_ms = ms_of(lambda: list(threads.map(one, range(CREATES))))
    the_server.until_quiet()
    return {"ms": [took_ms / CREATES]}


def creates() -> Costs:
    """Creates, one after the other, each when the server has nothing else to do and one is ready."""
    taken_ms: list[float] = []
    for _ in range(WARM_UPS + SAMPLES):
        the_server.until_one_is_ready()
        began = time.perf_counter()
        sandbox = new()
        taken_ms.append((time.perf_counter() - began) * 1000)
        sandbox.kill()
    return {"ms": taken_ms[WARM_UPS:]}


def create_many() -> Costs:
    """The same among many others that are alive."""
    with crowd(CROWD):
        return creates()


def density() -> Costs:
    """Memory of each idle sandbox that has an interpreter with the usual packages.

    Counted twice: what the kernel says of its processes, and what the machine has less. The latter holds all
    that a sandbox costs anywhere (the kernel's own, files in memory), and whatever else the machine did.
    """
    new().kill()  # where nobody has asked for anything yet, there is no zygote, and each starts its own
    the_server.until_one_is_ready()
    the_server.until_quiet()
    alive, available_mib = len(the_server.records()), processes.available_mib()
    server_mib = server_anonymous_mib()
    with crowd(CROWD) as made:
        for sandbox in made:
            assert sandbox.run_code(INTERPRETER).error is None
        the_server.until_quiet()
        fewer_mib = available_mib - processes.available_mib()
        more = len(the_server.records()) - alive
        ids = [sandbox.sandbox_id for sandbox in made]
        costs = {"pss": the_server.sandboxes_pss_mib(ids), "available": [fewer_mib / more]}
        costs["server"] = [(server_anonymous_mib() - server_mib) / more]
        costs["cpu"] = [idle_pct([*server_processes(), *the_server.sandboxes_processes(ids)])]
    return costs


def server_processes() -> list[int]:
    """The server's own, and its zygotes."""
    return [*the_server.own_processes(), *the_server.zygotes()]


def server_anonymous_mib() -> float:
    """Memory of the server's own processes that is no file's.

    Not their shares of it: the launcher's part of a page gets smaller with each sandbox forked from it.
    """
    return sum(map(processes.anonymous_mib, the_server.own_processes()))


def idle_pct(pids: Sequence[int]) -> float:
    """What these processes use of a core while nobody asks for anything."""
    before_s, began = sum(map(processes.cpu_s, pids)), time.monotonic()
    time.sleep(IDLE_S)
    return 100 * (sum(map(processes.cpu_s, pids)) - before_s) / (time.monotonic() - began)


def idle_rss() -> Costs:
    """Memory of the server's own processes, and what they use of a core while nobody asks for anything.

    Zygotes by themselves: they are the template's, and there is one where somebody has asked for a sandbox.
    """
    the_server.until_quiet()
    return {
        "pss": [sum(map(processes.pss_mib, the_server.own_processes()))],
        "zygotes": [sum(map(processes.pss_mib, the_server.zygotes()))],
        "cpu": [idle_pct(server_processes())],
    }


ACTS: dict[str, Act] = {act.__name__: act for act in (creates_per_s, creates, create_many, density, idle_rss)}
