"""What `cloche bench` measures, and what it keeps of it."""

from __future__ import annotations

import math
from enum import Enum
from typing import NamedTuple

import msgspec

DATA_MB = 100.0
"""Size of the large transfers, in MB of 1,000,000 bytes."""


class Where(Enum):
    """Who does an act."""

    SERVER = "the official client, against the running server"
    STUB = "the official client, against a server that does no work: the client's own time"
    MACHINE = "the bare machine"


class Measure(NamedTuple):
    """One figure and its baseline.

    Attributes:
        name: The act of the official client.
        baseline: The act it is compared with.
        where: Who does that one.
        megabytes: What one act moves; 0 where only the time counts.
        new_client: Whether each sample takes a new client process.
        every: In one of how many rounds it is measured: acts that take seconds.
    """

    name: str
    baseline: str
    where: Where = Where.MACHINE
    megabytes: float = 0.0
    new_client: bool = False
    every: int = 1


_RARELY, _SELDOM = 3, 10
MEASURES = (
    Measure("create_warm", "crun_true"),
    Measure("create_new_client", "crun_true", new_client=True),
    Measure("create_cold", "crun_true", every=_RARELY),
    Measure("first_run_code", "python_import"),
    Measure("run_code_hot", "python_pass"),
    Measure("exec_echo", "bash_echo"),
    Measure("create_and_node", "node_version"),
    Measure("burst", "nodes_100", every=_SELDOM),
    Measure("upload_100mb", "upload_100mb", Where.STUB, DATA_MB),
    Measure("download_100mb", "download_100mb", Where.STUB, DATA_MB),
    Measure("download_whole", "download_whole", Where.STUB, DATA_MB),
    Measure("stdout_mb_s", "stdout_mb_s", Where.STUB, DATA_MB),
    Measure("first_chunk", "bash_echo"),
    Measure("pty_echo", "pty_echo", Where.STUB),
    Measure("watch_event", "watch_event", Where.STUB),
    Measure("streams_200", "streams_200", Where.STUB),
    Measure("edge_overhead", "agent_direct", Where.SERVER),
)


class Samples(msgspec.Struct):
    """What was measured of one thing, in milliseconds, in the order it was measured."""

    ms: list[float] = []
    failures: list[str] = []

    def percentile(self, share: float) -> float:
        """The smallest sample that at least `share` of all do not exceed; NaN without samples."""
        if not self.ms:
            return math.nan
        return sorted(self.ms)[max(0, math.ceil(len(self.ms) * share) - 1)]


class Figure(msgspec.Struct):
    """A measured thing beside its baseline."""

    name: str
    baseline: str
    measured_by: str
    """Who did the baseline."""
    megabytes: float
    samples: Samples
    baseline_samples: Samples

    @property
    def unit(self) -> str:
        """What `shown` gives."""
        return "MB/s" if self.megabytes else "ms"

    def shown(self, samples: Samples, share: float) -> str:
        """The percentile of the times in the figure's unit: the p95 of a rate is what 95 of 100 reach."""
        time_ms = samples.percentile(share)
        if math.isnan(time_ms):
            return "-"
        return f"{self.megabytes * 1000 / time_ms:.0f}" if self.megabytes else f"{time_ms:.1f}"

    @property
    def ratio(self) -> float:
        """How many times as long as its baseline it takes, medians compared."""
        return self.samples.percentile(0.5) / self.baseline_samples.percentile(0.5)


class Report(msgspec.Struct):
    """Everything of one run, raw samples included, so that anybody can compute something else from it."""

    measured_at: str
    isolation: str
    kernel: str
    cpus: int
    load: float
    """Average load of the machine, in the minute before the run: at 0 nothing else ran."""
    client: str
    rounds: int
    figures: list[Figure]
