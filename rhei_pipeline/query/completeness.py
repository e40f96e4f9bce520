"""What the mirror lacks of the tables that a query reads."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import TypeVar

import pyarrow as pa

from rhei_pipeline.errors import QueryError
from rhei_pipeline.model.progress import Ledger
from rhei_pipeline.model.schema import Table
from rhei_pipeline.query import results
from rhei_pipeline.query.freshness import Demand
from rhei_pipeline.query.named_tables import tables_read
from rhei_pipeline.query.planner import Engines
from rhei_pipeline.query.router import Plan

_Fact = TypeVar("_Fact", int, datetime)
#: Returns the names of tables, each with the one that a statement for the mirror has for it.
Called = Callable[[], Iterable[tuple[str, str]]]


def letters_by_table(letters: pa.Table) -> Mapping[str, int]:
    """Return how many of a mirror's open dead letters each table has that has some."""
    return Counter(letters["table_name"].to_pylist())


def called_in(tables: Mapping[str, Table]) -> list[tuple[str, str]]:
    """Return the names of a mirror's tables, each with the one that it has there."""
    return [(table.name, table.schema.snapshot_name) for table in tables.values()]


def of_those_read(
    known: Mapping[str, _Fact], sql: str, dialect: str, called: Called
) -> dict[str, _Fact]:
    """Return what is known of the tables that a statement for the mirror reads.

    The mirror's engine may read a statement that cannot be parsed here: then of every table.
    """
    read = tables_read(sql, dialect) if known else None
    if read is None:
        return dict(known)
    standing = [*called()]
    unnamed = known.keys() - {name for name, _ in standing}
    meant = {name for name, own in standing if own.lower() in read}
    meant |= {name for name in unnamed if name.lower() in read}
    return {name: fact for name, fact in known.items() if name in meant}


def told(
    found: pa.Table,
    sql: str,
    dialect: str,
    dead_letters: Mapping[str, int],
    not_followed: Mapping[str, datetime],
    called: Called,
) -> pa.Table:
    """Add to the mirror's answer which of its tables lack rows, or are no longer synced."""
    letters = of_those_read(dead_letters, sql, dialect, called)
    left = of_those_read(not_followed, sql, dialect, called)
    return results.dated(results.lacking(found, letters), left)


class Completeness:
    """Knows which tables the mirror holds in full, and which are no longer synced.

    Args:
        engines: The mirror, its pipeline and its dialect.
    """

    def __init__(self, engines: Engines) -> None:
        self._mirror = engines.mirror
        self._pipeline = engines.pipeline
        self._dialect = engines.dialects[1]
        self._rejected: tuple[Ledger, Mapping[str, int]] | None = None

    def lack(self, plan: Plan) -> str | None:
        """Return what the mirror lacks for a query; None where it holds all of it."""
        ledger = self._mirror.ledger()
        waiting = [name for name in sorted(plan.tables) if not self._pipeline.holds(name, ledger)]
        if waiting:
            return f"table {waiting[0]!r} is not copied yet with its present columns"
        lacking = sorted(plan.tables & self._with_dead_letters(ledger).keys())
        if lacking:
            return f"table {lacking[0]!r} has rows that cannot be mirrored"
        return None

    def told(self, found: pa.Table, sql: str, ledger: Ledger) -> pa.Table:
        """Add to the mirror's answer which of its tables lack rows, or are no longer synced."""
        letters, left = self._with_dead_letters(ledger), self._pipeline.not_followed
        return told(found, sql, self._dialect, letters, left, self._called)

    def _with_dead_letters(self, ledger: Ledger) -> Mapping[str, int]:
        known = self._rejected
        if known is None or known[0] is not ledger:
            known = self._rejected = (ledger, letters_by_table(self._mirror.dead_letters()))
        return known[1]

    def not_followed(self, sql: str) -> dict[str, datetime]:
        """Return the tables of a statement for the mirror that are no longer synced.

        None of one that cannot be parsed: it is not refused for tables that it may not read.
        """
        left = self._pipeline.not_followed
        if not left or tables_read(sql, self._dialect) is None:
            return {}
        return of_those_read(left, sql, self._dialect, self._called)

    def _called(self) -> list[tuple[str, str]]:
        return called_in(self._mirror.tables())

    def refuse_not_followed(self, sql: str) -> None:
        """Refuse `auto` queries of tables that left the declaration or the source."""
        for name, since in self.not_followed(sql).items():
            if name not in self._pipeline.left_out:
                raise QueryError(
                    f"table {name!r} is no longer followed since {since.isoformat()}",
                    hint="use the hint 'olap' to read what its mirror still holds, declare it "
                    "again,"
                    f" or drop it from the mirror with 'rhei drop-table {name}'",
                )

    @contextmanager
    def naming_uncopied(self, sql: str) -> Iterator[None]:
        """Name, where the mirror refuses a query, the first of its tables that was never copied."""
        try:
            yield
        except QueryError as error:
            read, ledger = tables_read(sql, self._dialect) or (), self._mirror.ledger()
            for name, own in called_in(self._pipeline.tables):
                if own.lower() in read and name not in ledger.watermarks:
                    raise QueryError(
                        f"table {name!r} is not copied yet",
                        hint="run 'rhei sync', or call sync_now(), and query again",
                    ) from error
            raise

    def is_local(self, sql: str, engines: Engines) -> bool:
        """Return whether a query reads tables of the local database, beside a polled source.

        Raises:
            QueryError: It reads tables of both sides together.
        """
        if engines.oltp is None or not engines.is_sidecar:
            return False
        found = engines.oltp.query(
            "select lower(name) as name from sqlite_master where sql is not null"
        )
        read = tables_read(sql, "sqlite") or frozenset()
        mirrored = {own.lower() for _, own in called_in(self._pipeline.tables)}
        own = sorted(read & set(found["name"].to_pylist()) - mirrored)
        both = sorted(read & mirrored)
        if own and both:
            raise QueryError(
                f"it reads table {own[0]!r} of the local database and table {both[0]!r} of the"
                " mirror together",
                hint="query each side alone, with the hint 'oltp' or 'olap', and join the answers",
            )
        return bool(own)

    def refuse_bound(self, sql: str, demand: Demand) -> None:
        """Refuse a freshness limit for tables that are no longer synced."""
        is_bound = demand.max_staleness is not None or demand.after is not None
        stale = self.not_followed(sql) if is_bound else {}
        for name, since in stale.items():
            raise QueryError(
                f"table {name!r} is not followed since {since.isoformat()}, and its mirror is "
                "older than the query allows",
                hint="query without 'max_staleness' and 'after'; 'rhei sync' says what to do",
            )
