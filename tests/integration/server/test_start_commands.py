"""Start commands of templates: a sandbox that is taken begins with its program running, and ready."""

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping

import pytest
from tests.support.fixtures import NEEDS_A_SERVER, connect_options, running
from tests.support.server import Server
from tests.support.waiting import until

from cloche import Sandbox

pytestmark = [NEEDS_A_SERVER, pytest.mark.timeout(180)]

PORT = 8123
START = f"cd /srv && echo $NAME > page && exec python3 -m http.server {PORT}"
READY = f"curl -sf localhost:{PORT}/page"
BODY = {
    "fromImage": "e2bdev/base",
    "steps": [
        {"type": "ENV", "args": ["NAME", "template"]},
        {"type": "RUN", "args": ["mkdir -p /srv && chown user /srv", "root"]},
        {"type": "USER", "args": ["user"]},
    ],
    "startCmd": START,
    "readyCmd": READY,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that keeps one ready, with a template that serves a page."""
    with running(tmp_path_factory.mktemp("started") / "state", ahead=1) as made:
        build(made, "serving", BODY)
        yield made


def build(server: Server, name: str, body: Mapping[str, object]) -> None:
    """Build a template, as a builder's requests have it."""
    asked = server.request("POST", "/v3/templates", json={"name": name, "memoryMB": 512}).json()
    path = f"/templates/{asked['templateID']}/builds/{asked['buildID']}"
    assert server.request("POST", f"/v2{path}", json=body).status_code == 202

    def ended() -> dict[str, object]:
        found = server.request("GET", f"{path}/status").json()
        return found if found["status"] in ("ready", "error") else {}

    found = until(ended, within_s=120, what="the end of the build")
    assert found["status"] == "ready", found


def page(server: Server, sandbox: Sandbox) -> str:
    """What its program serves to a client outside, asked once."""
    headers = {"Host": f"{PORT}-{sandbox.sandbox_id}.{server.url[7:]}"}
    answer = server.request("GET", "/page", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.text


def started(sandbox: Sandbox) -> int:
    """How many of the processes that are listed are the start command."""
    return sum(one.args[-1:] == [START] for one in sandbox.commands.list())


@pytest.mark.needs("runsc")
def test_the_first_sandbox_of_a_new_template_goes_on_from_an_image_that_has_it_ready(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """None is made ahead, and each of two has a program of its own; the image goes with the template.

    First of all: the server of the others makes sandboxes by itself, which would count as left behind.
    """
    with running(tmp_path_factory.mktemp("image") / "state", isolation="gvisor") as server:
        build(server, "serving", BODY)
        assert len([*server.state.glob("images/warm-*[!w]")]) == 1
        for _ in range(2):
            check_begun(server)
        until(lambda: not _listed(server), within_s=20, what="their ends")
        assert server.request("DELETE", "/templates/serving").status_code == 204
        assert [*server.state.glob("images/warm-*[!w]")] == []


def _listed(server: Server) -> object:
    return server.request("GET", "/v2/sandboxes").json()


def test_one_made_on_demand_is_there_when_it_is_ready(tmp_path_factory: pytest.TempPathFactory) -> None:
    """None is made ahead here. Where the ready command tells nothing, the create does not wait."""
    slow = f"mkfifo /srv/up; sleep 1.5; {START}"
    with running(tmp_path_factory.mktemp("demand") / "state") as server:
        build(server, "slow", BODY | {"startCmd": slow})
        sandbox = connect_options(server, Sandbox.create, "slow", envs={"NAME": "creator"})
        assert page(server, sandbox) == "creator\n"
        sandbox.kill()
        late = slow.replace("1.5", "60")  # however long the create takes, it is not done by then
        build(server, "sleeps", BODY | {"startCmd": late, "readyCmd": "sleep 2"})
        sandbox = connect_options(server, Sandbox.create, "sleeps")
        assert sandbox.commands.run("test ! -e /srv/page && echo early").stdout == "early\n"
        sandbox.kill()


def test_one_made_ahead_begins_with_it_running_and_ready(server: Server) -> None:
    """The first one too, since it was made when the template was."""
    ids = until(server.ready, within_s=100, what="one made ahead")
    check_begun(server, ids)
    sandbox = connect_options(server, Sandbox.create, "serving")
    assert sandbox.commands.run("ps -o user= -p $(pgrep -f '^python3 -m http')").stdout == "user\n"
    sandbox.kill()


def check_begun(server: Server, ids: Collection[str] = ()) -> None:
    """A new sandbox answers at once; of these, if there are any."""
    sandbox = connect_options(server, Sandbox.create, "serving", envs={"NAME": "creator"})
    try:
        assert page(server, sandbox) == "template\n"
        assert started(sandbox) == 1
        assert sandbox.commands.run("echo $NAME").stdout == "creator\n"
        assert not ids or sandbox.sandbox_id in ids
    finally:
        sandbox.kill()


def test_the_start_command_of_the_documents_image_is_the_interpreter_that_runs_anyway(server: Server) -> None:
    body = {
        "fromImage": "e2bdev/code-interpreter:latest",
        "startCmd": "/root/.jupyter/start-up.sh",
        "readyCmd": "curl -sf localhost:49999/health",
    }
    build(server, "documented", body)
    sandbox = connect_options(server, Sandbox.create, "documented")
    try:
        assert sandbox.run_code("1 + 1").text == "2"
    finally:
        sandbox.kill()


def ready_builds(server: Server) -> set[str]:
    """Of which builds there is a sandbox that is ready."""
    found: set[str] = set()
    for path in server.state.glob("node/journal/*.json"):
        with contextlib.suppress(FileNotFoundError):  # it is gone meanwhile
            record = json.loads(path.read_bytes())
            if record["state"] == "ready":
                found.add(record["request"]["build_id"])
    return found


def test_a_module_that_a_template_preloads_is_imported_before_anybody_asks(server: Server) -> None:
    """Twin: not in a sandbox of the template that it is based on."""
    build(server, "preloading", {"fromTemplate": "base", "preload": ["wave"]})
    build_id = server.request("GET", "/templates/preloading").json()["buildID"]
    until(lambda: build_id in ready_builds(server), within_s=60, what="one made ahead")
    for name, answer in (("preloading", "True"), ("base", "False")):
        sandbox = connect_options(server, Sandbox.create, name)
        try:
            assert sandbox.run_code("import sys\n'wave' in sys.modules").text == answer
        finally:
            sandbox.kill()
