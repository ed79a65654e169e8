"""What was done, and what more will take."""

from __future__ import annotations

import statistics
import threading
from collections import deque
from dataclasses import dataclass

from fieldguide.remote.exchange import Reply
from fieldguide.remote.settings import RemoteSettings


@dataclass
class RunStats:
    """Counts of all questions asked through one `RemoteModel` so far; assign a new one to begin again."""

    pictures: int = 0
    asked: int = 0  # requests that were answered by the server
    from_cache: int = 0
    retried: int = 0  # tries after the first
    off_list: int = 0  # replies with none of the labels, "none of these" included
    ambiguous: int = 0  # replies with several labels
    unreadable: int = 0  # pictures
    failed: int = 0  # pictures the server refused or never answered
    tokens_in: int = 0  # as the server counts them, of what was asked now
    tokens_out: int = 0
    seconds: float = 0.0  # of wall-clock time
    waited: float = 0.0  # seconds spent waiting for replies, all threads together
    cost: float = 0.0  # of what was asked now, in the currency of the prices; 0 without prices

    def to_text(self) -> str:
        """One line for people."""
        parts = [
            f"{self.pictures:,} pictures",
            f"{self.asked:,} asked",
            f"{self.from_cache:,} from the cache",
        ]
        for count, words in (
            (self.retried, "tried again"),
            (self.off_list, "replies off the list"),
            (self.ambiguous, "ambiguous replies"),
            (self.unreadable, "unreadable"),
            (self.failed, "without a reply"),
        ):
            parts += [f"{count:,} {words}"] if count else []
        if self.tokens_in or self.tokens_out:
            parts.append(f"{self.tokens_in:,} + {self.tokens_out:,} tokens")
        parts += [f"cost {self.cost:.4f}"] if self.cost else []
        return ", ".join([*parts, f"{self.seconds:.1f} s"])


@dataclass(frozen=True)
class Estimate:
    """What naming some pictures will take, from the replies there are."""

    pictures: int  # to be asked about; those in the cache take nothing
    cached: int
    seconds: float
    tokens_in: int
    tokens_out: int
    cost: float  # 0 without prices

    def to_text(self) -> str:
        """One line for people."""
        tokens = f", about {self.tokens_in:,} + {self.tokens_out:,} tokens" if self.tokens_in else ""
        cost = f", cost about {self.cost:.2f}" if self.cost else ""
        cached = f" ({self.cached:,} more are in the cache)" if self.cached else ""
        return (
            f"{self.pictures:,} pictures to ask about{cached}: about {_duration(self.seconds)}{tokens}{cost}"
        )


class Meter:
    """Counts for many threads, and estimates from the latest replies."""

    def __init__(self, settings: RemoteSettings) -> None:
        self.stats = RunStats()
        self.replied = False  # whether the server has answered in this process
        self._settings = settings
        self._lock = threading.Lock()
        self._recent: deque[tuple[float, int, int]] = deque(maxlen=50)  # seconds, tokens in and out
        self._failed_in_a_row = 0

    def count(self, **counts: float) -> None:
        """Add to single counts, by their names in `RunStats`."""
        with self._lock:
            for name, count in counts.items():
                setattr(self.stats, name, getattr(self.stats, name) + count)

    def record(self, reply: Reply, cached: bool) -> None:
        """Count a reply."""
        self.measure(reply)
        if cached:
            self.count(from_cache=1)
            return
        self.replied, self._failed_in_a_row = True, 0
        self.count(
            asked=1,
            tokens_in=reply.tokens_in,
            tokens_out=reply.tokens_out,
            waited=reply.seconds,
            cost=self._cost(reply.tokens_in, reply.tokens_out),
        )

    def measure(self, reply: Reply) -> None:
        """Let a reply count for estimates only."""
        with self._lock:
            self._recent.append((reply.seconds, reply.tokens_in, reply.tokens_out))

    def fail(self) -> int:
        """Count a picture without a reply: how many there have been since the last reply."""
        self.count(failed=1)
        with self._lock:
            self._failed_in_a_row += 1
            return self._failed_in_a_row

    @property
    def measured(self) -> bool:
        """Whether an estimate can be made."""
        return bool(self._recent)

    def estimate(self, pictures: int, cached: int) -> Estimate:
        """What so many questions will take, by the median of the latest replies."""
        with self._lock:
            recent = list(self._recent) or [(0.0, 0, 0)]
        seconds, into, out = (statistics.median(column) for column in zip(*recent, strict=True))
        total = pictures * seconds / min(self._settings.concurrency, max(1, pictures))
        if self._settings.requests_per_minute:
            total = max(total, 60 * pictures / self._settings.requests_per_minute)
        tokens_in, tokens_out = round(pictures * into), round(pictures * out)
        return Estimate(pictures, cached, total, tokens_in, tokens_out, self._cost(tokens_in, tokens_out))

    def _cost(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self._settings.price_in + tokens_out * self._settings.price_out) / 1e6


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
