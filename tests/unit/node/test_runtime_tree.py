"""The private runtime tree starts on its own, tells nothing of the host and is made only once."""

import json
import stat
import subprocess
from pathlib import Path

import pytest

from cloche_server.node import runtime_tree
from cloche_server.node.runtime_tree import RuntimeTree

_PROBE = """
import asyncio, ctypes, hashlib, json, socket, sys, termios, zlib
print(json.dumps({"prefix": sys.prefix, "path": sys.path, "isolated": sys.flags.isolated,
                  "asyncio": asyncio.__cached__, "ssl": "ssl" in sys.modules,
                  "sha256": hashlib.sha256(b"").hexdigest()[:8]}))
"""


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def tree(state: Path) -> RuntimeTree:
    return runtime_tree.ensure(state)


def test_interpreter_starts_from_the_tree_alone(tree: RuntimeTree) -> None:
    command = [*tree.python(str(tree.path)), "-c", _PROBE]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"PYTHONPATH": "/nowhere"}
    )
    seen = json.loads(result.stdout)
    assert seen["prefix"] == str(tree.path)
    assert all(entry.startswith(str(tree.path)) for entry in seen["path"])
    assert seen["isolated"] == 1
    assert seen["asyncio"].endswith(".pyc")
    assert seen["ssl"] is False
    assert seen["sha256"] == "e3b0c442"


def test_agent_archive_can_be_imported_without_the_host_packages(tree: RuntimeTree) -> None:
    probe = "import sys; sys.path.insert(0, sys.argv[1]); import cloche_agent, h11; print(h11.__file__)"
    command = [*tree.python(str(tree.path)), "-c", probe, str(tree.path / "agent.pyz")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip().startswith(str(tree.path / "agent.pyz"))


def test_argv_names_only_paths_inside_the_sandbox(tree: RuntimeTree) -> None:
    argv = tree.argv("--envd-fd", "3")
    assert argv[0] == "/.cloche/lib/ld.so"
    assert argv[-3:] == ("/.cloche/agent.pyz", "--envd-fd", "3")
    assert str(tree.path) not in " ".join(argv)


def test_second_call_gives_the_same_untouched_tree(state: Path, tree: RuntimeTree) -> None:
    before = tree.path.stat().st_mtime_ns
    assert runtime_tree.ensure(state) == tree
    assert tree.path.stat().st_mtime_ns == before


def test_tree_that_lost_a_file_is_made_again(tmp_path: Path) -> None:
    made = runtime_tree.ensure(tmp_path)
    (made.path / "lib" / "libc.so.6").write_bytes(b"")
    assert runtime_tree.ensure(tmp_path) == made
    assert (made.path / "lib" / "libc.so.6").stat().st_size > 0


def test_everybody_reads_and_nobody_else_writes(tree: RuntimeTree) -> None:
    for path in tree.path.rglob("*"):
        mode = path.stat().st_mode
        assert mode & stat.S_IROTH
        assert not mode & (stat.S_IWGRP | stat.S_IWOTH | stat.S_ISUID | stat.S_ISGID)


def test_byte_code_holds_no_path_of_the_host(tree: RuntimeTree) -> None:
    compiled = next((tree.path / "lib").rglob("asyncio/__pycache__/tasks.*.pyc")).read_bytes()
    assert b"/.cloche/lib/" in compiled
    assert str(tree.path).encode() not in compiled
