"""The order in which `cloche bench` does its acts: in turn, so that a busy moment hits all alike."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from cloche_server.cli.bench_measures import ONCE, Beside, Figure, Measure, Outcome, Where

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche_server.cli.bench_workers import Workers

WARM_UPS = 3
"""Rounds at the beginning whose costs are dropped."""


def run(workers: Workers, measures: list[Measure], samples: int, tell: Callable[[str], None]) -> list[Figure]:
    """Do everything and return what was measured.

    Args:
        workers: Who does it.
        measures: What is measured, with those baselines only that can be done here.
        samples: Rounds that count.
        tell: Told what begins: a whole run takes many minutes.
    """
    with ExitStack() as stack:
        acts = _Acts(workers, stack, measures)
        for measure in measures:
            if measure.every == ONCE:
                tell(measure.name)
                acts.do(measure, 0)
        for turn in range(WARM_UPS + samples):
            tell(f"round {turn + 1} of {WARM_UPS + samples}")
            for measure in measures:
                if is_due(measure.every, turn):
                    acts.do(measure, turn)
            if turn == WARM_UPS - 1:
                acts.forget()
        return acts.figures()


def is_due(every: int, turn: int) -> bool:
    """Whether something is done in this turn: rare things in the first warm-up and the first that counts."""
    return every != ONCE and (turn == 0 or (turn - WARM_UPS) % every == 0)


class _Acts:
    """All acts of a run, who does them, and what came of them."""

    def __init__(self, workers: Workers, stack: ExitStack, measures: list[Measure]) -> None:
        """Start who is needed."""
        self._workers = workers
        self._measures = measures
        self._hot = stack.enter_context(workers.official())
        self._doers = {Where.SERVER: self._hot}
        starts = {Where.STUB: workers.floor, Where.MACHINE: workers.machine, Where.JUPYTER: workers.jupyter}
        for where, start in starts.items():
            if any(baseline.where is where for measure in measures for baseline in measure.baselines):
                self._doers[where] = stack.enter_context(start())
        self._own = {measure.name: Outcome() for measure in measures}
        self._baselines = {
            (measure.name, baseline): Outcome() for measure in measures for baseline in measure.baselines
        }

    def do(self, measure: Measure, turn: int) -> None:
        """One sample of a measure and of its baselines."""
        if measure.new_client:
            with self._workers.official() as fresh:
                fresh.measure(measure.name, self._own[measure.name])
        else:
            self._hot.measure(measure.name, self._own[measure.name])
        for baseline in measure.baselines:
            if measure.every != 1 or is_due(baseline.every, turn):
                self._doers[baseline.where].measure(baseline.act, self._baselines[measure.name, baseline])

    def forget(self) -> None:
        """The warm-ups are over."""
        for measure in self._measures:
            if measure.every != ONCE:
                self._own[measure.name].forget()
                for baseline in measure.baselines:
                    self._baselines[measure.name, baseline].forget()

    def figures(self) -> list[Figure]:
        """What was measured."""
        return [
            Figure(
                shown.name,
                shown.unit,
                self._own[measure.name].samples(shown.cost),
                [beside for beside in self._all_beside(measure, shown.cost) if beside.samples.is_there],
            )
            for measure in self._measures
            for shown in measure.figures
        ]

    def _all_beside(self, measure: Measure, cost: str) -> list[Beside]:
        """One that has no such cost has neither samples of it nor failures."""
        found = [(baseline, self._baselines[measure.name, baseline]) for baseline in measure.baselines]
        return [Beside(one.act, one.where.value, outcome.samples(cost)) for one, outcome in found]
