"""The verbs over a link to a node that is played here."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import anyio
import msgspec
import pytest

from cloche_server import link
from cloche_server.link import Answer, Event
from cloche_server.node.messages import (
    CreateSandbox,
    KillSandbox,
    PauseSandbox,
    RemoveSnapshot,
    ResumeSandbox,
    SandboxEnded,
    SandboxReady,
    SandboxState,
    SandboxUnready,
    SetTimeout,
    SnapshotTaken,
    TakeSnapshot,
)
from cloche_server.placement import local
from cloche_server.placement.base import LinkUp
from cloche_server.placement.local import LocalPlacement
from cloche_server.placement.policy import Node, choose_node
from cloche_wire.errors import DeadlineExceeded, SandboxNotFound, Unavailable

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STATE = SandboxState("iabc", "team", NOW, NOW, "container")
PAUSED = msgspec.structs.replace(STATE, state="paused")
ORDER = CreateSandbox("iabc", "team", "t", "b", 300, "token", env={"A": "ü"})


class PlayedNode:
    """Remembers what it was asked; knows the sandbox `iabc`."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    async def handle(self, method: str, params: msgspec.Raw) -> Answer:
        match method:
            case "create":
                self.asked.append(msgspec.json.decode(params, type=CreateSandbox))
                return Answer(STATE)
            case "kill":
                return self._kill(msgspec.json.decode(params, type=KillSandbox))
            case "set_timeout":
                self.asked.append(msgspec.json.decode(params, type=SetTimeout))
                return Answer(STATE)
            case "pause":
                self.asked.append(msgspec.json.decode(params, type=PauseSandbox))
                return Answer({})
            case "resume":
                self.asked.append(msgspec.json.decode(params, type=ResumeSandbox))
                return Answer(STATE)
            case "snapshot":
                self.asked.append(msgspec.json.decode(params, type=TakeSnapshot))
                return Answer(SnapshotTaken("s1", 4096, 100))
            case "remove_snapshot":
                self.asked.append(msgspec.json.decode(params, type=RemoveSnapshot))
                return Answer({})
            case "watch":
                return Answer(
                    [SandboxReady("ione", "team", "build", 2, 2048, "container")], events=self._events()
                )
            case _:
                return Answer([STATE])

    def _kill(self, kill: KillSandbox) -> Answer:
        self.asked.append(kill)
        if kill.sandbox_id != "iabc":
            raise SandboxNotFound(f"no such sandbox: {kill.sandbox_id}")
        return Answer({})

    async def _events(self) -> AsyncIterator[Event]:
        yield Event("ready", SandboxReady("itwo", "team", "build", 2, 2048, "container"))
        yield Event("unready", SandboxUnready("ione"))
        yield Event("paused", PAUSED)
        yield Event("resumed", STATE)
        yield Event("ended", SandboxEnded("iabc", "timeout"))
        yield Event("of_a_later_version", {})


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "node.sock"


@pytest.fixture
def placement(socket_path: Path) -> LocalPlacement:
    return LocalPlacement(Node("local", socket_path))


@pytest.fixture
async def node(socket_path: Path) -> AsyncIterator[PlayedNode]:
    played = PlayedNode()
    listener = link.listen(socket_path, owner_uid=socket_path.parent.stat().st_uid)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(link.serve, listener, played.handle)
        yield played
        tasks.cancel_scope.cancel()
    listener.close()


async def test_the_verbs_say_what_is_meant(placement: LocalPlacement, node: PlayedNode) -> None:
    assert await placement.create(ORDER, timeout_s=5) == STATE
    assert await placement.set_timeout(SetTimeout("iabc", 5, only_extend=True)) == STATE
    assert await placement.list() == (STATE,)
    await placement.kill("iabc", "killed")
    assert node.asked == [ORDER, SetTimeout("iabc", 5, only_extend=True), KillSandbox("iabc", "killed")]


async def test_the_verbs_of_memory_say_what_is_meant(placement: LocalPlacement, node: PlayedNode) -> None:
    await placement.pause(PauseSandbox("iabc", memory=False))
    assert await placement.resume(ResumeSandbox("iabc", 60, memory=False)) == STATE
    assert await placement.snapshot(TakeSnapshot("iabc", "s1")) == SnapshotTaken("s1", 4096, 100)
    await placement.remove_snapshot("s1")
    assert node.asked == [
        PauseSandbox("iabc", memory=False),
        ResumeSandbox("iabc", 60, memory=False),
        TakeSnapshot("iabc", "s1"),
        RemoveSnapshot("s1"),
    ]


async def test_an_error_of_the_node_arrives_as_itself(placement: LocalPlacement, node: PlayedNode) -> None:
    with pytest.raises(SandboxNotFound, match="iother"):
        await placement.kill("iother", "killed")


async def test_a_watch_comes_up_then_tells_of_pauses_and_ends_then_is_over(
    placement: LocalPlacement, node: PlayedNode
) -> None:
    async with aclosing(placement.watch()) as events:
        assert [event async for event in events] == [
            LinkUp(),
            PAUSED,
            STATE,
            SandboxEnded("iabc", "timeout"),
        ]


async def test_a_watch_keeps_the_board_of_what_is_ready_until_the_link_is_lost(
    placement: LocalPlacement, node: PlayedNode
) -> None:
    async with aclosing(placement.watch()) as events:
        assert await anext(events) == LinkUp()
        assert await anext(events) == PAUSED  # of after the two that changed the board
        offer = placement.ready.take("team", "build", 2, 2048, "container")
        assert offer is not None
        assert offer.sandbox_id == "itwo"
        placement.ready.add(offer)
    assert placement.ready.take("team", "build", 2, 2048, "container") is None


async def test_a_node_that_is_not_there_is_unavailable(
    placement: LocalPlacement, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "ABSENCE_S", 0.1)
    with pytest.raises(Unavailable):
        await placement.list()
    with pytest.raises(Unavailable):
        await anext(placement.watch())


async def test_a_call_waits_for_a_node_that_is_being_started_again(
    placement: LocalPlacement, socket_path: Path
) -> None:
    async def nothing(method: str, params: msgspec.Raw) -> Answer:
        return Answer([])

    async with anyio.create_task_group() as tasks:

        async def start_later() -> None:
            await anyio.wait_all_tasks_blocked()
            with link.listen(socket_path, owner_uid=socket_path.parent.stat().st_uid) as listener:
                await link.serve(listener, nothing)

        tasks.start_soon(start_later)
        assert await placement.list() == ()
        tasks.cancel_scope.cancel()


async def test_a_node_that_does_not_answer_is_late(placement: LocalPlacement, socket_path: Path) -> None:
    listener = link.listen(socket_path, owner_uid=socket_path.parent.stat().st_uid)
    with pytest.raises(DeadlineExceeded, match=r"create within 0\.01 s"):
        await placement.create(ORDER, timeout_s=0.01)
    listener.close()


def test_one_node_takes_everything(socket_path: Path) -> None:
    node = Node("local", socket_path)
    assert choose_node([node], ORDER) is node
    with pytest.raises(Unavailable):
        choose_node([], ORDER)
