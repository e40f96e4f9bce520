"""Finds logs of capture by triggers that no mirror reads any more: nobody shortens them."""

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from rhei_pipeline.model.reports import Finding, Severity
from rhei_pipeline.sources.sqlite.triggers.ddl import log_table, object_names
from rhei_pipeline.sources.sqlite.triggers.log_chain import LOGS, TriggerLog, all_logs, exists
from rhei_pipeline.sources.sqlite.triggers.needs import NEEDS
from rhei_pipeline.sql.text import literal, quote

#: A mirror unseen for so long no longer holds the log back; it re-syncs when it comes back.
FORGET_MIRROR_AFTER = timedelta(days=7)

_CONSUMERS = "_rhei_consumer"


def findings(connection: sqlite3.Connection, mirror_id: str | None) -> Iterator[Finding]:
    """Name each log that is written into and that no mirror reads; `mirror_id` is ours."""
    for logs in all_logs(connection).values():
        log = logs[-1]
        table = log.name.removeprefix(log_table(""))
        if log.retired or _is_read(connection, table, log, mirror_id):
            continue
        (entries,) = connection.execute(f"select count(*) from {quote(log.name)}").fetchone()
        yield Finding(
            Severity.WARNING,
            f"no mirror has read the log for {FORGET_MIRROR_AFTER.days} days; it has {entries}"
            " entries",
            "the log grows with every write of the application until a mirror reads it",
            "run 'rhei sync' where the table is to be mirrored; or end its capture in the source: "
            + _ending(connection, table, [log.name for log in logs if log.retired]),
            table,
        )


def _is_read(
    connection: sqlite3.Connection, table: str, log: TriggerLog, mirror_id: str | None
) -> bool:
    """Return whether a mirror reads a log, has nothing left to read in it, or may yet come."""
    if not exists(connection, _CONSUMERS):
        return False
    least = int((datetime.now(UTC) - FORGET_MIRROR_AFTER).timestamp() * 1_000_000)
    name = quote(log.name)
    # The first entry is of when the log was made: a mirror says that it reads it after its copy.
    begun = f"select 1 from {name} where seq = ? and at >= ?"
    if connection.execute(begun, (log.first, least)).fetchone() is not None:
        return True
    found = connection.execute(
        f"select 1 from {_CONSUMERS} where tbl = ? collate nocase and (mirror = ? or seen_at >= ?"
        f" or seq >= (select max(seq) from {name}))",
        (table, mirror_id, least),
    )
    return found.fetchone() is not None


def _ending(connection: sqlite3.Connection, table: str, retired: list[str]) -> str:
    """Write what ends capture of a table; one that is mirrored again is copied again."""
    tables, triggers = object_names(table)
    statements = [f"drop trigger if exists {quote(name)}" for name in triggers]
    statements += [f"drop table if exists {quote(name)}" for name in [*tables, *retired]]
    for notes in (LOGS, _CONSUMERS, NEEDS):
        if exists(connection, notes):
            statements.append(f"delete from {notes} where tbl = {literal(table)} collate nocase")
    return "; ".join(["begin immediate", *statements, "commit"])
