"""What has to be there before the server's processes start, made in order and safe to repeat."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

import msgspec

from cloche_server import disk_space
from cloche_server.cli import checks
from cloche_server.config import API_UID
from cloche_server.edge import certificates, tls
from cloche_server.ids import new_sandbox_id
from cloche_server.node import runtime_tree
from cloche_server.node.journal import Journal
from cloche_server.templates import builder, host_settings, recipe, superseded
from cloche_wire.errors import InvalidArgument, PermissionDenied, Unavailable, UnsupportedOption

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cloche_server.config import Config
    from cloche_server.node.runtime_tree import RuntimeTree

NEEDED_BYTES = 512 * 1024**2
"""Free space that a start asks for: runtime tree, database, logs, and something for the first sandboxes."""

_TOOLS = {"nft": "nftables"}
"""Programs that the `container` driver's network runs, and the Debian packages they come in."""
_MAX_SOCKET_PATH = 107  # sun_path of unix(7), without its final zero
_ISOLATION_FILE = "isolation"
_DRIVERS = {"gvisor": checks.GVISOR, "container": checks.CONTAINER}
"""Drivers for real use, strongest first, and the checks that say whether one is healthy."""


def check_machine(config: Config) -> None:
    """Refuse, in one sentence, what can never work here.

    Raises:
        Unavailable: Not Linux, or a program is missing.
        PermissionDenied: Not root.
        NotEnoughSpace: The disk is too full.
        InvalidArgument: The state folder's path is too long for the sockets below it.
    """
    if sys.platform != "linux":
        raise Unavailable(f"cloche runs on Linux only: {sys.platform}")
    if os.geteuid() != 0:
        raise PermissionDenied("cloche serve needs root", hint="run it with sudo")
    for program, package in _TOOLS.items():
        if shutil.which(program) is None:
            raise Unavailable(f"not installed: {program}", hint=f"apt-get install {package}")
    disk_space.require(config.state_dir, NEEDED_BYTES, "the server")
    longest = len(os.fsencode(config.run_dir)) + len(f"/agents/{new_sandbox_id()}/envd.sock")
    if longest > _MAX_SOCKET_PATH:
        raise InvalidArgument(
            f"the state folder is {longest - _MAX_SOCKET_PATH} bytes too long: {config.state_dir}",
            hint="sockets lie below it, and the path of a Unix socket has at most 107 bytes",
        )


def make_folders(config: Config) -> None:
    """Make the state folder and what lies directly in it, each with its owner and mode."""
    # Others may pass through to the sockets and certificates they were told of, and list nothing.
    _folder(config.state_dir, 0o711)
    _folder(config.run_dir, 0o711)
    _folder(config.content_dir, 0o711)
    _folder(config.volumes_dir, 0o700)
    _folder(config.state_dir / "log", 0o700)
    _folder(config.state_dir / "node", 0o700)
    _folder(config.database.parent, 0o700, owner=API_UID)
    _folder(config.uploads_dir, 0o700, owner=API_UID)
    _folder(config.templates_dir, 0o755)


def _folder(path: Path, mode: int, owner: int = 0) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SAFETY: the parents belong to root, so nobody can have put a link in the folder's place.
    os.chown(path, owner, owner, follow_symlinks=False)
    path.chmod(mode)


def settle_isolation(config: Config) -> Config:
    """Replace `auto` by a driver: the one written down at the first start, else the strongest healthy one.

    Leaves: the choice in STATE/isolation, so that a later start never falls to a weaker one in silence.

    Raises:
        Unavailable: No driver is healthy; the message says what is wrong.
        UnsupportedOption: The file names a driver that does not exist.
    """
    if config.isolation != "auto":
        return config
    file = config.state_dir / _ISOLATION_FILE
    if file.exists():
        settled = file.read_text().strip()
        if settled not in _DRIVERS:
            hint = "choose one with --isolation"
            raise UnsupportedOption(f"no such isolation: {settled}", hint=hint)
        return msgspec.structs.replace(config, isolation=settled)
    found = checks.run(config, names=checks.GVISOR)
    failed = {check.name: check.detail for check in found if not check.ok}
    settled = next((name for name, needs in _DRIVERS.items() if failed.keys().isdisjoint(needs)), None)
    if settled is None:
        reasons = "; ".join(f"{name}: {detail}" for name, detail in failed.items())
        raise Unavailable(f"no isolation is healthy on this machine: {reasons}", hint="see `cloche doctor`")
    staged = file.with_name(f"{_ISOLATION_FILE}.new")
    staged.write_text(f"{settled}\n")
    staged.replace(file)
    return msgspec.structs.replace(config, isolation=settled)


def ensure_runtime_tree(config: Config) -> RuntimeTree:
    """Make what agents run on, where it is not there yet for the code that is installed now."""
    return runtime_tree.ensure(config.state_dir)


def ensure_template(config: Config, progress: Callable[[str], None]) -> None:
    """Build the default template where it is missing or its recipe has changed."""
    builder.ensure(config, recipe.code_interpreter(host_settings.extra_certificates()), progress)


def remove_superseded_templates(config: Config) -> list[str]:
    """Remove older builds on which no sandbox stands, 0.7 GB each; a folder shared with others is left alone.

    Requires: the node does not run, so that the journal stands still.
    """
    if config.templates:
        return []
    records = Journal(config.journal_dir).read_all()
    return superseded.remove(config.templates_dir, {record.request.build_id for record in records})


def ensure_certificates(config: Config) -> None:
    """Make the edge's certificates, or renew them."""
    certificates.ensure_certificates(tls.folder(config), config.public_domain)


def ensure_key(config: Config) -> str | None:
    """Make the first API key where there is none, and the operator's token; return the key when it is new."""
    from cloche_server.store import first_key  # takes half a second to import

    made = first_key.ensure_first_key(config)
    first_key.ensure_admin_token(config)
    return made
