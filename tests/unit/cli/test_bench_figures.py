"""What `cloche bench` makes of its samples."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from cloche_server.cli import bench, bench_rounds
from cloche_server.cli.bench_measures import (
    MB_PER_S,
    MEASURES,
    MIB,
    MS,
    ONCE,
    PER_GIB,
    Baseline,
    Beside,
    Figure,
    Measure,
    Outcome,
    Samples,
    Shown,
    Unit,
    Where,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

PROMISED = {
    *("create_warm", "create_cold", "first_run_code", "run_code_hot", "exec_echo", "exec_loop", "burst"),
    *("creates_per_s", "density", "pause", "resume", "fork", "upload_100mb", "download_100mb"),
    *("snapshot", "fork, its parent stands still"),
    *("stdout_mb_s", "pty_echo", "watch_event", "edge_overhead", "idle_rss"),
    *("burst, each create", "burst, p99/p50 of its creates"),
    *("density, server, each", "density, processor, all"),
    *("template_build", "template_cached", "template_rebuild"),
}


def figure(own: list[float], baseline: list[float], unit: Unit = MS) -> Figure:
    return Figure("x", unit, Samples(own), [Beside("y", "", Samples(baseline))])


def test_a_percentile_is_a_sample_and_nothing_is_trimmed() -> None:
    samples = Samples([float(ms) for ms in range(100, 0, -1)])
    assert [samples.percentile(share) for share in (0.5, 0.95, 0.99, 1)] == [50, 95, 99, 100]


def test_the_p95_of_a_rate_is_what_95_of_100_reach() -> None:
    rates = Samples([250.0] * 94 + [1000.0] * 6)
    assert [MB_PER_S.show(rates.percentile(share)) for share in (0.5, 0.95)] == ["400", "100"]


@pytest.mark.parametrize(
    ("unit", "cost", "shown"),
    [
        (MS, 1.234, "1.23"), (MS, 12.34, "12.3"), (MS, 1234.5, "1234"), (MIB, 73.0, "73.0"),
        (PER_GIB, 64.0, "16.0"), (PER_GIB, 0.0, "inf"), (MS, math.nan, "-"), (PER_GIB, math.nan, "-"),
    ],
)  # fmt: skip
def test_three_digits_are_shown(unit: Unit, cost: float, shown: str) -> None:
    assert unit.show(cost) == shown


def test_a_ratio_compares_costs_also_where_rates_are_shown() -> None:
    for unit in (MS, MB_PER_S, PER_GIB):
        compared = figure([30.0], [10.0], unit)
        assert compared.ratio(compared.baselines[0]) == 3


def test_without_a_sample_there_is_no_figure_rather_than_a_wrong_one() -> None:
    nothing = figure([], [])
    assert math.isnan(nothing.samples.percentile(0.5))
    assert math.isnan(nothing.ratio(nothing.baselines[0]))


def test_every_act_and_every_figure_has_a_name_of_its_own() -> None:
    for names in (
        [measure.name for measure in MEASURES],
        [shown.name for measure in MEASURES for shown in measure.figures],
    ):
        assert len(names) == len(set(names))


def test_every_promised_name_has_a_figure() -> None:
    assert {shown.name for measure in MEASURES for shown in measure.figures} >= PROMISED


def test_what_an_isolation_cannot_do_is_listed_with_the_reason_and_never_measured() -> None:
    workers = SimpleNamespace(lacks=lambda _: "")  # pyright: ignore[reportUnknownLambdaType]
    only = ("pause", "run_code_hot")
    chosen, absent = bench.choose(workers, only, "container")  # type: ignore[arg-type]
    assert [measure.name for measure in chosen] == ["run_code_hot"]
    assert [(one.name, "gvisor" in one.reason) for one in absent] == [("pause", True)]
    chosen, absent = bench.choose(workers, only, "gvisor")  # type: ignore[arg-type]
    assert {measure.name for measure in chosen} == set(only)
    assert absent == []


class _Worker:
    """Counts what it is asked for; each act costs as much as it was asked for before."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None: ...

    def measure(self, act: str, into: Outcome) -> None:
        if act == "broken":
            into.fail("it is")
        else:
            into.add({"ms": [float(self.asked.count(act))], "other": [0.5, 0.5]})
        self.asked.append(act)


class _Workers:
    """One worker for all."""

    def __init__(self) -> None:
        self.worker = _Worker()

    def official(self) -> _Worker:
        return self.worker

    def machine(self) -> AbstractContextManager[_Worker]:
        return nullcontext(self.worker)

    floor = jupyter = machine


def _run(measures: list[Measure], samples: int) -> tuple[list[Figure], list[str]]:
    workers = _Workers()
    figures = bench_rounds.run(workers, measures, samples, lambda _: None)  # type: ignore[arg-type]
    return figures, workers.worker.asked


def test_warm_ups_are_dropped_and_rare_acts_have_fewer_samples() -> None:
    measures = [
        Measure("often", (Baseline("beside"), Baseline("slow", every=10))),
        Measure("rare", (Baseline("beside_rare", Where.STUB),), every=10),
        Measure("once", every=ONCE),
    ]
    figures, asked = _run(measures, 30)
    assert {one.name: len(one.samples.costs) for one in figures} == {"often": 30, "rare": 3, "once": 1}
    assert [len(one.samples.costs) for one in figures[0].baselines] == [30, 3]
    assert Counter(asked) == {
        "often": 33, "beside": 33, "slow": 4, "rare": 4, "beside_rare": 4, "once": 1
    }  # fmt: skip
    assert min(figures[0].samples.costs) == 3, "the first three warmed up"
    assert asked[0] == "once", "on a quiet machine"


def test_few_rounds_leave_no_rare_act_without_a_sample() -> None:
    (rare,), _ = _run([Measure("rare", every=10)], 1)
    assert len(rare.samples.costs) == 1


def test_one_act_may_give_several_figures_with_several_samples_each() -> None:
    shown = (Shown("time", MS), Shown("other", MIB, "other"))
    time, other = _run([Measure("both", (Baseline("beside"),), shown)], 2)[0]
    assert (len(time.samples.costs), len(other.samples.costs)) == (2, 4)
    assert len(other.baselines[0].samples.costs) == 4


def test_a_baseline_stands_beside_the_figures_that_it_has_or_failed_to_have() -> None:
    shown = (Shown("time", MS), Shown("more", MS, "more"))
    measure = Measure("act", (Baseline("beside"), Baseline("broken")), shown)
    time, more = _run([measure], 1)[0]
    assert [one.act for one in time.baselines] == ["beside", "broken"]
    assert [one.act for one in more.baselines] == ["broken"]


def test_failures_of_warm_ups_count_and_are_no_samples() -> None:
    (broken,), _ = _run([Measure("broken")], 2)
    assert (broken.samples.costs, len(broken.samples.failures)) == ([], 5)
