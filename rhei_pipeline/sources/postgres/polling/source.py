"""Change capture by polling timestamps, for a PostgreSQL server that is read-only.

Nothing is created in the source. Only the mirror's watermark records how far a table was polled;
what this source caches only saves reads.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.kept_columns import KeptColumns
from rhei_pipeline.model.polling import PollOptions
from rhei_pipeline.model.reports import Finding
from rhei_pipeline.model.schema import Table, TableOptions, TableSchema, nearest
from rhei_pipeline.sources.polling_source import PollingSource
from rhei_pipeline.sources.postgres import grants
from rhei_pipeline.sources.postgres.catalog import (
    Connection,
    read_table,
)
from rhei_pipeline.sources.postgres.database import PostgresDatabase
from rhei_pipeline.sources.postgres.identity import SourceCatalog, one, origin, refuse_other_server
from rhei_pipeline.sources.postgres.kept_columns import kept_columns
from rhei_pipeline.sources.postgres.polling.horizon import FILLED, HorizonReader
from rhei_pipeline.sources.postgres.polling.memory import PostgresPollMemory
from rhei_pipeline.sources.postgres.polling.snapshot import PostgresPollingSnapshot
from rhei_pipeline.sources.postgres.polling.table import PostgresPoll
from rhei_pipeline.sources.postgres.polling.timestamps import FAMILIES, StampColumn, Zone
from rhei_pipeline.sources.postgres.table_facts import (
    ColumnFacts,
    FactsOfState,
    TableFacts,
    read_facts,
)
from rhei_pipeline.sql.text import listed, quote

#: How much the server's clock is slowed down or sped up to follow its time source.
_SLEW = 0.001
#: Oids of types whose value, not only its presence, tells whether a row is deleted.
_BOOLEAN, _NUMBERS = 16, {20, 21, 23, 700, 701, 1700}

#: One transaction may have locked many tables, and each is read in a snapshot of its own: so soon
#: after one that was waited for in vain there is little patience with the next.
_HASTE, _HASTY_SECONDS = {"lock_timeout": "50ms"}, 1.0

#: The role whose members see when others' transactions began.
_SEES_ALL = "pg_read_all_stats"
_WHERE_PUBLISHED = "use 'capture: {method: logical}', or poll the server that publishes it"

#: Its distance from UTC is asked for once a day, for a year: a clock is put forward and back months
#: apart. Asked for each quarter of an hour, this took the server 30 ms.
_GOES_BACK = """
select bool_or(next < ahead) from (
    select ahead, lead(ahead) over (order by at) as next
    from generate_series(now(), now() + interval '1 year', '24 hours') at
    cross join lateral (select (at at time zone %s) - (at at time zone 'UTC')) of_utc(ahead)
) shown
"""
#: What changes with the settings that a new session begins with.
_SETTINGS = """
select concat_ws(' ', pg_conf_load_time(), (
    select string_agg(concat_ws(':', setrole, setdatabase, xmin), ',' order by setrole, setdatabase)
    from pg_db_role_setting where setdatabase in (0, (
        select oid from pg_database where datname = current_database()))))
"""


def _unknown(_name: str) -> None:
    """Return None: nothing is mirrored yet."""


class PostgresPollingSource(PollingSource):
    """A `ChangeSource` that only reads one PostgreSQL database.

    Args:
        database: The source.
        polls: How each table is polled, by name.
        options: Partial replication, chosen keys, given types, by table.
        notes: A file with this mirror's progress for other processes; never read here.
        monotonic: A clock that never goes back, in seconds.

    Not for several threads at once; the caller holds a lock around its work.
    """

    def __init__(
        self,
        database: PostgresDatabase,
        polls: Mapping[str, PollOptions] | None = None,
        options: Mapping[str, TableOptions] | None = None,
        notes: Path | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._polls = {_plain(name): chosen for name, chosen in (polls or {}).items()}
        self._options = {_plain(name): chosen for name, chosen in (options or {}).items()}
        self._memory = PostgresPollMemory()
        super().__init__(self._memory, notes, monotonic, _SLEW)
        self._horizon = HorizonReader()
        self._catalogue = SourceCatalog(lambda connection, _: self._zone_name(connection))
        self._known: dict[str, PostgresPoll] = {}
        self._known_at = -1
        self._facts = FactsOfState()
        self._ahead: Mapping[str, TableFacts] = {}
        self._kept: Connection | None = None
        self._hasty_until = float("-inf")
        self._origin = ""
        self._zone: Zone | None = None
        self._zone_set = ""

    @property
    def _connection(self) -> Connection:
        """The connection; a new one if the server closed the last."""
        if self._kept is None or self._kept.closed:
            self._kept = self._database.connect()
            self._memory.forget_states()
            self._horizon = HorizonReader()
            self._catalogue.forget()
            self._known_at = -1
            self._facts.forget()
            self._ahead = {}
            self._origin = origin(self._kept)
        return self._kept

    def describe(self, name: str) -> TableSchema:
        """Read a table's schema as it is now."""
        with self._database.translated():
            connection = self._connection
            if name not in self._ahead and not self._catalogue.is_current(connection):
                self._known.pop(name, None)
        return self._poll(name).source.schema

    @contextmanager
    def reading_together(self, names: Collection[str]) -> Iterator[None]:
        """Read tables once for what is described and installed in a block."""
        with self._database.translated():
            connection = self._connection
            for name in names:
                self._catalogue.follow(name)
                self._known.pop(name, None)
            self._ahead = self._facts.read(connection, names, self._catalogue.state(connection))
        try:
            yield
        finally:
            self._ahead = {}

    def schema_version(self) -> int:
        """Return a number made of the catalogue's entries of all described tables."""
        with self._database.translated():
            return self._follow_schema()

    def kept_columns(
        self, table: Table, known: TableSchema, _after: Position
    ) -> KeptColumns | None:
        """Return which columns are those that were known, and hold what they held."""
        found = kept_columns(known, table.schema)
        return found and replace(found, tells_deletions=False)

    def redeclare(self, name: str, options: TableOptions, polling: PollOptions) -> None:
        """Take what is said of a table from now on."""
        self._options[_plain(name)], self._polls[_plain(name)] = options, polling
        self._known.clear()

    def timestamp_column(self, name: str) -> str:
        """Return the column by which a table is polled."""
        return self._poll(name).options.updated_at

    def missing_index(self, name: str) -> str | None:
        """Return the statement that creates the index a poll needs; None if it exists."""
        poll = self._poll(name)
        column, facts = poll.options.updated_at, self._ahead.get(name)
        with self._database.translated():
            facts = facts or read_facts(self._connection, [name]).get(name)
        if facts is not None and column in facts.led_by:
            return None
        columns = listed([column, *poll.source.schema.primary_key])
        return f"create index on {poll.table} ({columns})"

    def lacking(self, name: str) -> list[Finding]:
        """Return the privileges that the user lacks to read a table."""
        poll = self._poll(name)
        with self._database.translated():
            return list(grants.reading(self._connection, poll.source))

    def remedy_for(self, doubt: str) -> str | None:
        """Return what removes a doubt; None where only other timestamps do."""
        if doubt == FILLED:
            return _WHERE_PUBLISHED
        if _SEES_ALL not in doubt:
            return None
        with self._database.translated():
            (user,) = one(self._connection, "select quote_ident(current_user)")
        return f"grant {_SEES_ALL} to {user}"

    @contextmanager
    def snapshot(self) -> Iterator[PostgresPollingSnapshot]:
        """Hold one committed state of the source; its rows can always be read."""
        with self._database.translated():
            connection = self._connection
            began = self._monotonic()
            reading = self._horizon.read(connection)
            self._follow_clock(began, reading.clock)
            is_hasty = self._monotonic() < self._hasty_until
            chosen = {**connection.settings, **(_HASTE if is_hasty else {})}
            connection.begin("isolation level repeatable read read only", chosen)
            try:
                refuse_other_server(connection, self._origin)
                snapshot = PostgresPollingSnapshot(
                    connection, self._poll, self._memory, reading, self._follow_schema
                )
                with closing(snapshot):
                    yield snapshot
            except psycopg.errors.LockNotAvailable:
                self._hasty_until = self._monotonic() + _HASTY_SECONDS
                raise
            finally:
                connection.end_reading()

    def close(self) -> None:
        """Close the connection; safe to repeat."""
        if self._kept is not None:
            self._kept.close()

    def _follow_schema(self) -> int:
        """Drop the cached tables when one of them has changed."""
        version = self._catalogue.version(self._connection)
        if self._catalogue.generation != self._known_at:
            self._known.clear()
            self._known_at = self._catalogue.generation
        return version

    def _poll(self, name: str) -> PostgresPoll:
        if name not in self._known:
            with self._database.translated():
                self._catalogue.follow(name)
                poll = self._read(name)
            self._known[name] = self._known[poll.source.schema.name] = poll
        return self._known[name]

    def _read(self, name: str) -> PostgresPoll:
        chosen = self._options.get(_plain(name), TableOptions())
        facts = self._ahead.get(name) or read_facts(self._connection, [name]).get(name)
        source = read_table(self._connection, name, chosen, reread=True, facts=facts)
        columns = {found.name: found for found in facts.columns} if facts else {}
        shown = source.schema.name
        options = self._polls.get(_plain(name), PollOptions())
        stamped = _column(shown, columns, "updated_at", options.updated_at)
        live = "true"
        if options.deleted_at is not None:
            live = _live(_column(shown, columns, "deletes", options.deleted_at))
        stamp = self._stamp(shown, stamped)
        kinds = tuple(columns[name].oid for name in source.schema.primary_key)
        origin = f"{self._origin}:{source.oid}{stamp.zone_noted}"
        return PostgresPoll(source, options, stamp, live, origin, kinds)

    def _stamp(self, table: str, column: ColumnFacts) -> StampColumn:
        family = FAMILIES.get(column.oid)
        if family is None:
            raise SchemaError(
                f"'polling.updated_at' names column {column.name!r}, which cannot hold timestamps",
                table=table,
                hint="use timestamptz, timestamp, date, integer, bigint, double precision, numeric"
                " or text",
            )
        return StampColumn(column.name, family, self._local_zone(), not column.not_null)

    def _zone_name(self, connection: Connection) -> str:
        """Return that zone's name; it is asked for again once settings of sessions were changed."""
        (settings,) = one(connection, _SETTINGS)
        if settings != self._zone_set:
            self._zone_set, self._zone = settings, None
        return self._local_zone().name

    def _local_zone(self) -> Zone:
        """Return the default time zone of the application's sessions."""
        if self._zone is None:
            name = self._database.default_zone()
            self._zone = Zone(name, bool(one(self._connection, _GOES_BACK, name)[0]))
        return self._zone


def _plain(name: str) -> str:
    return name.removeprefix("public.")


def _column(table: str, columns: Mapping[str, ColumnFacts], setting: str, name: str) -> ColumnFacts:
    if name not in columns:
        raise SchemaError(
            f"'polling.{setting}' names column {name!r}, which the source does not have",
            table=table,
            hint=nearest(name, sorted(columns)),
        )
    return columns[name]


def _live(column: ColumnFacts) -> str:
    """Return SQL that is true if a row is not marked as deleted."""
    name = quote(column.name)
    if column.oid == _BOOLEAN:
        return f"(not coalesce({name}, false))"
    return f"(coalesce({name}, 0) = 0)" if column.oid in _NUMBERS else f"({name} is null)"
