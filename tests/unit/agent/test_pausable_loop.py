"""Deadlines of the agent over the time in which it is frozen, by a clock that the tests turn."""

from __future__ import annotations

import asyncio
import selectors
import time

import pytest

from cloche_agent.pausable_loop import LONGEST_STEP_S, PausableLoop

AN_HOUR_S = 3600.0


class World:
    """A clock that goes on only where the loop sleeps, and freezes of an hour that come while it sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.freezes_at: list[float] = []
        self.sleeps = 0

    def monotonic(self) -> float:
        return self.now

    def select(self, timeout: float | None = None) -> list[object]:
        assert timeout is not None, "the loop sleeps for ever"
        self.sleeps += timeout > 0
        self.now += max(0.0, timeout)
        if self.freezes_at and self.now >= self.freezes_at[0]:
            self.freezes_at.pop(0)
            self.now += AN_HOUR_S
        return []


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(time, "monotonic", world.monotonic)
    monkeypatch.setattr(selectors.EpollSelector, "select", world.select)
    monkeypatch.setattr(selectors.PollSelector, "select", world.select)
    return world


def test_one_that_may_be_written_to_disk_leaves_nothing_with_the_kernel_between_two_waits() -> None:
    loop = PausableLoop(is_saved=True)
    try:
        assert not hasattr(loop._selector, "fileno")  # type: ignore[attr-defined]
    finally:
        loop.close()


def _sleep(seconds: float) -> None:
    with asyncio.Runner(loop_factory=PausableLoop) as runner:
        runner.run(asyncio.sleep(seconds))


def test_a_deadline_keeps_what_was_left_of_it_when_the_sandbox_was_frozen(world: World) -> None:
    world.freezes_at = [1010.0, 1010.0 + AN_HOUR_S + 20]
    _sleep(60)
    lived_s = world.now - 1000 - 2 * AN_HOUR_S
    assert 60 - 2 * LONGEST_STEP_S <= lived_s <= 61


def test_a_deadline_of_a_sandbox_that_is_never_frozen_is_kept_to_the_moment(world: World) -> None:
    """Twin; and the clock is read every second, for that is what it takes."""
    _sleep(60)
    assert world.now == pytest.approx(1060, abs=0.001)
    assert 60 <= world.sleeps <= 62
