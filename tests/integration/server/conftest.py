"""A real server, and the claim that nothing of its sandboxes is left behind."""

from tests.support.fixtures import leaves_nothing_behind

__all__ = ["leaves_nothing_behind"]
