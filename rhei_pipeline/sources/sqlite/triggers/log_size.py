"""About how many bytes the logs hold that a mirror reads."""

import sqlite3

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
    names = {log.name for (table,) in read for log in logs.get(folded(table), ())}
    return sum(_bytes_of(connection, name) for name in names)


def _bytes_of(connection: sqlite3.Connection, log: str) -> int:
    name = quote(log)
    # Each bound by itself, which SQLite then finds by the key alone.
    bounds = f"select (select min(seq) from {name}), (select max(seq) from {name})"
    first, last = connection.execute(bounds).fetchone()
    if first == last:
        return 0
    columns = [quote(row[1]) for row in connection.execute(f"pragma table_info({name})")]
    sizes = ", ".join(f"length(cast({column} as blob))" for column in columns)
    drawn = connection.execute(
        f"select {sizes} from {name} order by seq desc limit {_DRAWN}"
    ).fetchall()
    mean = sum(size or 0 for row in drawn for size in row) / max(len(drawn), 1)
    return int(mean * (last - first + 1))
