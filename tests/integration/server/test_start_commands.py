"""Start commands of templates: a sandbox that is taken begins with its program running, and ready."""

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
def test_what_goes_on_from_the_image_of_a_template_begins_with_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """None is made ahead, and each of two has a program of its own.

    First of all: the server of the others makes sandboxes by itself, which would count as left behind.
    """
    with running(tmp_path_factory.mktemp("image") / "state", isolation="gvisor") as server:
        build(server, "serving", BODY)
        connect_options(server, Sandbox.create, "serving").kill()
        images = server.state / "images"
        until(lambda: [*images.glob("warm-*[!w]")], within_s=100, what="an image")
        for _ in range(2):
            check_begun(server)


def test_one_made_ahead_begins_with_it_running_and_ready(server: Server) -> None:
    """The first one is made on demand: it is started there, and comes up soon."""
    first = connect_options(server, Sandbox.create, "serving", envs={"NAME": "creator"})
    try:
        assert started(first) == 1
        until(lambda: first.commands.run(f"{READY} || true").stdout, within_s=20, what="the page")
        assert first.commands.run("ps -o user= -p $(pgrep -f '^python3 -m http')").stdout == "user\n"
        ids = until(server.ready, within_s=100, what="one made ahead")
        check_begun(server, ids)
    finally:
        first.kill()


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
