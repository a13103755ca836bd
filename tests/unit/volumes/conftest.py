"""The content of a volume that is a plain folder of this test, over the application itself."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloche_server.volumes.app import create_app
from cloche_wire.errors import Unauthenticated

TOKEN = "vol_token"


class Content:
    """Requests about one volume."""

    def __init__(self, client: httpx.AsyncClient, folder: Path) -> None:
        self.client = client
        self.folder = folder

    async def ask(self, method: str, resource: str, path: str, **options: Any) -> httpx.Response:
        """One request; what is made belongs to the user of the tests, who need not be root."""
        params = {"path": path, **options.pop("params", {})}
        if method in {"PUT", "POST"}:
            params = {"uid": os.geteuid(), "gid": os.getegid(), **params}
        return await self.client.request(method, f"/volumecontent/v1/{resource}", params=params, **options)

    async def write(self, path: str, data: bytes, **params: Any) -> httpx.Response:
        return await self.ask("PUT", "file", path, content=data, params=params)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the volume, which nothing may reach."""
    made = tmp_path / "outside"
    made.mkdir()
    (made / "secret").write_text("of the host")
    return made


@pytest.fixture
async def content(tmp_path: Path, outside: Path) -> AsyncIterator[Content]:
    folder = tmp_path / "volume"
    folder.mkdir()

    async def open_root(volume_id: str, token: str) -> int:
        if (volume_id, token) != ("v1", TOKEN):
            raise Unauthenticated("unknown volume, or wrong token")
        return os.open(folder, os.O_PATH | os.O_DIRECTORY)

    transport = httpx.ASGITransport(create_app(open_root), raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://content", headers=headers) as client:
        yield Content(client, folder)
