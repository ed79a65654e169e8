"""A ledger of finished rows: long work that is killed goes on where it was, with no row lost or done twice.

    with Ledger(path, job=fingerprint(settings)) as ledger:
        todo = [key for key in keys if key not in ledger.done()]
        ledger.put([(key, {"label": "cat"})])          # safe from here on, also against kill -9

It is one SQLite file. A row is there wholly or not at all.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from fieldguide.errors import ResumeError

VERSION = "1"
_TABLES = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, payload TEXT NOT NULL);
"""


class Ledger:
    """The finished rows of one job, in one file. Only one process may hold it.

    Args:
        path: the file; it is made when it does not exist.
        job: identity of the work. Rows of another job are never mixed in.

    Raises:
        ResumeError: when the file belongs to another job, is held by another process, or is no ledger.
    """

    def __init__(self, path: Path | str, job: str) -> None:
        self.path = Path(path)
        try:
            self._database = sqlite3.connect(self.path, timeout=0, isolation_level=None)
        except sqlite3.Error as error:
            raise ResumeError(
                f"{self.path}: cannot be opened ({error})", "choose a folder you can write to"
            ) from error
        try:
            self._open(job)
        except BaseException:
            self._database.close()
            raise

    def _open(self, job: str) -> None:
        run = self._database.execute
        try:
            # Held alone, the write-ahead log needs no shared memory, so network drives are fine too.
            run("PRAGMA locking_mode = EXCLUSIVE")
            run("PRAGMA journal_mode = WAL")
            # Committed rows outlive the process however it ends; only a power cut may take the newest.
            run("PRAGMA synchronous = NORMAL")
            self._database.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")
            about = dict(run("SELECT name, value FROM about"))
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise ResumeError(
                    f"{self.path}: another process is working on it", "wait for it, or stop it first"
                ) from None
            raise ResumeError(f"{self.path}: cannot be written ({error})") from error
        except sqlite3.DatabaseError as error:
            raise ResumeError(
                f"{self.path}: not a ledger ({error})", f"delete it to start anew: {self.path}"
            ) from error
        if not about:
            run("INSERT INTO about VALUES ('job', ?), ('version', ?)", (job, VERSION))
        elif about.get("job") != job or about.get("version") != VERSION:
            raise ResumeError(
                f"{self.path}: holds the rows of other work (other settings, or another guide)",
                f"delete it to start anew: {self.path}",
            )

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self._database.execute("SELECT count(*) FROM rows").fetchone()[0]

    def done(self) -> set[str]:
        """The keys of all finished rows."""
        return {json.loads(key) for (key,) in self._database.execute("SELECT key FROM rows")}

    def put(self, rows: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Store finished rows, all or none of them. A key that is there keeps its first payload.

        Args:
            rows: pairs of key and JSON-able payload.
        """
        encoded = [(json.dumps(key), json.dumps(payload)) for key, payload in rows]
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._database.executemany("INSERT OR IGNORE INTO rows (key, payload) VALUES (?, ?)", encoded)
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def rows(self, keys: Iterable[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Finished rows in the order they were put, or those of `keys` in the order of `keys`.

        Raises:
            KeyError: for a key that is not there.
        """
        if keys is None:
            for key, payload in self._database.execute("SELECT key, payload FROM rows ORDER BY number"):
                yield json.loads(key), json.loads(payload)
            return
        for key in keys:
            found = self._database.execute(
                "SELECT payload FROM rows WHERE key = ?", (json.dumps(key),)
            ).fetchone()
            if found is None:
                raise KeyError(key)
            yield key, json.loads(found[0])

    def close(self) -> None:
        """Let go of the file; its rows stay."""
        self._database.close()

    def discard(self) -> None:
        """Close and delete: the work is done and its result lies elsewhere."""
        self.close()
        for end in ("", "-wal", "-shm", "-journal"):
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)
