"""How fast requests may go out: a token bucket that all threads share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class TokenBucket:
    """Lets `per_minute` requests through a minute, evenly, and none while the server asked for a pause.

    Args:
        per_minute: 0 for no limit.
        clock: seconds that only grow.
        wait: sleeps that long, or less when the run is stopped.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 60 / per_minute if per_minute else 0.0
        self._clock = clock
        self._lock = threading.Lock()
        self._next = 0.0  # when the next token falls into the bucket, which holds one

    def reserve(self) -> float:
        """Take the next token: how many seconds to wait before it may be used."""
        with self._lock:
            now = self._clock()
            start = max(now, self._next)
            self._next = start + self._interval if self._interval else self._next
            return start - now

    def pause(self, seconds: float) -> None:
        """Let nobody through for so long, counted from now."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)
