"""Python started before the sandbox is anybody's."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.kernels.conftest import PATH, TOKEN, serving

from cloche_agent.http import Headers, Request
from cloche_agent.init import Sandbox, handle_prepare
from cloche_wire.errors import InvalidArgument, Unauthenticated

pytestmark = pytest.mark.anyio
LOADED = "import sys; 'json.tool' in sys.modules"


async def test_a_prepared_context_has_imported_and_follows_the_one_it_is_given_to() -> None:
    sandbox = Sandbox()
    sandbox.prepare({"envVars": {"PATH": PATH, "A": "template"}, "imports": ["no_such_module", "json.tool"]})
    async with serving(sandbox) as interpreter:
        async with asyncio.timeout(30):
            await sandbox.prepared.wait()
        with pytest.raises(Unauthenticated):
            await interpreter.call("GET", "/contexts", token=None)
        sandbox.apply({"accessToken": TOKEN, "envVars": {"PATH": PATH, "B": "own"}, "sandboxId": "i1"})
        seen = "import os; [os.environ.get(name) for name in ('A', 'B', 'E2B_SANDBOX_ID')]"
        assert await interpreter.text(seen) == "[None, 'own', 'i1']"
        execution = await interpreter.run(LOADED)
        assert (execution.text, execution.execution_count) == ("True", 2)
        # What a cell has installed meanwhile must not be there in its older version.
        await interpreter.call("POST", "/contexts/default/restart")
        assert await interpreter.text(LOADED) == "False"


async def test_a_template_without_python_is_prepared_all_the_same() -> None:
    sandbox = Sandbox()
    sandbox.prepare({"envVars": {"PATH": "/nowhere"}, "imports": ["json"]})
    async with serving(sandbox):
        async with asyncio.timeout(30):
            await sandbox.prepared.wait()


async def test_preparing_opens_nothing() -> None:
    sandbox = Sandbox()
    sandbox.prepare({"envVars": {}, "imports": []})
    assert not any(sandbox.authorized(token) for token in ("", None, TOKEN))


async def test_one_that_was_restored_is_renewed_before_it_is_anybodys() -> None:
    """So whoever takes it does not wait for that."""
    sandbox = Sandbox()
    sandbox.prepared.set()
    renewed: list[int] = []

    async def renew() -> None:
        renewed.append(sandbox.restores)

    sandbox.on_restore.append(renew)
    for body in (b'{"imports": [], "restored": true}', b'{"imports": []}'):

        async def receive(pieces: list[bytes] = [body]) -> bytes:  # noqa: B006 - one list for each body
            return pieces.pop() if pieces else b""

        answer = await handle_prepare(sandbox, Request("POST", "/prepare", [], Headers([]), receive))
        assert answer.status == 204
    assert renewed == [1]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"imports": "json"},
        {"imports": [1]},
        {"imports": [], "envVars": []},
        {"imports": [], "restored": 1},
    ],
)
def test_what_is_no_preparation_changes_nothing(settings: dict[str, object]) -> None:
    sandbox = Sandbox()
    with pytest.raises(InvalidArgument):
        sandbox.prepare(settings)
    assert not sandbox.wanted.is_set()
