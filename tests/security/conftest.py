"""Nothing of a sandbox is left behind."""

from tests.support.fixtures import leaves_nothing_behind

__all__ = ["leaves_nothing_behind"]
