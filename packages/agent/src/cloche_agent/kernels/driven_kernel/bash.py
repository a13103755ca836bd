# ruff: noqa: UP045 - runs on Python 3.9
"""Cells that one bash runs: its variables, functions and folder last, its output is that of its descriptors.

An interactive bash, for only that one goes back to its next line when it is interrupted, whatever it was
doing. It has no terminal, so programs print as into a pipe, and errors are apart from output. (The kernel of
PyPI, bash_kernel, puts both through one terminal, and brings ipykernel: 0.7 s and 40 MiB for each context.)
"""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING, Optional

from .driver import die_with_parent, interrupt_group
from .voice import Failure

if TYPE_CHECKING:
    from .voice import Voice

_LARGEST_LINE = 4096
"""Longer cells are handed over as a file: bash reads the lines of a pipe one byte at a time."""
_LOOK_MS = 200
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_SETTLE = "set +H +m; shopt -u checkwinsize; PS1= PS2="


class BashBackend:
    """One bash, made anew when a cell has ended it."""

    def __init__(self) -> None:
        """Nothing is started yet."""
        self._number = 0
        self._said = b""
        self._is_over = True
        self._is_interrupted = False

    def start(self) -> None:
        """Start bash in the folder of this process.

        Raises:
            Failure: There is no bash.
        """
        if shutil.which("bash") is None:
            raise Failure("program", "bash")
        lines_read, self._lines = os.pipe2(os.O_CLOEXEC)
        self._said_read, said = os.pipe2(os.O_CLOEXEC)
        errors = os.dup(2)
        self._said_fd = said
        # SAFETY: bash gets its end of both pipes and our own descriptor 2, which cells write to anyway.
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "--noediting", "-i"], stdin=lines_read,
            stderr=subprocess.DEVNULL, pass_fds=(said, errors), preexec_fn=die_with_parent,
            env={**os.environ, "PS1": "", "PS2": ""},
        )  # fmt: skip
        for descriptor in (lines_read, said, errors):
            os.close(descriptor)
        # Its complaint that there is no terminal is for nobody.
        self._tell(f"exec 2>&{errors} {errors}>&-; {_SETTLE}; printf 'done 0 0\\n' >&{said}\n")
        self._await_end(0)

    def assign(self, variables: dict[str, Optional[str]]) -> None:
        """Set variables in bash, those that can be variables of a shell."""
        for name, value in variables.items():
            if _NAME.match(name):
                self._tell(f"unset {name}\n" if value is None else f"export {name}={_quoted(value)}\n")

    def renew(self) -> None:
        """Seed bash's own generator; `$SRANDOM` needs no seed."""
        self._tell(f"RANDOM={int.from_bytes(os.urandom(3), 'big')}\n")

    def run(self, code: str, variables: dict[str, str], voice: Voice) -> None:
        """Run a cell; an exit code that is not 0 is an error, as in Jupyter's kernel."""
        self._number += 1
        self._is_interrupted = self._is_over = False
        names = [name for name in variables if _NAME.match(name)]
        for name in names:
            self._tell(f"__cloche_{name}=$(declare -p {name} 2>/dev/null)\n")
            self._tell(f"export {name}={_quoted(variables[name])}\n")
        with _handed_over(code) as cell:
            # One line, so that an interrupt skips to the next one; the prompt's command then tells of it.
            self._tell(
                f"PROMPT_COMMAND='printf \"prompt {self._number} $?\\n\" >&{self._said_fd}'; "
                f"eval {cell} </dev/null; printf 'done {self._number} %s\\n' $? >&{self._said_fd}\n"
            )
            status = self._await_end(self._number)
        self._is_over = True
        if status is not None and self._is_interrupted and not self._has_settled():
            status = None
        if status is None:
            self._renew(voice)
            return
        self._tell("PROMPT_COMMAND=\n")
        for name in names:
            self._tell(f'unset {name}; eval "$__cloche_{name}"; unset __cloche_{name}\n')
        if status:
            voice.error("ExitStatus", str(status), f"exit status {status}")

    def settle(self, voice: Voice) -> None:
        """Wait as after a cell that was interrupted: the last signals go to bash too, past this process."""
        if not self._has_settled():
            self._renew(voice)

    def interrupt(self) -> None:
        """End what bash waits for, and what it does; nothing once the cell is over."""
        if not self._is_over:
            self._is_interrupted = True
            interrupt_group()

    def _has_settled(self) -> bool:
        """Wait until bash has taken every interrupt; False when it has ended.

        The agent repeats itself, and a signal that bash takes while it reads its next line makes it forget
        what it has read of that line. So it is given one that may be lost, until it has answered one.
        """
        while self._process.poll() is None:
            self._tell(f"\necho done -{self._number} 0 >&{self._said_fd}\n")
            if self._await_end(-self._number, _LOOK_MS) is not None:
                return True
        return False

    def _tell(self, line: str) -> None:
        data = line.encode("utf-8", "surrogateescape")
        try:
            while data:
                data = data[os.write(self._lines, data) :]
        except BrokenPipeError:
            return  # bash has ended: whoever waits for its answer sees it

    def _await_end(self, number: int, patience_ms: Optional[int] = None) -> Optional[int]:
        """The exit status of a cell; None when bash itself has ended, or has said nothing for so long."""
        # The other end may be held by what a cell has put into the background, hence the look at bash itself.
        watch = select.poll()
        watch.register(self._said_read, select.POLLIN)
        while True:
            if watch.poll(patience_ms or _LOOK_MS):
                data = os.read(self._said_read, 4096)
                if not data:
                    return None
                *lines, self._said = (self._said + data).split(b"\n")
                for line in lines:
                    kind, of, status = line.split()
                    if int(of) == number and kind in (b"done", b"prompt"):
                        return int(status)
            elif self._process.poll() is not None or patience_ms is not None:
                return None

    def _renew(self, voice: Voice) -> None:
        status = self._process.wait()
        os.close(self._lines)
        os.close(self._said_read)
        self._said = b""
        self.start()
        voice.text("stderr", "bash has ended: variables, functions and folder are those of the start\n")
        if status:
            voice.error("ExitStatus", str(status), f"bash ended with exit status {status}")


class _handed_over:  # noqa: N801 - used as a function
    """The word that `eval` is given: the cell itself, or the content of a file in memory while in use."""

    def __init__(self, code: str) -> None:
        self._code = code.replace("\0", "")
        self._file: Optional[int] = None

    def __enter__(self) -> str:
        if len(self._code) <= _LARGEST_LINE:
            return _quoted(self._code)
        self._file = os.memfd_create("cell")
        with open(self._file, "wb", closefd=False) as file:
            file.write(self._code.encode("utf-8", "surrogateescape"))
        return f'"$(</proc/{os.getpid()}/fd/{self._file})"'

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)


def _quoted(text: str) -> str:
    return shlex.quote(text)
