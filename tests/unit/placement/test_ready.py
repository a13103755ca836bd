"""The board of sandboxes made ahead."""

from cloche_server.node.messages import SandboxReady
from cloche_server.placement.ready import ReadyBoard

OLD, NEW, OTHER, LARGE = (
    SandboxReady("iold", "t", "a", 2, 512, "container"),
    SandboxReady("inew", "t", "a", 2, 512, "container"),
    SandboxReady("iother", "t", "b", 2, 512, "container"),
    SandboxReady("ilarge", "t", "a", 2, 1024, "container"),
)


def test_each_is_taken_once_and_the_oldest_first() -> None:
    board = ReadyBoard()
    board.replace([OLD, NEW])
    assert [board.take("t", "a", 2, 512, "container") for _ in range(3)] == [OLD, NEW, None]


def test_only_the_same_team_build_and_size_serve() -> None:
    board = ReadyBoard()
    board.replace([OTHER, LARGE])
    assert board.take("u", "b", 2, 512, "container") is None
    assert board.take("t", "a", 2, 512, "container") is None
    assert board.take("t", "a", 2, 1024, "container") == LARGE
    assert board.take("t", "b", 2, 512, "container") == OTHER


def test_what_was_not_used_is_there_again_and_what_is_gone_is_not() -> None:
    board = ReadyBoard()
    board.add(OLD)
    assert board.take("t", "a", 2, 512, "container") == OLD
    board.add(OLD)
    board.remove("iold")
    board.remove("iold")
    assert board.take("t", "a", 2, 512, "container") is None
