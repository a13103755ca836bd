"""How much work a request is: counts that may not grow unnoticed.

A bound is about 1.3 times what was measured (beside it; `a to b` where it differs with what else goes on).
Who makes a request cheaper lowers it.
"""

from collections.abc import Callable, Iterator

import pytest
from tests.support.fixtures import NEEDS_A_SERVER, connect_options, running
from tests.support.server import Server
from tests.support.waiting import until
from tests.support.work import Work, of_one

from cloche import Sandbox

pytestmark = [NEEDS_A_SERVER, pytest.mark.timeout(120)]
FILE_BYTES = 10_000
BATCHES, CREATES = 3, 2

CALLS: dict[str, tuple[Callable[[Sandbox], object], Work]] = {
    "commands.run": (
        lambda sandbox: sandbox.commands.run("echo"),
        {
            "tasks": 1.3,  # 1: the shell
            "node calls": 0.3,  # 0
            "node wakes": 0.3,  # 0: not asked
            "edge wakes": 7.3,  # 4.4 to 5.6
            "sandbox wakes": 4.4,  # 2.4 to 3.4
            "sandbox calls": 29,  # 22, most of them the shell's start
            "sandbox bytes": 15_000,  # 11,489
        },
    ),
    "run_code": (
        lambda sandbox: sandbox.run_code("1+1"),
        {
            "tasks": 0.3,  # 0
            "node calls": 0.3,  # 0
            "node wakes": 0.3,  # 0
            "edge wakes": 5.1,  # 2 to 3.9
            "sandbox wakes": 14.1,  # 6.9 to 10.9, of agent and kernel
            "sandbox calls": 6.9,  # 3.3 to 5.3
            "sandbox bytes": 7.1,  # 4.2 to 5.5
        },
    ),
    "files.read": (
        lambda sandbox: sandbox.files.read("/tmp/file"),
        {
            "tasks": 0.3,  # 0
            "node calls": 0.3,  # 0
            "node wakes": 0.3,  # 0
            "edge wakes": 2.6,  # 1.3 to 2
            "sandbox wakes": 1.5,  # 0.9 to 1.2
            "sandbox calls": 2.6,  # 2
            "sandbox bytes": 1.3 * FILE_BYTES,  # 10,512: once
        },
    ),
}
CREATE_WARM: Work = {
    "tasks": 0.5,  # 0
    "node wakes": 19,  # 6 to 14.5
    "node calls": 13,  # 10
    "node bytes": 2_720,  # 2,090: one record of the journal
    "api calls": 44,  # 33
    "api bytes": 86_000,  # 66,129: the database, twice, since this client sends an Idempotency-Key
    "edge wakes": 5.3,  # 2.5 to 4
}
CREATE_COLD: Work = {
    "tasks": 4,  # 3: the launcher's child, the user namespace, the agent
    "node wakes": 24,  # 14 to 18.5
    "node calls": 34,  # 26
    "node bytes": 5_400,  # 4,154
    "api calls": 56,  # 34 to 43, with how many rows there are
    "api bytes": 113_000,  # 66,131 to 86,730
    "edge wakes": 5.3,  # 2 to 4
}


@pytest.fixture(scope="module")
def sandbox(server: Server) -> Iterator[Sandbox]:
    """One that has done everything once."""
    made = connect_options(server, Sandbox.create)
    made.files.write("/tmp/file", b"x" * FILE_BYTES)
    for act, _ in CALLS.values():
        act(made)
    yield made
    made.kill()


@pytest.fixture
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with all sandboxes of a test ready, and no room to make another one while it counts."""
    count = BATCHES * CREATES
    state = tmp_path_factory.mktemp("stocked") / "state"
    state.mkdir()
    settings = f"[ahead]\nleast = {count}\n[limits]\nmax_sandboxes = {count}\n"
    (state / "config.toml").write_text(settings)
    with running(state, ahead=count) as made:
        with connect_options(made, Sandbox.create):
            pass
        until(lambda: len(made.ready()) == count, within_s=60, what="sandboxes made ahead")
        yield made


@pytest.mark.parametrize("name", CALLS)
def test_a_call_to_a_sandbox_does_not_do_more_than_it_did(
    server: Server, sandbox: Sandbox, name: str
) -> None:
    """It starts what it was asked to start, the node has no part in it, and nothing is read twice."""
    act, bounds = CALLS[name]
    _claim(of_one(server, lambda: act(sandbox), batches=5, times=20, sandbox=sandbox), bounds)


def test_a_create_that_finds_one_ready_starts_nothing(stocked: Server) -> None:
    """No process and no thread; a few records, and a row."""
    _claim(_creates(stocked), CREATE_WARM)
    assert not stocked.ready(), "some were not made ahead"


def test_a_create_that_finds_none_does_not_do_more_than_it_did(server: Server) -> None:
    """The processes of one create, and what they and the node read and write."""
    _claim(_creates(server), CREATE_COLD)


def _creates(server: Server) -> Work:
    made: list[Sandbox] = []
    try:
        return of_one(
            server,
            lambda: made.append(connect_options(server, Sandbox.create)),
            batches=BATCHES,
            times=CREATES,
        )
    finally:
        for sandbox in made:
            sandbox.kill()


def _claim(done: Work, bounds: Work) -> None:
    beyond = {name: (done[name], bound) for name, bound in bounds.items() if done[name] > bound}
    assert not beyond, f"(counted, bound): {beyond}; all counts: {done}"
