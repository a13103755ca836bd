"""A real server, two sandboxes of one team, and the claim that nothing of them is left behind."""

from tests.support.fixtures import leaves_nothing_behind, pair, sandboxes, server

__all__ = ["leaves_nothing_behind", "pair", "sandboxes", "server"]
