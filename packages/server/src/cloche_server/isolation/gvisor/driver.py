"""The gVisor driver: each sandbox has a kernel of its own, a program on this machine that runsc starts.

What the sandbox's processes ask of the kernel is answered by it (the sentry). The template's files come from
another process (the gofer), read-only; what the sandbox writes is kept by the sentry, in its memory or in a
file without a name. So an image of the sentry is the whole sandbox, files and all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cloche_server.isolation import identity, overlay
from cloche_server.isolation.base import (
    Capabilities,
    Family,
    FamilySpec,
    ProcessIdentity,
    Program,
    ResourceLimits,
    SandboxSpec,
    first_id,
)
from cloche_server.isolation.grouped import GroupedDriver
from cloche_server.isolation.gvisor import (
    boot_id,
    control,
    launcher,
    oci_spec,
    open_files,
    other_roots,
    runsc,
)
from cloche_server.isolation.gvisor.launcher import ControlRequest, RunscRequest, encode
from cloche_server.isolation.gvisor.runsc import Runsc
from cloche_wire.errors import Internal, NotEnoughSpace, UnsupportedOption

_OWN_MEMORY_MIB = 128
"""Of sentry and gofer beside what the sandbox uses: 70 to 95 measured."""
_MARGIN_MIB = 384
"""Two programs that fill memory at once were 250 above it before the first of them had ended."""
_OWN_PIDS = 3072
"""Threads of both, and the processes in which the sandbox's programs run: up to two for each of theirs.

The sandbox's kernel refuses programs of each user beyond the limit; where the machine's refuses it one of its
own, it ends. A fork bomb of bash with 1024 processes took 1738."""
_OWN_CPU_PCT = 6.0
"""Of the sentry's timers: 3.4 to 4.4 measured."""
_SAVE_FLAGS = ("--compression=none", "--exclude-committed-zero-pages", "--leave-running")
_BUNDLE, _FILES, _LOG, _PID, _BOOT_ID = "bundle", "files", "runsc.log", "sandbox.pid", "boot_id"
_RELEASE, _FROZEN, _CONFIG = "runsc.release", "frozen", "config.json"


class GvisorDriver(GroupedDriver):
    """Sandboxes with a kernel of their own."""

    def __init__(self, block: int, tools: Path) -> None:
        """Take the number of this server's block, which names its control groups, and the folder of runsc."""
        super().__init__(block)
        self._tools = tools
        self._root = Path(f"/run/cloche/runsc-{block}")
        """What runsc knows of the sandboxes. Short: sockets lie in it."""
        self._runsc: Runsc | None = None

    def capabilities(self) -> Capabilities:
        """See `Driver.capabilities`."""
        version = "" if self._runsc is None else self._runsc.version
        return Capabilities(
            name="gvisor",
            shares_host_kernel=False,
            freezes=self._groups.freezes,
            own_memory_mib=_OWN_MEMORY_MIB,
            memory_margin_mib=_MARGIN_MIB,
            own_cpu_pct=_OWN_CPU_PCT,
            memory_snapshot=True,
            disk_snapshot=True,
            volumes=True,
            saves_beside_volumes=self._runsc is not None and self._runsc.release in control.RELEASES,
            listeners=False,
            image_format=f"runsc {version}",
        )

    def goes_on_over(self, layers: Sequence[Path]) -> bool:
        """See `Driver.goes_on_over`."""
        return other_roots.can_be_taken(layers)

    def prepare(self, program: Program | None = None) -> None:
        """Find runsc, make mount points and the parent group, start the launcher. See `Driver.prepare`."""
        self._runsc = runsc.find(self._tools)
        self._prepare(launcher.__name__)
        self._root.mkdir(mode=0o700, exist_ok=True)

    async def open_family(self, spec: FamilySpec) -> Family:
        """See `Driver.open_family`; this one says no `families`."""
        raise Internal("no families here")

    async def start(self, spec: SandboxSpec) -> ProcessIdentity:
        """See `Driver.start`."""
        try:
            return await self._start(spec)
        except (OSError, Internal) as error:
            raise Internal(f"cannot start the sandbox: {error}") from error

    async def _start(self, spec: SandboxSpec) -> ProcessIdentity:
        # One call for both: runsc restore makes the sandbox where there is none, and a second process of its
        # takes 30 ms to start.
        verb = ("run",) if spec.image is None else ("restore", f"--image-path={spec.image}")
        bundle, files = spec.folder / _BUNDLE, spec.folder / _FILES
        for folder in (bundle, files):
            folder.mkdir(mode=0o700)
        if not boot_id.can_be_shown(spec.layers):
            spec = msgspec.structs.replace(spec, boot_id="")
        boot_id_file = ""
        if spec.boot_id:
            boot_id_file = str(spec.folder / _BOOT_ID)
            boot_id.write(Path(boot_id_file), spec.boot_id, first_id(spec.slot))
        overlays = f"--overlay2=root:dir={files}"  # without a name, so nothing is left of it at the end
        has_layer = spec.keeps_layer or bool(spec.mounts)
        if has_layer:
            overlay.make_writable(spec.folder)
        if spec.keeps_layer:
            overlays = "--overlay2=none"
        (bundle / _CONFIG).write_bytes(msgspec.json.encode(oci_spec.write(spec)))
        memory_mib = spec.limits.memory_mib + _OWN_MEMORY_MIB + _MARGIN_MIB
        limits = ResourceLimits(spec.limits.cpu_count, memory_mib, spec.limits.pids + _OWN_PIDS)
        groups = [str(path) for path in self._groups.create(spec.sandbox_id, limits)]
        pid_file = spec.folder / _PID
        asked = ("--detach", f"--bundle={bundle}", f"--pid-file={pid_file}", spec.sandbox_id)
        request = RunscRequest(
            command=self._command(spec.folder, overlays, *verb, *asked),
            log=str(spec.folder / _LOG),
            cgroup_files=groups,
            layers=list(map(str, spec.layers)),
            writable=str(spec.folder) if has_layer else None,
            # What goes on has no start, so nobody would take the entry away: it would be in the layer.
            marks_tmp=spec.image is None or not spec.keeps_layer,
            runtime_tree=str(spec.runtime_tree),
            first_id=first_id(spec.slot),
            boot_id_file=boot_id_file,
            pid_file=str(pid_file),
            mount_paths=[shared.path for shared in spec.mounts],
        )
        (spec.folder / _RELEASE).write_text(self._known.release)
        answer = await self._launcher.ask(
            encode(request), [spec.network_namespace, *(shared.mount for shared in spec.mounts)]
        )
        init = identity.identify(answer.pid)
        if init is None:
            raise Internal("it ended at once")
        return init

    async def freeze(self, sandbox_id: str, folder: Path) -> None:
        """See `Driver.freeze`. The sentry stands still too, so nothing can be asked of it until it goes on.

        Where the machine cannot do that, only `save` has the sandbox stand still.
        """
        if self._groups.freezes:
            await self._groups.freeze(sandbox_id)

    async def thaw(self, sandbox_id: str, folder: Path) -> None:
        """See `Driver.thaw`."""
        self._groups.thaw(sandbox_id)
        mark = folder / _FROZEN
        if mark.exists() and not await self._ask(sandbox_id, folder, "thaw"):
            await self._run(sandbox_id, folder, "resume")
            mark.unlink()

    async def save(self, sandbox_id: str, folder: Path, image: Path) -> tuple[str, ...]:
        """See `Driver.save`. Meanwhile, and after it, it is the sentry that keeps the sandbox still."""
        shared = oci_spec.shared_paths((folder / _BUNDLE / _CONFIG).read_bytes())
        if shared and not self._is_known(folder):
            raise UnsupportedOption(
                "a sandbox with volumes cannot be paused or copied: its runsc is of an unknown release",
                hint=f"releases that are: {', '.join(sorted(control.RELEASES))}",
            )
        self._groups.thaw(sandbox_id)
        mark = folder / _FROZEN
        if not mark.exists() and not await self._ask(sandbox_id, folder, "freeze"):
            mark.touch(mode=0o600)
            await self._run(sandbox_id, folder, "pause")
        try:
            if not await self._ask(sandbox_id, folder, "save", image, shared):
                await self._run(sandbox_id, folder, "checkpoint", *_SAVE_FLAGS, f"--image-path={image}")
        except Internal as error:
            if "no space left" in error.message:
                raise NotEnoughSpace("no space left for the sandbox's memory") from error
            raise
        return tuple(open_files.kept(self._groups.pids(sandbox_id), shared)) if shared else ()

    async def destroy(self, sandbox_id: str, folder: Path, init: ProcessIdentity | None) -> None:
        """See `Driver.destroy`. Sentry, gofer and the processes they run in are all in its groups."""
        await self._end_group(sandbox_id)
        for path in self._root.glob(f"*{sandbox_id}*"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Also forget what runsc knows, when no sandbox is left."""
        super().close()
        with contextlib.suppress(OSError):
            self._root.rmdir()

    @property
    def _known(self) -> Runsc:
        if self._runsc is None:
            raise Internal("the driver is not prepared")
        return self._runsc

    def _command(self, folder: Path, *arguments: str) -> list[str]:
        return self._known.command(self._root, f"--log={folder / _LOG}", *arguments)

    async def _ask(
        self,
        sandbox_id: str,
        folder: Path,
        verb: control.Verb,
        image: Path | None = None,
        shared: Sequence[str] = (),
    ) -> bool:
        """Have the sandbox's kernel do something; False where it is of a release whose calls are not known.

        Raises:
            Internal: It fails; the message says why.
            InUse: Its programs use something of what is shared.
        """
        if not self._is_known(folder):
            return False
        path = self._root / f"runsc-{sandbox_id}.sock"
        request = ControlRequest(verb, str(path), str(folder / _FROZEN), str(image or ""), list(shared))
        await self._launcher.ask(encode(request), [])
        return True

    def _is_known(self, folder: Path) -> bool:
        """Whether the calls are known of the release that a sandbox was started by: it may not be today's."""
        try:
            return (folder / _RELEASE).read_text() in control.RELEASES
        except FileNotFoundError:
            return False

    async def _run(self, sandbox_id: str, folder: Path, verb: str, *options: str) -> None:
        """One call of runsc about a sandbox that is there.

        Raises:
            Internal: It fails; the message says why.
        """
        command = self._command(folder, verb, *options, sandbox_id)
        request = RunscRequest(command, str(folder / _LOG))
        await self._launcher.ask(encode(request), [])
