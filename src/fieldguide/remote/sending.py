"""Requests that get through: one pool of connections, so many at a time, tried again where that helps.

The key goes into the header of a request and nowhere else: not into errors, logs or caches. Redirects are not
followed, so it reaches no other host either.
"""

from __future__ import annotations

import email.utils
import json
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from fieldguide import __version__
from fieldguide.errors import FieldguideError
from fieldguide.remote.pace import TokenBucket
from fieldguide.remote.settings import RemoteSettings

LONGEST_WAIT = 600.0  # seconds; a server that asks for more is asked again by the next run
LONGEST_BACKOFF = 60.0
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529)
# Servers say with status 500, too, that they will never do something.
_NEVER = re.compile(
    r"grammar|json_schema|response_format|log_?prob|does not support|not supported|mmproj", re.I
)
_QUOTED = 300  # characters of a server's message that errors quote


class Unreachable(FieldguideError):
    """Nothing answers at the server's address."""


class Refused(FieldguideError):
    """The server answered with an error that asking again does not mend."""

    def __init__(self, message: str, status: int, said: str) -> None:
        super().__init__(message)
        self.status = status
        self.said = said  # the server's own words


class NoReply(FieldguideError):
    """The server gave no usable reply, however often it was asked."""


class Cancelled(Exception):
    """The run was stopped while a request waited for its turn."""


@dataclass(frozen=True)
class Received:
    """The body of a good reply, and how it came."""

    body: dict[str, Any]
    seconds: float  # of the try that succeeded
    tries: int


@dataclass(frozen=True)
class _Again:
    """Why a try failed, and what the server asked to wait; None where it did not say."""

    reason: str
    wait: float | None = None
    unreachable: bool = False


class Sender:
    """Sends requests to one server; may be used by many threads.

    Args:
        base_url: without a slash at its end.
        settings: concurrency, requests_per_minute, timeout and retries of them are used here.
        key: sent as a bearer token; "" for none.
        clock: seconds that only grow.
        wait: sleeps that long, and returns True when the run was stopped meanwhile.
        chance: a number in [0, 1), for the jitter.
    """

    def __init__(
        self,
        base_url: str,
        settings: RemoteSettings,
        key: str = "",
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.base_url, self.settings, self._key = base_url, settings, key
        self._clock, self._wait, self._chance = clock, wait, chance
        self._bucket = TokenBucket(settings.requests_per_minute, clock)
        self._slots = threading.BoundedSemaphore(settings.concurrency)
        headers = {"User-Agent": f"fieldguide/{__version__}"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        limit = settings.concurrency
        self._client = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(settings.timeout, connect=min(10.0, settings.timeout)),
            limits=httpx.Limits(max_connections=limit, max_keepalive_connections=limit),
            trust_env=not _here(base_url),  # a proxy must not be asked for this machine
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at a path; one try.

        Raises:
            Unreachable, Refused, NoReply
        """
        outcome = self._try("GET", path, None, self._clock())
        if isinstance(outcome, _Again):
            raise (Unreachable if outcome.unreachable else NoReply)(f"{self.base_url}: {outcome.reason}")
        return outcome.body

    def post(
        self,
        path: str,
        body: dict[str, Any],
        stop: threading.Event,
        retried: Callable[[], None] = lambda: None,
        check: Callable[[dict[str, Any]], object] = bool,
    ) -> Received:
        """Send JSON until a good reply has come, with growing pauses.

        Args:
            stop: once set, nothing more is sent.
            retried: is called before every try but the first.
            check: raises ValueError when a body is no reply.

        Raises:
            Refused: when asking again would not help.
            Unreachable, NoReply: when no try succeeded.
            Cancelled: when the run was stopped.
        """
        failed = _Again("")
        for tried in range(self.settings.retries + 1):
            if tried:
                retried()
                pause = failed.wait if failed.wait is not None else self._backoff(tried)
                self._sleep(stop, pause)
            self._sleep(stop, self._bucket.reserve())
            with self._slots:
                if stop.is_set():
                    raise Cancelled
                outcome = self._try("POST", path, body, self._clock())
            if isinstance(outcome, Received):
                try:
                    check(outcome.body)
                except ValueError as error:
                    outcome = _Again(f"HTTP 200 with {error}")
                else:
                    return Received(outcome.body, outcome.seconds, tried + 1)
            failed = outcome
            if failed.wait is not None:
                if failed.wait > LONGEST_WAIT:
                    raise NoReply(
                        f"{self.base_url}: asks to wait {failed.wait:.0f} seconds ({failed.reason})",
                        "run it again later: the replies so far are kept",
                    )
                self._bucket.pause(failed.wait)  # the other threads too
        tries = f"after {self.settings.retries + 1} tries" if self.settings.retries else "after one try"
        raise (Unreachable if failed.unreachable else NoReply)(f"no reply {tries}: {failed.reason}")

    def _backoff(self, tried: int) -> float:
        """Seconds before the next try: doubled each time, half of it by chance, so that threads part."""
        longest = min(LONGEST_BACKOFF, 0.5 * 2 ** min(tried, 20))
        return longest * (0.5 + 0.5 * self._chance())

    def _sleep(self, stop: threading.Event, seconds: float) -> None:
        if seconds > 0 and self._wait(stop, seconds):
            raise Cancelled

    def _try(self, method: str, path: str, body: dict[str, Any] | None, started: float) -> Received | _Again:
        try:
            response = self._client.request(method, self.base_url + path, json=body)
        except httpx.ConnectError as error:
            return _Again(f"nothing answers ({self._safe(str(error))})", unreachable=True)
        except httpx.ConnectTimeout:
            return _Again("nothing answers (the connection timed out)", unreachable=True)
        except httpx.TimeoutException:
            return _Again(f"no answer within {self.settings.timeout:g} seconds")
        except httpx.RequestError as error:
            return _Again(f"the connection broke ({self._safe(str(error)) or type(error).__name__})")
        said = self._message(response)
        if response.status_code == 429 and "insufficient_quota" in response.text:
            raise Refused(f"{self.base_url}: the quota of this key is used up", 402, said)
        hopeless = response.status_code == 500 and _NEVER.search(said)
        if response.status_code in AGAIN and not hopeless:
            return _Again(f"HTTP {response.status_code} {said}".strip(), _retry_after(response))
        if response.status_code != 200:
            raise Refused(f"HTTP {response.status_code}: {said}", response.status_code, said)
        try:
            received = response.json()
        except (json.JSONDecodeError, UnicodeDecodeError):
            received = None
        if not isinstance(received, dict):
            return _Again("HTTP 200, but not with a JSON object")
        if received.get("error"):
            return _Again(f"HTTP 200 with an error: {said}")
        return Received(received, self._clock() - started, 1)

    def _message(self, response: httpx.Response) -> str:
        """The server's own words about an error: {"error": "…"}, {"error": {"message": "…"}}, or the text."""
        if response.status_code in (401, 403):
            return ""  # some servers quote the key there
        try:
            told: Any = response.json()
        except (json.JSONDecodeError, UnicodeDecodeError):
            told = response.text
        for name in ("error", "message", "detail"):
            if isinstance(told, dict) and told.get(name):
                told = told[name]
        return self._safe(" ".join(str(told).split()))

    def _safe(self, text: str) -> str:
        text = text.replace(self._key, "…") if self._key else text
        return text[:_QUOTED]


def _here(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds a server asks to wait, told as a number or as a date."""
    told = response.headers.get("retry-after", "").strip()
    if not told:
        return None
    try:
        seconds = float(told)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(told).timestamp()
        except (ValueError, TypeError):
            return None
        seconds = moment - time.time()
    return max(0.0, seconds) if seconds == seconds else None
