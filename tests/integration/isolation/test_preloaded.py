"""A pid 1 that was forked with its program imported stands where one that was executed would stand."""

import json
import sys
from pathlib import Path

import pytest
from tests.integration.isolation.conftest import NEEDS_CONTAINERS, PROGRAM, Started, Workshop, plain_rootfs

from cloche_server.isolation.base import Program

pytestmark = [pytest.mark.anyio, NEEDS_CONTAINERS]

_ARGV = ("/.cloche/served",)
_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
_POSTURE = """
def lines(path):
    return {n: v.strip() for n, _, v in (l.partition(":") for l in open(path).read().splitlines())}
import resource
status = lines("/proc/self/status")
result = {
    "status": {n: status[n] for n in ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd",
        "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters", "SigIgn", "SigBlk", "Umask")},
    "limits": {str(n): resource.getrlimit(n) for n in range(16)},
    "mounts": sorted(" ".join(l.split()[3:6]) for l in open("/proc/self/mountinfo")),
    "fds": sorted(int(n) for n in os.listdir("/proc/self/fd")),
    "session": [os.getpid(), os.getsid(0), os.getcwd()],
    "host": socket.gethostname() != "",
    "env": sorted(os.environ),
}
"""


@pytest.fixture
def served(container: Workshop, tmp_path: Path) -> Program:
    """The workshop's program as a module, imported by the launcher before any sandbox is made."""
    body = "\n".join(f"    {line}" for line in PROGRAM.strip().splitlines())
    (tmp_path / "served.py").write_text(f"def main(arguments):\n    global socket, json, os\n{body}\n")
    library = f"/.cloche/lib/{_VERSION}"
    program = Program(
        argv=_ARGV, module="served", here=(str(tmp_path),), inside=(library, f"{library}/lib-dynload"),
        moved={str(Path(json.__file__).parents[1]): library}, title="served-inside",
    )  # fmt: skip
    container.driver = container.make_driver(program)
    return program


async def test_forked_and_executed_have_the_same_posture(container: Workshop, served: Program) -> None:
    executed = (await container.start()).run(_POSTURE)
    forked = (await container.start(argv=_ARGV)).run(_POSTURE)
    executed["status"].pop("SigIgn")
    forked["status"].pop("SigIgn")
    assert forked == executed


async def start_hostile(container: Workshop) -> Started:
    """In a template that has modules of its own wherever the host's Python looks for them."""
    rootfs = plain_rootfs(container.folder / "rootfs")
    for folder in {Path(json.__file__).parents[1], *map(Path, filter(None, sys.path))}:
        below = rootfs / str(folder).lstrip("/")
        below.mkdir(parents=True, exist_ok=True)
        (below / "colorsys.py").write_text("raise SystemExit('the tenant runs in the agent')\n")
        (below / "encodings").mkdir(exist_ok=True)
        (below / "encodings" / "cp037.py").write_text("raise SystemExit('the tenant runs in the agent')\n")
    return await container.start(rootfs, argv=_ARGV)


async def test_template_cannot_put_a_module_into_it(container: Workshop, served: Program) -> None:
    sandbox = await start_hostile(container)
    found = sandbox.run("import colorsys; 'x'.encode('cp037'); result = colorsys.__file__")
    assert found == f"/.cloche/lib/{_VERSION}/colorsys.py"


async def test_nothing_of_the_host_is_told(container: Workshop, served: Program) -> None:
    """Neither what is on its command line, nor where anything is imported from."""
    sandbox = await container.start(argv=_ARGV)
    code = """
import sys
result = [open("/proc/self/cmdline").read().strip(chr(0)), open("/proc/self/comm").read().strip(), sys.path,
    sorted({p for m in tuple(sys.modules.values()) for p in getattr(m, "__path__", [])})]
"""
    cmdline, comm, path, packages = sandbox.run(code)
    assert cmdline == comm == "served-inside"
    assert all(entry.startswith("/.cloche/") for entry in [*path, *packages])


_LOOK = """
import errno
for name in ("environ", "exe", "maps", "mem", "fd", "cwd", "root"):
    try:
        open("/proc/1/" + name).read(1)
        print(name, "is readable")
    except OSError as error:
        print(name, errno.errorcode[error.errno])
"""


async def test_root_inside_cannot_look_into_it(container: Workshop, served: Program) -> None:
    """Its memory came from a process of the host."""
    sandbox = await container.start(argv=_ARGV)
    command = [*container.tree.python(), "-c", _LOOK]
    code = f"""
import subprocess
result = subprocess.run({command!r}, stdout=subprocess.PIPE, text=True).stdout.splitlines()
"""
    assert {line.split()[1] for line in sandbox.run(code)} == {"EACCES"}


async def test_error_of_its_start_is_told(container: Workshop, served: Program) -> None:
    """A root that cannot be finished is refused before the program goes on."""
    rootfs = plain_rootfs(container.folder / "rootfs")
    (rootfs / "proc").rmdir()
    (rootfs / "proc").write_text("no folder")
    with pytest.raises(Exception, match="cannot start the sandbox"):
        await container.start(rootfs, argv=_ARGV)
