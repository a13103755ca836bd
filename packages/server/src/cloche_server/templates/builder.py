"""Builds an embedded template from its recipe: a Debian root, Python packages, one script that finishes it.

The root is made by mmdebstrap, or is a copy of another template's that gets more packages. Downloads run
beside it, then the script runs within. Every command that mounts runs in a mount and pid namespace of its
own: whatever it mounts goes with its last process, also after kill -9.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec

from cloche_server import disk_space
from cloche_server.config import API_UID, Config
from cloche_server.node.templates import Template
from cloche_server.templates import host_settings, manifest, recipe, trial
from cloche_server.templates.manifest import MANIFEST_NAME, Manifest
from cloche_server.templates.recipe import Recipe
from cloche_wire.errors import PermissionDenied, Unavailable

Progress = Callable[[str], None]

_STAGE_TIMEOUT_S = 1800
_DOWNLOAD_TIMEOUT_S = 120

_OWN_NAMESPACES = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child")
_WITH_US = ("setpriv", "--pdeathsig", "KILL")
"""A command ends with the builder, also after kill -9: nobody finishes what nobody waits for."""
_LEAVE_OUT = """
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
"""
_LEAVE_OUT_HOOK = f"""printf '%s' '{_LEAVE_OUT.lstrip()}' >"$1/etc/dpkg/dpkg.cfg.d/90cloche\""""
"""Written when the essential packages are there. As options of mmdebstrap, each package would be filtered by
a process of its own: 11 s more. The last stage removes what the essential ones brought."""
_ENTER = """
root=$1
shift
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"
for name in null zero full random urandom; do
    : >"$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
exec chroot "$root" "$@"
"""
"""Run a command in the root at "$1" with what programs expect of a running system."""
_INSTALL = """
apt-get update --quiet
apt-get install --quiet --yes --no-install-recommends -o Dpkg::Options::=--force-unsafe-io "$@"
apt-get clean
"""
_APT_OPTIONS = ('Acquire::Languages "none"', 'APT::Install-Recommends "false"', 'Acquire::Retries "3"')


def ensure(config: Config, wanted: Recipe, progress: Progress) -> Manifest:
    """Return the template of a recipe; build it first, and what it is based on, where that is not finished.

    Takes 2 ms when it is there. Leaves nothing behind when it fails. A second caller waits for the first
    one's build and uses it.

    Raises:
        PermissionDenied: The caller is not root.
        NotEnoughSpace: Less than the recipe asks for is free; nothing was written.
        Unavailable: A tool is missing, or a registry does not answer; the message names it.
    """
    if found := finished(config.templates_dir, wanted):
        return found
    _check_prerequisites(config.templates_dir, wanted)
    base = ensure(config, wanted.base, progress) if wanted.base else None
    with _only_builder(config.templates_dir, progress) as lock:
        return finished(config.templates_dir, wanted) or _build(
            config.templates_dir, wanted, base, progress, lock
        )


def finished(folder: Path, wanted: Recipe) -> Manifest | None:
    """Return the newest build of a recipe's template if it was made from this very recipe."""
    found = manifest.newest(folder, wanted.template_id)
    return found if found and found.recipe_hash == wanted.hash else None


def _check_prerequisites(folder: Path, wanted: Recipe) -> None:
    if os.geteuid() != 0:
        raise PermissionDenied("building a template needs root", hint="run it with sudo")
    missing = [name for name in ("mmdebstrap", "unshare") if shutil.which(name) is None]
    if missing:
        raise Unavailable(f"not installed: {missing[0]}", hint=f"apt-get install {missing[0]}")
    disk_space.require(folder, wanted.needed_bytes, f"the template {wanted.name}")


@contextmanager
def _only_builder(folder: Path, progress: Progress) -> Generator[int]:
    """Hold the builders' lock. Commands inherit it: if one outlives a killed builder, nobody else builds."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another build of a template is running: waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        for leftover in folder.glob(".building-*"):
            shutil.rmtree(leftover)
        yield descriptor
    finally:
        os.close(descriptor)


def _build(folder: Path, wanted: Recipe, base: Manifest | None, progress: Progress, lock: int) -> Manifest:
    made = Manifest(
        template_id=wanted.template_id,
        build_id=str(uuid.uuid4()),
        name=wanted.name,
        aliases=list(wanted.aliases),
        cpu_count=wanted.cpu_count,
        memory_mib=wanted.memory_mib,
        created_at=datetime.now(UTC),
        recipe_hash=wanted.hash,
        env=wanted.environment,
    )
    work = folder / f".building-{made.build_id}"
    progress(f"building template {wanted.name} in {folder}")
    began = time.monotonic()
    try:
        # SAFETY: mode 0750 before anything is in it: the root will hold set-user-id programs.
        work.mkdir(mode=0o750)
        os.chown(work, 0, API_UID)
        base_rootfs = folder / base.build_id / base.rootfs if base else None
        build = _Build(work, wanted, base_rootfs, progress, lock)
        build.run()
        made = msgspec.structs.replace(made, warnings=build.warnings)
        target = work / MANIFEST_NAME
        target.write_bytes(msgspec.json.format(msgspec.json.encode(made)))
        target.chmod(0o644)
        os.sync()  # a power cut after the rename must not leave a template with empty files
        work.rename(folder / made.build_id)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    progress(f"template {wanted.name} is ready ({time.monotonic() - began:.0f} s)")
    return made


class _Build:
    """One run of the recipe, in a folder of its own."""

    def __init__(self, work: Path, wanted: Recipe, base: Path | None, progress: Progress, lock: int) -> None:
        self.rootfs = work / "rootfs"
        self.parts = work / "parts"
        self.recipe = wanted
        self.base = base
        self.settings = settings = host_settings.read()
        self.progress = progress
        self.lock = lock
        self.commands: set[subprocess.Popen[bytes]] = set()
        self.is_stopping = False
        self.warnings: list[str] = []
        self.env = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            **settings.proxies,
        }

    def run(self) -> None:
        self.parts.mkdir()
        root = self._debian if self.base is None else partial(self._copy_with_more, self.base)
        stages = {"Debian packages": root, "Python packages": self._python_packages}
        if self.base is None:
            stages["npm"] = self._npm
        with ThreadPoolExecutor(max_workers=len(stages)) as pool:
            running = [
                pool.submit(self._stage, title, partial(self._patiently, act))
                for title, act in stages.items()
            ]
            try:
                for stage in as_completed(running):
                    stage.result()
            except BaseException:  # also Ctrl-C: the pool would wait for the others to finish
                self._stop_commands()
                raise
        self._stage("the last stage", self._customize)
        self._stage("imports", self._try_imports)
        shutil.rmtree(self.parts)

    def _stage(self, title: str, act: Callable[[], None]) -> None:
        began = time.monotonic()
        act()
        self.progress(f"  {title}: {time.monotonic() - began:.1f} s")

    def _patiently(self, act: Callable[[], None]) -> None:
        """Fetch once more where a registry failed in the middle: apt's own retries do not cover all."""
        try:
            act()
        except Unavailable as error:
            if self.is_stopping:
                raise
            self.progress(f"  once more after: {error.message.splitlines()[0]}")
            act()

    def _debian(self) -> None:
        shutil.rmtree(self.rootfs, ignore_errors=True)
        settings = self.settings
        command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=apt", "--format=directory"]
        command += ["--dpkgopt=force-unsafe-io", f"--essential-hook={_LEAVE_OUT_HOOK}"]
        command += [f"--aptopt={option}" for option in _APT_OPTIONS]
        command += [f"--include={','.join(self.recipe.packages)}", recipe.SUITE, str(self.rootfs)]
        command.append(f"deb {settings.debian_mirror} {recipe.SUITE} main")
        command.append(f"deb {settings.debian_mirror} {recipe.SUITE}-updates main")
        command.append(f"deb {settings.debian_security_mirror} {recipe.SUITE}-security main")
        self._command("mmdebstrap", [*_OWN_NAMESPACES, "--mount-proc", *command])

    def _copy_with_more(self, base: Path) -> None:
        """Copy a finished root, then let its own apt add packages: half the time of a root made anew."""
        shutil.rmtree(self.rootfs, ignore_errors=True)
        self._command("the copy", ["cp", "-a", str(base), str(self.rootfs)])
        resolver = self.rootfs / "etc" / "resolv.conf"
        resolver.write_bytes(Path("/etc/resolv.conf").read_bytes())
        self._inside("apt-get", "sh", "-euc", _INSTALL, "sh", *self.recipe.packages)
        resolver.write_bytes(b"")

    def _python_packages(self) -> None:
        """Unpack the wheels for the template's Python with uv, if here: 2 s, while mmdebstrap still runs."""
        shutil.rmtree(self.parts / "site", ignore_errors=True)
        shutil.copyfile(self.recipe.requirements, self.parts / "requirements.txt")
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}")
        if uv is None:
            return  # pip does it in the last stage: the same packages, 20 s more
        command = [uv, "pip", "install", "--quiet", "--no-cache", "--no-config", "--python-version", "3.13"]
        command += ["--python-platform", f"{self.recipe.machine}-manylinux_2_28", "--only-binary", ":all:"]
        command += ["--require-hashes", "--no-deps", "--link-mode", "copy"]
        command += ["--target", str(self.parts / "site")]
        if self.settings.pip_index_url:
            command += ["--default-index", self.settings.pip_index_url]
        command += ["-r", str(self.recipe.requirements)]
        self._command("uv", command, UV_SYSTEM_CERTS="1", UV_PYTHON_DOWNLOADS="never")

    def _npm(self) -> None:
        """Fetch the archives that the last stage unpacks: `npm/<name>.tgz`."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler(dict(self.settings.proxies)))
        for package in recipe.NPM_PACKAGES:
            url = f"{self.settings.npm_registry}/{package.path}"
            try:
                with opener.open(url, timeout=_DOWNLOAD_TIMEOUT_S) as response:
                    archive: bytes = response.read()
            except (urllib.error.URLError, TimeoutError) as error:
                raise Unavailable(
                    f"cannot download {package.name}: {url}: {error}", hint="check the network and the proxy"
                ) from error
            if base64.b64encode(hashlib.sha512(archive).digest()).decode() != package.sha512:
                raise Unavailable(
                    f"not the expected archive of {package.name}: {url}",
                    hint="the registry may be tampered with",
                )
            target = self.parts / "npm" / f"{package.name}.tgz"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive)

    def _customize(self) -> None:
        inside = self.rootfs / ".build"
        self.parts.rename(inside)
        self.parts.mkdir()
        shutil.copyfile(self.recipe.customize, inside / "customize.sh")
        lines = [f"{name}={value}\n" for name, value in self.recipe.environment.items()]
        (inside / "environment").write_text("".join(lines))
        if self.recipe.certificates:
            (inside / "certificates").mkdir()
            for number, certificate in enumerate(self.recipe.certificates):
                (inside / "certificates" / f"host-{number}.crt").write_bytes(certificate + b"\n")
        self._inside("the last stage", "sh", "/.build/customize.sh", **self.recipe.environment)
        for device in (self.rootfs / "dev").iterdir():  # a sandbox gets a /dev of its own
            shutil.rmtree(device) if device.is_dir() and not device.is_symlink() else device.unlink()

    def _try_imports(self) -> None:
        """Import what sandboxes have imported: where that fails they start without, without a word."""
        command = trial.command(Template(self.rootfs.name).warm)
        try:
            output = self._inside("the trial", *command, **self.recipe.environment, **trial.VARIABLES)
        except Unavailable as error:
            output = error.message
        self.warnings = trial.warnings(output)
        for warning in self.warnings:
            self.progress(f"  warning: {warning}")

    def _inside(self, title: str, *command: str, **variables: str) -> str:
        """Run a command in the new root."""
        # SAFETY: all mounts live in the command's own mount namespace and end with it.
        argv = [*_OWN_NAMESPACES, "sh", "-euc", _ENTER, "sh", str(self.rootfs), *command]
        return self._command(title, argv, **variables)

    def _command(self, title: str, command: list[str], **variables: str) -> str:
        """Run one command; its output, which is shown only when it fails.

        Raises:
            Unavailable: It failed; the message ends with the last lines it printed.
        """
        process = subprocess.Popen(
            [*_WITH_US, *command],
            env=self.env | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(self.lock,),
        )
        self.commands.add(process)
        with process:
            try:
                output, _ = process.communicate(timeout=_STAGE_TIMEOUT_S)
            except BaseException:
                process.kill()
                raise
            finally:
                self.commands.discard(process)
        text = output.decode(errors="replace")
        if process.returncode != 0:
            last = "\n".join(text.strip().splitlines()[-12:])
            raise Unavailable(f"{title} failed with status {process.returncode}:\n{last}")
        return text

    def _stop_commands(self) -> None:
        self.is_stopping = True
        for process in tuple(self.commands):
            process.kill()  # the leader of a pid namespace, or a download: what they started goes with them
