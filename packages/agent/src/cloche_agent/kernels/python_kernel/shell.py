# ruff: noqa: ANN401, UP045 - IPython is untyped, runs on Python 3.9
"""IPython's shell, told to speak to an outbox instead of a terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, Any, ClassVar, Optional

import IPython
from IPython.core.autocall import ExitAutocall
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.error import StdinNotImplementedError, UsageError
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Instance, Type, default
from traitlets.config import Config

from .formats import add_formatters, encode_bytes
from .frames import LARGEST_FRAME_BYTES
from .images import PillowHook

if TYPE_CHECKING:
    from .interrupts import Interrupts
    from .outbox import Outbox

_END_OF_COMMAND_S = 2.0


class KernelDisplayHook(DisplayHook):
    """Sends the value of a cell's last expression as its main result."""

    def write_output_prompt(self) -> None:
        """No `Out[1]:`."""

    def write_format_data(self, format_dict: dict[str, Any], md_dict: Any = None) -> None:
        """Send the value in all its formats."""
        self.shell.publish_result(format_dict, is_main=True)

    def log_output(self, format_dict: dict[str, Any]) -> None:
        """Keep no copy: `Out` holds the object, a second form of it per cell is memory for nothing."""

    def finish_displayhook(self) -> None:
        """Leave the streams alone."""
        self._is_active = False


class KernelDisplayPublisher(DisplayPublisher):
    """Sends what `display()` and libraries show."""

    def publish(self, data: dict[str, Any], metadata: Any = None, *args: Any, **options: Any) -> None:
        """Send one more result. An update of an earlier one is dropped: results are a list, not a page."""
        if not options.get("update"):
            self.shell.publish_result(data, is_main=False)

    def clear_output(self, wait: bool = False) -> None:
        """Nothing to clear: what is sent is sent."""


class _Exit(ExitAutocall):
    """`exit` and `quit`: a cell that calls them ends, the context lives on."""

    def __call__(self, *code: Any) -> None:
        raise SystemExit(*code)


class KernelShell(InteractiveShell):
    """One context: its namespace, its counter, its In and Out."""

    displayhook_class = Type(KernelDisplayHook)
    display_pub_class = Type(KernelDisplayPublisher)
    exiter = Instance(ExitAutocall)
    outbox: ClassVar[Outbox]
    interrupts: ClassVar[Interrupts]
    is_warm: ClassVar[bool] = False
    """Whether all that first cells and errors import is there."""

    @default("exiter")
    def _exiter_default(self) -> ExitAutocall:
        return _Exit(self)

    def _tee(self, channel: str) -> Any:
        # IPython >= 9 keeps a copy of all that is printed, for notebooks it saves: 100 MiB stay 100 MiB here.
        return contextlib.nullcontext()

    def _format_exception_for_storage(self, exception: BaseException, *args: Any, **options: Any) -> Any:
        return {"ename": type(exception).__name__, "evalue": "", "traceback": []}

    def enable_gui(self, gui: Optional[str] = None) -> None:
        """There is no screen; `%matplotlib inline` asks for none."""
        if gui not in (None, "inline"):
            print(f"no screen here: cannot use {gui}", file=sys.stderr)  # noqa: T201 - the user's own stderr

    def attach(self, outbox: Outbox, interrupts: Interrupts) -> None:
        """Speak through these from here on; before the first cell."""
        KernelShell.outbox = outbox
        KernelShell.interrupts = interrupts
        self.loop_runner = interrupts.run_async

    # --- results

    def publish_result(self, bundle: dict[str, Any], *, is_main: bool) -> None:
        """Send one result; of one that is too large, say so and send what fits."""
        data = encode_bytes(bundle)
        while True:
            try:
                self.outbox.put({"type": "result", "main": is_main, "bundle": data})
            except (ValueError, RecursionError):
                if not data:
                    return
                mime = max(data, key=lambda name: len(str(data[name])) if data[name] else 0)
                del data[mime]
                limit = LARGEST_FRAME_BYTES >> 20
                print(f"{mime} of a result left out: larger than {limit} MiB", file=sys.stderr)  # noqa: T201
            else:
                return

    # --- errors

    def _showtraceback(self, etype: type[BaseException], evalue: Any, stb: Any) -> None:
        if etype.__name__ == "CancelledError" and self.interrupts.was_cancelled:
            etype, evalue, stb = KeyboardInterrupt, "", ["KeyboardInterrupt"]
        if issubclass(etype, SystemExit):
            stb = [
                f"{etype.__name__}: {evalue}",
                "a cell cannot end its context: restart or remove the context",
            ]
        self.send_error(etype, evalue, stb if isinstance(stb, list) else [str(stb)])

    def send_error(self, etype: type[BaseException], evalue: Any, lines: list[str]) -> None:
        """Send an error; the agent passes on the first of a run."""
        self.has_sent_error = True
        try:
            value = str(evalue)
        except Exception:  # noqa: BLE001 - an exception of user code whose str fails
            value = "<exception whose str() fails>"
        text = "\n".join(lines)
        # Head and tail: a recursion through generated code can be megabytes.
        text = text if len(text) <= 1 << 20 else f"{text[: 1 << 19]}\n...\n{text[-(1 << 19) :]}"
        self.outbox.put(
            {"type": "error", "name": etype.__name__, "value": value[: 1 << 20], "traceback": text}
        )

    def run(self, code: str) -> None:
        """Run a cell and report how it failed, if it did and IPython has not said so."""
        self.has_sent_error = False
        result = self.run_cell(code, store_history=True)
        error = result.error_before_exec or result.error_in_exec
        if error is not None and not self.has_sent_error:
            # Magics' UsageError and exception groups, which IPython only prints.
            trace = error.__traceback__ and error.__traceback__.tb_next
            trace = None if isinstance(error, UsageError) else trace
            self.send_error(type(error), error, traceback.format_exception(type(error), error, trace))

    def warm_up(self) -> None:
        """Pay now for what IPython imports and compiles at its first cell: 80 ms cold, 10 ms warm."""
        self.run_cell("None", store_history=False, silent=True)
        self.display_formatter.format(0)

    def warm_up_results(self) -> None:
        """Pay now for what a first table and a first plot import, 10 and 200 ms. Nothing of them stays."""
        if (pandas := sys.modules.get("pandas")) is not None:
            with contextlib.suppress(Exception):
                self.display_formatter.format(pandas.DataFrame({"a": [1.0, 2.0]}))
        if (pyplot := sys.modules.get("matplotlib.pyplot")) is not None:
            with contextlib.suppress(Exception):
                figure, axes = pyplot.subplots()
                axes.plot([1, 2], label="a")
                axes.legend()
                self.display_formatter.format(figure)
                pyplot.close(figure)

    def warm_up_tracebacks(self) -> None:
        """Pay now for what the first error imports: 60 ms. For a moment when nobody waits."""
        try:
            raise KeyError("warm-up")
        except KeyError:
            self.InteractiveTB.structured_traceback(*sys.exc_info())

    # --- commands

    def system(self, cmd: str) -> None:
        """Run `!cmd`: its output goes where the cell's own goes, its exit code to `_exit_code`."""
        command = self.var_expand(cmd, depth=1)
        shell = os.environ.get("SHELL") or "/bin/sh"
        is_captured = not hasattr(sys.stdout, "go_direct")
        # Its own session, so that it can be ended with all it started, and only it.
        process = subprocess.Popen(
            [shell, "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if is_captured else 1,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            if process.stdout is not None:
                for piece in iter(lambda: process.stdout.read1(65536), b""):  # type: ignore[union-attr]
                    sys.stdout.write(piece.decode("utf-8", "replace"))
            self.user_ns["_exit_code"] = process.wait()
        except BaseException:
            _end(process)
            raise
        if getattr(self, "system_raise_on_error", False) and process.returncode:
            raise subprocess.CalledProcessError(process.returncode, cmd)

    system_piped = system_raw = system


def _end(process: subprocess.Popen[bytes]) -> None:
    """End an interrupted command: ask, wait, kill."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_OF_COMMAND_S)
            return


def make_shell() -> KernelShell:
    """The shell of this process, with nobody to speak to yet; one only, as `get_ipython()` finds it."""
    if KernelShell.initialized():
        return KernelShell.instance()
    warnings.filterwarnings("ignore", message="To exit: use")
    config = Config()
    # No SQLite file, and no thread that writes to it.
    config.HistoryManager.enabled = False
    config.PlainTextFormatter.max_seq_length = 0
    config.InteractiveShell.colors = "nocolor" if IPython.version_info[0] >= 9 else "NoColor"
    config.InteractiveShell.warn_venv = False
    shell = KernelShell.instance(config=config)
    add_formatters(shell.display_formatter)
    shell.set_hook("show_in_pager", _show_page, 0)
    _refuse_input(shell)
    sys.meta_path.insert(0, PillowHook())
    return shell


def _show_page(shell: Any, data: Any, start: int = 0, screen_lines: int = 0, pager_cmd: Any = None) -> None:
    print(data["text/plain"] if isinstance(data, dict) else data)  # noqa: T201 - `object?` prints its page


def _refuse_input(shell: KernelShell) -> None:
    import builtins
    import getpass

    def refuse(prompt: object = "", *args: Any, **options: Any) -> str:
        raise StdinNotImplementedError(
            f"input() cannot be answered here: nobody reads the prompt {prompt!s:.200}"
        )

    builtins.input = refuse  # type: ignore[assignment]
    getpass.getpass = refuse  # type: ignore[assignment]
