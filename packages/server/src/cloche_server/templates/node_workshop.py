"""The workshop on this machine's node: each verb is one call over its Unix socket.

A bench is a call that stays: the sandbox ends with its connection, so that nothing is left of a build whose
api was killed.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from cloche_server import link
from cloche_server.node.build_messages import (
    ApplyUpload,
    BuildExited,
    BuildLine,
    BuildOpened,
    ChangeRoot,
    CommitBuild,
    LayerMade,
    OpenBuild,
    PruneLayers,
    PublishBuild,
    PutInBuild,
    RemoveBuild,
    RootChanged,
    RunInBuild,
    SquashLayers,
)
from cloche_server.node.build_messages import Pruned as LayersPruned
from cloche_server.node.pulling import messages as pulling
from cloche_server.templates.manifest import Manifest
from cloche_server.templates.workshop import (
    Command,
    CopyIn,
    FetchedImage,
    Finished,
    ImageSource,
    Layer,
    OnLine,
    PreparedBase,
    Pruned,
    Setting,
)
from cloche_wire.errors import DeadlineExceeded, Unavailable

COPY_TIMEOUT_S = 1800.0
"""For an archive to be unpacked."""
COMMIT_TIMEOUT_S = 600.0
SQUASH_TIMEOUT_S = 1800.0
CALL_TIMEOUT_S = 60.0


class NodeWorkshop:
    """See `workshop.Workshop`."""

    def __init__(self, node_socket: Path) -> None:
        """Speak to this node; it need not be up yet."""
        self._node = node_socket

    @asynccontextmanager
    async def bench(self, setting: Setting) -> AsyncGenerator["NodeBench"]:
        """See `workshop.Workshop.bench`."""
        order = OpenBuild(
            setting.build_id,
            setting.team_id,
            setting.layers,
            setting.cpu_count,
            setting.memory_mib,
            isolation=setting.isolation,
        )
        feed = link.subscribe(self._node, "build_open", BuildOpened, order)
        async with aclosing(feed) as events:
            opened = await anext(events, None)
            if not isinstance(opened, BuildOpened):
                raise Unavailable("the node has closed the connection before a sandbox was there")
            yield NodeBench(self._node, opened.sandbox_id)

    async def publish(self, finished: Finished, on_line: OnLine) -> None:
        """See `workshop.Workshop.publish`."""
        order = PublishBuild(finished.team_id, msgspec.Raw(msgspec.json.encode(_manifest(finished))))
        async with aclosing(link.subscribe(self._node, "publish", dict[str, Any], order)) as events:
            async for event in events:
                if isinstance(event, tuple) and event[0] == "line":
                    line = msgspec.json.decode(event[1], type=BuildLine)
                    await on_line(line.stream, line.text)

    async def squash(self, team_id: str, layers: tuple[str, ...], below: tuple[str, ...]) -> Layer:
        """See `workshop.Workshop.squash`."""
        order = SquashLayers(team_id, layers, below)
        made = await _call(self._node, "squash", order, LayerMade, SQUASH_TIMEOUT_S)
        return Layer(made.layer_id, made.size_bytes, made.entries)

    async def read_image(self, source: ImageSource) -> str:
        """See `workshop.Workshop.read_image`."""
        order = pulling.ReadImage(msgspec.convert(source._asdict(), pulling.ImageSource))
        read = await _call(
            self._node, "image_read", order, pulling.ImageText, order.timeout_s + CALL_TIMEOUT_S
        )
        return read.text

    @asynccontextmanager
    async def image(
        self, source: ImageSource, known: tuple[str, ...], max_bytes: int
    ) -> AsyncGenerator[FetchedImage]:
        """See `workshop.Workshop.image`."""
        where = msgspec.convert(source._asdict(), pulling.ImageSource)
        order = pulling.FetchImage(where, known, max_bytes)
        async with aclosing(link.subscribe(self._node, "image_fetch", dict[str, Any], order)) as events:
            async for event in events:
                if isinstance(event, tuple) and event[0] == "fetched":
                    fetched = msgspec.json.decode(event[1], type=pulling.Fetched)
                    yield FetchedImage(fetched.pull_id, fetched.manifest, fetched.config)
                    return
        raise Unavailable("the node has closed the connection before the image was there")

    async def image_root(self) -> str:
        """See `workshop.Workshop.image_root`."""
        made = await _call(self._node, "image_root", {}, pulling.ImageRoot, CALL_TIMEOUT_S)
        return made.layer_id

    async def prune(self, kept: Sequence[str], *, most: int, dry_run: bool) -> Pruned:
        """See `workshop.Workshop.prune`."""
        order = PruneLayers(tuple(kept), dry_run=dry_run, most=most)
        pruned = await _call(self._node, "prune_layers", order, LayersPruned, COMMIT_TIMEOUT_S)
        return Pruned({layer.layer_id: layer.size_bytes for layer in pruned.layers})

    async def remove(self, build_id: str) -> None:
        """See `workshop.Workshop.remove`."""
        await _call(self._node, "unpublish", RemoveBuild(build_id), dict[str, Any], CALL_TIMEOUT_S)


class NodeBench:
    """See `workshop.Bench`."""

    def __init__(self, node_socket: Path, sandbox_id: str) -> None:
        """Work in this sandbox of the node's."""
        self._node = node_socket
        self._sandbox_id = sandbox_id

    async def run(self, command: Command, on_line: OnLine) -> int:
        """See `workshop.Bench.run`."""
        order = RunInBuild(self._sandbox_id, tuple(command.argv), command.user, command.workdir, command.env)
        async with aclosing(link.subscribe(self._node, "build_run", dict[str, Any], order)) as events:
            async for event in events:
                match event:
                    case ("line", data):
                        line = msgspec.json.decode(data, type=BuildLine)
                        await on_line(line.stream, line.text)
                    case ("exited", data):
                        return msgspec.json.decode(data, type=BuildExited).status
                    case _:
                        continue
        raise Unavailable("the sandbox of the build is gone")

    async def copy_in(self, files: CopyIn) -> None:
        """See `workshop.Bench.copy_in`."""
        upload = f"{files.archive.parent.name}/{files.archive.name}"  # below the folder of all uploads
        order = PutInBuild(self._sandbox_id, upload, files.source, files.target, files.owner, files.mode)
        await _call(self._node, "build_put", order, dict[str, Any], COPY_TIMEOUT_S)

    async def change(self, *words: str) -> str:
        """See `workshop.Bench.change`."""
        order = ChangeRoot(self._sandbox_id, words)
        return (await _call(self._node, "build_change", order, RootChanged, COPY_TIMEOUT_S)).said

    async def apply_layer(self, image: FetchedImage, digest: str) -> None:
        """See `workshop.Bench.apply_layer`."""
        order = pulling.ApplyLayer(self._sandbox_id, image.pull_id, digest)
        await _call(self._node, "image_apply", order, dict[str, Any], COPY_TIMEOUT_S)

    async def apply_upload(self, archive: Path) -> None:
        """See `workshop.Bench.apply_upload`."""
        order = ApplyUpload(self._sandbox_id, f"{archive.parent.name}/{archive.name}", archive.name)
        await _call(self._node, "build_apply", order, dict[str, Any], COPY_TIMEOUT_S)

    async def prepare_base(self, on_line: OnLine) -> PreparedBase:
        """See `workshop.Bench.prepare_base`."""
        order = pulling.PrepareBase(self._sandbox_id)
        async with aclosing(link.subscribe(self._node, "image_prepare", dict[str, Any], order)) as events:
            async for event in events:
                match event:
                    case ("line", data):
                        await on_line("stdout", msgspec.json.decode(data, type=BuildLine).text)
                    case ("prepared", data):
                        prepared = msgspec.json.decode(data, type=pulling.Prepared)
                        return PreparedBase(prepared.shell, prepared.is_complete)
                    case _:
                        continue
        raise Unavailable("the sandbox of the build is gone")

    async def commit(self) -> Layer:
        """See `workshop.Bench.commit`."""
        order = CommitBuild(self._sandbox_id)
        made = await _call(self._node, "build_commit", order, LayerMade, COMMIT_TIMEOUT_S)
        return Layer(made.layer_id, made.size_bytes, made.entries)


def _manifest(finished: Finished) -> Manifest:
    return Manifest(
        template_id=finished.template_id,
        build_id=finished.build_id,
        name=finished.name,
        aliases=[],
        cpu_count=finished.cpu_count,
        memory_mib=finished.memory_mib,
        created_at=datetime.now(UTC),
        recipe_hash="",
        layers=list(finished.layers),
        default_user=finished.default_user,
        default_workdir=finished.default_workdir,
        env=finished.env,
        team_id=finished.team_id,
        start_cmd=finished.start_cmd,
        ready_cmd=finished.ready_cmd,
        isolation=finished.isolation,
        image=finished.image,
        warm=finished.warm,
        warnings=list(finished.warnings),
    )


async def _call(node: Path, method: str, params: object, answer: type[Any], timeout_s: float) -> Any:  # noqa: ANN401 -- the caller names the type
    try:
        return await link.call(node, method, params, answer, timeout_s=timeout_s)
    except TimeoutError as error:
        raise DeadlineExceeded(f"the node did not answer {method} within {timeout_s:g} s") from error
