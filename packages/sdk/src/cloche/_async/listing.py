"""Pages of the list of sandboxes."""

from __future__ import annotations

from typing import Unpack

from cloche import _config, _requests
from cloche._async.client import Client
from cloche._config import ConnectionOptions
from cloche.errors import InvalidArgument
from cloche.models import SandboxInfo, SandboxQuery


class AsyncSandboxPaginator:
    """Fetches the list of sandboxes page by page: call `next_items` while `has_next`."""

    def __init__(
        self,
        query: SandboxQuery | None,
        limit: int | None,
        next_token: str | None,
        order: str | None,
        **options: Unpack[ConnectionOptions],
    ) -> None:
        """Keep the question; nothing is sent yet."""
        self._connection = _config.resolve(options)
        self._query = query
        self._limit = limit
        self._next_token = next_token
        self._order = order
        self._has_next = True

    @property
    def has_next(self) -> bool:
        """Whether there may be another page."""
        return self._has_next

    @property
    def next_token(self) -> str | None:
        """The token with which the next page can be fetched, also by another paginator."""
        return self._next_token

    async def next_items(self) -> list[SandboxInfo]:
        """Return the next page.

        Raises:
            InvalidArgument: There is no further page.
        """
        if not self._has_next:
            raise InvalidArgument("no more items to fetch", hint="call next_items only while has_next")
        params = _requests.list_params(self._query, self._limit, self._next_token, self._order)
        async with Client(self._connection) as client:
            response = await client.api("GET", "/v2/sandboxes", params=params)
        self._next_token = response.headers.get("x-next-token") or None
        self._has_next = self._next_token is not None
        return [_requests.read_info(item) for item in response.json()]
