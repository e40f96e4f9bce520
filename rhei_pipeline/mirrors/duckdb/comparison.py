"""Compares a mirrored table's present rows: with the source's by digests, and with a copy's."""

from collections.abc import Iterable, Iterator, Sequence

import duckdb
import pyarrow as pa

from rhei_pipeline.mirrors.duckdb.logical import as_kept
from rhei_pipeline.mirrors.duckdb.tables import OWN_PLACES, copy_name, create, in_utc, registered
from rhei_pipeline.model.array_texts import as_texts
from rhei_pipeline.model.changes import NetChanges
from rhei_pipeline.model.portions import PORTION_BYTES
from rhei_pipeline.model.schema import VALID_TO, Column, Mode, Table
from rhei_pipeline.sql.text import listed, matching, mirror_table, quote

_DIFFERENT = "temp._rhei_different"
_PLACE, _IS_OWN, _SIZE = "_rhei_place", "_rhei_is_own", "_rhei_size"
_PART = "_rhei_part"
_DIGEST = "_rhei_digest"


def compare_digests(
    connection: duckdb.DuckDBPyConnection, table: Table, parts: Iterable[pa.Table]
) -> tuple[list[int], pa.Table]:
    """Stage each source row's key, digest and part; join them with the present digests."""
    key = table.schema.primary_key
    fields = [*table.schema.arrow_key, pa.field(_PART, pa.int64())]
    create(connection, "_rhei_digests", pa.schema(fields), kind="temp table")
    connection.execute(f"alter table temp._rhei_digests add column {_DIGEST} ubigint")
    for number, part in enumerate(parts):
        with registered(connection, "_rhei_rows", as_kept(connection, part, table.schema)):
            connection.execute(
                f"insert into temp._rhei_digests select {listed(key, 'r')}, {number},"
                f" {_digest(table, 'r')} from _rhei_rows r"
            )
        del part
    same, present = matching("t", "s", key), present_sql(table)
    # Digested before they are joined, as a join would hold the values themselves, twice.
    digested = f"(select {listed(key)}, {_digest(table, 'p')} as {_DIGEST} from {present} p)"
    stale = connection.execute(
        f"select distinct s.{_PART} from temp._rhei_digests s left join {digested} t on {same}"
        f" where t.{quote(key[0])} is null or s.{_DIGEST} <> t.{_DIGEST} order by 1"
    ).fetchall()
    extra = _arrow(
        connection,
        f"select {listed(key, 't')} from {present} t anti join temp._rhei_digests s on {same}",
    )
    connection.execute("drop table temp._rhei_digests")
    return [number for (number,) in stale], extra


def stage_differences(
    connection: duckdb.DuckDBPyConnection, table: Table, limit: int, *, large: bool
) -> None:
    """Stage where the copy's rows are that differ from the present ones, and what keys are gone.

    Args:
        connection: In the transaction that compares.
        table: What is compared with its copy.
        limit: Rows of a batch; those of many bytes are fewer.
        large: Compare digests of texts and bytes: a join would hold their values once more.
    """
    schema, present, copy = table.schema, present_sql(table), copy_name(table.schema)
    place, sized = f"rowid as {_PLACE}, ", f"{_size_sql(table)} as {_SIZE}, "
    if large:
        copied, kept = digested_sql(table, copy, place + sized), digested_sql(table, present)
    else:
        copied, kept = f"(select {place}{sized}* from {copy} r)", present
    key, same = listed(schema.primary_key, "c"), matching("t", "c", schema.primary_key)
    connection.execute(
        f"create or replace temp table _rhei_different as"
        f" select {listed(schema.primary_key)}, {_PLACE}, {_PLACE} >= {OWN_PLACES} as {_IS_OWN},"
        f" (row_number() over places - 1) // {limit} + sum({_SIZE}) over places // {PORTION_BYTES}"
        f" as {_PART} from ("
        f" select {key}, c.{_PLACE}, c.{_SIZE} from {copied} c left join {kept} t on {same}"
        f" where t.{quote(schema.primary_key[0])} is null or {differs_sql(table, 't', 'c')}"
        f" union all"
        f" select {listed(schema.primary_key, 't')}, null, 0 from {present} t"
        f" anti join {copy} c on {same})"
        f" window places as (partition by {_PLACE} >= {OWN_PLACES} order by {_PLACE})"
    )


def staged_differences(connection: duckdb.DuckDBPyConnection, table: Table) -> Iterator[NetChanges]:
    """Yield what was staged, in batches."""
    names, key, copy = table.schema.names, table.schema.primary_key, copy_name(table.schema)
    # Places of committed rows and of own ones apart: as in `apart`.
    parts = connection.execute(
        f"select {_IS_OWN}, {_PART}, min({_PLACE}), max({_PLACE}), count({_PLACE})"
        f" from {_DIFFERENT} group by all order by all"
    ).fetchall()
    for is_own, part, first, last, count in parts:
        staged = f"from {_DIFFERENT} where {_PART} = {part} and {_IS_OWN}"
        staged += " is null" if is_own is None else f" = {is_own}"
        rows = f"select {listed(names)} from {copy} where " + (
            f"rowid between {first} and {last}" if count else "false"
        )
        if count and count <= last - first:  # a join would hold a large value once more
            rows += f" and rowid in (select {_PLACE} {staged})"
        yield NetChanges(
            _arrow(connection, rows),
            _arrow(connection, f"select {listed(key)} {staged} and {_PLACE} is null"),
        )
    connection.execute(f"drop table {_DIFFERENT}")


def _arrow(connection: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    return as_texts(in_utc(connection.sql(sql).to_arrow_table()))


def present_sql(table: Table) -> str:
    """Return SQL that selects the current rows."""
    if table.mode is Mode.DESTRUCTIVE:
        return mirror_table(table.schema)
    return f"(select * from {mirror_table(table.schema)} where {VALID_TO} is null)"


def differs_sql(
    table: Table, left: str, right: str, columns: Sequence[Column] | None = None
) -> str:
    """Return SQL that compares the columns outside the key; 0.0 differs from -0.0.

    With `columns` only those of them.
    """
    compared = table.schema.columns if columns is None else columns
    outside = [column for column in compared if column.name not in table.schema.primary_key]
    values = (_texts_or_values(outside, side) for side in (left, right))
    tests = [f"{one} is distinct from {other}" for one, other in zip(*values, strict=True)]
    tests += [
        f"signbit({left}.{n}) is distinct from signbit({right}.{n})" for n in _floating(compared)
    ]
    return f"({' or '.join(tests)})" if tests else "false"


def digested_sql(table: Table, rows: str, more: str = "") -> str:
    """Return SQL of rows for `differs_sql`, with digests instead of their texts and bytes.

    Joined, these take no memory for the values themselves.
    """
    values = [
        f"sha256({value}) as {quote(column.name)}"
        if pa.types.is_string(column.type) or pa.types.is_binary(column.type)
        else quote(column.name)
        for column, value in zip(table.schema.value_columns, _values(table, "r"), strict=True)
    ]
    return f"(select {more}{', '.join([listed(table.schema.primary_key), *values])} from {rows} r)"


def _digest(table: Table, row: str) -> str:
    """Return SQL that hashes the columns outside the key to 64 bits, as `differs_sql` compares."""
    signs = [f"signbit({row}.{name})" for name in _floating(table.schema.columns)]
    terms = ["0", *_values(table, row), *signs]
    return f"hash({', '.join(terms)})"


def row_digest(table: Table, row: str) -> str:
    """Return SQL that hashes a row, key included, to 64 bits; sums of them tell sets of rows apart.

    Hashed once more: the last column is only mixed in by its bits, so that rows which have changed
    it among each other would have the same sum too often.
    """
    keys = _texts_or_values(table.schema.key_columns, row)
    return f"hash(hash({', '.join(keys)}, {_digest(table, row)}))"


def _values(table: Table, row: str) -> list[str]:
    """Return SQL of the values outside the key; what the mirror keeps of a text is text again."""
    return _texts_or_values(table.schema.value_columns, row)


def _size_sql(table: Table) -> str:
    """Return SQL of the bytes of a row's texts and bytes."""
    sizes = [
        f"coalesce({'strlen' if pa.types.is_string(column.type) else 'octet_length'}({value}), 0)"
        for column, value in zip(table.schema.value_columns, _values(table, "r"), strict=True)
        if pa.types.is_string(column.type) or pa.types.is_binary(column.type)
    ]
    return " + ".join(["0", *sizes])


def _texts_or_values(columns: Iterable[Column], row: str) -> list[str]:
    return [
        f"{row}.{quote(column.name)}{'::varchar' if pa.types.is_string(column.type) else ''}"
        for column in columns
    ]


def _floating(columns: Iterable[Column]) -> list[str]:
    """Return the quoted names of floating columns."""
    return [quote(c.name) for c in columns if pa.types.is_floating(c.type)]
