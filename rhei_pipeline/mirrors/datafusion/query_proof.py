"""Proves that queries return what the files hold: compares aggregates with the rows themselves.

An engine may answer from a file's statistics instead of its rows, and skip parts by them:
comparing rows alone would not notice wrong statistics.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.errors import MirrorDamagedError
from rhei_pipeline.mirrors.datafusion.formats import is_long
from rhei_pipeline.mirrors.datafusion.manifest import StoredTable
from rhei_pipeline.mirrors.datafusion.segment_store import DATA, SegmentStore
from rhei_pipeline.mirrors.datafusion.write_buffer import WriteBuffer
from rhei_pipeline.model.schema import Table
from rhei_pipeline.model.semantics import Translated
from rhei_pipeline.sql.text import mirror_table, quote

#: Columns that one query asks about. DataFusion plans many in quadratic time, and opens each file
#: again for each query.
_COLUMNS = 200

#: What is compared of a column.
_KINDS = ("count", "min", "max", "nan")

_Summary = Mapping[str, pa.Scalar]


def misread_columns(
    schema: pa.Schema,
    name: str,
    parts: Iterable[pa.Table],
    ask: Callable[[str], pa.Table],
) -> list[str]:
    """Return the columns for which queries return other values than the table's rows have.

    Args:
        schema: The table's columns.
        name: How a query names the table.
        parts: All rows of the table, read without its engine.
        ask: Runs a query.
    """
    held = _summary(schema, parts)
    short = [field for field in schema if _key(field, "count") in held]
    found: dict[str, pa.Scalar] = {}
    for first in range(0, len(short), _COLUMNS):
        asked = short[first : first + _COLUMNS]
        terms = ", ".join(term for field in asked for term in _terms(field))
        answer = ask(f"select {terms} from {name}")
        found |= {term: answer[term][0] for term in answer.column_names}
    return [field.name for field in schema if not _agree(field, held, found)]


def refuse_misread(
    stored: StoredTable, store: SegmentStore, table: Table, ask: Callable[[str], pa.Table]
) -> None:
    """Compare what queries return with all rows of a table's files.

    Raises:
        MirrorDamagedError: They return something else.
    """
    buffer, columns = WriteBuffer(stored, store), stored.schema.names
    parts = (rows for past in (False, True) for rows, _ in buffer.scan(columns, past=past))
    misread = misread_columns(
        stored.schema,
        mirror_table(table.schema),
        parts,
        # None of its aggregates is one that could be false, so that their plan is not looked at.
        lambda sql: ask(Translated(sql, [stored.relation])),
    )
    if misread:
        raise MirrorDamagedError(
            f"queries read other values in column {misread[0]!r} than its files hold",
            file=DATA,
            table=table.name,
            hint=f"run 'rhei drop-table {table.name}', with '--keep-as NAME' for its history:"
            " the next sync copies it into new files",
        )


def _terms(field: pa.Field) -> Iterator[str]:
    own, floating = quote(field.name), pa.types.is_floating(field.type)
    numbers = f" filter (where not isnan({own}))" if floating else ""
    yield f"count({own}) as {quote(_key(field, 'count'))}"
    yield f"min({own}){numbers} as {quote(_key(field, 'min'))}"
    yield f"max({own}){numbers} as {quote(_key(field, 'max'))}"
    if floating:
        yield f"count(*) filter (where isnan({own})) as {quote(_key(field, 'nan'))}"


def _agree(field: pa.Field, held: _Summary, found: _Summary) -> bool:
    keys = [key for kind in _KINDS if (key := _key(field, kind)) in held]
    return all(held[key].equals(found[key].cast(held[key].type)) for key in keys)


def _summary(schema: pa.Schema, parts: Iterable[pa.Table]) -> _Summary:
    """Aggregate each part, and merge: as Arrow values, which may exceed Python's range.

    Columns of long values are left out: files have no statistics of these, and engines would
    hold each several times.
    """
    gathered: dict[str, list[pa.Scalar]] = {}
    long = set[str]()
    for rows in chain([schema.empty_table()], parts):
        for field, column in zip(schema, rows.columns, strict=True):
            if is_long(column):
                long.add(field.name)
                continue
            for kind, value in _summary_of(column).items():
                gathered.setdefault(_key(field, kind), []).append(value)
    return {
        key: _merged(key, values)
        for key, values in gathered.items()
        if key.rpartition("/")[0] not in long
    }


def _summary_of(column: pa.ChunkedArray) -> dict[str, pa.Scalar]:
    counted = {"count": pa.scalar(len(column) - column.null_count)}
    if pa.types.is_floating(column.type):
        unreal = pc.fill_null(pc.is_nan(column), fill_value=False)
        counted["nan"] = pa.scalar(pc.sum(unreal, min_count=0).as_py())
        column = column.filter(pc.invert(unreal))
    bounds = pc.min_max(column)
    return {**counted, "min": bounds["min"], "max": bounds["max"]}


def _merged(key: str, values: list[pa.Scalar]) -> pa.Scalar:
    merge = {"min": pc.min, "max": pc.max}.get(key.rpartition("/")[2], pc.sum)
    return merge(pa.array(values, values[0].type))


def _key(field: pa.Field, kind: str) -> str:
    return f"{field.name}/{kind}"
