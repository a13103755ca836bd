"""The official client notices nothing of a sandbox that is frozen but a few milliseconds."""

import os

import httpx
import pytest

from e2b import SandboxState
from e2b_code_interpreter import Sandbox


def freeze(sandbox: Sandbox) -> None:
    """By our own endpoint, which this client has no name for."""
    url = f"{os.environ['E2B_API_URL']}/sandboxes/{sandbox.sandbox_id}/freeze"
    answer = httpx.post(url, headers={"X-API-KEY": os.environ["E2B_API_KEY"]}, trust_env=False, timeout=30)
    assert answer.status_code == 204, answer.text
    assert Sandbox.get_info(sandbox.sandbox_id).state == SandboxState.RUNNING


@pytest.mark.parametrize("act", ["files", "commands", "code", "is_running", "connect", "kill"])
def test_whatever_the_client_asks_of_a_frozen_sandbox_is_answered(own_sandbox: Sandbox, act: str) -> None:
    own_sandbox.run_code("x = 41")
    freeze(own_sandbox)
    if act == "files":
        assert own_sandbox.files.write("/tmp/a", "b").path == "/tmp/a"
    elif act == "commands":
        assert own_sandbox.commands.run("echo hi").stdout == "hi\n"
    elif act == "code":
        assert own_sandbox.run_code("x + 1").text == "42"
    elif act == "is_running":
        assert own_sandbox.is_running()
    elif act == "connect":
        assert Sandbox.connect(own_sandbox.sandbox_id).run_code("x + 1").text == "42"
    else:
        assert own_sandbox.kill()


def test_a_command_that_is_listened_to_stands_still_and_goes_on(own_sandbox: Sandbox) -> None:
    handle = own_sandbox.commands.run("for n in 1 2 3; do echo $n; sleep 0.3; done", background=True)
    freeze(own_sandbox)
    own_sandbox.commands.run("true")
    assert handle.wait().stdout == "1\n2\n3\n"
