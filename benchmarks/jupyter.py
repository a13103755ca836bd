"""The baseline of cells: ipykernel, driven by jupyter_client, under the template's own Python; no sandbox.

Run by `in-template`: jupyter_client runs in the same world as the kernel, so nothing but the kernel is timed.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from queue import Empty
from subprocess import DEVNULL

import processes
from costs import Act, Costs, serve, timed
from jupyter_client import BlockingKernelClient, KernelManager

PATIENCE_S = 60
KERNELS = 8
INTERPRETER = "import numpy, pandas, matplotlib.pyplot"
FIRST_CODE = "import pandas as pd\nint(pd.DataFrame({'a': [40, 2]})['a'].sum())"


class Kernel:
    """One kernel."""

    def __init__(self) -> None:
        """Start it; it answers when it can."""
        self._manager = KernelManager(kernel_name="python3")
        self._manager.start_kernel(stderr=DEVNULL)
        self._client: BlockingKernelClient = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=PATIENCE_S)

    @property
    def pid(self) -> int:
        """Its process."""
        return int(self._manager.provisioner.pid)

    def run(self, code: str) -> str:
        """The value of a cell, as text."""
        text = ""

        def hear(message: dict) -> None:
            nonlocal text
            if message["msg_type"] == "execute_result":
                text = message["content"]["data"]["text/plain"]

        answer = self._client.execute_interactive(code, timeout=PATIENCE_S, output_hook=hear)
        assert answer["content"]["status"] == "ok", answer
        return text

    def end(self) -> None:
        """End it."""
        self._client.stop_channels()
        with suppress(Empty):
            self._manager.shutdown_kernel(now=True)


@contextmanager
def kernel() -> Iterator[Kernel]:
    """A kernel that is ended afterwards."""
    made = Kernel()
    try:
        yield made
    finally:
        made.end()


@cache
def kept() -> Kernel:
    """The kernel of hot cells."""
    made = Kernel()
    made.run("1")
    return made


def ipykernel_cold() -> float:
    """From nothing to the result of the first cell, which uses pandas."""
    began = time.perf_counter()
    with kernel() as made:
        assert made.run(FIRST_CODE) == "42"
        return time.perf_counter() - began


def ipykernel_hot() -> float:
    """A cell in a kernel that has run others."""
    made = kept()
    began = time.perf_counter()
    assert made.run("1+1") == "2"
    return time.perf_counter() - began


def ipykernels() -> Costs:
    """Memory of each of several idle kernels with the usual packages, as `density` counts it."""
    with kernel() as one:  # what files these bring into memory is not the others' cost
        one.run(INTERPRETER)
        available_mib = processes.available_mib()
        made: list[Kernel] = []
        try:
            for _ in range(KERNELS):
                made.append(Kernel())
                made[-1].run(INTERPRETER)
            pss_mib = [processes.pss_mib(each.pid) for each in made]
            return {"pss": pss_mib, "available": [(available_mib - processes.available_mib()) / KERNELS]}
        finally:
            for each in made:
                each.end()


def main() -> None:
    """Answer until the input ends."""
    acts: dict[str, Act] = {act.__name__: timed(act) for act in (ipykernel_cold, ipykernel_hot)}
    serve(acts | {"ipykernels": ipykernels})
    if kept.cache_info().currsize:
        kept().end()


main()
