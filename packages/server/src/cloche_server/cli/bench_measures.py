"""What `cloche bench` measures, and what it keeps of it."""

from __future__ import annotations

import math
from enum import Enum
from typing import NamedTuple

import msgspec

DATA_MB = 100.0
"""Size of the large transfers, in MB of 1,000,000 bytes."""


class Unit(msgspec.Struct, frozen=True):
    """How a figure is counted and how it is shown.

    A sample is always a cost, so that less is better everywhere: the worst are the last percentiles, also of
    rates, and a ratio above 1 is worse than the baseline.
    """

    shown: str
    counted: str
    """Unit of the samples."""
    per: float = 0.0
    """Where a rate is shown: what a cost of 1 would make of it, so that the rate is `per / cost`."""

    def show(self, cost: float) -> str:
        """The value of a cost in this unit, with three digits: the p95 of a rate is what 95 of 100 reach."""
        if math.isnan(cost):
            return "-"
        value = cost if not self.per else self.per / cost if cost > 0 else math.inf
        return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


MS = Unit("ms", "ms")
MIB = Unit("MiB", "MiB")
CORE = Unit("% of a core", "% of a core")
TIMES = Unit("x", "x")
PER_SECOND = Unit("per s", "ms", 1000)
PER_GIB = Unit("per GiB", "MiB", 1024)
MB_PER_S = Unit("MB/s", "ms", 1000 * DATA_MB)


class Where(Enum):
    """Who does an act."""

    SERVER = "the official client, against the running server"
    STUB = "the official client, against a server that does no work: the client's own time"
    MACHINE = "the bare machine"
    JUPYTER = "ipykernel through jupyter_client, under the template's Python"


class Baseline(NamedTuple):
    """What a measure is compared with.

    Attributes:
        act: What the worker is asked for.
        where: Which worker.
        program: What has to be installed for it; empty: nothing that the server does not need too.
        every: In one of how many rounds it is measured.
    """

    act: str
    where: Where = Where.MACHINE
    program: str = ""
    every: int = 1


class Shown(NamedTuple):
    """One number that an act gives.

    Attributes:
        name: Of the figure.
        unit: Of the figure.
        cost: What the act, and a baseline that has the same, call it.
    """

    name: str
    unit: Unit
    cost: str = "ms"


class Measure(NamedTuple):
    """An act of the official client, its baselines, and what is shown of it.

    Attributes:
        name: The act.
        baselines: Measured in turn with it.
        shown: Its figures; empty: the time it takes.
        new_client: Whether each sample takes a new client process.
        every: In one of how many rounds it is measured; `ONCE`: before all rounds, on a quiet machine.
        isolation: The one that can do it; empty: each can.
    """

    name: str
    baselines: tuple[Baseline, ...] = ()
    shown: tuple[Shown, ...] = ()
    new_client: bool = False
    every: int = 1
    isolation: str = ""

    @property
    def figures(self) -> tuple[Shown, ...]:
        """What is shown of it."""
        return self.shown or (Shown(self.name, MS),)


ONCE = 0
_RARELY, _SELDOM = 3, 10
IPYKERNEL = "ipykernel"
_CRUN = Baseline("crun_true")
_BASH = Baseline("bash_echo")
_CHECKPOINT = Baseline("runsc_checkpoint", program="runsc")
_KEEPS_MEMORY = "gvisor"


def _transfer(name: str) -> Measure:
    return Measure(name, (Baseline(name, Where.STUB),), (Shown(name, MB_PER_S),))


def _beside_client(name: str) -> Measure:
    return Measure(name, (Baseline(name, Where.STUB),))


MEASURES = (
    Measure(
        "create_warm",
        (
            _CRUN,
            Baseline("create_warm", Where.STUB),
            Baseline("bwrap_python", program="bwrap"),
            Baseline("runsc_true", program="runsc", every=_RARELY),
        ),
    ),
    Measure("create_new_client", (_CRUN,), new_client=True),
    Measure("create_cold", (_CRUN,), every=_RARELY),
    Measure(
        "first_run_code",
        (Baseline("python_import"), Baseline("ipykernel_cold", Where.JUPYTER, IPYKERNEL, _RARELY)),
    ),
    Measure(
        "run_code_hot",
        (
            Baseline("run_code_hot", Where.STUB),
            Baseline("ipykernel_hot", Where.JUPYTER, IPYKERNEL),
            Baseline("python_pass"),
        ),
    ),
    Measure("exec_echo", (_BASH, Baseline("exec_echo", Where.STUB))),
    Measure(
        "exec_loop",
        (Baseline("bash_loop"), Baseline("exec_loop", Where.STUB)),
        (Shown("exec_loop", MS, "each"), Shown("exec_loop, 5 parallel", MS, "parallel")),
    ),
    Measure("create_and_node", (Baseline("node_version"),)),
    Measure(
        "burst",
        (Baseline("nodes_100"),),
        (
            Shown("burst", MS),
            Shown("burst, each create", MS, "create"),
            Shown("burst, p99/p50 of its creates", TIMES, "spread"),
        ),
        every=_SELDOM,
    ),
    Measure("creates_per_s", (Baseline("crun_loop"),), (Shown("creates_per_s", PER_SECOND),), every=_SELDOM),
    _transfer("upload_100mb"),
    _transfer("download_100mb"),
    _transfer("download_whole"),
    _transfer("stdout_mb_s"),
    Measure("first_chunk", (_BASH,)),
    _beside_client("pty_echo"),
    _beside_client("watch_event"),
    _beside_client("streams_200"),
    Measure("edge_overhead", (Baseline("agent_direct", Where.SERVER),)),
    Measure(
        "idle_rss",
        shown=(
            Shown("idle_rss", MIB, "pss"),
            Shown("idle_rss, zygotes", MIB, "zygotes"),
            Shown("idle_rss, processor", CORE, "cpu"),
        ),
        every=ONCE,
    ),
    Measure(
        "density",
        (Baseline("ipykernels", Where.JUPYTER, IPYKERNEL),),
        (
            Shown("density", PER_GIB, "pss"),
            Shown("density, each", MIB, "pss"),
            Shown("density, machine", PER_GIB, "available"),
            Shown("density, machine, each", MIB, "available"),
            Shown("density, server, each", MIB, "server"),
            Shown("density, processor, all", CORE, "cpu"),
        ),
        every=ONCE,
    ),
    Measure("create_many", (Baseline("creates", Where.SERVER),), every=ONCE),
    Measure(
        "template_build",
        (Baseline("buildah_bud", program="buildah"), Baseline("buildah_layers", program="buildah")),
        (
            Shown("template_build", MS),
            Shown("template_rebuild", MS, "rebuild"),
            Shown("template_cached", MS, "cached"),
        ),
        every=_RARELY,
    ),
    Measure("pause", (_CHECKPOINT,), isolation=_KEEPS_MEMORY),
    Measure("resume", (Baseline("runsc_restore", program="runsc"),), isolation=_KEEPS_MEMORY),
    Measure("snapshot", (_CHECKPOINT,), isolation=_KEEPS_MEMORY),
    Measure(
        "fork",
        shown=(Shown("fork", MS), Shown("fork, its parent stands still", MS, "stall")),
        isolation=_KEEPS_MEMORY,
    ),
)


class Samples(msgspec.Struct):
    """What was measured of one thing, in the order it was measured."""

    costs: list[float] = []
    failures: list[str] = []

    @property
    def is_there(self) -> bool:
        """Whether it was measured at all."""
        return bool(self.costs or self.failures)

    def percentile(self, share: float) -> float:
        """The smallest sample that at least `share` of all do not exceed; NaN without samples."""
        if not self.costs:
            return math.nan
        return sorted(self.costs)[max(0, math.ceil(len(self.costs) * share) - 1)]


class Outcome:
    """What came of an act that was done again and again: its costs by name, its failures."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._costs: dict[str, list[float]] = {}
        self._failures: list[str] = []

    def add(self, costs: dict[str, list[float]]) -> None:
        """It was done once more."""
        for name, values in costs.items():
            self._costs.setdefault(name, []).extend(values)

    def fail(self, reason: str) -> None:
        """It was tried once more."""
        self._failures.append(reason)

    def forget(self) -> None:
        """Drop the warm-ups' costs; their failures stay, for a failure is never an outlier."""
        self._costs.clear()

    def samples(self, cost: str) -> Samples:
        """All samples of one of its costs."""
        return Samples(self._costs.get(cost, []), self._failures)


class Beside(msgspec.Struct):
    """A baseline, measured in turn with a figure."""

    act: str
    where: str
    """Who did it."""
    samples: Samples


class Figure(msgspec.Struct):
    """A measured thing beside its baselines."""

    name: str
    unit: Unit
    samples: Samples
    baselines: list[Beside]

    def ratio(self, baseline: Beside) -> float:
        """How many times as much as that baseline it costs, medians compared."""
        return self.samples.percentile(0.5) / baseline.samples.percentile(0.5)


class Absent(msgspec.Struct):
    """What this run has no figure of."""

    name: str
    reason: str


class Machine(msgspec.Struct):
    """What it was measured on."""

    cpus: int
    cpu_model: str
    kernel: str
    memory_mib: int
    available_mib: int
    """When the run began."""
    load: tuple[float, float, float]
    """Averages of 1, 5 and 15 minutes when the run began: at 0 nothing else ran."""
    pythons: dict[str, str]
    """Versions: of the server, of the client, of the template."""


class Report(msgspec.Struct):
    """Everything of one run, raw samples included, so that anybody can compute something else from it."""

    measured_at: str
    isolation: str
    machine: Machine
    client: str
    rounds: int
    crowd: int
    """Sandboxes that were kept alive for `density` and `create_many`."""
    figures: list[Figure]
    absent: list[Absent]
