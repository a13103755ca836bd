"""Boundary: the edge. The platform's credentials do not reach a service; gone sandboxes tell nothing."""

import json

import pytest
from tests.support.fixtures import NEEDS_A_SERVER, MakeSandbox, Pair
from tests.support.inside import run
from tests.support.server import Server

pytestmark = NEEDS_A_SERVER

_ECHO = """
import http.server, json
class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(('127.0.0.1', 8000), Echo).serve_forever()
"""
READY = "timeout 20 sh -c 'until curl -s http://127.0.0.1:8000 > /dev/null; do sleep 0.1; done'"


def test_credentials_of_the_platform_stop_at_the_edge(server: Server, pair: Pair) -> None:
    """Battery 58: a service in the sandbox sees ordinary headers and none that opens the platform."""
    pair.a.files.write("/tmp/echo.py", _ECHO)
    serving = pair.a.commands.run("python3 /tmp/echo.py", background=True)
    assert run(pair.a, READY).code == 0
    secrets = {"X-Access-Token": "t" * 40, "E2B-Traffic-Access-Token": "u" * 40}
    ordinary = {"Cookie": "a=b", "Authorization": "Bearer app", "X-Custom": "kept", "Accept-Language": "de"}
    target = {"E2b-Sandbox-Id": pair.a.sandbox_id, "E2b-Sandbox-Port": "8000"}
    seen = json.loads(server.request("GET", "/x", headers=secrets | ordinary | target).text)
    assert not {"x-api-key", "x-access-token", "e2b-traffic-access-token"} & seen.keys()
    assert server.key not in json.dumps(seen)
    assert {name.lower(): value for name, value in ordinary.items()}.items() <= seen.items()  # twin
    serving.kill()


def test_gone_and_closed_are_told_apart_and_tell_no_address(server: Server, sandboxes: MakeSandbox) -> None:
    """Battery 59: 502 with the right words, by header and by host name alike."""
    sandbox = sandboxes()
    by_host = {"Host": f"8000-{sandbox.sandbox_id}.cloche.localhost:{server.port}"}
    by_header = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}
    for words in ("port is not open", "was not found"):
        for headers in (by_host, by_header):
            answer = server.request("GET", "/", key="", headers=headers)
            assert answer.status_code == 502
            assert words in answer.json()["message"]
            assert not [part for part in ("198.18", "127.0.0.1", "/run/", ".sock") if part in answer.text]
        sandbox.kill()


@pytest.mark.parametrize("path", ["/init", "/freeze"])
def test_the_agents_control_paths_are_not_reached_from_outside(server: Server, pair: Pair, path: str) -> None:
    """What only the node may say to an agent is 404 at the edge; what clients say gets through."""
    target = {"E2b-Sandbox-Id": pair.a.sandbox_id, "E2b-Sandbox-Port": "49983"}
    answer = server.request("POST", path, headers=target, json={"accessToken": "mine"})
    assert answer.status_code == 404
    assert server.request("GET", "/health", headers=target).status_code == 204  # twin


def test_two_targets_in_one_request_are_refused(server: Server, pair: Pair) -> None:
    """Battery 55: a host name of A with a header of B is neither."""
    headers = {"Host": f"8000-{pair.a.sandbox_id}.cloche.localhost:{server.port}"}
    headers |= {"E2b-Sandbox-Id": pair.b.sandbox_id, "E2b-Sandbox-Port": "8000"}
    assert server.request("GET", "/", headers=headers).status_code == 400
