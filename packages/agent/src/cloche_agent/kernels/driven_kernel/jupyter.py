# ruff: noqa: ANN401, UP045 - jupyter_client is used untyped, runs on Python 3.9
"""Cells that a Jupyter kernel runs: any that the template has, by the name of its kernelspec.

jupyter_client brings the protocol's messages and the list of kernels. Its managers and clients are passed
over: the process belongs to the session the agent watches, and one thread with one poll is all it takes.
See: https://jupyter-client.readthedocs.io/en/stable/messaging.html
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any, Optional

from .driver import die_with_parent, end_like, interrupt_group
from .variables import LANGUAGES, Assignments
from .voice import Failure

if TYPE_CHECKING:
    from .voice import Voice

_OVER_TCP = frozenset({"java"})
"""Languages whose kernels stand on JeroMQ: asked for a Unix socket, it opens one of TCP in silence."""
_ENDS_APART = frozenset({"java"})
"""Languages whose line ends are messages of their own, as E2B's kernel sends them; its tests expect it."""
_LARGEST_APART = 4096
_START_S = 55
_ASK_AGAIN_MS = 500
_CONNECT_AGAIN_MS = 10
_QUIET_SOCKETS_MS = 2000
_PATIENCE_MS = 1000
_LOST_IDLE_S = 5
Message = dict


class JupyterBackend:
    """One Jupyter kernel, and its three sockets."""

    def __init__(self, name: str) -> None:
        """`name` is that of a kernelspec. Nothing is started yet."""
        self._name = name
        self._awake_read, self._awake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    # --- start

    def start(self) -> None:
        """Start the kernel and wait until it answers.

        Raises:
            Failure: No such kernel, its program or jupyter_client is missing, or it does not answer.
        """
        try:
            import zmq
            from jupyter_client import connect, kernelspec
            from jupyter_client.session import Session
        except ImportError as error:
            raise Failure("package", (error.name or "jupyter_client").partition(".")[0]) from error
        try:
            spec = kernelspec.KernelSpecManager().get_kernel_spec(self._name)
        except kernelspec.NoSuchKernel as error:
            raise Failure("kernel", str(error)) from error
        language = (spec.language or "").lower()
        self._ends_apart = language in _ENDS_APART
        self._by_message = spec.interrupt_mode == "message"
        self._assignments: Optional[Assignments] = LANGUAGES.get(language)
        # A short path: a Unix socket's has at most 107 bytes.
        folder = tempfile.mkdtemp(prefix="cloche-")
        over_tcp = language in _OVER_TCP
        file, info = connect.write_connection_file(
            f"{folder}/c.json",
            ip="127.0.0.1" if over_tcp else f"{folder}/s",
            transport="tcp" if over_tcp else "ipc",
            kernel_name=self._name,
        )
        self._session: Any = Session(key=info["key"].encode(), signature_scheme=info["signature_scheme"])
        self._launch(spec, file)
        self._connect(zmq, info)
        self._await_first_answer()
        if self._await_quiet_sockets(zmq):
            shutil.rmtree(folder, ignore_errors=True)
        if self._assignments is not None and not self._assignments.has_environment:
            self.assign(dict(os.environ))

    def _launch(self, spec: Any, file: str) -> None:
        meaning = {"connection_file": file, "resource_dir": spec.resource_dir, "prefix": sys.prefix}
        argv = [_filled(word, meaning) for word in spec.argv]
        if argv[0] in ("python", "python3"):
            argv[0] = sys.executable
        try:
            self._process = subprocess.Popen(
                argv, env={**os.environ, **spec.env}, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent
            )  # fmt: skip
        except OSError as error:
            raise Failure("program", argv[0]) from error

    def _connect(self, zmq: Any, info: dict[str, Any]) -> None:
        context = zmq.Context()
        joint = "-" if info["transport"] == "ipc" else ":"
        self._connected: dict[Any, Any] = {}

        def opened(kind: int, port: str) -> Any:
            sock = context.socket(kind)
            sock.linger = 0
            sock.rcvhwm = 0  # else messages are dropped while the agent does not read, the last one too
            if kind == zmq.SUB:
                sock.subscribe(b"")
            else:
                sock.identity = self._session.bsession
            sock.reconnect_ivl = _CONNECT_AGAIN_MS  # by itself 100 to 200, while a kernel starts
            self._connected[sock] = sock.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            sock.connect(f"{info['transport']}://{info['ip']}{joint}{info[port]}")
            return sock

        self._shell = opened(zmq.DEALER, "shell_port")
        self._control = opened(zmq.DEALER, "control_port")
        self._questions = opened(zmq.DEALER, "stdin_port")
        self._output = opened(zmq.SUB, "iopub_port")
        self._poller = zmq.Poller()
        for source in (self._shell, self._output, self._questions, self._awake_read):
            self._poller.register(source, zmq.POLLIN)
        with contextlib.suppress(OSError, AttributeError):  # else its end is seen at the next patience
            self._poller.register(os.pidfd_open(self._process.pid), zmq.POLLIN)

    def _await_first_answer(self) -> None:
        """Ask until both answer and output have come: a subscription takes effect some time later."""
        has_answer = has_output = False
        for _ in range(_START_S * 1000 // _ASK_AGAIN_MS):
            self._session.send(self._shell, "kernel_info_request", {})
            ready = dict(self._poller.poll(_ASK_AGAIN_MS))
            while ready and not (has_answer and has_output):
                has_answer |= bool(self._taken(self._shell))
                has_output |= bool(self._taken(self._output))
                self._check_alive()
                ready = dict(self._poller.poll(_ASK_AGAIN_MS))
            if has_answer and has_output:
                return
            self._check_alive()
        raise Failure("kernel", f"the Jupyter kernel {self._name} did not answer within {_START_S} s")

    def _await_quiet_sockets(self, zmq: Any) -> bool:
        """Wait for the sockets that no answer has come over yet; whether all are connected.

        Each looks for the kernel on its own. A question asked before ours is connected is dropped by the
        kernel's side without a word, and the cell waits for its answer for ever.
        """
        deadline = time.monotonic() + _QUIET_SOCKETS_MS / 1000
        are_connected = True
        for sock in (self._control, self._questions):
            left_ms = max(0, round((deadline - time.monotonic()) * 1000))
            are_connected &= bool(self._connected[sock].poll(left_ms, zmq.POLLIN))
        for sock in self._connected:
            sock.disable_monitor()
        self._connected.clear()
        return are_connected

    # --- runs

    def assign(self, variables: dict[str, Optional[str]]) -> None:
        """Set variables in the kernel, where we know how its language does it."""
        if self._assignments is not None and variables:
            self._execute(self._assignments.assign(variables), None)

    def renew(self) -> None:
        """Nothing: what has a seed is the code's own."""

    def run(self, code: str, variables: dict[str, str], voice: Voice) -> None:
        """Run a cell; a language we know nothing of runs it without the variables, as in E2B."""
        assignments = self._assignments if variables else None
        if assignments is not None:
            self._execute(assignments.borrow(variables), None)
        try:
            self._execute(code, voice)
        finally:
            if assignments is not None:
                self._execute(assignments.give_back(variables), None)

    def settle(self, voice: Voice) -> None:
        """Forget what came after the last look: it was for a cell that had ended."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._awake_read, 4096)

    def interrupt(self) -> None:
        """Have the loop pass the interrupt on: a handler must not use its sockets."""
        os.write(self._awake_write, b"\0")

    def _execute(self, code: str, voice: Optional[Voice]) -> None:
        """Run code; without a voice silently."""
        content = {
            "code": code, "silent": voice is None, "store_history": voice is not None,
            "user_expressions": {}, "allow_stdin": False, "stop_on_error": True,
        }  # fmt: skip
        request = self._session.send(self._shell, "execute_request", content)
        run = _Run(request["header"]["msg_id"], voice, ends_apart=self._ends_apart)
        quiet_ms = 0
        while not run.is_over and not (run.reply is not None and quiet_ms >= _LOST_IDLE_S * 1000):
            ready = dict(self._poller.poll(_PATIENCE_MS))
            quiet_ms = 0 if ready else quiet_ms + _PATIENCE_MS
            if self._awake_read in ready:
                os.read(self._awake_read, 4096)
                if voice is not None:  # what puts a run's variables back is to come to its end
                    self._pass_interrupt()
            for message in self._taken(self._output):
                run.hear(message)
            for message in self._taken(self._shell):
                run.take_reply(message)
            for message in self._taken(self._questions):
                run.refuse(message)
                # Some kernels ask all the same, and IRkernel ends when it is interrupted while it waits.
                self._session.send(self._questions, "input_reply", {"value": ""}, parent=message)
            self._check_alive()
        run.finish()

    def _taken(self, sock: Any) -> list[Message]:
        found: list[Message] = []
        while True:
            _, message = self._session.recv(sock)
            if message is None:
                return found
            found.append(message)

    def _pass_interrupt(self) -> None:
        if self._by_message:
            self._session.send(self._control, "interrupt_request", {})
        else:
            interrupt_group()

    def _check_alive(self) -> None:
        status = self._process.poll()
        if status is not None:
            end_like(status)


class _Run:
    """What becomes of one request."""

    def __init__(self, request_id: str, voice: Optional[Voice], *, ends_apart: bool) -> None:
        self._id = request_id
        self._voice = voice
        self._ends_apart = ends_apart
        self._is_idle = False
        self._has_error = False
        self.reply: Optional[dict[str, Any]] = None

    @property
    def is_over(self) -> bool:
        """The reply has come, and all output before it."""
        return self._is_idle and self.reply is not None

    def take_reply(self, message: Message) -> None:
        """Note the reply, if it is the one to this request."""
        if message["parent_header"].get("msg_id") == self._id:
            self.reply = message["content"]

    def hear(self, message: Message) -> None:
        """Pass output of this request on."""
        if message["parent_header"].get("msg_id") != self._id:
            return
        content, voice = message["content"], self._voice
        kind = message["header"]["msg_type"]
        if kind == "status":
            self._is_idle = content["execution_state"] == "idle"
        elif voice is not None:
            if kind == "stream":
                text: str = content["text"]
                apart = self._ends_apart and len(text) <= _LARGEST_APART
                for piece in filter(None, re.split("(\n)", text) if apart else [text]):
                    voice.text("stderr" if content["name"] == "stderr" else "stdout", piece)
            elif kind in ("display_data", "execute_result"):
                voice.result(_bundle(content["data"]), is_main=kind == "execute_result")
            elif kind == "error":
                self._fail(voice, content)

    def refuse(self, message: Message) -> None:
        """Make it an error that the cell has asked: nobody is there to answer."""
        if self._voice is not None:
            prompt = str(message["content"].get("prompt", ""))[:200]
            content = {"ename": "StdinNotImplementedError", "evalue": f"nobody reads the prompt {prompt}"}
            self._fail(self._voice, content)

    def finish(self) -> None:
        """Tell an error that was only in the reply."""
        reply = self.reply or {}
        if self._voice is not None and reply.get("status") in ("error", "aborted", "abort"):
            self._fail(self._voice, reply)

    def _fail(self, voice: Voice, content: dict[str, Any]) -> None:
        if not self._has_error:
            self._has_error = True
            name, value = (
                content.get("ename", "ExecutionAborted"),
                content.get("evalue", "Execution was aborted"),
            )
            voice.error(str(name), str(value), "\n".join(map(str, content.get("traceback", ()))))


def _bundle(data: dict[str, Any]) -> dict[str, Any]:
    """A MIME bundle whose pictures are base64 without line ends."""
    is_picture = ("image/png", "image/jpeg", "application/pdf")
    return {
        mime: value.replace("\n", "") if mime in is_picture and isinstance(value, str) else value
        for mime, value in data.items()
    }


def _filled(word: str, meaning: dict[str, str]) -> str:
    for name, value in meaning.items():
        word = word.replace("{" + name + "}", value)
    return word
