"""Ending what a killed api had begun, and what nobody else ends."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import structlog

from cloche_server.api.control import ControlPlane
from cloche_wire.errors import ClocheError


class Unfinished(Protocol):
    """A row in a state that is somebody's work."""

    @property
    def id(self) -> str:
        """What of."""
        ...


log = structlog.get_logger()
T = TypeVar("T", bound=Unfinished)


async def finish_leftovers(
    control: ControlPlane,
    unfinished: Callable[[], Awaitable[Sequence[T]]],
    finish: Callable[[T], Awaitable[None]],
) -> None:
    """Finish all that is unfinished and in nobody's hands; what cannot be is tried again the next time.

    Raises:
        Unavailable: The database does not answer.
    """
    left = {record.id for record in await unfinished() if record.id not in control.creations}
    # Still unfinished now, and in nobody's hands after it was read: whoever had it is dead.
    for record in await unfinished() if left else ():
        if record.id in left:
            try:
                with control.creations.hold(record.id):
                    await finish(record)
            except ClocheError as error:
                log.warning("leftover.stays", id=record.id, error=str(error))
            else:
                log.info("leftover.finished", id=record.id)
