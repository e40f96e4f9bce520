"""The entries of a table's logs that every mirror has read, and none needs."""

import sqlite3
from dataclasses import dataclass

from rhei_pipeline.sources.sqlite.triggers import log_chain
from rhei_pipeline.sources.sqlite.triggers.log_chain import TriggerLog
from rhei_pipeline.sql.text import quote


@dataclass(frozen=True, slots=True)
class ReadEntries:
    """Which entries of one log may go.

    Attributes:
        log: Where they are.
        first: The number of the first.
        end: The number behind the last.
        is_over: Whether nobody writes or reads the log any more: it may go, too.
    """

    log: TriggerLog
    first: int
    end: int
    is_over: bool

    @property
    def numbers(self) -> int:
        """How many there are at most."""
        return max(self.end - self.first, 0)


def find_read(connection: sqlite3.Connection, table: str) -> list[ReadEntries]:
    """Return what may go of each log of a table."""
    (keep,) = connection.execute(
        "select min(seq) from _rhei_consumer where tbl = ? collate nocase", (table,)
    ).fetchone()
    return [_of(connection, log, keep) for log in log_chain.find_logs(connection, table)]


def _of(connection: sqlite3.Connection, log: TriggerLog, keep: int | None) -> ReadEntries:
    first, newest = connection.execute(
        f"select min(seq), max(seq) from {quote(log.name)}"
    ).fetchone()
    if newest is None:
        return ReadEntries(log, 0, 0, is_over=log.retired)
    if keep is None:  # no mirror reads it
        keep = newest + 1 if log.retired else first
    return ReadEntries(log, first, min(keep, newest + 1), is_over=log.retired and newest < keep)


def delete_before(connection: sqlite3.Connection, log: TriggerLog, end: int) -> int:
    """Delete a log's entries before one, in a writing transaction; return how many."""
    return connection.execute(f"delete from {quote(log.name)} where seq < ?", (end,)).rowcount
