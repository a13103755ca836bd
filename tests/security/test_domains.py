"""Boundary: names. A sandbox with domains in `allowOut` reaches these by name, and nothing else."""

import itertools
import os
import signal
from collections.abc import Iterator

import pytest
from tests.support import outside, web
from tests.support.fixtures import NEEDS_A_SERVER, STATES, connect_options
from tests.support.inside import Outcome, python, run
from tests.support.server import Server
from tests.support.waiting import until
from tests.support.web import Web

from cloche import Sandbox

pytestmark = NEEDS_A_SERVER

EVERYTHING = "0.0.0.0/0"
NETWORK = {
    "denyOut": [EVERYTHING],
    "allowOut": ["OK.test", "*.wild.test", "rebind.test", "inner.test", "own.test"],
}
COULD_NOT_CONNECT = {6, 7, 28, 35, 52, 56}
"""Exit statuses of curl: name, connection, time, TLS, empty answer, reset."""


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("world")
    with outside.played(folder) as world, web.played(world, folder) as played:
        for name in ("ok.test", "a.wild.test", "wild.test"):
            played.names[name] = lambda: outside.PUBLIC
        for name in ("bad.test", "xok.test", "ok.test.evil.test"):
            played.names[name] = lambda: outside.PUBLIC_TOO
        played.names["inner.test"] = lambda: "169.254.169.254"
        played.names["own.test"] = lambda: "203.0.113.1"
        yield played


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory, sites: Web) -> Iterator[Server]:
    """A server that asks the played world's name server."""
    state = tmp_path_factory.mktemp("named") / "state"
    state.mkdir()
    (state / "config.toml").write_text(f'[egress]\nresolvers = ["{web.RESOLVER}"]\n')
    STATES.add(state)
    server = Server(state)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="module")
def sandbox(named: Server) -> Iterator[Sandbox]:
    body = {"templateID": "base", "network": NETWORK, "timeout": 900}
    answer = named.request("POST", "/v2/sandboxes", json=body)
    assert answer.status_code == 201, answer.text
    made = connect_options(named, Sandbox.connect, answer.json()["sandboxID"])
    yield made
    made.kill()


def curl(sandbox: Sandbox, url: str, *options: str) -> Outcome:
    return run(sandbox, f"curl -sk --max-time 8 {' '.join(options)} '{url}'")


def test_listed_names_are_reached_by_both_schemes(sandbox: Sandbox) -> None:
    """Battery 48: as listed, in capitals, with a dot at the end; `*.wild.test` has what lies below."""
    for url in ("https://ok.test/a", "http://ok.test/a", "https://a.wild.test/", "http://a.wild.test/"):
        assert curl(sandbox, url).out.startswith("site of "), url
    for spelt in ("OK.TEST", "ok.test."):
        assert curl(sandbox, f"http://{spelt}/").code == 0
        assert curl(sandbox, f"https://{spelt}/").code == 0


@pytest.mark.parametrize("name", ["bad.test", "xok.test", "ok.test.evil.test", "wild.test", "nowhere.test"])
def test_other_names_are_not_reached(sandbox: Sandbox, sites: Web, name: str) -> None:
    """Battery 48: neither asked for, nor connected to where the sandbox gives the address itself."""
    before = sites.lines()
    for scheme, port in (("https", 443), ("http", 80)):
        assert curl(sandbox, f"{scheme}://{name}/").code in COULD_NOT_CONNECT
        told = curl(
            sandbox,
            f"{scheme}://{name}/",
            f"--resolve {name}:{port}:{outside.PUBLIC}",
            "-o /dev/null -w '%{http_code}'",
        )
        assert told.out == "403" if scheme == "http" else told.code in COULD_NOT_CONNECT
    assert sites.lines() == before


def test_addresses_and_lies_about_names_lead_nowhere(sandbox: Sandbox, sites: Web) -> None:
    """Battery 48: no name at all, a good name at a wrong address, a good name at a stranger's."""
    before = sites.lines()
    assert curl(sandbox, f"https://{outside.PUBLIC}/").code in COULD_NOT_CONNECT
    assert curl(sandbox, f"http://{outside.PUBLIC}/", "-w '%{http_code}'").out.endswith("403")
    assert curl(sandbox, f"http://{outside.PUBLIC}/", "-H 'Host: bad.test' -w '%{http_code}'").out.endswith(
        "403"
    )
    assert curl(sandbox, f"http://{outside.PUBLIC}:8080/").code in COULD_NOT_CONNECT
    assert sites.lines() == before
    # A good name at somebody else's address: the name decides, and is looked up by us.
    wrong = f"--resolve ok.test:443:{outside.PUBLIC_TOO}"
    assert curl(sandbox, "https://ok.test/", wrong).out.startswith("site of ok.test")


def test_only_the_first_request_of_a_connection_passes(sandbox: Sandbox, sites: Web) -> None:
    """A second request on the same connection could name another host."""
    program = (
        "import socket; s = socket.create_connection(('ok.test', 80), 5);"
        "ask = 'GET %s HTTP/1.1\\r\\nHost: %s\\r\\n\\r\\n';"
        "s.sendall((ask % ('/1', 'ok.test') + ask % ('/2', 'bad.test')).encode());"
        "print(b''.join(iter(lambda: s.recv(4096), b'')).decode())"
    )
    done = python(sandbox, program)
    assert "site of ok.test/1" in done.out
    assert not any("bad.test" in line for line in sites.lines())


def test_an_answer_that_turns_private_is_not_followed(sandbox: Sandbox, named: Server, sites: Web) -> None:
    """Battery 49: public first, then the loopback, the metadata service, this machine: refused."""
    answers = itertools.chain([outside.PUBLIC], itertools.repeat("127.0.0.1"))
    sites.names["rebind.test"] = lambda: next(answers)
    here = f"--resolve rebind.test:80:{outside.PUBLIC}"
    assert curl(sandbox, "http://rebind.test/", here).out.startswith("site of rebind.test")
    assert "no public address" in curl(sandbox, "http://rebind.test/", here).out
    for name in ("inner.test", "own.test"):
        assert (
            "no public address"
            in curl(sandbox, f"http://{name}/", f"--resolve {name}:80:{outside.PUBLIC}").out
        )
    assert "no public address: rebind.test" in named.log.read_text()


def test_ways_around_names_are_closed(sandbox: Sandbox, sites: Web) -> None:
    """Battery 50: QUIC, foreign name servers, ping; our own name server tells listed names only."""
    before = sites.lines()
    program = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM);"
        f"[s.sendto(b'x' * 40, ('{outside.PUBLIC}', port)) for port in (53, 443) for _ in range(3)]"
    )
    assert python(sandbox, program).code == 0
    assert run(sandbox, f"ping -c 1 -W 1 {outside.PUBLIC}").code != 0
    assert run(sandbox, "timeout 5 getent ahostsv4 ok.test").code == 0
    for name in ("bad.test", "secret.bad.test"):
        assert run(sandbox, f"timeout 5 getent ahostsv4 {name}").code != 0
    assert sites.lines() == before


def test_a_new_policy_cuts_what_is_open(sandbox: Sandbox, named: Server) -> None:
    """A stream through the egress ends with the policy that allowed it; taken back, all is as before."""
    path = f"/sandboxes/{sandbox.sandbox_id}/network"
    sandbox.commands.run(
        "curl -skN https://ok.test/stream > /tmp/stream; echo $? > /tmp/ended", background=True
    )
    assert run(sandbox, "timeout 20 sh -c 'until test -s /tmp/stream; do sleep 0.1; done'").code == 0
    changed = named.request("PUT", path, json={"denyOut": [EVERYTHING], "allowOut": ["*.wild.test"]})
    assert changed.status_code == 204
    assert run(sandbox, "timeout 20 sh -c 'until test -s /tmp/ended; do sleep 0.1; done'").code == 0
    assert curl(sandbox, "https://ok.test/").code in COULD_NOT_CONNECT
    assert curl(sandbox, "https://a.wild.test/").code == 0
    update = {name: NETWORK[name] for name in ("denyOut", "allowOut")}
    assert named.request("PUT", path, json=update).status_code == 204
    assert curl(sandbox, "https://ok.test/").code == 0


def test_without_the_egress_nothing_passes_and_with_a_new_one_all_does(
    sandbox: Sandbox, named: Server, sites: Web
) -> None:
    """It fails closed: a stopped egress lets nothing through, a killed one is replaced."""
    before = sites.lines()
    pid = named.part("egress")
    os.kill(pid, signal.SIGSTOP)
    try:
        assert curl(sandbox, "https://ok.test/").code == 28
    finally:
        os.kill(pid, signal.SIGCONT)
    assert sites.lines() == before
    for part in ("egress", "node"):
        named.kill_part(part)
        until(lambda: curl(sandbox, "https://ok.test/").code == 0, within_s=20, what="a new egress")
        assert curl(sandbox, "https://bad.test/").code in COULD_NOT_CONNECT
