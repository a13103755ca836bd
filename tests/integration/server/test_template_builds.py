"""Templates of Dockerfiles, by our own command, on a real node: what is in them, and what a crash leaves."""

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.fixtures import NEEDS_A_SERVER, connect_options
from tests.support.server import Server
from tests.support.waiting import until

from cloche import Sandbox

pytestmark = [NEEDS_A_SERVER, pytest.mark.timeout(300)]

Cli = Callable[..., subprocess.CompletedProcess[str]]

DOCKERFILE = """# syntax=docker/dockerfile:1
ARG BASE=e2bdev/base
FROM $BASE AS tools
WORKDIR /out
RUN <<EOF
printf '#!/bin/sh\\necho tool "$@"\\n' > tool
chmod 755 tool
mkdir lib && echo library > lib/one
EOF
FROM $BASE
ARG VERSION=7
ENV NAME=world GREETING="hello $VERSION"
SHELL ["/bin/bash", "-c"]
RUN [[ $VERSION == 7 ]] && echo "$VERSION" > /etc/version
RUN ["/bin/touch", "/etc/of exec"]
COPY --from=tools /out/tool /usr/local/bin/
COPY --from=tools /out/lib /opt/lib
COPY --chown=user:user --chmod=0750 app /home/user/app
COPY <<EOF /etc/greeting
$GREETING of $NAME
EOF
ADD archive.tar.gz /srv
RUN rm /etc/debian_version
EXPOSE 80
LABEL any=thing
CMD ["python3", "-m", "http.server", "8123", "-d", "/srv"]
"""


@pytest.fixture
def cli(own_server: Server) -> Cli:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "cloche_server.cli.main", "template", *words]
        argv += ["--state", str(own_server.state)]
        env = os.environ | {"CLOCHE_TEMPLATES": str(own_server.templates)}
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=240, check=False)

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "project"
    (made / "app" / "sub").mkdir(parents=True)
    (made / "app" / "main.py").write_text("print('app')\n")
    (made / "app" / "sub" / "secret.txt").write_text("no")
    (made / ".dockerignore").write_text("**/secret.txt\n")
    (made / "page").write_text("of an archive\n")
    subprocess.run(["tar", "-czf", "archive.tar.gz", "page"], cwd=made, check=True)
    (made / "Dockerfile").write_text(DOCKERFILE)
    return made


def steps(*lines: str) -> str:
    return "\n".join(["FROM e2bdev/base", *lines])


def build(cli: Cli, folder: Path, name: str, *more: str) -> str:
    done = cli("build", str(folder), "--name", name, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_dockerfile_becomes_a_template(cli: Cli, folder: Path, own_server: Server) -> None:
    printed = build(cli, folder, "whole:v1", "-t", "default", "--memory-mb", "1024", "--ready-cmd", "true")
    assert "COPY_FROM tools" in printed
    sandbox = connect_options(own_server, Sandbox.create, "whole")
    try:

        def said(command: str) -> str:
            return sandbox.commands.run(command).stdout

        assert said("tool a b; cat /opt/lib/one /etc/version") == "tool a b\nlibrary\n7\n"
        assert said("cat /etc/greeting; ls '/etc/of exec'") == "hello 7 of world\n/etc/of exec\n"
        assert said("pwd; whoami; echo $NAME; echo [$VERSION]") == "/home/user\nuser\nworld\n[]\n"
        assert said("stat -c '%a %U' app/main.py; find app -name 'secret*'") == "750 user\n"
        assert said("ls /etc/debian_version 2>&1 || true").startswith("ls: cannot access")
        assert (
            said("stat -c %U /home/user /usr/local/bin/tool /.cloche-copied 2>/dev/null || true")
            == "user\nroot\n"
        )
        assert said("cat /srv/page") == "of an archive\n"
    finally:
        sandbox.kill()


def test_a_build_that_is_known_runs_nothing(cli: Cli, folder: Path) -> None:
    build(cli, folder, "known")
    began = time.monotonic()
    printed = build(cli, folder, "known")
    took_s = time.monotonic() - began
    assert printed.count("CACHED") >= 8
    assert took_s < 30, printed
    (folder / "app" / "main.py").write_text("print('other')\n")
    assert "CACHED COPY_FROM" in build(cli, folder, "known")


def build_by_steps(server: Server, name: str, **description: object) -> list[str]:
    """Build over REST; the lines of its log."""
    asked = server.request("POST", "/v3/templates", json={"name": name, "memoryMB": 512}).json()
    path = f"/templates/{asked['templateID']}/builds/{asked['buildID']}"
    assert server.request("POST", f"/v2{path}", json=description).status_code == 202

    def status() -> dict[str, Any]:
        return server.request("GET", f"{path}/status").json()

    until(lambda: status()["status"] in ("ready", "error"), within_s=240, what="the end of the build")
    found = status()
    assert found["status"] == "ready", found
    pages = (server.request("GET", f"{path}/logs?limit=100").json()["logs"],)
    return [entry["message"] for page in pages for entry in page]


def test_a_template_of_a_long_template_has_more_steps_than_a_root_has_layers(own_server: Server) -> None:
    """60 steps over 60: each is there, and none is run again."""
    for name, base in (("long", {}), ("longer", {"fromTemplate": "long"})):
        commands = [f"echo {name} > /srv/{name}-{number}" for number in range(60)]
        steps = [{"type": "RUN", "args": [command, "root"]} for command in [*commands, f"rm /srv/{name}-0"]]
        build_by_steps(own_server, name, steps=steps, **base)
    lines = build_by_steps(own_server, "longer", steps=steps, fromTemplate="long")
    assert sum("CACHED" in line for line in lines) == 61
    sandbox = connect_options(own_server, Sandbox.create, "longer")
    try:
        assert sandbox.commands.run("ls /srv | wc -l; cat /srv/* | sort -u").stdout == "118\nlong\nlonger\n"
    finally:
        sandbox.kill()


def test_twenty_templates_of_one_base_take_what_differs_between_them(own_server: Server) -> None:
    """What they share, the base and the steps that are the same, is on the disk once: by its blocks."""
    shared, unique = 4 << 20, 1 << 20
    common = {"type": "RUN", "args": [f"head -c {shared} /dev/urandom > /srv/common", "root"]}
    before = disk_bytes(own_server.state / "layers")
    for number in range(20):
        own = {"type": "RUN", "args": [f"head -c {unique} /dev/urandom > /srv/{number}", "root"]}
        build_by_steps(own_server, f"one-of-{number}", steps=[common, own])
    taken = disk_bytes(own_server.state / "layers") - before
    taken += sum(disk_bytes(path) for path in own_server.templates.iterdir() if not path.is_symlink())
    wanted = shared + 20 * unique
    assert wanted <= taken <= 1.2 * wanted


def disk_bytes(folder: Path) -> int:
    """Blocks of everything in a folder, each file counted once."""
    found = {path.lstat().st_ino: path.lstat().st_blocks * 512 for path in [folder, *folder.rglob("*")]}
    return sum(found.values())


def test_what_there_is_is_listed_shown_and_deleted(cli: Cli, folder: Path) -> None:
    (folder / "Dockerfile").write_text(steps("RUN echo some > /etc/some", "USER root"))
    build(cli, folder, "listed")
    assert "listed" in cli("list").stdout
    shown = cli("inspect", "listed").stdout
    assert "a root of its own" in shown
    assert "user      root" in shown
    assert "layer-" in shown
    assert "0 layers would be removed" in cli("prune", "--dry-run").stdout
    assert cli("pin", "listed").stdout == "listed is pinned\n"
    assert cli("unpin", "listed").stdout == "listed is not pinned\n"
    assert "not found" in cli("pin", "no-such").stderr
    assert cli("delete", "-y", "listed").returncode == 0
    gone = cli("inspect", "listed")
    assert gone.returncode == 1
    assert "not found" in gone.stderr


def test_what_is_refused_or_fails_is_said_in_a_line(cli: Cli, folder: Path, own_server: Server) -> None:
    (folder / "Dockerfile").write_text(steps("RUN true", "VOLUME /data"))
    refused = cli("build", str(folder), "--name", "bad")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "error: line 3: not supported: VOLUME" in refused.stderr
    (folder / "Dockerfile").write_text(steps("RUN echo before; echo why >&2; exit 4"))
    failed = cli("build", str(folder), "--name", "bad")
    assert failed.returncode == 1
    assert "why" in failed.stdout
    assert "exit status 4" in failed.stderr
    (folder / "Dockerfile").write_text("FROM no.such.registry/image:1\n")
    unknown = cli("build", str(folder), "--name", "bad")
    assert "registry no.such.registry cannot be reached" in unknown.stderr
    assert own_server.request("POST", "/v2/sandboxes", json={"templateID": "bad"}).status_code == 404


def test_a_start_command_that_ends_at_once_fails_the_build(cli: Cli, folder: Path) -> None:
    (folder / "Dockerfile").write_text(steps("CMD exit 3"))
    failed = cli("build", str(folder), "--name", "unstartable", "--ready-cmd", "test -e /never")
    assert failed.returncode == 1
    assert "3" in failed.stderr


class Slow:
    """A build that stands in a step until it is stopped."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        asked = server.request("POST", "/v3/templates", json={"name": name}).json()
        self.template = asked["templateID"]
        self.path = f"/templates/{self.template}/builds/{asked['buildID']}"
        body = {"steps": [{"type": "RUN", "args": ["echo begun; sleep 600"]}]}
        assert server.request("POST", f"/v2{self.path}", json=body).status_code == 202
        until(self.has_begun, within_s=60, what="the step that takes its time")

    def status(self) -> dict[str, Any]:
        return self.server.request("GET", f"{self.path}/status").json()

    def has_begun(self) -> bool:
        return any(entry["message"] == "begun" for entry in self.status()["logEntries"])

    def failure(self) -> str:
        def look() -> str:
            found = self.status()
            return found["reason"]["message"] if found["status"] == "error" else ""

        return until(look, within_s=20, what="the end of the build")


@pytest.fixture
def no_sandboxes_after(own_server: Server) -> Iterator[None]:
    """No sandbox of a build outlives it, and nothing that it was making."""
    yield
    folders = own_server.state / "sandboxes"
    until(lambda: not list(folders.iterdir()), within_s=20, what="no folder of a sandbox")
    left = [*own_server.state.glob("layers/*.new"), *own_server.state.glob("uploads/*/.*")]
    assert left == [], "no layer and no archive is half there"


@pytest.mark.usefixtures("no_sandboxes_after")
@pytest.mark.parametrize("part", ["api", "node"])
def test_a_crash_ends_the_build_and_leaves_nothing_of_it(own_server: Server, part: str) -> None:
    slow = Slow(own_server, f"crash-{part}")
    own_server.kill_part(part)
    assert slow.failure()
    again = Slow(own_server, f"crash-{part}")
    assert own_server.request("DELETE", f"/templates/{again.template}").status_code == 204


@pytest.mark.usefixtures("no_sandboxes_after")
def test_a_newer_build_or_a_delete_ends_the_one_that_runs(own_server: Server) -> None:
    first = Slow(own_server, "twice")
    second = Slow(own_server, "twice")
    assert "newer build" in first.failure()
    assert own_server.request("DELETE", f"/templates/{second.template}").status_code == 204
    assert own_server.request("GET", f"{second.path}/status").status_code == 400


@pytest.mark.needs("runsc")
def test_steps_and_sandboxes_of_a_template_have_the_isolation_that_it_asks_for(own_server: Server) -> None:
    """And what there is not is refused before anything runs."""
    asked = own_server.request("POST", "/v3/templates", json={"name": "isolated", "memoryMB": 512}).json()
    path = f"/templates/{asked['templateID']}/builds/{asked['buildID']}"
    body = {"steps": [{"type": "RUN", "args": ["dmesg > /seen", "root"]}], "isolation": "no-such"}
    assert own_server.request("POST", f"/v2{path}", json=body).status_code == 400
    assert own_server.request("POST", f"/v2{path}", json=body | {"isolation": "gvisor"}).status_code == 202

    def status() -> str:
        return own_server.request("GET", f"{path}/status").json()["status"]

    until(lambda: status() in ("ready", "error"), within_s=120, what="the end of the build")
    assert status() == "ready"
    sandbox = connect_options(own_server, Sandbox.create, "isolated")
    try:
        shown = own_server.request("GET", f"/sandboxes/{sandbox.sandbox_id}").json()
        assert shown["isolation"] == "gvisor"
        assert "Starting gVisor" in sandbox.commands.run("cat /seen").stdout
    finally:
        sandbox.kill()


TEMPLATE = """
from cloche import Template

template = (
    Template(name="of-python", memory_mb=512)
    .copy("app", "/srv/app", user="user")
    .preload("wave", "no_such_module")
)
"""


def test_a_python_file_becomes_a_template(cli: Cli, folder: Path, own_server: Server) -> None:
    """The caller of the command runs it; what it wants preloaded is tried when it is built, and shown."""
    (folder / "template.py").write_text(TEMPLATE)
    done = cli("build", str(folder / "template.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no_such_module cannot be imported" in done.stdout
    shown = cli("inspect", "of-python").stdout
    assert "preloaded numpy, pandas, matplotlib.pyplot, wave, no_such_module" in shown
    assert "warning   no_such_module cannot be imported" in shown
    assert "isolation container" in shown
    assert "image     -" in shown
    sandbox = connect_options(own_server, Sandbox.create, "of-python")
    try:
        assert sandbox.commands.run("stat -c %U /srv/app/main.py").stdout == "user\n"
    finally:
        sandbox.kill()


def test_a_template_goes_to_a_file_and_comes_back(
    cli: Cli, folder: Path, own_server: Server, tmp_path: Path
) -> None:
    """With all that its layers hide, its links, owners and modes; the file is plain tar and JSON."""
    (folder / "Dockerfile").write_text(
        steps(
            "ENV GREETING='of $5'",
            "RUN mkdir -p /data/old && echo gone > /data/old/file && echo gone > /data/single",
            "RUN rm -r /data/old /data/single /etc/debian_version"
            " && mkdir /data/old && echo new > /data/old/other",
            "RUN cp /data/old/other /data/one && ln /data/one /data/two && ln -s nowhere /data/link"
            " && install -d -m 1777 /data/shared && install -o user -m 4750 /data/one /data/bits",
            "WORKDIR /data",
        )
    )
    build(cli, folder, "travels", "-c", "sleep 1000", "--ready-cmd", "true", "--preload", "wave")
    file = tmp_path / "travels.tar"
    written = cli("export", "travels", "-o", str(file))
    assert written.returncode == 0, written.stderr
    with tarfile.open(file) as tar:
        about = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        assert [layer["file"] for layer in about["layers"]] == tar.getnames()[:-1]
        with tarfile.open(fileobj=tar.extractfile("layers/002.tar")) as layer:
            names = layer.getnames()
    assert {"data/.wh.single", "etc/.wh.debian_version", "data/old/.wh..wh..opq"} <= set(names)
    found = cli("import", str(file), "--name", "arrived")
    assert found.returncode == 0, found.stdout + found.stderr
    looks = """ls -A /data /data/old; cat /data/two; readlink /data/link; echo "$GREETING"; pwd; whoami
        stat -c '%n %a %U' /data/* /usr/bin/sudo /home/user; stat -c '%h' /data/one /data/two
        ls /etc/debian_version 2>&1
        ps -eo args= | grep -c '^sleep 1000'"""
    said: list[str] = []
    for name in ("travels", "arrived"):
        sandbox = connect_options(own_server, Sandbox.create, name)
        said.append(sandbox.commands.run(looks).stdout)
        assert sandbox.run_code("import pandas\npandas.__name__").text == "pandas"
        sandbox.kill()
    assert said[0] == said[1]
    assert "of $5" in said[1]
    assert cli("import", str(file), "--name", "again").stdout.count("CACHED LAYER") == len(about["layers"])


def test_a_damaged_file_makes_no_template(cli: Cli, folder: Path, own_server: Server, tmp_path: Path) -> None:
    """Neither by the command, which reads all of it first, nor by a server that is sent other bytes."""
    file = tmp_path / "bad.tar"
    file.write_bytes(b"no archive")
    assert "not a template" in cli("import", str(file), "--name", "bad").stderr
    asked = own_server.request("POST", "/v3/templates", json={"name": "bad"}).json()
    path = f"/templates/{asked['templateID']}"
    link = own_server.request("GET", f"{path}/files/{'a' * 64}").json()
    httpx.put(link["url"], content=b"other bytes", trust_env=False).raise_for_status()
    body = {"fromImage": "(layers)", "steps": [{"type": "LAYER", "args": ["x"], "filesHash": "a" * 64}]}
    started = own_server.request("POST", f"/v2{path}/builds/{asked['buildID']}", json=body)
    assert started.status_code == 202, started.text

    def ended() -> dict[str, Any]:
        status = own_server.request("GET", f"{path}/builds/{asked['buildID']}/status").json()
        return status if status["status"] == "error" else {}

    assert "not what it should be" in until(ended, within_s=60, what="the end")["reason"]["message"]
    assert own_server.request("POST", "/v2/sandboxes", json={"templateID": "bad"}).status_code == 404
