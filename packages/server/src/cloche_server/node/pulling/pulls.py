"""Fetch images of registries, and say in types what went wrong.

What is fetched lies in `STATE/pulls/<id>` for as long as the caller is there: an OCI layout, written by a
user without rights. It is hostile to the last byte: read as bounded text, opened by names that are digests,
and unpacked inside a sandbox (`node.pulling.unpacking`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import shutil
import sys
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

import msgspec
import structlog

from cloche_server.config import PULL_UID
from cloche_server.link import Event
from cloche_server.node import build_limits, strange_files
from cloche_server.node.machine import Machine
from cloche_server.node.pulling import failures, jail
from cloche_server.node.pulling.gate import Rules
from cloche_server.node.pulling.jail import Done, Order
from cloche_server.node.pulling.messages import Fetched, FetchImage, ImageSource, ImageText, ReadImage
from cloche_wire.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    PathNotFound,
    PermissionDenied,
    Unavailable,
)

_LAYOUT, _NAME = "layout", "image"
_PULL_ID = re.compile(r"[0-9a-f]{32}\Z")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")
_TEXT_BYTES = 4 << 20
_PATIENCE_S = 10.0
"""For the jail beyond what its program may take."""

log = structlog.get_logger()


class _Descriptor(msgspec.Struct, frozen=True):
    digest: str


class _Index(msgspec.Struct, frozen=True):
    manifests: list[_Descriptor]


class _Manifest(msgspec.Struct, frozen=True):
    config: _Descriptor


async def read(machine: Machine, request: ReadImage) -> ImageText:
    """Ask a registry for a manifest, whatever stands in it.

    Raises:
        ClocheError: See `messages`.
    """
    argv = ["inspect", "--raw", *_options(machine, request.source)]
    order = _order(machine, request.source, [*argv, _place(request.source)])
    done = await _run(order, request.timeout_s)
    if done.status != 0:
        raise failures.failure(request.source, done)
    return ImageText(done.stdout)


async def fetch(machine: Machine, request: FetchImage) -> AsyncGenerator[Event]:
    """Fetch an image; one event when it is there, and no other. It is gone when nobody listens any more.

    Raises:
        ClocheError: See `messages`.
    """
    build_limits.require_space(machine, "an image")
    pull_id = token_hex(16)
    folder = machine.config.pulls_dir / pull_id
    try:
        _make_layout(folder, request.known)
        order = _order(
            machine,
            request.source,
            [
                *("copy", "--quiet", "--src-authfile", jail.AUTH),
                *(f"--src-{option[2:]}" for option in _options(machine, request.source, keys=False)),
                # Whatever a layer is packed with, the Python inside can unpack.
                *("--dest-compress-format", "gzip"),
                *(_place(request.source), f"oci:{jail.WORK}/{_LAYOUT}:{_NAME}"),
            ],
            folder=str(folder),
            max_bytes=request.max_bytes,
        )
        done = await _run(order, request.timeout_s)
        if done.status != 0:
            raise failures.failure(request.source, done)
        fetched = _fetched(machine, pull_id)
        log.info("image.fetched", image=request.source.name, pull_id=pull_id)
        yield Event("fetched", fetched)
        await asyncio.get_running_loop().create_future()
    finally:
        machine.trash.put(folder)


def open_layer(machine: Machine, pull_id: str, digest: str) -> int:
    """Open a layer that was fetched, for reading.

    Raises:
        PathNotFound: There is none of that name.
    """
    found = _DIGEST.match(digest)
    if not _PULL_ID.match(pull_id) or found is None:
        raise PathNotFound(f"no such layer of an image: {digest[:100]}")
    return strange_files.open_file(machine.config.pulls_dir / pull_id / _LAYOUT, f"blobs/sha256/{found[1]}")


def remove_leftovers(machine: Machine) -> None:
    """Remove what a node that was killed had fetched."""
    folder = machine.config.pulls_dir
    folder.mkdir(mode=0o711, exist_ok=True)
    for path in folder.iterdir():
        machine.trash.put(path)


# --- asking ------------------------------------------------------------------------------------------


def _options(machine: Machine, source: ImageSource, *, keys: bool = True) -> list[str]:
    options = ["--authfile", jail.AUTH] if keys else []
    if source.host in machine.config.builds.insecure_registries:
        options.append("--tls-verify=false")
    return options


def _place(source: ImageSource) -> str:
    if source.kind == "docker":
        return f"docker://{source.name}"
    return f"{source.kind}:{jail.IMAGES}/{source.name}"


def _order(
    machine: Machine, source: ImageSource, words: list[str], *, folder: str = "", max_bytes: int = 64 << 20
) -> Order:
    """What the jail is asked for.

    Raises:
        PermissionDenied: This source is not open to builds.
        Unavailable: There is no skopeo.
    """
    program = shutil.which("skopeo")
    if program is None:
        raise Unavailable("images cannot be fetched: skopeo is missing", hint="apt-get install skopeo")
    settings, images = machine.config.builds, ""
    named = (*settings.insecure_registries, *(one for one in settings.registries if "*" not in one))
    trusted = tuple(one for one in named if "/" not in one)
    host, _, port = source.host.partition(":")
    if source.kind != "docker":
        images = _local_folder(settings.local_images, source.name)
    is_door = _is_loopback(host)
    if is_door and source.host not in trusted:
        raise PermissionDenied(
            f"no registry for builds: {source.host}",
            hint="the operator may name it in builds.registries or builds.insecure_registries",
        )
    bundle = os.environ.get("SSL_CERT_FILE", "")
    return Order(
        [program, "--insecure-policy", *words],
        Rules(
            machine.config.egress.exceptions,
            trusted,
            (int(port or 443),) if is_door else (),
            _proxies(),
            max_bytes,
        ),
        folder,
        images,
        bundle if Path(bundle).is_file() else "",
        source.host,
        source.username,
        source.password,
    )


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _local_folder(folder: str, name: str) -> str:
    path = name.partition(":")[0]
    if not folder:
        raise PermissionDenied(
            "images of this machine are not open to builds", hint="the operator may name builds.local_images"
        )
    if not path or path.startswith("/") or ".." in Path(path).parts:
        raise InvalidArgument(f"not a name below the folder of images: {name[:200]}")
    if not Path(folder).is_dir():
        raise PermissionDenied(f"no such folder of images: {folder}")
    return folder


def _proxies() -> dict[str, str]:
    names = ("https_proxy", "no_proxy")
    return {name: value for name in names if (value := os.environ.get(name) or os.environ.get(name.upper()))}


async def _run(order: Order, timeout_s: float) -> Done:
    """Run a program in the jail.

    Leaves: nothing of it, however this ends.

    Raises:
        DeadlineExceeded: It took too long, and was ended.
        Internal: The jail cannot be made.
    """
    # SAFETY: nothing of our environment goes along; the credentials go by a pipe that it alone can read.
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-m", jail.__name__),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env={"LANG": "C.UTF-8"},
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout_s + _PATIENCE_S):
            answer, _ = await process.communicate(msgspec.json.encode(order))
    except TimeoutError as error:
        raise DeadlineExceeded(f"the image was not fetched within {timeout_s:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        return msgspec.json.decode(answer, type=Done)
    except msgspec.DecodeError as error:
        raise Internal("images cannot be fetched: the jail has failed", hint="see the node's log") from error


# --- what was fetched --------------------------------------------------------------------------------


def _make_layout(folder: Path, known: tuple[str, ...]) -> None:
    """Make the place that is written to; for all that `skopeo` sees, known layers are there already."""
    blobs = folder / _LAYOUT / "blobs" / "sha256"
    blobs.mkdir(mode=0o700, parents=True)
    for digest in known:
        if (found := _DIGEST.match(digest)) is not None:
            (blobs / found[1]).touch(mode=0o600)
    for path in (folder, folder / _LAYOUT, blobs.parent, blobs, *blobs.iterdir()):
        # SAFETY: nobody else has written there yet.
        os.chown(path, PULL_UID, PULL_UID, follow_symlinks=False)
    folder.chmod(0o700)


def _fetched(machine: Machine, pull_id: str) -> Fetched:
    folder = machine.config.pulls_dir / pull_id / _LAYOUT
    try:
        index = msgspec.json.decode(strange_files.read_text(folder, "index.json", _TEXT_BYTES), type=_Index)
        manifest = _blob(folder, index.manifests[0].digest)
        config = _blob(folder, msgspec.json.decode(manifest, type=_Manifest).config.digest)
    except (msgspec.MsgspecError, LookupError, PathNotFound) as error:
        raise Internal(f"what was fetched is no image: {error}") from error
    return Fetched(pull_id, manifest, config)


def _blob(folder: Path, digest: str) -> str:
    found = _DIGEST.match(digest)
    if found is None:
        raise PathNotFound(f"no such part of an image: {digest[:100]}")
    return strange_files.read_text(folder, f"blobs/sha256/{found[1]}", _TEXT_BYTES)
