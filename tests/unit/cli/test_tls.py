"""`cloche tls`: what a client has to set is printed for a shell, and says nothing that is not so."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cloche_server.cli import main, tls

RESOLUTION = Path(tls.__file__).with_name("name_resolution")


@pytest.fixture(autouse=True)
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "is_root", lambda: True)


def shell(script: str, **env: str) -> str:
    return subprocess.run(["sh", "-euc", script], env=env, capture_output=True, text=True, check=True).stdout


def test_what_is_printed_can_be_read_by_a_shell_and_keeps_what_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "_resolves", lambda name: False)
    state = tmp_path / "a state"
    printed = CliRunner().invoke(
        main.cli, ["tls", "init", "--state", str(state), "--domain", "Box.test:3999"]
    )
    assert printed.exit_code == 0, printed.output
    script = 'eval "$LINES_"; echo "$CLOCHE_RESOLVE|$PYTHONPATH|$NODE_OPTIONS|$SSL_CERT_FILE"'
    shown = shell(script, LINES_=printed.stdout, PYTHONPATH="/mine", NODE_OPTIONS="--mine").strip()
    clients = state / "tls" / "clients"
    assert shown.split("|") == [
        "box.test=127.0.0.1",
        f"{clients}:/mine",
        f"--require={clients}/resolve.cjs --mine",
        f"{state}/tls/ca-bundle.pem",
    ]
    assert sorted(path.name for path in clients.iterdir()) == ["resolve.cjs", "sitecustomize.py"]


def test_where_names_resolve_no_program_is_put_before_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "_resolves", lambda name: True)
    printed = CliRunner().invoke(main.cli, ["tls", "init", "--state", str(tmp_path)]).stdout
    assert "SSL_CERT_FILE" in printed
    assert "PYTHONPATH" not in printed


def test_names_elsewhere_and_a_hidden_sitecustomize_go_their_usual_way(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('hidden one ran')")
    program = (
        "import socket\n"
        "lead = lambda name: socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)[0][4][0]\n"
        "print(lead('8000-x.box.test'), lead('BOX.test.'), lead('127.0.0.9'))\n"
        "try: lead('xbox.test.invalid')\n"
        "except OSError: print('unknown')\n"
    )
    path = f"{RESOLUTION}:{tmp_path}"
    env = {"PYTHONPATH": path, "CLOCHE_RESOLVE": "box.test=127.0.0.7"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["hidden one ran", "127.0.0.7 127.0.0.7 127.0.0.9", "unknown"]


def test_only_root_makes_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "is_root", lambda: False)
    refused = CliRunner().invoke(main.cli, ["tls", "init", "--state", str(tmp_path)])
    assert refused.exit_code == 1
    assert "hint: run it with sudo" in refused.stderr


def test_an_unreadable_certificate_is_one_sentence(tmp_path: Path) -> None:
    argv = ["tls", "use", "--certificate", str(tmp_path / "no.pem"), "--key", "x", "--state", str(tmp_path)]
    refused = CliRunner().invoke(main.cli, argv)
    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"error: cannot read {tmp_path}/no.pem: No such file")
