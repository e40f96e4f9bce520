"""The logs of one table in order, and how they are read with a given schema.

A table that was migrated gets a new log. The old one is kept until every mirror has read it. A
position in it continues through all later logs: it records which transactions were seen, and the
table is not written while its log is replaced, so nothing is missed in between.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pyarrow as pa

from rhei_pipeline.model.schema import Column, Mode, Table, TableSchema
from rhei_pipeline.sources.postgres.catalog import BYTEA, NUMERIC, arrow_type
from rhei_pipeline.sources.postgres.table_facts import DEFAULT_NAMESPACE
from rhei_pipeline.sources.postgres.triggers.ddl import (
    GONE,
    ROW,
    SCHEMA,
    TOUCHED,
    LoggedColumn,
    TableLog,
)
from rhei_pipeline.sources.postgres.triggers.misfit import (
    OTHER_GONE,
    OTHER_KINDS,
    OTHER_ROW,
    part_of,
    type_of,
)
from rhei_pipeline.sql.text import literal

#: Types whose text is not what a value of theirs becomes as text, or in any other type.
_OWN_FORM = (16, 17, 700, 701, 1082, 1083, 1114, 1184)
#: Parts the names of columns that do not fit.
APART = "chr(31)"
_WHOLE = (20, 21, 23, 26)


@dataclass(frozen=True, slots=True)
class Generation:
    """One log of a table, from its creation until another replaced it.

    Attributes:
        name: The log's table; `log` is that table's oid, None where it was not noted.
        columns, key: By the names they had when it was made.
        attributes, types: The columns' numbers, and their types' oids; none if not recorded.
        base: What is added to a snapshot's own order.
        pruned: After positions before this one, entries are deleted.
        identity: Identifies this log and its triggers, and changes when they are changed.
        images: Whether it stores rows.
        ended: Positions from here on are in the log that replaced it; None if none did.
        cut: From this entry on, the table differed from what its triggers expect; None if it
            never did, or if that must still be read (`is_cut`).
        whole: Whether it stores all columns that the table had.
        leads_on: Whether all changes of the table are in this log or in the next one.
    """

    relation: int
    name: str
    log: int | None
    columns: tuple[str, ...]
    key: tuple[str, ...]
    attributes: tuple[int, ...]
    types: tuple[int, ...]
    base: int
    pruned: int
    identity: str
    images: bool
    ended: int | None = None
    cut: int | None = None
    leads_on: bool = True
    whole: bool = False
    is_cut: bool = False

    def places(self) -> Mapping[str, tuple[str, int]]:
        """Return name and type in the log of each column, by its number, or by its name."""
        names = [str(number) for number in self.attributes] or self.columns
        types = self.types or (0,) * len(names)
        return {name: (f"c{n}", types[n]) for n, name in enumerate(names)}


@dataclass(frozen=True, slots=True)
class WantedColumn:
    """A column to read from a log.

    Attributes:
        attribute: Its number, or its name where no number is known.
        base: The oid of the type it is read as; 0 if unknown.
    """

    column: Column
    attribute: str
    base: int

    def fits(self, oid: int) -> bool:
        """Return whether a value of a type, as text, is exactly a value of this column."""
        if oid == self.base or not self.base:
            return True
        kind, natural = self.column.type, arrow_type(oid, -1)
        if self.column.epoch is not None or pa.types.is_integer(kind):
            return oid in _WHOLE
        if pa.types.is_decimal(kind):
            return oid in _WHOLE or oid == NUMERIC
        if pa.types.is_string(kind):
            return oid in _WHOLE or natural.equals(kind)
        return bool(natural.equals(kind))

    def is_unfit(self, oid: str) -> str:
        """Return SQL that is true if a type, given by an expression, does not fit."""
        known = [kind for kind in (*_OWN_FORM, *_WHOLE, NUMERIC) if self.fits(kind)]
        if pa.types.is_string(self.column.type):
            unfit = [kind for kind in _OWN_FORM if kind not in known]
            return f"{oid} in ({_texts(unfit)})"
        return f"{oid} not in ({_texts([self.base, *known])})"


@dataclass(frozen=True, slots=True)
class LogPart:
    """A log, and how it is read.

    Attributes:
        wanted: The columns.
        key: Those of the key.
        late: Whether entries after the log's cut are read as well.
        only: Of those, the changes made while the table had this name; None for all.
        left: Numbers of columns of the first log that the table no longer has.
    """

    generation: Generation
    wanted: tuple[WantedColumn, ...]
    key: tuple[WantedColumn, ...]
    late: bool
    only: str | None = None
    left: tuple[str, ...] = ()

    def versions(self, condition: str) -> list[tuple[str, tuple[str, ...]]]:
        """Return queries of position, transaction, `live`, unfit columns and columns of entries.

        Run them in this order; each returns its entries in order. With each come those of its
        columns that are `bytea`.
        """
        cut, places = self.generation.cut, self.generation.places()
        of_bytes = tuple(
            w.column.name for w in self.wanted if places.get(w.attribute, ("", 0))[1] == BYTEA
        )
        queries = [] if self._has_no_key else [(self._plain(condition), of_bytes)]
        if cut is not None and self.late:
            queries.append((self._mixed(f"{condition} and seq >= {cut}"), ()))
        return queries

    def touched(self, condition: str, log: TableLog) -> list[str]:
        """Return queries of the keys of entries, in the form of another log."""
        places, name, queries = self.generation.places(), self.generation.name, []
        asked = list(zip(self.key, log.key_columns, strict=True))
        if not self._has_no_key:
            found = [(column, *places[w.attribute]) for w, column in asked]
            shown = [
                place if kind in {0, column.base} else f"{_shown(place)}::{column.stored}"
                for column, place, kind in found
            ]
            queries.append(
                f"select {_as_in(log, shown)} from {name} where {condition}"
                f" and kind in ('{TOUCHED}', '{ROW}', '{GONE}')"
            )
        if self.late and self.generation.cut is not None:
            shown = [
                f"case when not ({w.is_unfit(type_of(int(w.attribute)))})"
                f" then ({part_of(int(w.attribute))})::{column.stored} end"
                for w, column in asked
            ]
            known = " and ".join(f"{log.places[name]} is not null" for name in log.key)
            queries.append(
                f"select * from (select {_as_in(log, shown)} from {name} where {condition}"
                f" and kind in ('{OTHER_ROW}', '{OTHER_GONE}')) other where {known}"
            )
        return queries

    def incomplete(self, condition: str) -> str | None:
        """Return a query that counts versions with a value that can no longer be read."""
        places = self.generation.places()
        known = [f"{places[number][0]} is not null" for number in self.left if number in places]
        if self.late and self.generation.cut is not None:
            known += [f"{part_of(int(number))} is not null" for number in self.left]
        if not known:
            return None
        return (
            f"select count(*) from {self.generation.name} where {condition}"
            f" and kind in ('{ROW}', '{OTHER_ROW}') and ({' or '.join(known)})"
        )

    @property
    def _has_no_key(self) -> bool:
        places = self.generation.places()
        return any(w.attribute not in places for w in self.key)

    def _plain(self, condition: str) -> str:
        generation, places = self.generation, self.generation.places()
        kinds = f"'{ROW}', '{GONE}'"
        own = {*generation.key}
        numbers = dict(zip(generation.columns, places, strict=True))
        if not {w.attribute for w in self.key} <= {numbers[name] for name in own}:
            kinds = f"'{ROW}'"  # what it says of rows that are gone does not tell which
        before = "" if generation.cut is None else f" and seq < {generation.cut}"
        found = [places.get(w.attribute, ("null", w.base)) for w in self.wanted]
        unfit = [
            f"case when {place} is not null then {literal(w.column.name)} end"
            for w, (place, kind) in zip(self.wanted, found, strict=True)
            if not w.fits(kind)
        ]
        return (
            f"select seq, xid, kind = '{ROW}', {_listed_unfit(unfit)},"
            f" {', '.join(place for place, _ in found)} from {generation.name}"
            f" where {condition}{before} and kind in ({kinds}) order by seq"
        )

    def _mixed(self, condition: str) -> str:
        places = self.generation.places()
        shown, unfit = [], []
        for wanted in self.wanted:
            number, name = int(wanted.attribute), literal(wanted.column.name)
            place, kind = places.get(wanted.attribute, ("", 0))
            logged = part_of(number)
            shown.append(f"coalesce({logged}, {_shown(place)})" if place else logged)
            unfit.append(
                f"case when {logged} is not null and {wanted.is_unfit(type_of(number))}"
                f" then {name} end"
            )
            if place and not wanted.fits(kind):
                unfit.append(f"case when {place} is not null then {name} end")
        keys = " and ".join(
            f"coalesce({part_of(int(w.attribute))}, {_shown(places[w.attribute][0])}) is not null"
            if w.attribute in places
            else f"{part_of(int(w.attribute))} is not null"
            for w in self.key
        )
        return (
            f"select seq, xid, kind in ('{ROW}', '{OTHER_ROW}'), {_listed_unfit(unfit)},"
            f" {', '.join(shown)} from {self.generation.name} where {condition}"
            f" and kind in ('{ROW}', '{GONE}', '{OTHER_ROW}', '{OTHER_GONE}') and {keys}"
            " order by seq"
        )

    def limits(self) -> str:
        """Return SQL of the entries that are read at all."""
        cut = self.generation.cut
        if cut is None:
            return "true"
        if not self.late:
            return f"seq < {cut}"
        if self.only is None:
            return "true"
        return f"(kind not in ({OTHER_KINDS}) or misfit->>'table' = {literal(self.only)})"


@dataclass(frozen=True, slots=True)
class Captured:
    """The source's records of a table's log.

    Attributes:
        log: As it was created.
        parts: The logs from a position to where the table is read to; none if one is missing.
        is_now: Whether they are read to their ends.
        next_log: The log that is read behind them, with the table's present schema; None where
            they are the last ones, or the rest of theirs is read so.
    """

    log: TableLog
    parts: tuple[LogPart, ...]
    is_now: bool
    next_log: Generation | None = None

    @property
    def is_left(self) -> bool:
        """Whether a position is in a log that the table's mirror can leave, and others can drop."""
        return len(self.parts) > 1 or self.next_log is not None


def read_now(
    generations: Sequence[Generation], table: Table, columns: Mapping[str, LoggedColumn]
) -> tuple[LogPart, ...]:
    """Return how logs are read with the table's present schema; none if one is missing."""
    schema = table.schema
    read = schema.columns if table.mode is Mode.TEMPORAL else schema.key_columns
    if not all(_follows(*pair) for pair in pairwise(generations)):
        return ()
    wanted = {c.name: _wanted(c, columns.get(c.name)) for c in read}
    now = {str(column.attribute) for column in columns.values()}
    left = tuple(n for n in map(str, generations[0].attributes) if n not in now)
    parts = [
        replace(_part(generation, wanted, schema, late=True), left=left)
        for generation in generations
    ]
    if table.mode is Mode.TEMPORAL and not all(one.images for one in generations):
        return ()
    return tuple(parts) if all(map(_tells_enough, parts)) else ()


def read_then(
    generations: Sequence[Generation], schema: TableSchema, *, late: bool
) -> tuple[LogPart, ...]:
    """Return how logs are read with the schema of the first one.

    With `late` also the changes made after the table differed from what its triggers expect, as
    long as it had its name: nothing else is read with the schema of that time.
    """
    first = generations[0]
    if not {*schema.names} <= {*first.columns} or not {*schema.primary_key} <= {*first.key}:
        return ()
    if not all(_follows(*pair) for pair in pairwise(generations)):
        generations = generations[:1]
    known = dict(zip(first.columns, first.places().items(), strict=True))
    wanted = {
        c.name: WantedColumn(c, known[c.name][0], known[c.name][1][1]) for c in schema.columns
    }
    name = f"{schema.namespace or DEFAULT_NAMESPACE}.{schema.relation}"
    return tuple(
        _part(generation, wanted, schema, late=late, only=name) for generation in generations
    )


def read_on(
    log: TableLog,
    logs: Sequence[Generation],
    table: Table,
    present: Table,
    columns: Mapping[str, LoggedColumn],
) -> Captured:
    """Return how logs are read of which the first does not tell all of the table's present schema.

    With the schema that the mirror knew, as long as no other one will do and they hold its
    columns: a table that is declared otherwise is written on, and a log made since, for another
    mirror, may hold what was written.
    """
    parts = read_then(logs, table.schema, late=False)
    count = min(1, len(parts))
    while count < len(parts) and not read_now(logs[count:], present, columns):
        if not _holds_all(parts[count]):
            break
        count += 1
    next_log = logs[count] if 0 < count < len(logs) else None
    return Captured(log, parts[:count], is_now=count == len(logs), next_log=next_log)


def _holds_all(part: LogPart) -> bool:
    """Return whether a log is of the same key, and has all columns, each as it was."""
    generation, places = part.generation, part.generation.places()
    numbers = dict(zip(generation.columns, places, strict=True))
    return (
        not generation.is_cut
        and generation.cut is None
        and {numbers[name] for name in generation.key} == {w.attribute for w in part.key}
        and all(w.attribute in places and w.fits(places[w.attribute][1]) for w in part.wanted)
    )


def _wanted(column: Column, known: LoggedColumn | None) -> WantedColumn:
    return (
        WantedColumn(column, str(known.attribute), known.base)
        if known
        else WantedColumn(column, "0", 0)
    )


def _part(
    generation: Generation,
    wanted: Mapping[str, WantedColumn],
    schema: TableSchema,
    *,
    late: bool,
    only: str | None = None,
) -> LogPart:
    key = tuple(wanted[name] for name in schema.primary_key)
    if not generation.attributes:
        # Of a log made before numbers were noted, columns are known by their names alone.
        wanted = {name: WantedColumn(w.column, name, 0) for name, w in wanted.items()}
        key = tuple(wanted[name] for name in schema.primary_key)
        late = False
    return LogPart(generation, tuple(wanted.values()), key, late, only)


def _follows(earlier: Generation, later: Generation) -> bool:
    """Return whether one log begins where another ended, with nothing deleted between."""
    return earlier.leads_on and earlier.ended is not None and later.pruned <= earlier.ended


def _tells_enough(part: LogPart) -> bool:
    """Return whether a log has the table's keys, and all columns the table had."""
    generation, places = part.generation, part.generation.places()
    lacks = any(w.attribute not in places for w in part.wanted)
    if lacks and generation.images and not generation.whole:
        return False
    return all(w.attribute not in places or w.fits(places[w.attribute][1]) for w in part.key)


def _as_in(log: TableLog, shown: Sequence[str]) -> str:
    """Return the names of a key's columns in a log."""
    names = [log.places[name] for name in log.key]
    return ", ".join(f"{value} as {name}" for value, name in zip(shown, names, strict=True))


def _listed_unfit(unfit: Sequence[str]) -> str:
    return f"array_to_string(array[{', '.join(unfit)}], {APART})" if unfit else "''"


def _shown(place: str) -> str:
    return f"{SCHEMA}.shown({place})"


def _texts(oids: Sequence[int]) -> str:
    return ", ".join(literal(str(oid)) for oid in oids) or "''"
