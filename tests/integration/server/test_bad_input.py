"""What the server says to requests that cannot be right, and that misbehaving code costs only itself."""

import pytest
from tests.support.fixtures import NEEDS_A_SERVER, MakeSandbox
from tests.support.inside import run
from tests.support.server import Server

pytestmark = NEEDS_A_SERVER

UNKNOWN_ID = "i" + "0" * 20


@pytest.mark.parametrize("path", ["/v2/sandboxes", "/sandboxes"])
def test_an_unknown_template_is_not_found(server: Server, path: str) -> None:
    """Both generations of create answer 404, with the status repeated in the body."""
    answer = server.request("POST", path, json={"templateID": "no-such-template"})
    assert answer.status_code == 404
    assert answer.json()["code"] == 404
    assert "no-such-template" in answer.json()["message"]


@pytest.mark.parametrize("key", ["", "e2b_" + "f" * 40, "nonsense"], ids=["none", "unknown", "malformed"])
@pytest.mark.parametrize(
    "request_line", ["GET /v2/sandboxes", "POST /v2/sandboxes", "DELETE /sandboxes/" + UNKNOWN_ID]
)
def test_a_wrong_key_is_not_let_in(server: Server, key: str, request_line: str) -> None:
    """No key, a wrong one and a malformed one all get 401 on every route."""
    method, path = request_line.split()
    answer = server.request(method, path, key=key, json={"templateID": "base"})
    assert answer.status_code == 401
    assert answer.json()["code"] == 401


ROUTES_OF_ONE = [
    "GET /sandboxes/{}", "DELETE /sandboxes/{}", "POST /sandboxes/{}/timeout", "POST /sandboxes/{}/refreshes",
    "POST /v2/sandboxes/{}/connect", "POST /sandboxes/{}/connect",
]  # fmt: skip


@pytest.mark.parametrize("request_line", ROUTES_OF_ONE)
def test_an_unknown_sandbox_is_not_found_on_every_route(server: Server, request_line: str) -> None:
    """An id nobody has: 404, and the same words on each route."""
    method, path = request_line.format(UNKNOWN_ID).split()
    answer = server.request(method, path, json={"timeout": 60, "duration": 60})
    assert answer.status_code == 404
    assert answer.json()["code"] == 404
    assert UNKNOWN_ID in answer.json()["message"]


def test_a_foreign_sandbox_looks_like_an_unknown_one(server: Server, sandboxes: MakeSandbox) -> None:
    """Another team's key gets the same status and the same words for a live sandbox as for none."""
    sandbox, key = sandboxes(), server.new_key("strangers")
    for request_line in ROUTES_OF_ONE:
        answers: list[tuple[int, str]] = []
        for sandbox_id in (sandbox.sandbox_id, UNKNOWN_ID):
            method, path = request_line.format(sandbox_id).split()
            answer = server.request(method, path, key=key, json={"timeout": 60, "duration": 60})
            answers.append((answer.status_code, answer.text.replace(sandbox_id, "ID")))
        assert answers[0] == answers[1]
        assert answers[0][0] == 404
    assert server.request("GET", "/v2/sandboxes", key=key).json() == []
    assert sandbox.is_running()


@pytest.mark.parametrize("timeout", [-1, 86_401, 2**63, "soon", 1e309, None])
def test_a_timeout_out_of_range_is_refused(server: Server, timeout: object) -> None:
    """Only 0 to 24 hours in whole seconds is a life; nothing is made for any other."""
    text = f'{{"templateID": "base", "timeout": {_json(timeout)}}}'
    answer = server.request(
        "POST", "/v2/sandboxes", content=text, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["code"] == 400


def _json(value: object) -> str:
    return {"soon": '"soon"', None: "[]"}.get(value, str(value).replace("inf", "1e309"))  # type: ignore[call-overload]


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b'{"templateID": 7}', b"\xff\xfe", b"[" * 100_000])
def test_a_malformed_body_is_refused(server: Server, body: bytes) -> None:
    """Broken JSON and JSON of the wrong shape: 400, never 500."""
    answer = server.request(
        "POST", "/v2/sandboxes", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["code"] == 400


def test_a_closed_port_says_so(server: Server, sandboxes: MakeSandbox) -> None:
    """A live sandbox with nothing on the port: 502, `port is not open`, the port, and no inner address."""
    sandbox = sandboxes()
    answer = server.request("GET", "/", headers=_target(sandbox.sandbox_id, 8123))
    assert answer.status_code == 502
    body = answer.json()
    assert "port is not open" in body["message"]
    assert (body["port"], body["code"], body["sandboxId"]) == (8123, 502, sandbox.sandbox_id)
    assert "198.18" not in answer.text


def test_a_killed_sandbox_says_so(server: Server, sandboxes: MakeSandbox) -> None:
    """A sandbox that is gone: 502 and `was not found` on its ports, 404 on the control plane."""
    sandbox = sandboxes()
    assert server.request("GET", "/health", headers=_target(sandbox.sandbox_id, 49983)).status_code == 204
    sandbox.kill()
    for port in (49983, 49999, 8000):
        answer = server.request("GET", "/health", headers=_target(sandbox.sandbox_id, port))
        assert answer.status_code == 502
        assert "was not found" in answer.json()["message"]
    assert server.request("GET", f"/sandboxes/{sandbox.sandbox_id}").status_code == 404


@pytest.mark.parametrize("port", ["0", "65536", "-1", "+80", "080", "80abc", "٨٠"])
def test_a_port_that_is_none_is_refused(server: Server, port: str) -> None:
    """Only plain decimal ports in range are ports; no connection is tried for the others."""
    answer = server.request(
        "GET", "/", headers=[("E2b-Sandbox-Id", UNKNOWN_ID), ("E2b-Sandbox-Port", port.encode())]
    )
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "code",
    [
        "exit()",
        "import sys; sys.exit(3)",
        "import os; os._exit(1)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_code_that_ends_the_interpreter_gets_an_answer_and_the_next_call_works(
    sandboxes: MakeSandbox, code: str
) -> None:
    """However a cell ends its interpreter, the call returns, and the sandbox runs the next one."""
    sandbox = sandboxes()
    sandbox.run_code(code)
    assert sandbox.run_code("40 + 2").text == "42"
    assert run(sandbox, "echo ok").out == "ok\n"


def test_a_killed_interpreter_is_an_error_with_a_name(sandboxes: MakeSandbox) -> None:
    """A cell whose interpreter dies under it ends with an error, not with silence."""
    ended = sandboxes().run_code("import os; os._exit(1)")
    assert ended.error is not None
    assert ended.error.name


def test_code_that_exhausts_memory_is_ended_and_the_next_call_works(sandboxes: MakeSandbox) -> None:
    """Memory beyond the limit ends the cell with an error within 10 s; commands and cells go on."""
    sandbox = sandboxes()
    ended = sandbox.run_code(
        "hoard = []\nwhile True:\n    hoard.append(bytearray(b'x') * (64 << 20))", timeout=60
    )
    assert ended.error is not None
    assert run(sandbox, "echo ok").out == "ok\n"
    assert sandbox.run_code("1 + 1").text == "2"


def test_100_mib_of_output_do_not_break_the_sandbox(sandboxes: MakeSandbox) -> None:
    """A cell that prints 100 MiB gets an answer, whole or cut with a clear word; the next call works."""
    sandbox = sandboxes()
    printed = 0

    def count(message: object) -> None:
        nonlocal printed
        printed += len(str(message))

    ended = sandbox.run_code(
        "for _ in range(1024):\n    print('x' * (102400 - 1))", on_stdout=count, timeout=110
    )
    assert printed >= 100 << 20 or ended.error is not None
    assert sandbox.run_code("1 + 1").text == "2"


def _target(sandbox_id: str, port: int) -> dict[str, str]:
    return {"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": str(port)}
