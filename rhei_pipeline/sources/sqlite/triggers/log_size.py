"""About how many bytes the logs hold that a mirror reads."""

import sqlite3
from collections.abc import Sequence

from rhei_pipeline.sources.sqlite.triggers.log_chain import all_logs, exists, folded
from rhei_pipeline.sql.text import quote

#: Entries whose size is looked at: SQLite reads a whole log to tell how large it is.
_DRAWN = 16


def log_bytes(connection: sqlite3.Connection, mirror_id: str) -> int:
    """Return about how many bytes a mirror's logs hold, by the size of their newest entries.

    The entry at a watermark stays in its log as a proof, and so one alone counts nothing.
    """
    if not exists(connection, "_rhei_consumer"):
        return 0
    read = connection.execute("select tbl from _rhei_consumer where mirror = ?", (mirror_id,))
    logs = all_logs(connection)
    names = sorted({log.name for (table,) in read for log in logs.get(folded(table), ())})
    return sum(_bytes_of(connection, *log) for log in _filled(connection, names))


def _filled(connection: sqlite3.Connection, names: Sequence[str]) -> list[tuple[str, int]]:
    """Return the logs with more than one entry, and how many; many are asked about at once."""
    most = connection.getlimit(sqlite3.SQLITE_LIMIT_COMPOUND_SELECT)
    # Each bound by itself, which SQLite then finds by the key alone.
    asked = [
        f"select {number}, (select max(seq) from {quote(name)})"
        f" - (select min(seq) from {quote(name)}) + 1"
        for number, name in enumerate(names)
    ]
    found = [
        row
        for start in range(0, len(asked), most)
        for row in connection.execute(" union all ".join(asked[start : start + most]))
    ]
    return [(names[number], entries) for number, entries in found if entries and entries > 1]


def _bytes_of(connection: sqlite3.Connection, log: str, entries: int) -> int:
    columns = [quote(row[1]) for row in connection.execute(f"pragma table_info({quote(log)})")]
    sizes = ", ".join(f"length(cast({column} as blob))" for column in columns)
    drawn = connection.execute(
        f"select {sizes} from {quote(log)} order by seq desc limit {_DRAWN}"
    ).fetchall()
    mean = sum(size or 0 for row in drawn for size in row) / max(len(drawn), 1)
    return int(mean * entries)
