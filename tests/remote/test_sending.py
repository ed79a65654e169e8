"""Requests that meet a busy, broken or slow server; the limits that are really held."""

from __future__ import annotations

import email.utils
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from server import Asked, FakeServer

from fieldguide.errors import FieldguideError
from fieldguide.remote.model import RemoteModel, open_remote
from fieldguide.remote.pace import TokenBucket
from fieldguide.remote.sending import Cancelled, NoReply, Sender, Unreachable
from fieldguide.remote.settings import RemoteSettings

Remote = Callable[..., RemoteModel]


def once(told: object) -> Callable[[Asked], object]:
    """Misbehave on the first question only."""
    seen: list[Asked] = []

    def behave(asked: Asked) -> object:
        seen.append(asked)
        return told if len(seen) == 1 else None

    return behave


@pytest.mark.parametrize(
    "told",
    [
        "drop",
        (500, {}, {"error": "model runner has unexpectedly stopped"}),
        (503, {}, b"<html>busy</html>"),
        (429, {}, {"error": {"message": "Rate limit reached"}}),
        (200, {}, b'{"message": {"content": "ca'),
        (200, {}, b"\xff\xfe"),
        (200, {}, [1, 2]),
        (200, {}, {"done": True}),
        (200, {}, {"message": {"content": 7}}),
        (200, {}, {"error": "an error was encountered while running the model"}),
    ],
)
def test_what_passes_is_tried_again(
    remote: Remote, server: FakeServer, photos: list[Path], slept: list[float], told: object
) -> None:
    server.behave = once(told)
    model = remote()
    assert model.classify(photos[:1])[0].label == "cat"
    assert len(server.asked) == 2
    assert model.stats.retried == 1
    assert len(slept) == 1
    assert 0.5 <= slept[0] <= 1


def test_pauses_grow_and_end(
    remote: Remote, server: FakeServer, photos: list[Path], slept: list[float]
) -> None:
    server.behave = lambda asked: (503, {}, {"error": "busy"})
    model = remote(retries=4, concurrency=1)
    [answer] = model.classify(photos[:1])
    assert "no reply after 5 tries: HTTP 503 busy" in answer.error
    assert len(server.asked) == 5
    assert [0.5 * 2**n <= pause <= 2**n for n, pause in enumerate(slept)] == [True] * 4
    assert (model.stats.failed, model.stats.retried) == (1, 4)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(
    remote: Remote, server: FakeServer, photos: list[Path], slept: list[float], form: str
) -> None:
    told = "7" if form == "seconds" else email.utils.formatdate(time.time() + 30, usegmt=True)
    server.behave = once((429, {"Retry-After": told}, {"error": {"message": "slow down"}}))
    assert remote().classify(photos[:1])[0].label == "cat"
    # No test sleeps, so after the pause that was asked for the bucket still holds the others back.
    assert slept[0] == pytest.approx(7 if form == "seconds" else 29.5, abs=1)


def test_a_very_long_wait_ends_the_run_and_keeps_what_there_is(
    remote: Remote, server: FakeServer, photos: list[Path]
) -> None:
    body = {"error": {"message": "daily limit"}}
    server.behave = lambda asked: (429, {"Retry-After": "86400"}, body) if len(server.asked) > 2 else None
    with pytest.raises(FieldguideError, match=r"asks to wait 86400 seconds.*daily limit"):
        remote(concurrency=1).classify(photos)
    server.behave = lambda asked: None
    again = remote()
    again.classify(photos)
    assert (again.stats.from_cache, again.stats.asked) == (2, 4)


def test_a_slow_server_times_out(remote: Remote, server: FakeServer, photos: list[Path]) -> None:
    server.delay = 0.5
    [answer] = remote(timeout=0.1, retries=1).classify(photos[:1])
    assert "no answer within 0.1 seconds" in answer.error
    assert len(server.asked) == 2


def test_a_server_that_goes_away_ends_the_run(remote: Remote, server: FakeServer, photos: list[Path]) -> None:
    model = remote(retries=2, concurrency=1)
    model.classify(photos[:1])
    server.behave = lambda asked: "drop"
    server.close()
    with pytest.raises(Unreachable, match="nothing answers") as caught:
        model.classify(photos)
    assert "start the server again" in caught.value.hint


@pytest.mark.parametrize("limit", [1, 3])
def test_so_many_requests_at_a_time_and_no_more(
    remote: Remote, server: FakeServer, photos: list[Path], limit: int
) -> None:
    server.delay = 0.05
    model = remote(concurrency=limit, cache=False)
    threads = [threading.Thread(target=model.classify, args=(photos,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 12
    assert server.most_busy == limit


def test_the_bucket_spaces_requests_evenly() -> None:
    now = [100.0]
    bucket = TokenBucket(30, lambda: now[0])  # one every two seconds
    assert [bucket.reserve() for _ in range(4)] == [0, 2, 4, 6]
    now[0] = 1000.0
    assert [bucket.reserve() for _ in range(2)] == [0, 2], "unused time is not saved up"
    bucket.pause(50)
    assert bucket.reserve() == 50
    free = TokenBucket(0, lambda: now[0])
    assert [free.reserve() for _ in range(3)] == [0, 0, 0]
    free.pause(5)
    assert free.reserve() == 5


def test_the_rate_is_held_with_retries_and_threads(server: FakeServer, photos: list[Path]) -> None:
    """The clock is the test's: it moves only by the waits that the limit asks for."""
    lock, now, sent = threading.Lock(), [0.0], []

    def wait(stop: threading.Event, seconds: float) -> bool:
        with lock:
            now[0] = max(now[0], now[0] + seconds)
        return False

    def behave(asked: Asked) -> object:
        sent.append(now[0])
        return (503, {}, {"error": "busy"}) if len(sent) in (2, 3) else None

    server.behave = behave
    model = open_remote(
        "ollama:llava", ["cat", "dog"],
        RemoteSettings(base_url=server.url, requests_per_minute=6, concurrency=1), cache=False,
        announce=lambda line: None, clock=lambda: now[0], wait=wait,
    )  # fmt: skip
    assert [a.label for a in model.classify(photos)] == ["cat"] * 6
    model.close()
    assert len(sent) == 8
    assert min(b - a for a, b in pairwise(sent)) >= 10 - 1e-6


def test_a_stopped_run_sends_nothing_more(server: FakeServer) -> None:
    sender = Sender(server.url, RemoteSettings())
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        sender.post("/api/chat", {"model": "llava", "messages": []}, stop)
    assert server.asked == []
    sender.close()


def test_a_pause_ends_when_the_run_is_stopped(server: FakeServer) -> None:
    server.behave = lambda asked: (503, {"Retry-After": "500"}, {"error": "busy"})
    sender, stop = Sender(server.url, RemoteSettings()), threading.Event()
    threading.Timer(0.2, stop.set).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        sender.post("/api/chat", {"model": "llava", "messages": [{"role": "user", "content": ""}]}, stop)
    assert time.monotonic() - started < 20
    sender.close()


def test_redirects_are_not_followed(server: FakeServer) -> None:
    """Or the key would go wherever a server points."""
    server.behave = lambda asked: (302, {"Location": server.url + "/elsewhere"}, b"")
    sender = Sender(server.url, RemoteSettings(retries=0), "key")
    with pytest.raises(FieldguideError, match="HTTP 302"):
        sender.post("/api/chat", {"messages": []}, threading.Event())
    assert len(server.asked) == 1
    sender.close()


def test_no_reply_is_an_error_for_one_question(
    remote: Remote, server: FakeServer, photos: list[Path]
) -> None:
    server.behave = lambda asked: "drop"
    with pytest.raises(NoReply, match="the connection broke"):
        remote(retries=1).ask(photos[0])


ASKING = """
import sys
from pathlib import Path
from fieldguide.remote.model import open_remote
from fieldguide.remote.settings import RemoteSettings

model = open_remote("ollama:llava", ["cat", "dog"], RemoteSettings(base_url=sys.argv[1], concurrency=2))
model.classify([Path(name) for name in sys.argv[2:]])
"""


def test_ctrl_c_keeps_what_was_answered(
    server: FakeServer, make_picture: Callable[..., Path], own_cache: Path
) -> None:
    photos = [make_picture(f"many/{number}.png", number) for number in range(20)]
    server.delay = 0.3
    command = [sys.executable, "-c", ASKING, server.url, *map(str, photos)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(server.asked) < 6 and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    stopped = time.monotonic()
    _, told = run.communicate(timeout=60)
    assert b"KeyboardInterrupt" in told
    assert run.returncode != 0
    assert time.monotonic() - stopped < 10
    before = len(server.asked)
    assert 6 <= before < 20
    server.delay = 0.0
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    again = len(server.asked) - before
    # Only replies that were still on their way (two at most) may have to be asked for again.
    assert 20 - before <= again <= 20 - before + 2
