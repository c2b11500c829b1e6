"""What a run has done so far, on disk: a run that was killed goes on from here.

Each result is stored under the digest of all that it depends on, so a result found is a result that
would come out again, and nothing has to be known about how the earlier run ended. It is also where
the index lies that does not fit into memory.
"""

import hashlib
import pickle
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

_COMMIT_SECONDS = 1.0  # of work that a kill may cost

Material = Sequence[tuple[bytes, Sequence[str]]]  # keys of surveys, and paths of each

_SCHEMA = """
CREATE TABLE IF NOT EXISTS results (stage TEXT, key BLOB, value BLOB, PRIMARY KEY (stage, key));
CREATE TABLE IF NOT EXISTS indexes (key BLOB, path TEXT, value BLOB, PRIMARY KEY (key, path))
                                    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS headers (name TEXT, project INTEGER, path TEXT);
CREATE INDEX IF NOT EXISTS headers_by_name ON headers (name);
"""


def key_of(*parts: Any) -> bytes:
    """16 bytes for plain values: strings, numbers, tuples of those."""
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


class State:
    """The results of a run in a SQLite file. One process writes; others read what is committed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.executescript(_SCHEMA)
        self._since: float | None = None  # when the open transaction began
        # Makes sure of what the state is about to say that it is there.
        self.before_commit: Callable[[], None] = lambda: None

    def get(self, stage: str, key: bytes) -> Any:
        """The value stored under a key, or None."""
        found = self._database.execute(
            "SELECT value FROM results WHERE stage=? AND key=?", (stage, key)
        ).fetchone()
        return None if found is None else pickle.loads(found[0])

    def has(self, stage: str, key: bytes) -> bool:
        return (
            self._database.execute(
                "SELECT 1 FROM results WHERE stage=? AND key=?", (stage, key)
            ).fetchone()
            is not None
        )

    def put(self, stage: str, key: bytes, value: Any) -> None:
        """Stores a value; a kill within the next second may lose it, whole."""
        self._begin()
        self._database.execute(
            "INSERT OR REPLACE INTO results VALUES (?,?,?)",
            (stage, key, pickle.dumps(value, pickle.HIGHEST_PROTOCOL)),
        )

    def put_indexes(self, key: bytes, indexes: Iterable[tuple[str, bytes]]) -> None:
        """Stores the indexes of files, by the key of their survey and their paths."""
        self._begin()
        self._database.executemany(
            "INSERT OR REPLACE INTO indexes VALUES (?,?,?)",
            ((key, _text(path), value) for path, value in indexes),
        )

    def set_headers(self, rows: Iterable[tuple[str, int, str]]) -> None:
        """Replaces the table of headers: (name, project, path)."""
        self._begin()
        self._database.execute("DELETE FROM headers")
        self._database.executemany(
            "INSERT INTO headers VALUES (?,?,?)", ((_text(n), p, _text(f)) for n, p, f in rows)
        )

    def headers(self, name: str) -> list[tuple[int, str]]:
        """(project, path) of the headers of a name, without folder."""
        return self._database.execute(
            "SELECT project, path FROM headers WHERE name=? ORDER BY project, path", (_text(name),)
        ).fetchall()

    def _begin(self) -> None:
        if self._since is None:
            self._database.execute("BEGIN")
            self._since = time.monotonic()

    def tick(self) -> bool:
        """Whether it is time to commit."""
        return self._since is not None and time.monotonic() - self._since > _COMMIT_SECONDS

    def commit(self) -> None:
        if self._since is not None:
            self.before_commit()
            self._database.execute("COMMIT")
            self._since = None

    def close(self) -> None:
        self.commit()
        self._database.close()


def read_indexes(path: str, material: Material) -> Iterator[tuple[str, bytes]]:
    """The indexes of files, for a process that does not write."""
    database = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)
    try:
        for key, names in material:
            found = dict(database.execute("SELECT path, value FROM indexes WHERE key=?", (key,)))
            for name in names:
                yield name, found[_text(name)]
    finally:
        database.close()


def _text(path: str) -> str:
    """A path for SQLite, which takes no bytes that are not UTF-8."""
    return path.encode("utf-8", "surrogateescape").hex() if _has_surrogates(path) else path


def _has_surrogates(path: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in path) if not path.isascii() else False


def read_value(path: str, stage: str, key: bytes) -> Any:
    """A stored value, for a process that does not write."""
    database = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)
    try:
        found = database.execute(
            "SELECT value FROM results WHERE stage=? AND key=?", (stage, key)
        ).fetchone()
    finally:
        database.close()
    return None if found is None else pickle.loads(found[0])
