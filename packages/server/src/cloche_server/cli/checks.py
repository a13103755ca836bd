"""What a server needs of its machine: one check for each, with what to do where it is missing."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import msgspec

from cloche_server.cli import probes
from cloche_server.isolation.gvisor import runsc
from cloche_server.templates import host_settings, recipe
from cloche_wire.errors import Unavailable

if TYPE_CHECKING:
    from cloche_server.config import Config

_PROBES_TIMEOUT_S = 60
_CONNECT_TIMEOUT_S = 3
_LEAST_PYTHON = (3, 11)

_RUNSC_TIMEOUT_S = 20
_RUNSC_HINT = "use isolation `container`, or a newer runsc of gvisor.dev on PATH"
_APART = (
    *("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc", "--kill-child"),
)

_VOLUMES = "volumes"
CONTAINER = ("linux", "root", "nft", *(name for name in probes.PROBES if name != _VOLUMES))
"""What the `container` driver cannot do without."""
GVISOR = (*CONTAINER, "runsc")
"""What the `gvisor` driver cannot do without."""

_HINTS = {
    "user_namespaces": "raise user.max_user_namespaces (sysctl)",
    "overlay": "load the kernel module: modprobe overlay",
    "idmapped_mounts": "needs Linux 5.19 and a file system that supports it (ext4, xfs, btrfs)",
    "cgroup_controllers": "mount cgroup v2 at /sys/fs/cgroup, or the v1 controllers",
    "veth": "load the kernel module: modprobe veth",
    "nft_nat": "load the kernel modules: modprobe nft_masq nft_chain_nat",
    "seccomp": "apt-get install libseccomp2; needs a kernel with CONFIG_SECCOMP_FILTER",
    _VOLUMES: "modprobe loop; apt-get install e2fsprogs; or volumes without limits: volumes.quota = 'none'",
}


class Check(msgspec.Struct, frozen=True):
    """One line of `cloche doctor`."""

    name: str
    ok: bool
    detail: str
    hint: str = ""
    """What to do where it is not ok."""


class _Finding(NamedTuple):
    ok: bool
    detail: str
    hint: str = ""


def run(config: Config, names: Collection[str] | None = None) -> list[Check]:
    """Return the checks of these names, or all, in the order of the list below."""
    wanted = [name for name in (*_CHECKS, *probes.PROBES, *_LAST) if names is None or name in names]
    probed = _run_probes([name for name in wanted if name in probes.PROBES])
    found: list[Check] = []
    for name in wanted:
        finding = probed[name] if name in probed else (_CHECKS | _LAST)[name](config)
        found.append(Check(name, finding.ok, finding.detail, "" if finding.ok else finding.hint))
    return found


def _linux(_: Config) -> _Finding:
    return _Finding(
        sys.platform == "linux", f"{os.uname().sysname} {os.uname().release}", "use a Linux machine"
    )


def _root(_: Config) -> _Finding:
    return _Finding(os.geteuid() == 0, f"user id {os.geteuid()}", "run it with sudo")


def _python(_: Config) -> _Finding:
    return _Finding(sys.version_info >= _LEAST_PYTHON, sys.version.split()[0], "install Python 3.11 or newer")


def _program(name: str, package: str, *arguments: str) -> Callable[[Config], _Finding]:
    def check(_: Config) -> _Finding:
        path = shutil.which(name)
        if path is None:
            return _Finding(False, "not installed", f"apt-get install {package}")
        try:
            command = [path, *arguments]
            result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return _Finding(False, str(error), f"apt-get install --reinstall {package}")
        return _Finding(True, (result.stdout.strip() or result.stderr.strip()).partition("\n")[0])

    return check


def _runsc(config: Config) -> _Finding:
    """For isolation `gvisor` alone: it is there, and a program runs in it."""
    try:
        found = runsc.find(config.tools_dir)
    except Unavailable as error:
        return _Finding(False, error.message, error.hint or "")
    what = f"{found.version} at {found.path}"
    with tempfile.TemporaryDirectory(prefix="cloche-runsc-") as root:
        command = [*_APART, found.path, "--platform=systrap", "--network=none", "--ignore-cgroups"]
        command += [f"--root={root}", "do", "true"]
        try:
            # No stream of it is a device of the machine: it gives them to another user.
            tried = subprocess.run(
                command, input=b"", capture_output=True, timeout=_RUNSC_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return _Finding(False, f"{what} cannot be tried: {error}", _RUNSC_HINT)
    if tried.returncode != 0:
        reason = tried.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return _Finding(False, f"{what} runs no program: {reason[:300]}", _RUNSC_HINT)
    return _Finding(True, what)


def _disk(config: Config) -> _Finding:
    folder = next(path for path in (config.templates_dir, *config.templates_dir.parents) if path.exists())
    free, needed = shutil.disk_usage(folder).free, recipe.code_interpreter().needed_bytes
    return _Finding(
        free >= needed, f"{free >> 20} MiB free at {folder}", f"a template build needs {needed >> 20} MiB"
    )


def _registries(_: Config) -> _Finding:
    """Whether the places that packages come from, or the proxy to them, take a connection."""
    settings = host_settings.read()
    urls = [settings.debian_mirror, settings.npm_registry, settings.pip_index_url or "https://pypi.org"]
    if settings.proxies.get("https_proxy") or settings.proxies.get("http_proxy"):
        urls = [url for name, url in settings.proxies.items() if name in {"http_proxy", "https_proxy"}]
    failed = [reason for url in dict.fromkeys(urls) if (reason := _cannot_connect(url))]
    hint = "only builds and installs inside sandboxes need them; check the network and the proxy"
    return _Finding(not failed, "; ".join(failed) or f"{len(set(urls))} answer", hint)


def _cannot_connect(url: str) -> str | None:
    parts = urlsplit(url if "//" in url else f"http://{url}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return f"{parts.hostname}: {error.strerror or error}"
    return None


_CHECKS: dict[str, Callable[[Config], _Finding]] = {
    "linux": _linux,
    "root": _root,
    "python": _python,
    "nft": _program("nft", "nftables", "--version"),
    "mmdebstrap": _program("mmdebstrap", "mmdebstrap", "--version"),
    "skopeo": _program("skopeo", "skopeo", "--version"),
}
_LAST: dict[str, Callable[[Config], _Finding]] = {"runsc": _runsc, "disk": _disk, "registries": _registries}


def _run_probes(names: list[str]) -> dict[str, _Finding]:
    if not names:
        return {}
    if os.geteuid() != 0:
        return dict.fromkeys(names, _Finding(False, "cannot be tried without root", "run it with sudo"))
    # SAFETY: what the probes mount and make lives in namespaces that end with the process.
    command = [*_APART, "--net", sys.executable, "-m", probes.__name__, *names]
    try:
        result = subprocess.run(command, capture_output=True, timeout=_PROBES_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return dict.fromkeys(
            names, _Finding(False, f"cannot be tried: {error}", "apt-get install util-linux")
        )
    if result.returncode != 0:
        reason = result.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        hint = "this machine, or the container it is, does not allow new namespaces"
        return dict.fromkeys(names, _Finding(False, f"cannot be tried: {reason}", hint))
    answers = msgspec.json.decode(result.stdout, type=dict[str, tuple[bool, str]])
    return {name: _Finding(ok, detail, _HINTS[name]) for name, (ok, detail) in answers.items()}
