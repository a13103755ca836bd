"""The command line: what it lists, how it refuses, and what it prints for clients."""

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from click.testing import CliRunner

from cloche_server.api.layer_collection import Collector
from cloche_server.cli import checks, env, main, prepare, quickstart, serve
from cloche_server.cli.lock import StateLock
from cloche_server.config import Config
from cloche_server.templates.workshop import Pruned
from cloche_wire.errors import (
    Conflict,
    InvalidArgument,
    NotEnoughSpace,
    NotFound,
    PermissionDenied,
    Unavailable,
    UnsupportedOption,
)


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "api-key").write_text("e2b_" + "0" * 40 + "\n")
    return tmp_path


def test_help_imports_no_verb() -> None:
    program = "import sys; from cloche_server.cli import main; main.main(['--help'])"
    names = "print(sorted(name for name in sys.modules if name.startswith('cloche_server.cli.')))"
    script = f"import sys\ntry:\n    exec({program!r})\nexcept SystemExit:\n    {names}\n"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip().splitlines()[-1] == "['cloche_server.cli.main']"


@pytest.mark.parametrize("verb", main.VERBS)
def test_every_verb_is_a_command_with_a_help_text(verb: str) -> None:
    module, _, name = main.VERBS[verb][0].partition(":")
    command = getattr(importlib.import_module(module), name)
    assert isinstance(command, click.Command)
    assert command.help


def test_error_is_one_sentence_with_advice_and_status_1(tmp_path: Path) -> None:
    result = CliRunner().invoke(main.cli, ["env", "--state", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"error: no server runs on this state folder: {tmp_path}",
        "hint: start one with `cloche serve`",
    ]


def test_environment_for_clients_names_the_server_and_its_key(state: Path) -> None:
    held = StateLock.take(state)
    held.publish(Config(port=3999, isolation="container"), is_ready=True)
    result = CliRunner().invoke(main.cli, ["env", "--state", str(state)])
    held.release()
    lines = result.stdout.splitlines()
    assert "export E2B_API_URL=http://127.0.0.1:3999" in lines
    assert f"export E2B_API_KEY=e2b_{'0' * 40}" in lines
    assert f"export SSL_CERT_FILE={state}/tls/ca-bundle.pem" in lines


def test_missing_key_is_an_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        env.api_key(tmp_path / "api-key")


def test_down_without_a_server_is_no_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(main.cli, ["down", "--state", str(tmp_path)])
    assert result.exit_code == 0
    assert result.stdout == f"no server runs on {tmp_path}\n"


def test_taken_port_is_refused_with_advice() -> None:
    with serve.listen("127.0.0.1", 0) as taken, pytest.raises(Conflict, match="is in use") as caught:
        serve.listen("127.0.0.1", taken.getsockname()[1])
    assert caught.value.hint == "choose another one with --port"


def test_foreign_address_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"cannot listen on 192\.0\.2\.1"):
        serve.listen("192.0.2.1", 3000)


def test_public_socket_is_handed_over_by_number_only() -> None:
    with serve.listen("127.0.0.1", 0) as listener:
        assert listener.type == socket.SOCK_STREAM
        assert not listener.get_inheritable()


def test_start_without_root_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PermissionDenied, match="needs root"):
        prepare.check_machine(Config(state=str(tmp_path)))


def test_start_elsewhere_than_on_linux_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(Unavailable, match="Linux only: darwin"):
        prepare.check_machine(Config(state=str(tmp_path)))


def test_start_without_nft_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(prepare.shutil, "which", lambda name: None if name == "nft" else name)
    with pytest.raises(Unavailable, match="not installed: nft") as caught:
        prepare.check_machine(Config(state=str(tmp_path)))
    assert caught.value.hint == "apt-get install nftables"


def test_start_on_a_full_disk_says_so_and_makes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(prepare.shutil, "which", lambda name: name)
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda _: _Usage(1, 1, 0))
    with pytest.raises(NotEnoughSpace, match="not enough disk space"):
        prepare.check_machine(Config(state=str(tmp_path / "state")))
    assert not (tmp_path / "state").exists()


def test_a_state_folder_too_deep_for_sockets_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each create failed with status 500 instead."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(prepare.shutil, "which", lambda name: name)
    with pytest.raises(InvalidArgument, match="bytes too long") as caught:
        prepare.check_machine(Config(state=str(tmp_path / ("deep" * 25))))
    assert caught.value.hint is not None


@pytest.mark.parametrize(("without", "settled"), [("", "gvisor"), ("runsc", "container")])
def test_the_strongest_healthy_isolation_is_settled_once_and_written_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, without: str, settled: str
) -> None:
    found = [checks.Check(name, name != without, "") for name in checks.GVISOR]
    monkeypatch.setattr(checks, "run", lambda *_, **__: found)
    config = Config(state=str(tmp_path))
    assert prepare.settle_isolation(config).isolation == settled
    monkeypatch.setattr(checks, "run", lambda *_, **__: pytest.fail("asked again"))
    assert prepare.settle_isolation(config).isolation == settled


@pytest.mark.needs("root")
@pytest.mark.parametrize(("status", "is_healthy"), [(0, True), (1, False)])
def test_a_runsc_is_healthy_when_a_program_runs_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, is_healthy: bool
) -> None:
    program = Config(state=str(tmp_path)).tools_dir / "runsc"
    program.parent.mkdir(parents=True)
    version = '[ "$1" != --version ] || { echo "runsc version release-29990101.0"; exit; }'
    program.write_text(f'#!/bin/sh\n{version}\necho "no luck" >&2\nexit {status}\n')
    program.chmod(0o755)
    (found,) = checks.run(Config(state=str(tmp_path)), names=("runsc",))
    assert found.ok is is_healthy
    assert ("no luck" in found.detail) is not is_healthy
    assert "29990101" in found.detail


def test_no_healthy_isolation_is_an_error_that_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checks, "run", lambda *_, **__: [checks.Check("overlay", False, "no such device")])
    with pytest.raises(Unavailable, match="overlay: no such device"):
        prepare.settle_isolation(Config(state=str(tmp_path)))
    assert not (tmp_path / "isolation").exists()


def test_unknown_isolation_in_the_file_is_never_replaced_in_silence(tmp_path: Path) -> None:
    (tmp_path / "isolation").write_text("microvm\n")
    with pytest.raises(UnsupportedOption, match="microvm"):
        prepare.settle_isolation(Config(state=str(tmp_path)))


def test_quick_start_is_the_program_of_the_users_document(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "print('Hello, E2B!')" in quickstart.PROGRAM
    compile(quickstart.PROGRAM, "quickstart", "exec")


def test_failed_quick_start_ends_with_the_last_words_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "PROGRAM", "raise SystemExit('no such key')")
    with pytest.raises(Unavailable, match="no such key"):
        quickstart.run({})


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({}, "0 layers would be removed: 0.0 MiB\n"),
        (
            {"layer-1": 3 << 20, "layer-22": 1 << 19},
            "layer-1   3.0 MiB\nlayer-22  0.5 MiB\n2 layers would be removed: 3.5 MiB\n",
        ),
    ],
)
def test_prune_lists_what_would_go(
    state: Path, monkeypatch: pytest.MonkeyPatch, layers: dict[str, int], said: str
) -> None:
    async def collect(*_: object, dry_run: bool) -> Pruned:
        assert dry_run
        return Pruned(layers)

    monkeypatch.setattr("cloche_server.cli.template.is_root", lambda: True)
    monkeypatch.setattr(Collector, "collect", collect)
    result = CliRunner().invoke(main.cli, ["template", "prune", "--dry-run", "--state", str(state)])
    assert (result.exit_code, result.stdout) == (0, said)
