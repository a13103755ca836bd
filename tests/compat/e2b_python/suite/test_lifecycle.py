"""The official client creates, finds, connects to, extends and kills sandboxes."""

import re
import time
import uuid

import pytest

from e2b_code_interpreter import (
    AuthenticationException,
    InvalidArgumentException,
    NotFoundException,
    Sandbox,
    SandboxException,
    SandboxNotFoundException,
    SandboxQuery,
    SandboxState,
)


def test_a_created_sandbox_runs_and_has_an_id_that_fits_a_host_label(sandbox: Sandbox) -> None:
    assert sandbox.is_running()
    assert re.fullmatch(r"[a-z0-9]+", sandbox.sandbox_id)


def test_info_tells_what_was_asked_for() -> None:
    with Sandbox.create(timeout=120, metadata={"purpose": "info"}) as created:
        info = created.get_info()
    assert info.sandbox_id == created.sandbox_id
    assert info.metadata == {"purpose": "info"}
    assert info.state == SandboxState.RUNNING
    assert 100 <= (info.end_at - info.started_at).total_seconds() <= 125
    assert info.cpu_count >= 1
    assert info.memory_mb >= 512


def test_list_finds_a_sandbox_by_its_metadata_and_no_other(sandbox: Sandbox) -> None:
    mark = uuid.uuid4().hex
    with Sandbox.create(timeout=60, metadata={"mark": mark, "with space": "a&b=c"}) as created:
        query = SandboxQuery(metadata={"mark": mark, "with space": "a&b=c"})
        found = Sandbox.list(query=query).next_items()
    assert [item.sandbox_id for item in found] == [created.sandbox_id]
    assert sandbox.sandbox_id != created.sandbox_id


def test_list_goes_on_page_by_page_newest_first() -> None:
    mark = uuid.uuid4().hex
    made = [Sandbox.create(timeout=60, metadata={"mark": mark}) for _ in range(3)]
    try:
        pages = Sandbox.list(query=SandboxQuery(metadata={"mark": mark}), limit=2)
        listed: list[list[str]] = []
        while pages.has_next:
            listed.append([item.sandbox_id for item in pages.next_items()])
    finally:
        for created in made:
            created.kill()
    assert [len(page) for page in listed] == [2, 1]
    assert [name for page in listed for name in page] == [created.sandbox_id for created in reversed(made)]


def test_connect_reaches_the_same_sandbox_with_its_files(sandbox: Sandbox) -> None:
    sandbox.files.write("/home/user/left.txt", "here")
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.sandbox_id == sandbox.sandbox_id
    assert again.files.read("/home/user/left.txt") == "here"


def test_set_timeout_moves_the_end_both_ways(own_sandbox: Sandbox) -> None:
    own_sandbox.set_timeout(600)
    late = own_sandbox.get_info().end_at
    own_sandbox.set_timeout(60)
    early = own_sandbox.get_info().end_at
    assert 500 <= (late - early).total_seconds() <= 560


def test_a_sandbox_ends_when_its_time_is_over() -> None:
    created = Sandbox.create(timeout=5)
    deadline = time.monotonic() + 20
    while created.is_running():
        assert time.monotonic() < deadline, "still running after 20 s"
        time.sleep(0.2)
    # Its ports are closed first; the list learns of the end when everything of it is gone.
    while any(info.sandbox_id == created.sandbox_id for info in Sandbox.list().next_items()):
        assert time.monotonic() < deadline, "still listed after 20 s"
    with pytest.raises(NotFoundException):
        created.get_info()


def test_kill_ends_it_at_once_and_only_once() -> None:
    created = Sandbox.create(timeout=60)
    assert created.kill() is True
    assert not created.is_running()
    assert created.kill() is False
    with pytest.raises(SandboxNotFoundException):
        Sandbox.connect(created.sandbox_id)


def test_one_idempotency_key_makes_one_sandbox() -> None:
    key = str(uuid.uuid4())
    first = Sandbox.create(timeout=60, idempotency_key=key)
    try:
        second = Sandbox.create(timeout=60, idempotency_key=key)
        assert second.sandbox_id == first.sandbox_id
    finally:
        first.kill()


def test_the_base_template_is_the_same_by_its_alias() -> None:
    with Sandbox.create(template="base", timeout=60) as created:
        assert created.commands.run("echo base").stdout == "base\n"


def test_an_unknown_template_is_refused() -> None:
    with pytest.raises(SandboxException, match="404"):
        Sandbox.create(template="no-such-template")


def test_a_wrong_key_is_refused() -> None:
    with pytest.raises(AuthenticationException):
        Sandbox.create(api_key="e2b_" + "f" * 40)


def test_a_timeout_beyond_the_limit_is_refused() -> None:
    with pytest.raises((InvalidArgumentException, SandboxException), match=r"(?i)timeout|400"):
        Sandbox.create(timeout=10**7)


def test_an_unknown_sandbox_cannot_be_connected_to() -> None:
    with pytest.raises(SandboxNotFoundException):
        Sandbox.connect("i" + "0" * 20)
