"""A real `cloche serve` for tests: on a free port, with a state folder of its own, ended in order."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import msgspec

from cloche_server import config as configuration
from cloche_server import link
from cloche_server.cli.env import variables
from cloche_server.cli.lock import running_server
from cloche_wire.errors import ClocheError
from tests.support import capabilities, census, templates
from tests.support.waiting import until

PARTS = ("node", "api", "edge", "egress", "content")
START_S = 60.0


class Server:
    """One server that may be started, maimed and started again on the same state and the same port."""

    def __init__(self, state: Path, *, isolation: str | None = None, ahead: int = 0) -> None:
        """Choose a port; nothing runs until `start`.

        Without an isolation it is that of CLOCHE_TEST_ISOLATION, so that suites can be run on each.

        None made ahead by itself: tests count what is there, and start what they look at.
        """
        self.state = state
        self.ahead = ahead
        self.isolation = isolation or os.environ.get("CLOCHE_TEST_ISOLATION", "container")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = state.parent / f"{state.name}.log"
        self._block = -1
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def key(self) -> str:
        """The first API key, as the server wrote it down for the one who runs it."""
        return (self.state / "api-key").read_text().strip()

    def new_key(self, team: str) -> str:
        """Make a key of another team, as the operator would."""
        argv = [sys.executable, "-m", "cloche_server.cli.main", "key", "create", f"key of {team}"]
        argv += ["--team", team, "--state", str(self.state)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
        found = re.search(r"e2b_[0-9a-f]{40}", done.stdout)
        assert found, done.stdout
        return found[0]

    @property
    def env(self) -> dict[str, str]:
        """Environment under which an unmodified E2B client speaks to this server."""
        return variables(configuration.load({"state": str(self.state)}), running_server(self.state))

    def ready(self) -> dict[str, int]:
        """Ids of the sandboxes that were made ahead, with the pid of their init, as the journal has them."""
        found: dict[str, int] = {}
        for path in self.state.glob("node/journal/*.json"):
            with contextlib.suppress(FileNotFoundError):  # a newer one has taken its place
                record = json.loads(path.read_bytes())
                if record["state"] == "ready":
                    found[record["request"]["sandbox_id"]] = record["init"]["pid"]
        return found

    @property
    def templates(self) -> Path:
        """The folder it takes its templates from: links to those of this machine."""
        return self.state.parent / f"{self.state.name}-templates"

    @property
    def pid(self) -> int:
        """Process id of the supervisor."""
        assert self._process is not None, "the server was not started"
        return self._process.pid

    def start(self) -> "Server":
        """Start it and return when it answers."""
        self.state.parent.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "cloche_server.cli.main", "serve", "--host", "127.0.0.1"]
        argv += ["--port", str(self.port), "--state", str(self.state), "--isolation", self.isolation]
        argv += ["--ahead", str(self.ahead)]
        if not self.templates.exists():
            templates.link(self.templates)
        if not (tools := self.state / "tools").is_symlink() and capabilities.tools_folder().exists():
            self.state.mkdir(mode=0o755, exist_ok=True)
            tools.symlink_to(capabilities.tools_folder())
        env = os.environ | {"CLOCHE_TEMPLATES": str(self.templates)}
        with self.log.open("ab") as log:
            # A session of its own: an interrupt at the terminal is for the tests, which then end the server.
            self._process = subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.wait_until_healthy(within_s=START_S)
        self._block = census.watch(self.state)
        return self

    def wait_until_healthy(self, *, within_s: float) -> None:
        """Return when every part answers: the edge, and through it the api, and through that the node."""
        until(self._answers, within_s=within_s, what=f"a healthy server; see {self.log}\n{self.tail()}")

    def request(self, method: str, path: str, *, key: str | None = None, **options: object) -> httpx.Response:
        """One control-plane request, with the server's own key unless another is given ("" = none)."""
        chosen = self.key if key is None else key
        headers = {"X-API-KEY": chosen} if chosen else {}
        headers |= options.pop("headers", {})  # type: ignore[arg-type]
        return httpx.request(method, self.url + path, headers=headers, timeout=60, trust_env=False, **options)  # type: ignore[arg-type]

    def part(self, name: str) -> int:
        """Process id of a part: `node`, `api`, `edge` or `content`."""
        found = [pid for pid in _children(self.pid) if _is_part(pid, name)]
        assert len(found) == 1, f"{name}: {found}; {self.tail()}"
        return found[0]

    def kill_part(self, name: str) -> None:
        """End a part as a crash would; return when another has taken its place and everything answers."""
        old = self.part(name)
        os.kill(old, signal.SIGKILL)
        until(lambda: self._replaced(name, old), within_s=10, what=f"a new {name}")
        self.wait_until_healthy(within_s=10)

    def kill_supervisor(self) -> None:
        """End the supervisor as a crash would; its children go with it."""
        parts = [self.part(name) for name in PARTS]
        os.kill(self.pid, signal.SIGKILL)
        assert self._process is not None
        self._process.wait(timeout=10)
        until(lambda: not any(_alive(pid) for pid in parts), within_s=10, what="the end of all parts")

    def stop(self) -> None:
        """End it in order, and claim that it ended well and promptly."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=10)
            raise AssertionError(f"the server did not end within 30 s\n{self.tail()}") from None
        assert code == 0, f"the server ended with {code}\n{self.tail()}"
        assert census.traces(self._block) == []

    def tail(self, lines: int = 40) -> str:
        """The end of its log."""
        return (
            "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""
        )

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise AssertionError(f"the server is not running\n{self.tail()}")
        try:
            listed = self.request("GET", "/v2/sandboxes")
            # The api answers this one without the node, so the node is asked too.
            asyncio.run(link.call(self.state / "run" / "node.sock", "list", {}, msgspec.Raw, timeout_s=2))
        except (httpx.TransportError, FileNotFoundError, ClocheError, TimeoutError):
            return False
        return listed.status_code == 200

    def _replaced(self, name: str, old: int) -> bool:
        return any(pid != old and _is_part(pid, name) for pid in _children(self.pid))


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _is_part(pid: int, name: str) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text() == f"cloche-{name}\n"
    return False


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        return state not in "ZX"
    return False
