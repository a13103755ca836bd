# ruff: noqa: UP045 - runs on Python 3.9
"""Cells of C++: each is compiled by g++ into a shared object, which this very process loads and runs.

Everything a cell declares becomes `inline`, and is compiled again with each later cell: an inline variable
is one object in the whole process and initialised once, so it keeps its value, whatever its type was deduced
to be. Each cell has an inline namespace, so that a later one can declare a name anew. (clang-repl keeps state
too, but an exception that nobody catches, an interrupt and a fault all end it; it takes 140 MB more.)
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Optional

from .cpp_cells import Item, items_of
from .cpp_header import PrecompiledHeader
from .driver import interrupt_group
from .voice import Failure

if TYPE_CHECKING:
    from collections.abc import Collection

    from .voice import Voice

_COMPILE = ("g++", "-std=c++20", "-O1", "-fPIC", "-w", "-fmax-errors=5", "-fdiagnostics-color=never")
_FAILED, _INTERRUPTED = 1, 2
_ERROR_LINE = re.compile(r"(?:fatal )?error: (.*)")


class _Part(NamedTuple):
    """An item of a cell; `step` is its place in the order of the one being compiled, if it is of that."""

    cell: int
    item: Item
    step: Optional[int] = None

    @property
    def is_run(self) -> bool:
        """Whether it does something, rather than being known from then on."""
        return self.item.kind in ("statement", "expression", "variable")


class _Plan(NamedTuple):
    """One way to put a cell together with what earlier ones have declared."""

    parts: list[_Part]

    def source(self) -> str:
        """The file that is compiled."""
        lines: list[str] = []
        for part in self.parts:
            lines.append(_emitted(part))
            if part.step is not None and part.is_run:
                lines.append(f"static const int cloche_reached_{part.step} = cloche::reach({part.step + 1});")
        return "\n".join((*lines, ""))

    def lasting(self, reached: int) -> list[_Part]:
        """What later cells are compiled with; a variable only if its initialiser has run."""
        return [
            part._replace(step=None)
            for part in self.parts
            if part.item.kind not in ("statement", "expression") and not _is_main(part.item)
            if part.step is None or not part.is_run or part.step < reached
        ]


class CppBackend:
    """What the cells of one context have declared so far."""

    def __init__(self) -> None:
        """Nothing is declared yet."""
        self._parts: list[_Part] = []
        self._number = 0
        self._compiler: Optional[subprocess.Popen[str]] = None
        self._is_interrupted = False

    def start(self) -> None:
        """See that there is a compiler.

        Raises:
            Failure: There is none.
        """
        if shutil.which("g++") is None:
            raise Failure("program", "g++")
        self._header = PrecompiledHeader(_COMPILE)

    def assign(self, variables: dict[str, Optional[str]]) -> None:
        """Set variables of this process, which cells run in."""
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
                os.unsetenv(name)  # also what a cell has set, which os.environ knows nothing of
            else:
                os.environ[name] = value

    def renew(self) -> None:
        """Nothing: what has a seed is the code's own."""

    def run(self, code: str, variables: dict[str, str], voice: Voice) -> None:
        """Compile a cell and run it."""
        self._number += 1
        self._is_interrupted = False
        items = _with_call_of_main(items_of(code))
        before = {name: _getenv(name) for name in variables}
        self.assign(dict(variables))
        try:
            self._run(items, voice)
        finally:
            self.assign(before)

    def settle(self, voice: Voice) -> None:
        """Nothing is left: signals came to this process before the run did, and cells run in it."""

    def interrupt(self) -> None:
        """End the compiler; a cell that runs has a handler of its own (cell.hpp)."""
        self._is_interrupted = True
        if self._compiler is not None:
            interrupt_group()

    def _run(self, items: list[Item], voice: Voice) -> None:
        # SAFETY: a new folder of this user alone, so nobody else can put a library there.
        folder = tempfile.mkdtemp(prefix="cloche-")
        try:
            messages = ""
            for plan in _plans(self._number, self._parts, items):
                failure = self._compile(plan.source(), folder)
                if failure is None or self._is_interrupted:
                    break
                messages = messages or failure
            else:
                found = _ERROR_LINE.search(messages)
                voice.error("CompileError", found[1] if found else "the compiler failed", messages)
                return
            if self._is_interrupted:
                voice.error("Interrupted", "the compiler was interrupted", "")
                return
            # SAFETY: the library is the user's own code, and this process is the context it runs in.
            library = ctypes.CDLL(f"{folder}/cell.so")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        outcome = library.cloche_execute(*(ctypes.c_void_p(address) for address in _c_library()))
        self._parts = plan.lasting(library.cloche_reached() if outcome else len(items))
        self._tell(library, outcome, voice)

    def _tell(self, library: ctypes.CDLL, outcome: int, voice: Voice) -> None:
        for function in (library.cloche_value, library.cloche_error_name, library.cloche_error_value):
            function.restype = ctypes.c_char_p
        if outcome == _INTERRUPTED:
            voice.error("Interrupted", "the cell was interrupted", "")
        elif outcome == _FAILED:
            name, value = (
                _read(function()) for function in (library.cloche_error_name, library.cloche_error_value)
            )
            voice.error(name, value, f"{name}: {value}")
        elif (value := library.cloche_value()) is not None:
            voice.result({"text/plain": _read(value)}, is_main=True)

    # --- compiling

    def _compile(self, source: str, folder: str) -> Optional[str]:
        """Make `cell.so`; what the compiler says where it fails."""
        Path(folder, "cell.cpp").write_text(source, "utf-8", "surrogateescape")
        for command in (
            (*_COMPILE, "-include", str(self._header.path()), "-c", "cell.cpp", "-o", "cell.o"),
            ("objcopy", "--rename-section", ".init_array=cloche_parts", "cell.o"),
            ("g++", "-shared", "cell.o", "-o", "cell.so"),
        ):
            self._compiler = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, errors="replace",
            )  # fmt: skip
            output, _ = self._compiler.communicate()
            status, self._compiler = self._compiler.returncode, None
            if status != 0 or self._is_interrupted:
                return output.replace("cell.cpp", "cell") or f"{command[0]} ended with status {status}"
        return None


def _with_call_of_main(items: list[Item]) -> list[Item]:
    """A cell that is a whole program is run like one."""
    for item in items:
        if _is_main(item):
            arguments = "" if re.search(r"\bmain\s*\(\s*(void)?\s*\)", item.text) else "1, cloche_arguments"
            given = 'static char *cloche_arguments[] = {(char *)"main", nullptr};' if arguments else ""
            call = Item("statement", f"{given} cloche::end_of_main(main({arguments}));", item.line)
            return [*items, call]
    return items


def _is_main(item: Item) -> bool:
    return item.kind == "function" and any(name.startswith("main(") for name in item.names)


def _plans(cell: int, known: list[_Part], items: list[Item]) -> list[_Plan]:
    """How a cell may be put together, the best way first.

    What declares a name anew takes the old one's place, so that functions that use it go on to be valid, and
    use the new one. Where that does not compile, since it needs what is declared after the old one, both
    the old one and its users are left out.
    """
    texts = {item.text for item in items if item.kind in ("directive", "global")}
    known = [part for part in known if part.item.text not in texts]
    names = frozenset[str]().union(*(item.names for item in items))
    steps = [_Part(cell, item, step) for step, item in enumerate(items)]
    replaced = [part for part in known if part.item.names & names]
    if not replaced:
        return [_Plan([*known, *steps])]
    types = [name for item in items if item.kind in ("type", "template") for name in item.names]
    known = [part for part in known if not (part.item.kind == "variable" and _mentions(part, types))]
    rest = [part for part in known if part not in replaced]
    without = _Plan([*(part for part in rest if not _mentions(part, names)), *steps])
    moved: dict[int, _Part] = {}
    in_place: list[_Part] = []
    for part in known:
        heirs = [new for new in steps if new.item.names & part.item.names and new.step not in moved]
        moved.update({new.step: new for new in heirs if new.step is not None})
        in_place += [part] if part in rest else heirs
    in_place += [new for new in steps if new.step not in moved]
    order = iter(range(len(steps)))
    return [
        _Plan([part if part.step is None else part._replace(step=next(order)) for part in in_place]),
        without,
    ]


def _mentions(part: _Part, names: Collection[str]) -> bool:
    plain = [re.escape(name.partition("(")[0]) for name in names]
    return bool(plain) and re.search(rf"\b(?:{'|'.join(plain)})\b", part.item.text) is not None


def _emitted(part: _Part) -> str:
    """An item as it stands in a file."""
    (cell, item, step), text = part, part.item.text
    place, name = f'#line {item.line} "cell {cell}"\n', f"cloche_{cell}_{step}"
    if item.kind in ("directive", "global"):
        return f"{place}{text}"
    if item.kind == "expression":
        text = f"cloche::show((({text}\n), cloche::Nothing{{}}));"
    if item.kind in ("statement", "expression"):
        text = f"static void {name}() {{\n{place}{text}\n}} static const int {name}_ = ({name}(), 0);"
    elif item.kind in ("function", "variable") and re.match(r"(\w+\s+)*inline\b", text) is None:
        text = f"inline {text}"
    if item.kind == "function" and re.match(r"[^({=]*\w+::~?\w+\s*\(", text):
        return f"{place}{text}"  # the member of a class, defined outside of it: not in a namespace of its own
    return f"inline namespace cell_{cell} {{\n{place}{text}\n}}"


def _c_library() -> tuple[int, int]:
    """Where the code of the C library lies in this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, rights, *_, file = line.split()
        if "x" in rights and re.search(r"/(libc[.-]|ld-musl)", file):
            begin, end = (int(address, 16) for address in addresses.split("-"))
            return begin, end
    return 0, 0


def _getenv(name: str) -> Optional[str]:
    library = ctypes.CDLL(None)
    library.getenv.restype = ctypes.c_char_p
    value: Optional[bytes] = library.getenv(os.fsencode(name))
    return None if value is None else os.fsdecode(value)


def _read(text: Optional[bytes]) -> str:
    return (text or b"").decode("utf-8", "replace")
