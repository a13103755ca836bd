"""The processes that `cloche bench` has do the work; their programs lie in `benchmarks/` of the source tree.

The client's run under its own interpreter, because the official packages and ours cannot share one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cloche_server.cli import env
from cloche_server.cli.bench_measures import IPYKERNEL, Outcome
from cloche_server.templates import manifest, recipe
from cloche_wire.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from cloche_server.cli.lock import RunningServer
    from cloche_server.config import Config

SOURCE_TREE = Path(__file__).resolve().parents[5]
_PROGRAMS = SOURCE_TREE / "benchmarks"
_KERNEL_PACKAGES = SOURCE_TREE / ".venv-ipykernel"
_OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")
_CONNECTIONS = "512"
"""Connections that one client may have: its own default, 200, is used up by 200 streams."""


class _Answer(msgspec.Struct):
    """One line of a worker."""

    costs: dict[str, list[float]] = {}
    error: str = ""


class Worker:
    """A process that does one act for each line it is sent."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        """Start it."""
        self._process = subprocess.Popen(
            argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin, "opened above"
        self._process.stdin.close()
        self._process.wait(timeout=60)
        assert self._process.stdout, "opened above"
        self._process.stdout.close()

    def measure(self, act: str, into: Outcome) -> None:
        """Have it do the act once, and keep what that cost, or why it failed."""
        assert self._process.stdin, "opened above"
        assert self._process.stdout, "opened above"
        try:
            self._process.stdin.write(f"{act}\n")
            answer = msgspec.json.decode(self._process.stdout.readline(), type=_Answer)
        except (BrokenPipeError, msgspec.DecodeError):
            answer = _Answer(error=f"the worker ended with {self._process.wait(timeout=10)}")
        if answer.error:
            into.fail(answer.error)
        else:
            into.add(answer.costs)


class Workers:
    """How to start each of them."""

    def __init__(self, config: Config, server: RunningServer, client: Path, samples: int, crowd: int) -> None:
        """Look for what they need.

        Args:
            config: The server's settings.
            server: The server that is measured.
            client: The Python that has the official client.
            samples: How often an act that is done once repeats what it measures.
            crowd: How many sandboxes such an act keeps alive.

        Raises:
            NotFound: The source tree, the client's environment or the template is not there.
            InvalidArgument: We are not root.
        """
        if not (_PROGRAMS / "official_client.py").exists():
            raise NotFound(f"no benchmarks here: {_PROGRAMS}", hint="run it from a source tree")
        if not client.exists():
            raise NotFound(f"no environment with the official client: {client}", hint="make bench")
        if os.geteuid() != 0:
            raise InvalidArgument("the baselines need root", hint="run it with sudo")
        template = manifest.newest(config.templates_dir, recipe.TEMPLATE_ID)
        if template is None:
            raise NotFound("the default template is not built", hint="make setup")
        self._rootfs = config.templates_dir / template.build_id / template.rootfs
        self._path = f"{os.environ.get('PATH', os.defpath)}:{config.tools_dir}"
        self._client = [str(client), str(_PROGRAMS / "official_client.py")]
        # What the official client has to be told, and nothing of our own environment that could change it.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("E2B_", "PYTHON"))}
        self._env = kept | env.variables(config, server)
        self._env |= {
            "E2B_MAX_CONNECTIONS": _CONNECTIONS,
            "CLOCHE_AGENTS": str(config.run_dir / "agents"),
            "CLOCHE_JOURNAL": str(config.journal_dir),
            "CLOCHE_MOST_AHEAD": str(config.ahead.most),
            "CLOCHE_SUPERVISOR": str(server.supervisor.pid),
            "CLOCHE_SAMPLES": str(samples),
            "CLOCHE_CROWD": str(crowd),
            "CLOCHE_COMMAND": msgspec.json.encode([sys.executable, "-m", "cloche_server.cli.main"]).decode(),
            "CLOCHE_STATE_DIR": config.state,
        }

    def official(self) -> Worker:
        """The official client, against the server."""
        return Worker(self._client, self._env)

    @contextmanager
    def floor(self) -> Generator[Worker]:
        """The official client, against a server of its own that does no work."""
        stub = subprocess.Popen(
            [sys.executable, str(_PROGRAMS / "stub_server.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with stub:
            assert stub.stdout, "opened above"
            url = f"http://127.0.0.1:{int(stub.stdout.readline())}"
            own = {"E2B_API_URL": url, "E2B_SANDBOX_URL": url, "CLOCHE_MOST_AHEAD": "0"}
            with Worker(self._client, self._env | own) as worker:
                yield worker
            assert stub.stdin, "opened above"
            stub.stdin.close()

    def machine(self) -> Worker:
        """The bare machine."""
        program = [sys.executable, str(_PROGRAMS / "bare_machine.py"), str(self._rootfs)]
        return Worker([*_OWN_MOUNTS, *program], os.environ | {"PATH": self._path})

    @contextmanager
    def jupyter(self) -> Generator[Worker]:
        """Kernels of Jupyter, under the template's Python."""
        with tempfile.TemporaryDirectory(prefix="cloche-bench-") as place:
            program = [str(_PROGRAMS / "in-template"), str(self._rootfs), str(_KERNEL_PACKAGES), place]
            with Worker([*_OWN_MOUNTS, *program, "jupyter.py"], dict(os.environ)) as worker:
                yield worker

    def lacks(self, program: str) -> str:
        """Why baselines that need this program cannot be measured; empty when they can."""
        if program == IPYKERNEL:
            return "" if _KERNEL_PACKAGES.exists() else "not installed: run tools/bench-kernel"
        return "" if shutil.which(program, path=self._path) else "not installed"

    def client_version(self) -> str:
        """Names and versions of the official packages."""
        names = "('e2b', 'e2b-code-interpreter')"
        code = f"import importlib.metadata as m; print(*[n + ' ' + m.version(n) for n in {names}])"
        return _said([self._client[0], "-c", code])

    def pythons(self) -> dict[str, str]:
        """Versions of Python: the server's, the client's, the template's."""
        version = ["-c", "import platform; print(platform.python_version())"]
        inside = ["chroot", str(self._rootfs), "/usr/bin/env", "-i", f"PATH={os.defpath}", "python3", "-B"]
        return {
            "server": _said([sys.executable, *version]),
            "client": _said([self._client[0], *version]),
            "template": _said([*inside, *version]),
        }


def _said(argv: list[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()
