"""Threads that share a list of work, and stop with it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_threads(
    work: Callable[[T], R], items: Sequence[T], threads: int, stop: threading.Event
) -> Iterator[tuple[int, R]]:
    """Yield (place, result) of each item, as they are done; an exception of `work` is raised here.

    The threads end with the program. Ctrl-C therefore need not wait for replies on their way; those that
    still arrive are kept by whoever stores them in `work`.

    Args:
        stop: is set when the iteration ends, however it does; `work` should then give up.
    """
    todo = iter(enumerate(items))
    lock = threading.Lock()
    done: queue.Queue[tuple[int, Any, BaseException | None]] = queue.Queue()

    def labour() -> None:
        while not stop.is_set():
            with lock:
                place, item = next(todo, (-1, None))
            if place < 0:
                return
            try:
                done.put((place, work(item), None))  # type: ignore[arg-type]
            except BaseException as error:  # raised again where it can be seen
                done.put((place, None, error))
                stop.set()  # after the put: what the others raise because of it comes later

    for number in range(min(threads, len(items))):
        threading.Thread(target=labour, name=f"fieldguide-remote-{number}", daemon=True).start()
    try:
        for _ in items:
            place, result, error = _next(done)
            if error is not None:
                raise error
            yield place, result
    finally:
        stop.set()


def _next(done: queue.Queue[tuple[int, Any, BaseException | None]]) -> tuple[int, Any, BaseException | None]:
    while True:
        try:
            return done.get(timeout=0.5)  # without a timeout Ctrl-C would not be heard on Windows
        except queue.Empty:
            continue
