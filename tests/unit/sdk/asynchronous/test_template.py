"""Templates of our client, over a server that only answers what it is told to."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import httpx
import pytest
from tests.fakes.sandbox_server import SandboxServer, body_of

from cloche import BuildLogEntry, ready
from cloche._async.template import AsyncTemplate
from cloche.errors import BuildFailed, InvalidArgument, PermissionDenied
from cloche_wire.build_context import Context

pytestmark = pytest.mark.anyio

PATH = "/templates/t1/builds/b1"
LINE = {"timestamp": "2026-01-02T03:04:05Z", "level": "info", "message": "[1/2] COPY", "step": "1"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "project"
    (made / "app").mkdir(parents=True)
    (made / "app" / "main.py").write_text("print(1)")
    (made / "app" / "left.out").write_text("no")
    return made


def expect(server: SandboxServer, *statuses: dict[str, object]) -> None:
    asked = {"templateID": "t1", "buildID": "b1", "tags": ["default"]}
    server.on("POST /v3/templates", httpx.Response(202, json=asked))
    server.on(f"POST /v2{PATH}", httpx.Response(202))
    answers = [httpx.Response(200, json={"logEntries": [], **one}) for one in statuses]
    server.on(f"GET {PATH}/status", *answers)


async def test_what_is_copied_is_sent_and_the_description_names_it(
    server: SandboxServer, folder: Path, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    known = Context(folder, scratch, ["**/left.out"]).pack(["app"]).files_hash
    expect(server, {"status": "building", "logEntries": [LINE]}, {"status": "ready"})
    link = {"present": False, "url": "http://127.0.0.1:3000/templates/uploads/x"}
    server.on(
        f"GET /templates/t1/files/{known}",
        httpx.Response(201, json=link),
        httpx.Response(201, json=link | {"present": True}),
    )
    server.on("PUT /templates/uploads/x", httpx.Response(201))
    template = (
        AsyncTemplate(folder, ["**/left.out"], cpu_count=4)
        .from_template("base:v1")
        .copy("app", "/srv", user="user", mode=0o755)
        .preload("polars")
        .set_start_cmd("serve", ready.wait_for_port(8000))
        .set_isolation("gvisor")
    )
    lines: list[BuildLogEntry] = []
    for _ in range(2):
        made = await AsyncTemplate.build(
            template, "name:v2", tags=["new"], memory_mb=512, on_build_logs=lines.append
        )
        assert (made.template_id, made.build_id, made.tags) == ("t1", "b1", ("default",))
    (upload,) = server.asked("PUT /templates/uploads/x")
    with tarfile.open(fileobj=io.BytesIO(upload.content)) as archive:
        assert archive.getnames() == ["main.py"]
    assert upload.headers["content-length"] == str(len(upload.content))
    asked = server.asked("POST /v3/templates")[0]
    assert body_of(asked) == {"name": "name:v2", "tags": ["new"], "cpuCount": 4, "memoryMB": 512}
    assert json.loads(server.asked(f"POST /v2{PATH}")[0].content) == {
        "fromTemplate": "base:v1",
        "force": False,
        "steps": [
            {"type": "COPY", "args": [".", "/srv", "user", "0755"], "force": False, "filesHash": known}
        ],
        "startCmd": "serve",
        "readyCmd": ready.wait_for_port(8000),
        "preload": ["polars"],
        "isolation": "gvisor",
    }
    assert [(line.level, line.step, line.message) for line in lines] == [("info", "1", "[1/2] COPY")]


async def test_a_step_that_fails_is_an_error_that_names_it(server: SandboxServer) -> None:
    expect(server, {"status": "error", "reason": {"message": "exit status 9", "step": "2"}})
    with pytest.raises(BuildFailed, match="exit status 9") as failed:
        await AsyncTemplate.build(AsyncTemplate().run_cmd("exit 9"), "name")
    assert failed.value.step == "2"


async def test_what_is_not_there_is_refused_before_anything_is_asked(
    server: SandboxServer, folder: Path
) -> None:
    with pytest.raises(InvalidArgument, match="nothing"):
        await AsyncTemplate.build(AsyncTemplate(folder).copy("nothing", "/"), "name")
    for bad in ("/etc/passwd", "../other", "app/../../x"):
        with pytest.raises(InvalidArgument, match="within the folder"):
            AsyncTemplate(folder).copy(bad, "/")
    with pytest.raises(InvalidArgument, match="password"):
        AsyncTemplate().from_image("private", username="me")
    assert server.requests == []


async def test_templates_are_looked_for_and_deleted(server: SandboxServer) -> None:
    server.on("GET /templates/aliases/mine", httpx.Response(200, json={"templateID": "t1", "public": False}))
    assert await AsyncTemplate.exists("mine") is True
    assert await AsyncTemplate.exists("other") is False
    server.on("DELETE /templates/mine", httpx.Response(204), httpx.Response(404, json={}))
    assert await AsyncTemplate.delete("mine") is True
    assert await AsyncTemplate.delete("mine") is False
    server.on("DELETE /templates/base", httpx.Response(403, json={"message": "not your team's"}))
    with pytest.raises(PermissionDenied):
        await AsyncTemplate.delete("base")


def test_every_verb_is_a_step_in_its_place() -> None:
    template = (
        AsyncTemplate()
        .set_envs({"A": "1", "B": "2 3"})
        .set_envs({})
        .set_workdir("/srv")
        .set_user("worker")
        .run_cmd(["one", "two"])
        .skip_cache()
        .pip_install(["polars>=1", "rich"])
        .pip_install(g=False)
        .npm_install("axios", dev=True)
        .npm_install(g=True)
        .apt_install(["git", "vim"], no_install_recommends=True)
        .git_clone("https://x/y", "/srv/y", branch="main", depth=1)
        .make_dir(["/a b", "/c"], mode=0o700)
        .make_symlink("/a b", "/d", force=True)
        .rename("/d", "/e", user="root")
        .remove("/e", recursive=True, force=True)
    )
    steps = template.describe()["description"]["steps"]
    assert [step["force"] for step in steps] == [False] * 4 + [True] * 10
    assert [(step["type"], *step["args"]) for step in steps] == [
        ("ENV", "A", "1", "B", "2 3"),
        ("WORKDIR", "/srv"),
        ("USER", "worker"),
        ("RUN", "one && two"),
        ("RUN", "pip install 'polars>=1' rich", "root"),
        ("RUN", "pip install --user ."),
        ("RUN", "npm install --save-dev axios"),
        ("RUN", "npm install -g", "root"),
        (
            "RUN",
            "apt-get update && DEBIAN_FRONTEND=noninteractive"
            " apt-get install -y --no-install-recommends git vim",
            "root",
        ),
        ("RUN", "git clone --branch=main --single-branch --depth=1 https://x/y /srv/y"),
        ("RUN", "mkdir -p -m0700 '/a b' /c"),
        ("RUN", "ln -s -f '/a b' /d"),
        ("RUN", "mv /d /e", "root"),
        ("RUN", "rm -r -f /e"),
    ]


def test_the_folder_is_that_of_the_file_that_describes_it() -> None:
    described = AsyncTemplate(name="mine").from_base_image().describe()
    assert described["context"] == str(Path(__file__).parent)
    assert described["name"] == "mine"
    assert described["description"]["fromImage"] == "e2bdev/base"
