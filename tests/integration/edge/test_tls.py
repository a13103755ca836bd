"""The https names of a sandbox's ports, opened by Python, Node.js, curl and a browser, and through a proxy.

Nothing of the system is changed: what a client needs is what `cloche tls init` prints.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.support import web_service
from tests.support.fixtures import NEEDS_A_SERVER, STATES, connect_options
from tests.support.proxy import WITH_FILES, caddy
from tests.support.server import Server, free_port
from tests.support.source import ROOT
from tests.support.waiting import until

from cloche import Sandbox
from cloche_server.edge import tls

pytestmark = [NEEDS_A_SERVER, pytest.mark.timeout(180)]

BROWSER = (
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-port=0",
)  # fmt: skip
TRIES = 4
"""Chromium drops its requests (ERR_NETWORK_CHANGED) whenever an interface of the machine gets an address, as
that of every new sandbox does; other tests may be at it."""
SEEN = "over the socket | tick0,tick1,tick2 | 5000000 bytes"
"""What the service's page shows when a WebSocket, server-sent events and an upload have passed."""


@pytest.fixture
def service(server: Server) -> Iterator[Sandbox]:
    """A sandbox with the web service on port 8000."""
    yield from with_service(server)


def with_service(server: Server) -> Iterator[Sandbox]:
    """Have the web service run in a sandbox."""
    sandbox = connect_options(server, Sandbox.create)
    sandbox.files.write("/tmp/web_service.py", Path(web_service.__file__).read_text())
    running = sandbox.commands.run("python3 /tmp/web_service.py 8000", background=True, timeout=0)
    assert next(iter(running))[0] == "ready\n"
    yield sandbox
    sandbox.kill()


def clients_env(server: Server, home: Path) -> dict[str, str]:
    """The environment of a shell that has read what `cloche tls init` prints."""
    cloche = f"{sys.executable} -m cloche_server.cli.main"
    script = f'eval "$({cloche} tls init --state {server.state})"; env'
    clean = {"PATH": os.environ["PATH"], "HOME": str(home)}
    done = subprocess.run(
        ["sh", "-euc", script], env=clean, capture_output=True, text=True, timeout=60, check=True
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def output(*argv: str, env: dict[str, str]) -> str:
    """What a program prints; it must end well."""
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.needs("node")
def test_python_node_and_curl_open_the_https_name_of_a_port(
    server: Server, service: Sandbox, tmp_path: Path
) -> None:
    """Issue 4, part 5: with what the command prints, and no edit of system files."""
    env = clients_env(server, tmp_path)
    host = service.get_host(8000)
    url = f"https://{host}/host"
    by_httpx = f"import httpx; print(httpx.get({url!r}).text)"
    by_urllib = f"import urllib.request as u; print(u.urlopen({url!r}).read().decode())"
    by_asyncio = (
        "import asyncio, httpx\n"
        "async def main():\n"
        "    async with httpx.AsyncClient() as client:\n"
        f"        print((await client.get({url!r})).text)\n"
        "asyncio.run(main())\n"
    )
    for program in (by_httpx, by_urllib, by_asyncio):
        assert output(sys.executable, "-c", program, env=env).strip() == host
    assert (
        output("node", "-e", f"fetch('{url}').then((r) => r.text()).then(console.log)", env=env).strip()
        == host
    )
    authority = tls.files(server.state / "tls").authority
    assert output("curl", "-sS", "--cacert", str(authority), url, env=env) == host


@pytest.mark.needs("chromium")
def test_a_browser_that_was_told_of_the_authority_runs_a_page_of_a_sandbox(
    server: Server, service: Sandbox, tmp_path: Path
) -> None:
    """A real browser: the page, its WebSocket, its events and its upload, all below the https name."""
    assert SEEN in browse(service, tls.files(server.state / "tls").authority, tmp_path)


def browse(sandbox: Sandbox, authority: Path, home: Path) -> str:
    """What the service's page has seen in a browser of a user who trusts the authority."""
    database = home / ".pki" / "nssdb"
    database.mkdir(parents=True)
    env = os.environ | {"HOME": str(home)}
    output("certutil", "-d", f"sql:{database}", "-N", "--empty-password", env=env)
    output(
        "certutil", "-d", f"sql:{database}", "-A", "-t", "C,,", "-n", "cloche", "-i", str(authority), env=env
    )
    seen = ""
    for number in range(TRIES):
        seen = open_page(sandbox, home / f"profile{number}", env)
        if not seen.startswith("failed"):
            break
    return seen


def open_page(sandbox: Sandbox, profile: Path, env: dict[str, str]) -> str:
    """One run of the browser, until the page has told what it has seen."""
    sandbox.commands.run("rm -f /tmp/seen")
    argv = [*BROWSER, f"--user-data-dir={profile}", f"https://{sandbox.get_host(8000)}/"]
    browser = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: sandbox.files.exists("/tmp/seen"), within_s=60, what="the page")
    finally:
        browser.terminate()
        browser.wait(timeout=20)
    return sandbox.files.read("/tmp/seen")


@pytest.fixture
def fronted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose domain is served by a proxy."""
    base = tmp_path_factory.mktemp("front")
    server = Server(base / "state")
    server.state.mkdir()
    (server.state / "config.toml").write_text(f'domain = "box.localhost:{free_port()}"\n')
    STATES.add(server.state)
    try:
        yield server.start()
    finally:
        server.stop()
        shutil.rmtree(base, ignore_errors=True)


@pytest.mark.needs("caddy", "chromium")
def test_the_proxy_of_the_page_carries_the_control_plane_files_and_a_browser(
    fronted: Server, tmp_path: Path
) -> None:
    """docs/tls.md, the third way: a client that only knows the domain, and everything a web page does."""
    files = tls.files(fronted.state / "tls")
    domain = fronted.env["E2B_DOMAIN"]
    env = clients_env(fronted, tmp_path)
    names = {"DOMAIN": domain, "CLOCHE": f"127.0.0.1:{fronted.port}"}
    names |= {"CERTIFICATE": str(files.certificate), "KEY": str(files.key)}
    with caddy(WITH_FILES, tmp_path / "proxy", **names):
        until(lambda: answers(f"https://{domain}/health", files), within_s=20, what="the proxy")
        program = (
            "from cloche import Sandbox\n"
            f"urls = dict(api_url='https://api.{domain}', sandbox_url='https://{domain}')\n"
            f"with Sandbox.create(api_key={fronted.key!r}, **urls) as sandbox:\n"
            "    sandbox.files.write('/tmp/big', b'x' * 20_000_000)\n"
            "    print(len(sandbox.files.read('/tmp/big', format='bytes')))\n"
            "    print(sandbox.run_code('1 + 1').text, sandbox.commands.run('echo done').stdout)\n"
        )
        assert output(sys.executable, "-c", program, env=env).split() == ["20000000", "2", "done"]
        for sandbox in with_service(fronted):
            (tmp_path / "browser").mkdir()
            page = browse(sandbox, files.authority, tmp_path / "browser")
            assert SEEN in page


@pytest.mark.needs("caddy")
def test_a_proxy_that_gets_its_certificates_by_acme_serves_every_name(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """docs/tls.md: a real authority, orders and challenges, in a network namespace with names of its own."""
    argv = ["unshare", "--net", sys.executable, "-m", "tests.integration.edge.acme_world"]
    argv.append(str(tmp_path_factory.mktemp("acme")))  # short: the path of a Unix socket has 107 bytes
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    created, certified = done.stdout.splitlines()
    assert created == "201 box.test 204"
    assert certified.startswith("True Caddy Local Authority")


def answers(url: str, files: tls.TlsFiles) -> bool:
    """Whether something serves this URL with our certificate; `localhost` names lead here."""
    with_address = re.sub(r"//[^:]+", "//127.0.0.1", url)
    try:
        httpx.get(with_address, verify=False, headers={"Host": url.split("/")[2]}, trust_env=False)
    except httpx.TransportError:
        return False
    return True
