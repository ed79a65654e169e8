"""Replies that servers gave, kept in the user cache under a hash of everything that was asked.

A ledger (`jobs/ledger.py`) belongs to one job and one process; replies are shared by every run on the
machine, also by several at once. So this is a table of its own in SQLite, as safe against kill -9.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fieldguide.errors import FieldguideError
from fieldguide.files import cache_dir

_TABLES = """
CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL, written REAL NOT NULL);
"""


def reply_cache_path() -> Path:
    """The file with all replies. Deleting it costs nothing but asking again."""
    return cache_dir() / "remote" / "replies.sqlite"


class ReplyCache:
    """Replies by key. Many threads and processes may use one file at a time.

    Args:
        path: the file; it is made when it does not exist.
        clock: seconds since 1970.

    Raises:
        FieldguideError: naming the file, when it cannot be used.
    """

    def __init__(self, path: Path | str | None = None, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path) if path is not None else reply_cache_path()
        self._clock = clock
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                self.path, timeout=60, isolation_level=None, check_same_thread=False
            )
            self._database.execute(_TABLES)
        except (sqlite3.Error, OSError) as error:
            raise self._fault(error) from error

    def _fault(self, error: Exception) -> FieldguideError:
        return FieldguideError(
            f"{self.path}: the cache of replies cannot be used ({error})",
            "delete that file, set FIELDGUIDE_CACHE to a folder you can write to, or use cache=False",
        )

    def get(self, key: str) -> dict[str, Any] | None:
        """A reply, or None; with `written`, when it was stored, in seconds since 1970."""
        try:
            with self._lock:
                found = self._database.execute(
                    "SELECT reply, written FROM replies WHERE key = ?", (key,)
                ).fetchone()
        except sqlite3.Error as error:
            raise self._fault(error) from error
        return {**json.loads(found[0]), "written": found[1]} if found is not None else None

    def put(self, key: str, reply: dict[str, Any]) -> None:
        """Store a JSON-able reply: from here on it outlives the process, however that ends."""
        try:
            with self._lock:
                self._database.execute(
                    "INSERT OR REPLACE INTO replies VALUES (?, ?, ?)",
                    (key, json.dumps(reply, ensure_ascii=False), self._clock()),
                )
        except sqlite3.Error as error:
            raise self._fault(error) from error

    def close(self) -> None:
        """Let go of the file; its replies stay."""
        with self._lock:
            self._database.close()
