"""How fast one API key may ask: a bucket that refills with time, for all requests and for creates.

In the memory of the api, hence full again after its restart.
"""

import math
from collections import OrderedDict

from cloche_server.api.problems import RateLimited
from cloche_server.clock import Clock
from cloche_server.config import Limits

MAX_BUCKETS = 4096
"""Keys remembered per budget. Only valid keys get a bucket, and a forgotten one is full again."""


class TokenBuckets:
    """A bucket for each key; those that are full again are forgotten."""

    def __init__(self, per_s: float, burst: int) -> None:
        """Hold at most `burst` tokens in each bucket and add `per_s` a second; 0 a second: no limit."""
        self._per_s = per_s
        self._burst = burst
        # By key, the longest unused first: how many tokens were missing, and when that was.
        self._missing: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._missing)

    def take(self, key: str, now_s: float) -> float:
        """Take one token.

        Returns:
            0 when there was one; else the seconds until there will be one, and nothing was taken.
        """
        if not self._per_s:
            return 0.0
        missing, at_s = self._missing.pop(key, (0.0, now_s))
        missing = max(0.0, missing - (now_s - at_s) * self._per_s)
        wait_s = max(0.0, (missing + 1 - self._burst) / self._per_s)
        self._missing[key] = (missing if wait_s else missing + 1, now_s)
        self._forget(now_s)
        return wait_s

    def _forget(self, now_s: float) -> None:
        """Drop the longest unused that are full again, and another when there are too many."""
        while len(self._missing) > 1:
            missing, at_s = next(iter(self._missing.values()))
            if missing > (now_s - at_s) * self._per_s and len(self._missing) <= MAX_BUCKETS:
                return
            self._missing.popitem(last=False)


class RateLimits:
    """The budgets of every key."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        """Start with full buckets."""
        self._clock = clock
        self._requests = TokenBuckets(limits.requests_per_s, limits.requests_burst)
        self._creates = TokenBuckets(limits.creates_per_s, limits.creates_burst)

    def take(self, key_id: str, *, creates: bool) -> None:
        """Count one request of the key.

        A repeat with the same Idempotency-Key counts like any other request and create: whether it is one
        is known only after its body has been read.

        Args:
            key_id: Who asks.
            creates: It also counts against the budget of creates.

        Raises:
            RateLimited: A budget is used up; nothing has been done for the request.
        """
        now_s = self._clock.boot_s()
        if wait_s := self._requests.take(key_id, now_s):
            raise RateLimited("too many requests with this API key", math.ceil(wait_s))
        if creates and (wait_s := self._creates.take(key_id, now_s)):
            raise RateLimited("too many creates with this API key", math.ceil(wait_s))
