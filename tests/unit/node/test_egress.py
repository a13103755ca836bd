"""Policies of running sandboxes: journalled, applied, taken back when they cannot be."""

import asyncio

import anyio.lowlevel
import msgspec
import pytest
from tests.unit.node.conftest import Node, request_for

from cloche_server.node import create, egress, kill
from cloche_server.node.messages import AskPolicy, EgressPolicy, NamePolicy, PolicyChanged, SetEgress
from cloche_server.node.ruleset import Ruleset
from cloche_server.node.slots import Block
from cloche_wire.errors import InvalidArgument, SandboxNotFound, Unavailable

pytestmark = pytest.mark.anyio

A = request_for("a").sandbox_id
DENIES = EgressPolicy((), ("8.8.8.8/32",))


async def test_a_policy_is_there_before_the_sandbox_and_gone_after_it(node: Node) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a", egress=DENIES))
        assert node.network.policies == {0: DENIES}
        await kill.end(m, A, "killed")
        assert node.network.policies == {}


async def test_a_new_policy_is_journalled_and_outlives_the_node(node: Node) -> None:
    async with node.machine() as m:
        state = await create.create(m, request_for("a"))
        await egress.set_egress(m, SetEgress(A, True, DENIES))
        assert node.network.policies == {0: DENIES}
        (record,) = m.journal.read_all()
        assert egress.policies([record]) == {0: DENIES}
        assert record.public().egress_digest == SetEgress("other", True, DENIES).digest != state.egress_digest


async def test_a_policy_that_the_filter_refuses_changes_nothing(node: Node) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a", egress=DENIES))
        node.network.failures.append(Unavailable("busy"))
        with pytest.raises(Unavailable):
            await egress.set_egress(m, SetEgress(A, False))
        assert m.find(A).record.request.egress == DENIES
        assert m.journal.read_all()[0].request.allow_internet


async def test_a_policy_for_a_sandbox_that_is_gone_is_not_found_and_leaves_nothing(node: Node) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        turn = m.find(A).policy_turn
        async with asyncio.TaskGroup() as tasks:
            async with turn:  # the change waits for one before it, and meanwhile the sandbox ends

                async def change() -> None:
                    with pytest.raises(SandboxNotFound):
                        await egress.set_egress(m, SetEgress(A, True, DENIES))

                tasks.create_task(change())
                ending = tasks.create_task(kill.end(m, A, "killed"))
                await anyio.lowlevel.checkpoint()  # both have begun, and wait for the turn
            await ending
        assert (node.network.policies, m.journal.read_all()) == ({}, [])


@pytest.mark.parametrize(
    "text",
    ["1.1.1.1", "1.1.1.1/24", "0.0.0.0/0 } accept", "1.1.1.0/24\n", "", "::/0", "1.0.0.0/255.0.0.0"],
)
async def test_texts_that_are_no_plain_networks_never_reach_the_filter(node: Node, text: str) -> None:
    async with node.machine() as m:
        for policy in (EgressPolicy((text,)), EgressPolicy((), (text,))):
            with pytest.raises(InvalidArgument):
                await create.create(m, request_for("a", egress=policy))
        assert node.network.policies == {}


@pytest.mark.parametrize(
    ("allow_internet", "policy", "expected"),
    [
        (True, EgressPolicy(), True),
        (True, DENIES, True),
        (False, EgressPolicy(), False),
        (True, EgressPolicy(("1.1.1.1/32",), ("0.0.0.0/0",)), False),
    ],
)
async def test_names_are_for_those_that_may_reach_more_than_a_list(
    node: Node, allow_internet: bool, policy: EgressPolicy, expected: bool
) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a", allow_internet=allow_internet, egress=policy))
        assert egress.may_ask(m.find(A).record, "a.test") is expected


@pytest.mark.parametrize(
    ("asked", "expected"), [("OK.test.", True), ("a.ok.test", False), ("bad.test", False), (None, False)]
)
async def test_where_domains_are_listed_no_other_name_is_answered(
    node: Node, asked: str | None, expected: bool
) -> None:
    listed = EgressPolicy((), ("0.0.0.0/0",), ("ok.test",))
    async with node.machine() as m:
        await create.create(m, request_for("a", egress=listed))
        assert egress.may_ask(m.find(A).record, asked) is expected
        await egress.set_egress(m, SetEgress(A, True, msgspec.structs.replace(listed, names=False)))
        assert not egress.may_ask(m.find(A).record, asked)


async def test_the_egress_is_told_of_every_change_and_of_the_end(node: Node) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a", egress=EgressPolicy((), (), ("ok.test",))))
        address = str(m.block.address(0))
        assert egress.name_policy(m, AskPolicy(address)) == NamePolicy(A, ("ok.test",))
        changes = m.policies.listen()
        await egress.set_egress(m, SetEgress(A, False))
        assert (await anext(changes)).data == PolicyChanged(address)
        with pytest.raises(SandboxNotFound):
            egress.name_policy(m, AskPolicy(address))
        await kill.end(m, A, "killed")
        assert (await anext(changes)).data == PolicyChanged(address)


def test_the_table_has_a_chain_for_each_policy_and_none_else() -> None:
    text = Ruleset(Block(3, -1), ()).whole({0: EgressPolicy(), 7: DENIES})
    assert "sandbox_0" not in text
    assert "add rule inet cloche_3 sandbox_7 ct original ip daddr { 8.8.8.8/32 } drop" in text
