"""What this machine can do, found out by trying it. Tests ask with `@pytest.mark.needs("userns", "nft")`."""

import os
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path

from cloche_server.isolation.gvisor import runsc
from cloche_server.templates import builder, host_settings, recipe
from cloche_wire.errors import Unavailable

FLOOR = Path(__file__).with_name("floor.toml")


def missing(name: str) -> str | None:
    """Why the capability is not there; None when it is.

    Raises:
        KeyError: No such capability: a misspelt name must not skip a test.
    """
    return _tried(name)


def required() -> frozenset[str]:
    """Capabilities that may not be missing here: those of floor.toml under CI, none elsewhere."""
    if not os.environ.get("CI"):
        return frozenset()
    return frozenset(tomllib.loads(FLOOR.read_text())["required"])


def templates_folder() -> Path:
    """Where finished templates lie: CLOCHE_TEST_TEMPLATES, else those of the default state folder."""
    return Path(os.environ.get("CLOCHE_TEST_TEMPLATES", "/var/lib/cloche/templates"))


def tools_folder() -> Path:
    """Where the set-up lays programs for the server alone: beside the templates."""
    return templates_folder().parent / "tools"


@cache
def _tried(name: str) -> str | None:
    return _PROBES[name]()


def _root() -> str | None:
    return None if os.geteuid() == 0 else "not root"


def _userns() -> str | None:
    return _works("unshare", "--user", "--map-root-user", "true")


def _overlay() -> str | None:
    # All of it in a private mount namespace, which goes away with the shell.
    script = (
        'mount -t tmpfs none "$1" && mkdir "$1/l" "$1/u" "$1/w" "$1/m" && '
        'mount -t overlay none -o "lowerdir=$1/l,upperdir=$1/u,workdir=$1/w" "$1/m"'
    )
    with tempfile.TemporaryDirectory() as folder:
        return _works("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", folder)


def _idmap() -> str | None:
    # Idmapped lower layers of an overlay: Linux 5.19.
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    return None if release >= (5, 19) else f"kernel {os.uname().release} has no idmapped overlay layers"


def _cgroup() -> str | None:
    v1 = Path("/sys/fs/cgroup/memory")
    v2 = Path("/sys/fs/cgroup/cgroup.controllers")
    folder = v1 if v1.is_dir() else v2.parent if v2.exists() else None
    if folder is None:
        return "no cgroup hierarchy with a memory controller"
    probe = folder / f"cloche-probe-{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        return f"cgroups cannot be made: {error.strerror}"
    return None


def _loop() -> str | None:
    if not Path("/dev/loop-control").exists():
        return "no loop devices"
    return _command("mkfs.ext4")()


def _internet() -> str | None:
    # Through the ordinary client, so that whatever index and proxy the machine is set up with is what counts.
    with tempfile.TemporaryDirectory() as folder:
        return _works(
            "uv", "pip", "install", "--dry-run", "--refresh-package=six", f"--target={folder}", "six"
        )


def _template(name: str) -> Callable[[], str | None]:
    def probe() -> str | None:
        # By the recipe's hash: a server that finds an older build makes a new one first, for each test anew.
        folder = templates_folder()
        (wanted,) = (
            known for known in recipe.embedded(host_settings.extra_certificates()) if known.name == name
        )
        built = builder.finished(folder, wanted) is not None
        return (
            None
            if built
            else f"no up-to-date build of template {name} in {folder}: cloche template build {name}"
        )

    return probe


def _runsc() -> str | None:
    try:
        runsc.find(tools_folder())
    except Unavailable as error:
        return str(error)
    return None


def _command(*names: str) -> Callable[[], str | None]:
    def probe() -> str | None:
        absent = [name for name in names if shutil.which(name, path=_search_path()) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    return probe


def _node() -> str | None:
    if absent := _command("node", "npm")():
        return absent
    # The official packages ask for Node 20.18.1, and its test runner writes no reports before 20.
    told = subprocess.run(
        ["node", "--version"], capture_output=True, text=True, timeout=60, check=False
    ).stdout
    version = tuple(int(part) for part in told.strip().lstrip("v").split(".") if part.isdigit())
    return None if version >= (20, 18) else f"node is older than 20.18: {told.strip()}"


def _search_path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _works(*argv: str) -> str | None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        return f"not installed: {argv[0]}"
    except subprocess.TimeoutExpired:
        return f"{argv[0]} did not end within 60 s"
    return None if done.returncode == 0 else f"{argv[0]}: {done.stderr.strip()[-200:] or done.returncode}"


_PROBES: dict[str, Callable[[], str | None]] = {
    "root": _root,
    "userns": _userns,
    "overlay": _overlay,
    "idmap": _idmap,
    "cgroup": _cgroup,
    "loop": _loop,
    "internet": _internet,
    "template": _template(recipe.NAME),
    "polyglot": _template("polyglot"),
    "crun": _command("crun"),
    "runsc": _runsc,
    "nft": _command("nft"),
    "skopeo": _command("skopeo"),
    "qemu-img": _command("qemu-img", "debugfs"),
    "musl": _command("musl-gcc", "busybox", "zstd"),
    "node": _node,
    "uv": _command("uv"),
    "g++": _command("g++", "objcopy"),
    "ruby": _command("ruby"),
    "caddy": _command("caddy"),
    "chromium": _command("chromium", "certutil"),
}
