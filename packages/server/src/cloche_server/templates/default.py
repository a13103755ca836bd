"""Builds the embedded default template: Debian by mmdebstrap, Python packages, npm, two users.

mmdebstrap and two downloads run side by side, then one script finishes the root from within. Every command
that mounts runs in a mount and pid namespace of its own: whatever it mounts goes with its last process, also
after kill -9.
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
from pathlib import Path

import msgspec

from cloche_server import disk_space
from cloche_server.config import API_UID, Config
from cloche_server.templates import host_settings, manifest, recipe
from cloche_server.templates.manifest import MANIFEST_NAME, Manifest
from cloche_server.templates.recipe import Recipe
from cloche_wire.errors import PermissionDenied, Unavailable

Progress = Callable[[str], None]

NEEDED_BYTES = 2 * 1024**3
"""Free space that a build asks for: the root takes 0.7 GiB, its packages as much again for a while."""

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
_CUSTOMIZE = """
mount -t proc proc "$1/proc"
mount -t tmpfs tmpfs "$1/dev/shm"
exec chroot "$1" sh /.build/customize.sh
"""
_APT_OPTIONS = ('Acquire::Languages "none"', 'APT::Install-Recommends "false"', 'Acquire::Retries "3"')


def ensure(config: Config, progress: Progress) -> Manifest:
    """Return the default template; build it first where its recipe has no finished build.

    Takes 2 ms when it is there, about 50 s on two cores when not. Leaves nothing behind when it fails. A
    second caller waits for the first one's build and uses it.

    Raises:
        PermissionDenied: The caller is not root.
        NotEnoughSpace: Less than `NEEDED_BYTES` are free; nothing was written.
        Unavailable: A tool is missing, or a registry does not answer; the message names it.
    """
    wanted = Recipe(host_settings.extra_certificates())
    if found := _finished(config.templates_dir, wanted):
        return found
    _check_prerequisites(config.templates_dir)
    with _only_builder(config.templates_dir, progress) as lock:
        return _finished(config.templates_dir, wanted) or _build(config.templates_dir, wanted, progress, lock)


def _finished(folder: Path, wanted: Recipe) -> Manifest | None:
    found = manifest.newest(folder, recipe.TEMPLATE_ID)
    return found if found and found.recipe_hash == wanted.hash else None


def _check_prerequisites(folder: Path) -> None:
    if os.geteuid() != 0:
        raise PermissionDenied("building a template needs root", hint="run it with sudo")
    missing = [name for name in ("mmdebstrap", "unshare") if shutil.which(name) is None]
    if missing:
        raise Unavailable(f"not installed: {missing[0]}", hint=f"apt-get install {missing[0]}")
    disk_space.require(folder, NEEDED_BYTES, "the template")


@contextmanager
def _only_builder(folder: Path, progress: Progress) -> Generator[int]:
    """Hold the builders' lock. Commands inherit it: if one outlives a killed builder, nobody else builds."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another build of the template is running: waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        for leftover in folder.glob(".building-*"):
            shutil.rmtree(leftover)
        yield descriptor
    finally:
        os.close(descriptor)


def _build(folder: Path, wanted: Recipe, progress: Progress, lock: int) -> Manifest:
    made = Manifest(
        template_id=recipe.TEMPLATE_ID,
        build_id=str(uuid.uuid4()),
        name=recipe.NAME,
        aliases=list(recipe.ALIASES),
        cpu_count=recipe.CPU_COUNT,
        memory_mib=recipe.MEMORY_MIB,
        created_at=datetime.now(UTC),
        recipe_hash=wanted.hash,
        env=wanted.environment,
    )
    work = folder / f".building-{made.build_id}"
    progress(f"building template {recipe.NAME} in {folder}")
    began = time.monotonic()
    try:
        # SAFETY: mode 0750 before anything is in it: the root will hold set-user-id programs.
        work.mkdir(mode=0o750)
        os.chown(work, 0, API_UID)
        _Build(work, wanted, progress, lock).run()
        target = work / MANIFEST_NAME
        target.write_bytes(msgspec.json.format(msgspec.json.encode(made)))
        target.chmod(0o644)
        os.sync()  # a power cut after the rename must not leave a template with empty files
        work.rename(folder / made.build_id)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    progress(f"template {recipe.NAME} is ready ({time.monotonic() - began:.0f} s)")
    return made


class _Build:
    """One run of the recipe, in a folder of its own."""

    def __init__(self, work: Path, wanted: Recipe, progress: Progress, lock: int) -> None:
        self.rootfs = work / "rootfs"
        self.parts = work / "parts"
        self.recipe = wanted
        self.settings = settings = host_settings.read()
        self.progress = progress
        self.lock = lock
        self.commands: set[subprocess.Popen[bytes]] = set()
        self.env = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            **settings.proxies,
        }

    def run(self) -> None:
        self.parts.mkdir()
        with ThreadPoolExecutor(max_workers=3) as pool:
            stages = [
                pool.submit(self._stage, "Debian 13 with Python, Node.js and git", self._debian),
                pool.submit(self._stage, "Python packages", self._python_packages),
                pool.submit(self._stage, "npm", self._npm),
            ]
            try:
                for stage in as_completed(stages):
                    stage.result()
            except BaseException:  # also Ctrl-C: the pool would wait for the others to finish
                self._stop_commands()
                raise
        self._stage("users, byte code, certificates", self._customize)
        shutil.rmtree(self.parts)

    def _stage(self, title: str, act: Callable[[], None]) -> None:
        began = time.monotonic()
        act()
        self.progress(f"  {title}: {time.monotonic() - began:.1f} s")

    def _debian(self) -> None:
        settings = self.settings
        command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=apt", "--format=directory"]
        command += ["--dpkgopt=force-unsafe-io", f"--essential-hook={_LEAVE_OUT_HOOK}"]
        command += [f"--aptopt={option}" for option in _APT_OPTIONS]
        command += [f"--include={','.join(recipe.PACKAGES)}", recipe.SUITE, str(self.rootfs)]
        command.append(f"deb {settings.debian_mirror} {recipe.SUITE} main")
        command.append(f"deb {settings.debian_mirror} {recipe.SUITE}-updates main")
        command.append(f"deb {settings.debian_security_mirror} {recipe.SUITE}-security main")
        self._command("mmdebstrap", [*_OWN_NAMESPACES, "--mount-proc", *command])

    def _python_packages(self) -> None:
        """Unpack the wheels for the template's Python with uv, if here: 2 s, while mmdebstrap still runs."""
        shutil.copyfile(recipe.REQUIREMENTS, self.parts / "requirements.txt")
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}")
        if uv is None:
            return  # pip does it in the last stage: the same packages, 20 s more
        command = [uv, "pip", "install", "--quiet", "--no-cache", "--no-config", "--python-version", "3.13"]
        command += ["--python-platform", f"{self.recipe.machine}-manylinux_2_28", "--only-binary", ":all:"]
        command += ["--require-hashes", "--link-mode", "copy", "--target", str(self.parts / "site")]
        if self.settings.pip_index_url:
            command += ["--default-index", self.settings.pip_index_url]
        command += ["-r", str(recipe.REQUIREMENTS)]
        self._command("uv", command, UV_SYSTEM_CERTS="1", UV_PYTHON_DOWNLOADS="never")

    def _npm(self) -> None:
        url = f"{self.settings.npm_registry}/npm/-/npm-{recipe.NPM_VERSION}.tgz"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler(dict(self.settings.proxies)))
        try:
            with opener.open(url, timeout=_DOWNLOAD_TIMEOUT_S) as response:
                archive: bytes = response.read()
        except (urllib.error.URLError, TimeoutError) as error:
            raise Unavailable(
                f"cannot download npm: {url}: {error}", hint="check the network and the proxy"
            ) from error
        if base64.b64encode(hashlib.sha512(archive).digest()).decode() != recipe.NPM_SHA512:
            raise Unavailable(
                f"npm's archive is not the one expected: {url}", hint="the registry may be tampered with"
            )
        (self.parts / "npm.tgz").write_bytes(archive)

    def _customize(self) -> None:
        inside = self.rootfs / ".build"
        self.parts.rename(inside)
        self.parts.mkdir()
        shutil.copyfile(recipe.CUSTOMIZE, inside / "customize.sh")
        lines = [f"{name}={value}\n" for name, value in self.recipe.environment.items()]
        (inside / "environment").write_text("".join(lines))
        if self.recipe.certificates:
            (inside / "certificates").mkdir()
            for number, certificate in enumerate(self.recipe.certificates):
                (inside / "certificates" / f"host-{number}.crt").write_bytes(certificate + b"\n")
        # SAFETY: all three mounts live in the command's own mount namespace and end with it.
        command = [*_OWN_NAMESPACES, "sh", "-ec", _CUSTOMIZE, "sh", str(self.rootfs)]
        self._command("the last stage", command, **self.recipe.environment)
        for device in (self.rootfs / "dev").iterdir():  # a sandbox gets a /dev of its own
            shutil.rmtree(device) if device.is_dir() and not device.is_symlink() else device.unlink()

    def _command(self, title: str, command: list[str], **variables: str) -> None:
        """Run one command; its output is shown only when it fails.

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
        if process.returncode != 0:
            last = "\n".join(output.decode(errors="replace").strip().splitlines()[-12:])
            raise Unavailable(f"{title} failed with status {process.returncode}:\n{last}")

    def _stop_commands(self) -> None:
        for process in tuple(self.commands):
            process.kill()  # the leader of a pid namespace, or a download: what they started goes with them
