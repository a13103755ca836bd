"""The private runtime tree: a Python for the agent that expects nothing of the image it runs in.

Made out of the interpreter that runs the node: its executable, a trimmed standard library with byte code, the
shared objects it links and their loader, plus the agent as one zip file and the kernel programs as plain
files:

    STATE/runtime/<hash>/
        bin/python3             the interpreter's executable
        lib/ld.so  lib/*.so*    its loader and shared objects: the image may have another C library, or none
        lib/python3.X/...       standard library, source and byte code
        agent.pyz               cloche_agent, cloche_wire, h11
        kernel/<lang>_kernel/   run by the template's own interpreters
        zygote/                 isolation/container/zygote.py with what it needs, run by the template's Python

The folder is shown read-only at /.cloche in every sandbox, so all sandboxes share one copy in the page
cache. Its name is the hash of all that went in: a new agent makes a new folder, and running sandboxes keep
the old one.

Why `--argv0`: started through its loader, the interpreter takes argv[0] for its own path and finds its
standard library as `../lib/python3.X/os.py` from there. PYTHONHOME would do the same, but `-I` ignores it,
and we want `-I`.

See: design 4 and 9.7; ld.so(8); CPython, Modules/getpath.py.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import py_compile
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cloche_server.isolation.base import Program
from cloche_wire.errors import Internal, Unavailable

MOUNT_POINT = "/.cloche"
"""Where every sandbox sees the tree."""

FORMAT = 1
"""Goes into the hash: raise it when this module lays the tree out differently."""

_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
_LDD_TIMEOUT_S = 60
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""Earliest time a zip file knows; a fixed one keeps the archive the same for the same input."""

_AGENT_PACKAGES = ("cloche_agent", "cloche_wire", "h11")
_AGENT_MAIN = "import sys\n\nfrom cloche_agent.__main__ import main\n\nsys.exit(main())\n"

_FOLDERS_LEFT_OUT = {
    "__pycache__", "__phello__", "config", "curses", "dbm", "distutils", "ensurepip", "idlelib", "lib2to3",
    "msilib", "pydoc_data", "site-packages", "dist-packages", "sqlite3", "test", "tests", "tkinter",
    "turtledemo", "unittest", "venv", "wsgiref", "xmlrpc",
}  # fmt: skip
"""Folders of the standard library that no agent needs; three quarters of its size."""

_MODULES_LEFT_OUT = {
    "aifc", "antigravity", "audioop", "cgi", "chunk", "doctest", "imaplib", "mailbox", "nntplib",
    "optparse", "pdb", "pickletools", "poplib", "profile", "pstats", "pydoc", "sitecustomize", "smtpd",
    "smtplib", "sndhdr", "sunau", "tabnanny", "telnetlib", "this", "trace", "turtle", "uu", "wave",
    "xdrlib",
}  # fmt: skip

_EXTENSIONS_LEFT_OUT = (
    "_bz2", "_codecs_", "_crypt", "_ctypes_test", "_curses", "_dbm", "_elementtree", "_gdbm", "_hashlib",
    "_lsprof", "_lzma", "_multibytecodec", "_sqlite3", "_ssl", "_test", "_tkinter", "_uuid", "_xx",
    "audioop", "nis", "ossaudiodev", "readline", "spwd", "xx",
)  # fmt: skip
"""Extension modules, by prefix. Without `_ssl` and `_hashlib` the tree needs no OpenSSL (6 MB) and asyncio
starts 10 ms faster; hashlib falls back to the interpreter's own SHA-2."""


class RuntimeTree(NamedTuple):
    """One finished tree."""

    path: Path
    """Where it lies on this machine."""

    def argv(self, *arguments: str) -> tuple[str, ...]:
        """The command that starts the agent with these arguments, as seen from inside the sandbox."""
        return (*self.python(), f"{MOUNT_POINT}/agent.pyz", *arguments)

    def program(self) -> Program:
        """The agent, for drivers that can have it imported beforehand."""
        library = f"{MOUNT_POINT}/lib/{_VERSION}"
        return Program(
            argv=self.argv(),
            module="cloche_agent.__main__",
            here=(str(self.path / "agent.pyz"),),
            inside=(f"{MOUNT_POINT}/agent.pyz", library, f"{library}/lib-dynload"),
            moved={str(self.path): MOUNT_POINT, sysconfig.get_path("stdlib"): library},
            title="cloche-agent",
        )

    def zygote(self, imports: Iterable[str]) -> tuple[str, ...]:
        """The command that has the template's Python import these, and then be forked into sandboxes."""
        descriptors = ("3", "4")
        kernels = f"{MOUNT_POINT}/kernel"
        return (
            "python3", f"{MOUNT_POINT}/zygote", *descriptors, kernels, "python_kernel.boot", *imports,
        )  # fmt: skip

    def python(self, root: str = MOUNT_POINT) -> tuple[str, ...]:
        """The command that starts the tree's interpreter, isolated, when the tree lies at `root`."""
        executable = f"{root}/bin/python3"
        loader = (
            f"{root}/lib/ld.so",
            "--inhibit-cache",
            "--argv0",
            executable,
            "--library-path",
            f"{root}/lib",
        )
        return (*loader, executable, "-I", "-S")


class _Parts(NamedTuple):
    """What goes in: paths in the tree and the files they come from."""

    files: dict[str, Path]
    """Copied as they are; `.py` below the standard library gets its byte code beside it."""
    agent: dict[str, Path]
    """Members of agent.pyz."""


def ensure(state_dir: Path) -> RuntimeTree:
    """Return the tree for the code that runs now; make it first where it does not exist yet.

    Takes 0.3 s when the tree is there, a few seconds when not. Safe to call from several processes at once.

    Raises:
        Unavailable: The interpreter cannot be taken along: no `ldd`, or not linked against the GNU C library.
        Internal: A part of the installation is missing.
    """
    parts = _collect()
    digest = _digest(parts)
    folder = state_dir / "runtime"
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    finished = folder / digest
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_whole(finished, parts):
            _build(folder, finished, parts)
    return RuntimeTree(finished)


# --- what goes in --------------------------------------------------------------------------------


def _collect() -> _Parts:
    executable = Path(sys.executable).resolve()
    library = Path(sysconfig.get_path("stdlib"))
    extensions = _extensions(library / "lib-dynload")
    files = {"bin/python3": executable}
    files |= {f"lib/{_VERSION}/{name}": path for name, path in _standard_library(library).items()}
    # The folder is the landmark of `sys.exec_prefix`; a statically built interpreter has few.
    files |= {f"lib/{_VERSION}/lib-dynload/{path.name}": path for path in extensions}
    files |= {f"lib/{name}": path for name, path in _shared_objects([executable, *extensions]).items()}
    kernels = _package_folder("cloche_agent") / "kernels"
    files |= {f"kernel/{name}": path for name, path in _kernel_programs(kernels).items()}
    files |= {f"zygote/{name}": path for name, path in _zygote_program().items()}
    agent: dict[str, Path] = {}
    for package in _AGENT_PACKAGES:
        agent |= {f"{package}/{name}": path for name, path in _sources(_package_folder(package)).items()}
    return _Parts(files, {name: path for name, path in agent.items() if kernels not in path.parents[1:]})


def _standard_library(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for base, folders, names in os.walk(folder):
        here = Path(base)
        folders[:] = sorted(
            name
            for name in folders
            if name not in _FOLDERS_LEFT_OUT and not name.startswith(("config-", "lib-dynload"))
        )
        for name in sorted(names):
            path = here / name
            if name.endswith(".py") and path.stem not in _MODULES_LEFT_OUT and path.is_file():
                found[str(path.relative_to(folder))] = path
    return found


def _extensions(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.glob("*.so") if not path.name.startswith(_EXTENSIONS_LEFT_OUT))


def _sources(folder: Path) -> dict[str, Path]:
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*.py"))}
    if not found:
        raise Internal(f"part of the agent is missing: {folder}", hint="install cloche again")
    return found


def _kernel_programs(folder: Path) -> dict[str, Path]:
    """Every file of every `<language>_kernel`, in whatever language."""
    found: dict[str, Path] = {}
    for program in sorted(folder.glob("*_kernel")):
        files = sorted(path for path in program.rglob("*") if path.is_file())
        found |= {str(path.relative_to(folder)): path for path in files if path.suffix != ".pyc"}
    return found


def _zygote_program() -> dict[str, Path]:
    """The zygote as the program of a folder, and below it the part of this package that it imports."""
    folder = _package_folder("cloche_server")
    names = ("__init__", "isolation/__init__", "isolation/posture", "isolation/syscalls")
    found = {f"cloche_server/{name}.py": folder / f"{name}.py" for name in names}
    return {"__main__.py": folder / "isolation/container/zygote.py", **found}


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise Internal(f"package is not installed: {name}", hint="install cloche again")
    return Path(spec.origin).parent


def _shared_objects(binaries: list[Path]) -> dict[str, Path]:
    """Every shared object that the binaries load, by the name they ask for, and the loader as `ld.so`."""
    ldd = shutil.which("ldd", path="/usr/bin:/bin")
    if ldd is None:
        raise Unavailable("cannot find the interpreter's shared objects: no ldd", hint="install libc-bin")
    command = [ldd, *map(str, binaries)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=_LDD_TIMEOUT_S, check=False)
    found: dict[str, Path] = {}
    for line in result.stdout.splitlines():
        words = line.split()
        if "not found" in line:
            raise Unavailable(f"the interpreter lacks a shared object: {words[0]}")
        if len(words) >= 3 and words[1] == "=>":
            found[words[0]] = Path(words[2])
        elif words and words[0].startswith("/") and Path(words[0]).name.startswith("ld"):
            found["ld.so"] = Path(words[0])
    if "ld.so" not in found or "libc.so.6" not in found:
        raise Unavailable(
            f"cannot take this interpreter along: {binaries[0]}",
            hint="use a CPython linked against the GNU C library",
        )
    unwinder = found["libc.so.6"].with_name("libgcc_s.so.1")
    if unwinder.exists():
        found[unwinder.name] = unwinder  # opened by the C library when a thread is ended, so nothing links it
    return found


def _digest(parts: _Parts) -> str:
    digest = hashlib.sha256(f"{FORMAT} {_VERSION} {_AGENT_MAIN}".encode())
    for name, path in sorted((parts.files | parts.agent).items()):
        digest.update(f"\0{name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


# --- making it -----------------------------------------------------------------------------------


def _is_whole(tree: Path, parts: _Parts) -> bool:
    """Whether a tree is there, every file in full length: a power cut may leave names without content."""
    try:
        return (tree / "agent.pyz").stat().st_size > 0 and all(
            (tree / name).stat().st_size == path.stat().st_size for name, path in parts.files.items()
        )
    except FileNotFoundError:
        return False


def _build(folder: Path, finished: Path, parts: _Parts) -> None:
    temporary = folder / f".{finished.name}.new"
    shutil.rmtree(temporary, ignore_errors=True)  # left by a build that was killed; we hold the lock
    # Files are readable by everybody and never writable: sandboxes see them as a stranger's.
    mask = os.umask(0o022)
    try:
        temporary.mkdir(mode=0o755)
        (temporary / "lib" / _VERSION / "lib-dynload").mkdir(parents=True)
        for name, source in parts.files.items():
            _copy(source, temporary / name)
            if name.endswith(".py") and name.startswith("lib/"):
                _compile(temporary / name, f"{MOUNT_POINT}/{name}")
        _zip_agent(temporary / "agent.pyz", parts.agent)
    finally:
        os.umask(mask)
    shutil.rmtree(finished, ignore_errors=True)
    temporary.rename(finished)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    # SAFETY: the mode is set, not copied, so that no set-user-id bit of the host comes along.
    executable = target.parent.name == "bin" or target.name == "ld.so"
    target.chmod(0o755 if executable else 0o644)


def _compile(source: Path, shown_as: str) -> None:
    """Put byte code beside a module. Unchecked: the tree is read-only, so nothing is compared at import."""
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    try:
        py_compile.compile(str(source), dfile=shown_as, doraise=True, invalidation_mode=mode)
    except py_compile.PyCompileError as error:
        raise Internal(f"cannot compile a module of the agent: {source.name}") from error


def _zip_agent(target: Path, members: dict[str, Path]) -> None:
    scratch = target.with_name("agent.build")
    scratch.mkdir()
    main = scratch / "__main__.py"
    main.write_text(_AGENT_MAIN)
    # Stored, not deflated: reading is then a copy out of the page cache.
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, source in {**members, "__main__.py": main}.items():
            module = scratch / "module.py"
            shutil.copyfile(source, module)
            compiled = scratch / "module.pyc"
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            shown_as = f"{MOUNT_POINT}/agent.pyz/{name}"
            py_compile.compile(
                str(module), str(compiled), dfile=shown_as, doraise=True, invalidation_mode=mode
            )
            _write_member(archive, name, source.read_bytes())
            _write_member(archive, name + "c", compiled.read_bytes())
    target.chmod(0o644)
    shutil.rmtree(scratch)


def _write_member(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    member = zipfile.ZipInfo(name, _ZIP_TIME)
    member.external_attr = 0o644 << 16
    archive.writestr(member, content)
