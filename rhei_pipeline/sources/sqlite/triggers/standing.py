"""How far the logs are ahead of a mirror, which is not opened."""

import sqlite3
from collections.abc import Sequence
from datetime import datetime

from rhei_pipeline.model.instants import instant
from rhei_pipeline.model.standing import SourceStanding
from rhei_pipeline.sources.sqlite.database import SqliteDatabase
from rhei_pipeline.sources.sqlite.triggers.log_catalog import LogCatalog
from rhei_pipeline.sources.sqlite.triggers.log_chain import TriggerLog, exists
from rhei_pipeline.sources.sqlite.triggers.log_size import log_bytes
from rhei_pipeline.sql.text import quote


def standing(database: SqliteDatabase, mirror_id: str, pending: int | None) -> SourceStanding:
    """Return where each log ends, since when something waits in it, and about what it holds."""
    heads, waiting = dict[str, int](), dict[str, datetime]()
    with database.reader() as connection:
        if not exists(connection, "_rhei_consumer"):
            return SourceStanding(pending)
        logs = LogCatalog(connection)
        for name, place in connection.execute(
            "select tbl, seq from _rhei_consumer where mirror = ?", (mirror_id,)
        ).fetchall():
            found = logs.logs(name)
            if not found or found[-1].retired:
                continue
            heads[name] = logs.newest(name).order
            oldest = _oldest(connection, found, place)
            if oldest is not None:
                waiting[name] = oldest
        held = {"log": log_bytes(connection, mirror_id)}
    return SourceStanding(pending, heads=heads, waiting=waiting, held_bytes=held)


def _oldest(
    connection: sqlite3.Connection, logs: Sequence[TriggerLog], place: int
) -> datetime | None:
    for log in logs:
        row = connection.execute(
            f"select at from {quote(log.name)} where seq > ? order by seq limit 1", (place,)
        ).fetchone()
        if row is not None:
            return instant(row[0])
    return None
