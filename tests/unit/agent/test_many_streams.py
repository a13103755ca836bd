"""Hundreds of streams at once, each with a process of its own."""

from __future__ import annotations

import base64
import contextlib
import resource
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.unit.agent.running_agent import Agent, running_agent

STREAMS = 270
"""More than 1024 descriptors allow: each takes a connection and three ends of pipes."""


@contextlib.contextmanager
def few_descriptors() -> Generator[None]:
    """The usual soft limit for what is started meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("the hard limit of open files is too low")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def frugal_agent(tmp_path: Path) -> Generator[Agent]:
    with contextlib.ExitStack() as stack:
        with few_descriptors():
            agent = stack.enter_context(running_agent(tmp_path))
        yield agent


def test_every_one_of_many_streams_gets_its_own_tick(frugal_agent: Agent) -> None:
    with contextlib.ExitStack() as stack:
        streams = [frugal_agent.start("cat", stdin=True) for _ in range(STREAMS)]
        events = []
        for stream in streams:
            stack.callback(stream.close)
            events.append(iter(stream))
        pids = [next(stream)["event"]["start"]["pid"] for stream in events]
        for pid in pids:
            tick = base64.b64encode(b"%d\n" % pid).decode()
            selector = {"process": {"pid": pid}, "input": {"stdin": tick}}
            assert frugal_agent.call("process.Process/SendInput", selector).status == 200
        heard = [base64.b64decode(next(stream)["event"]["data"]["stdout"]) for stream in events]
    assert heard == [b"%d\n" % pid for pid in pids]


def test_programs_keep_the_limit_that_select_can_bear(frugal_agent: Agent) -> None:
    assert frugal_agent.run("sh", "-c", "ulimit -Sn").stdout == b"1024\n"
    raised = Path(f"/proc/{frugal_agent.pid}/limits").read_text().split("Max open files")[1].split()
    assert raised[0] == raised[1]
