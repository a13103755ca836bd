"""Clients against a real server: the official ones in an environment of their own, ours in this one."""

from tests.support.fixtures import leaves_nothing_behind

__all__ = ["leaves_nothing_behind"]
