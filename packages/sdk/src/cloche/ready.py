"""Ready commands: when the start command of a template is so far. Each is a line for the sandbox's shell."""

from __future__ import annotations

import shlex


def wait_for_port(port: int) -> str:
    """Something listens on this port."""
    return f'[ -n "$(ss -Htuln sport = :{int(port)})" ]'


def wait_for_url(url: str, status_code: int = 200) -> str:
    """An address answers with this status."""
    asked = f'curl -s -o /dev/null -w "%{{http_code}}" {shlex.quote(url)}'
    return f'[ "$({asked})" = {int(status_code)} ]'


def wait_for_process(name: str) -> str:
    """A process of this name runs."""
    return f"pgrep {shlex.quote(name)} > /dev/null"


def wait_for_file(path: str) -> str:
    """A file is there."""
    return f"[ -f {shlex.quote(path)} ]"


def wait_for_timeout(milliseconds: int) -> str:
    """So much time is over: says nothing of the start command, so creates on demand do not wait for it."""
    return f"sleep {max(1, milliseconds // 1000)}"
