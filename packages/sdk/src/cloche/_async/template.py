"""Templates: what sandboxes are made of, described step by step and built by the server."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

import httpx

from cloche import _config, _requests, _template_requests
from cloche._async.client import Client, sleep
from cloche._config import ConnectionOptions
from cloche._template_requests import POLL_S, BuildInfo, BuildLogEntry
from cloche._template_steps import TemplateSteps
from cloche.errors import InvalidArgument, NotFound, TemplateNotFound
from cloche_wire.build_context import Context, Packed, pack_steps

_UPLOAD_TIMEOUT_S = 3600.0
_PIECE_BYTES = 1 << 20


class AsyncTemplate(TemplateSteps):
    """A template, described by verbs, and built by the server.

    template = AsyncTemplate().from_image("e2bdev/base").pip_install("polars").preload("polars")
    await AsyncTemplate.build(template, "with-polars")
    """

    @classmethod
    async def build(
        cls,
        template: TemplateSteps,
        name: str,
        *,
        tags: Sequence[str] = (),
        cpu_count: int | None = None,
        memory_mb: int | None = None,
        skip_cache: bool = False,
        on_build_logs: Callable[[BuildLogEntry], object] | None = None,
        **options: Unpack[ConnectionOptions],
    ) -> BuildInfo:
        """Build a template; return when sandboxes can be made of it.

        Args:
            template: What is built.
            name: `name` or `name:tag`; a template of that name gets a new build and keeps its id.
            tags: More tags that lead to this build.
            cpu_count: CPUs of its sandboxes; else what it says itself, or 2.
            memory_mb: Their memory in MiB; else what it says itself, or 1024.
            skip_cache: Whether every step runs, also where its result is known.
            on_build_logs: Called with each line of the build's log.
            options: Where the server is, and who asks.

        Raises:
            BuildFailed: A step failed, or the template is not ready in time.
            InvalidArgument: The server refuses the description, or a file to copy is not there.
            Unavailable: The server cannot be reached.
        """
        described = template.describe()
        size = cpu_count or described.get("cpu_count"), memory_mb or described.get("memory_mib")
        with tempfile.TemporaryDirectory(prefix="cloche-build-") as scratch:
            steps, archives = _pack(described, Path(scratch))
            description = {**described["description"], "steps": steps}
            description["force"] = skip_cache or description["force"]
            async with Client(_config.resolve(options)) as client:
                body = _template_requests.request_body(name, tags, *size)
                answer = await client.api("POST", "/v3/templates", body=body)
                info = _template_requests.read_build(answer.json(), name)
                for packed in archives:
                    await _send(client, info.template_id, packed)
                path = f"/templates/{info.template_id}/builds/{info.build_id}"
                await client.api("POST", f"/v2{path}", body=description)
                await _follow(client, path, on_build_logs)
        return info

    @classmethod
    async def exists(cls, name: str, **options: Unpack[ConnectionOptions]) -> bool:
        """Whether there is a template of that name, or of that id, which the caller may use."""
        async with Client(_config.resolve(options)) as client:
            try:
                await client.api("GET", f"/templates/aliases/{_requests.path_part(name)}")
            except NotFound:
                return False
        return True

    @classmethod
    async def delete(cls, name: str, **options: Unpack[ConnectionOptions]) -> bool:
        """Delete a template with all its builds; False where there is none.

        Raises:
            InvalidArgument: Sandboxes or snapshots stand on it.
            PermissionDenied: It is another team's.
        """
        async with Client(_config.resolve(options)) as client:
            try:
                path = f"/templates/{_requests.path_part(name)}"
                await client.api("DELETE", path, missing=TemplateNotFound)
            except TemplateNotFound:
                return False
        return True


def _pack(described: dict[str, Any], scratch: Path) -> tuple[list[dict[str, Any]], list[Packed]]:
    context = Context(Path(described["context"]), scratch, described["ignored"])
    try:
        return pack_steps(described["description"]["steps"], context)
    except FileNotFoundError as error:
        raise InvalidArgument(f"no such file in {described['context']}: {error}") from error
    except ValueError as error:
        raise InvalidArgument(str(error)) from error


async def _send(client: Client, template_id: str, packed: Packed) -> None:
    link = (await client.api("GET", f"/templates/{template_id}/files/{packed.files_hash}")).json()
    if link["present"]:
        return
    request = client.http.build_request(
        "PUT",
        link["url"],
        content=_pieces(packed.path),
        headers={"content-length": str(packed.path.stat().st_size)},
        timeout=httpx.Timeout(_UPLOAD_TIMEOUT_S),
    )
    answer = await client.send(request)
    if not answer.is_success:
        raise _requests.api_error(answer.status_code, answer.content)


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


async def _follow(client: Client, path: str, on_build_logs: Callable[[BuildLogEntry], object] | None) -> None:
    """Tell of each line; return when the build is ready."""
    seen = 0
    while True:
        params = {"logsOffset": str(seen)}
        status = (await client.api("GET", f"{path}/status", params=params)).json()
        entries = _template_requests.read_log(status)
        seen += len(entries)
        for entry in entries:
            if on_build_logs is not None:
                on_build_logs(entry)
        if entries:
            continue
        if _template_requests.is_over(status):
            return
        await sleep(POLL_S)
