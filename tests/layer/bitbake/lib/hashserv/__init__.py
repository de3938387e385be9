"""Hash equivalence: which task hashes made the same output. One SQLite file; no process, so the address names the file that names it.

A task hash whose output was seen before gets the unihash that the first such task had; what depends on it then is what it was before.
"""

import re
import sqlite3
from pathlib import Path
from types import SimpleNamespace

SCHEMA = """
CREATE TABLE IF NOT EXISTS outputs (method TEXT, outhash TEXT, unihash TEXT, PRIMARY KEY (method, outhash));
CREATE TABLE IF NOT EXISTS hashes (method TEXT, taskhash TEXT, unihash TEXT, PRIMARY KEY (method, taskhash));
"""


def is_valid_unihash(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def create_server(address: str, database: str, **_options: object) -> SimpleNamespace:
    """Returns what the cooker takes for a server process."""
    Path(address.removeprefix("unix://")).write_text(database)
    process = SimpleNamespace(terminate=lambda: None, join=lambda: None)
    return SimpleNamespace(serve_as_process=lambda **_options: None, process=process)


def create_client(address: str, **_credentials: object) -> "Client":
    return Client(Path(address.removeprefix("unix://")).read_text())


class Client:
    """The questions that `bb.siggen` asks."""

    def __init__(self, database: str) -> None:
        # The run queue's thread asks, the server's main thread closes.
        self.connection = sqlite3.connect(database, timeout=60, check_same_thread=False)
        self.connection.executescript(SCHEMA)

    def close(self) -> None:
        self.connection.close()

    def _one(self, query: str, *values: str) -> str | None:
        row = self.connection.execute(query, values).fetchone()
        return row[0] if row else None

    def get_unihash(self, method: str, taskhash: str) -> str | None:
        return self._one("SELECT unihash FROM hashes WHERE method = ? AND taskhash = ?", method, taskhash)

    def get_unihash_batch(self, pairs) -> list[str | None]:
        return [self.get_unihash(method, taskhash) for method, taskhash in pairs]

    def unihash_exists_batch(self, unihashes) -> list[bool]:
        return [self._one("SELECT 1 FROM hashes WHERE unihash = ?", one) is not None for one in unihashes]

    def report_unihash(self, taskhash: str, method: str, outhash: str, unihash: str, _extra: dict) -> dict[str, str]:
        """Returns {"unihash": …}: the first one that this output had."""
        with self.connection:
            self.connection.execute("INSERT OR IGNORE INTO outputs VALUES (?, ?, ?)", (method, outhash, unihash))
            first = self._one("SELECT unihash FROM outputs WHERE method = ? AND outhash = ?", method, outhash)
            self.connection.execute("INSERT OR IGNORE INTO hashes VALUES (?, ?, ?)", (method, taskhash, first))
        return {"unihash": self.get_unihash(method, taskhash)}

    def report_unihash_equiv(self, taskhash: str, method: str, unihash: str, _extra: dict) -> dict[str, str]:
        with self.connection:
            self.connection.execute("INSERT OR IGNORE INTO hashes VALUES (?, ?, ?)", (method, taskhash, unihash))
        return {"unihash": self.get_unihash(method, taskhash)}
