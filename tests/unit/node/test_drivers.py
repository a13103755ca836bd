"""Drivers side by side: each sandbox is dealt with by its own, and none is taken in another's place."""

import asyncio

import pytest
from tests.unit.node.conftest import BUILD_ID, Node, RememberingDriver, request_for

from cloche_server.isolation.base import Capabilities
from cloche_server.node import create, dial, kill, pause, reconcile, resume
from cloche_server.node.messages import Dial, PauseSandbox, ResumeSandbox
from cloche_server.node.metrics import Sampler
from cloche_wire.errors import InvalidArgument, PermissionDenied, UnsupportedOption

pytestmark = pytest.mark.anyio
A, B = "i" + "a" * 20, "i" + "b" * 20


@pytest.fixture
def strong(node: Node) -> RememberingDriver:
    """The second driver; the first is the server's default."""
    strong = RememberingDriver()
    strong.able = Capabilities(
        name="gvisor", shares_host_kernel=False, memory_snapshot=True, disk_snapshot=True, image_format="1"
    )
    node.driver.able = Capabilities(name="container", shares_host_kernel=True)
    node.others = [strong]
    return strong


async def test_each_sandbox_is_started_watched_and_ended_by_its_own(
    node: Node, strong: RememberingDriver
) -> None:
    async with node.machine() as m:
        weak = await create.create(m, request_for("a", isolation=""))
        other = await create.create(m, request_for("b", isolation="gvisor"))
        assert (weak.isolation, other.isolation) == ("container", "gvisor")
        assert (set(node.driver.running), set(strong.running)) == ({A}, {B})
        assert (node.driver.prepared, strong.prepared) == (1, 1)
        await Sampler(m).sample()
        strong.exit(B)
        async with asyncio.timeout(5):
            await m.live[B].gone.wait()
        assert set(m.live) == {A}
        await kill.end(m, A, "killed")
        assert node.remains() == {}


async def test_a_machine_that_lacks_it_says_what_and_makes_none(
    node: Node, strong: RememberingDriver
) -> None:
    strong.lacks = "runsc is not installed"
    async with node.machine() as m:
        with pytest.raises(
            UnsupportedOption, match=r"'gvisor' is not available.*runsc is not installed"
        ) as no:
            await create.create(m, request_for("a", isolation="gvisor"))
        assert no.value.hint == "install it"
        assert (node.driver.specs, node.remains()) == ([], {})
        strong.lacks = ""  # installed meanwhile
        assert (await create.create(m, request_for("a", isolation="gvisor"))).isolation == "gvisor"


@pytest.mark.parametrize(
    ("asked", "error"), [("container", PermissionDenied), ("microvm", InvalidArgument), ("", None)]
)
async def test_the_node_refuses_what_the_api_should_have_refused(
    node: Node, strong: RememberingDriver, asked: str, error: type[Exception] | None
) -> None:
    """On a server whose default is the stronger one."""
    node.driver, node.others = strong, [node.driver]
    async with node.machine() as m:
        if error is not None:
            with pytest.raises(error):
                await create.create(m, request_for("a", isolation=asked))
        else:
            assert (await create.create(m, request_for("a", isolation=asked))).isolation == "gvisor"
    assert node.others[0].specs == []


async def test_the_operator_may_permit_a_weaker_one(node: Node, strong: RememberingDriver) -> None:
    node.driver, node.others, node.allow_isolation = strong, [node.driver], ("container",)
    async with node.machine() as m:
        assert (await create.create(m, request_for("a", isolation="container"))).isolation == "container"
        await kill.end(m, A, "killed")


async def test_a_template_names_its_own(node: Node, strong: RememberingDriver) -> None:
    manifest = node.state / "templates" / BUILD_ID / "manifest.json"
    manifest.write_text('{"rootfs": "rootfs", "isolation": "gvisor"}')
    async with node.machine() as m:
        assert (await create.create(m, request_for("a", isolation=""))).isolation == "gvisor"
        with pytest.raises(PermissionDenied):
            await create.create(m, request_for("b", isolation="container"))


async def test_sandboxes_of_a_server_s_earlier_isolation_live_on_pause_and_resume(
    node: Node, strong: RememberingDriver
) -> None:
    """A server started again with another default: adopted, ended and resumed by the drivers they have."""
    weak = node.driver
    (node.state / "runtime" / "tree").mkdir(parents=True)
    node.driver, node.others, node.allow_isolation = strong, [weak], ("container",)
    async with node.machine(dies=True) as m:
        await create.create(m, request_for("a", isolation="gvisor"))
        await pause.pause(m, PauseSandbox(A))
        await create.create(m, request_for("b", isolation="container"))
    node.driver, node.others, node.allow_isolation = weak, [strong], ()
    strong.prepared = 0
    async with node.machine() as m:
        # What stood in the kernel of the first node cannot be opened here, so the running one is ended.
        await reconcile.reconcile(m)
        assert set(m.paused) == {A}
        assert strong.prepared == 0
        state = await resume.resume(m, ResumeSandbox(A, 60))
        assert (state.isolation, strong.prepared) == ("gvisor", 1)
        assert (set(strong.running), set(weak.running)) == ({A}, set())
        with pytest.raises(UnsupportedOption, match="'container' cannot keep"):
            await create.create(m, request_for("b", isolation="container", on_timeout="pause"))
        await kill.end(m, A, "killed")
        assert node.remains() == {}


async def test_a_paused_one_whose_isolation_is_gone_says_so_and_stays(
    node: Node, strong: RememberingDriver
) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a", isolation="gvisor"))
        await pause.pause(m, PauseSandbox(A))
    strong.lacks = "runsc is not installed"
    async with node.machine() as m:
        await reconcile.reconcile(m)
        with pytest.raises(UnsupportedOption, match="runsc is not installed"):
            await resume.resume(m, ResumeSandbox(A, 60))
        assert set(m.paused) == {A}


async def test_what_nobody_knows_is_ended_whichever_driver_made_it(
    node: Node, strong: RememberingDriver
) -> None:
    async with node.machine(dies=True) as m:
        await create.create(m, request_for("a", isolation="gvisor"))
        m.journal.remove(A)
    async with node.machine() as m:
        await reconcile.reconcile(m)
        assert strong.running == {}
        assert node.remains() == {}


async def test_ports_are_dialled_the_way_of_the_sandbox_s_driver(
    node: Node, strong: RememberingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    async def from_outside(_: object, record: object, port: int) -> int:
        seen.append(f"outside {port}")
        return port

    monkeypatch.setattr(dial, "_dial_from_outside", from_outside)
    async with node.machine() as m:
        await create.create(m, request_for("a", isolation="gvisor"))
        strong.able = Capabilities(name="gvisor", shares_host_kernel=False, listeners=False)
        assert await dial.dial(m, Dial(A, 80)) == 80
        assert m.agent_address(m.find(A).record).endswith(":49983")
    assert seen == ["outside 80"]
