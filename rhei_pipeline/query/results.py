"""Answers: the mirror's in the source's names and types, with metadata."""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pyarrow as pa

from rhei_pipeline.errors import QueryError
from rhei_pipeline.model.progress import Ledger
from rhei_pipeline.model.schema import Table
from rhei_pipeline.query.router import Plan, Route
from rhei_pipeline.query.translation.queries import Query


def bound(plan: Plan, params: Sequence[Any]) -> dict[str, Any]:
    """Return the parameters of the mirror's statement, by name."""
    return {f"p{place}": params[place - 1] for place in plan.bound}


def empty(plan: Plan) -> pa.Table:
    """Return an answer's columns without rows."""
    kinds = [column.type if column is not None else pa.null() for column in plan.columns or ()]
    return pa.table([pa.array([], kind) for kind in kinds], list(plan.names))


def shown(
    first: pa.RecordBatch | None, others: Iterator[pa.RecordBatch], shape: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Yield the first batch, if there is one, and the others, with the answer's schema."""
    if first is not None:
        yield _batch(first, shape)
    for batch in others:
        yield _batch(batch, shape)


def _batch(batch: pa.RecordBatch, shape: pa.Schema) -> pa.RecordBatch:
    arrays = [
        column if column.type.equals(field.type) else column.cast(field.type)
        for column, field in zip(batch.columns, shape, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=shape)


def shaped(found: pa.Table, plan: Plan) -> pa.Table:
    """Give the mirror's answer the source's column names and types."""
    columns = plan.columns or ()
    types = [column.type if column is not None else None for column in columns]
    arrays = []
    for place, kept in enumerate(types):
        array = found.column(place)
        arrays.append(array if kept is None or array.type.equals(kept) else array.cast(kept))
    return pa.table(arrays, list(plan.names))


def labelled(
    found: pa.Table, route: Route, ledger: Ledger | None, age_seconds: float | None = None
) -> pa.Table:
    """Add to an answer's metadata which side it is from, why, and how fresh it is.

    `rhei.engine`, `rhei.reason`; for the mirror, `rhei.watermark` (JSON, the position of each
    table, at least) and `rhei.staleness_seconds`, since the sync began that the answer shows.
    """
    labels = {"rhei.engine": route.engine, "rhei.reason": route.reason}
    if ledger is not None:
        marks = {name: mark.position.order for name, mark in ledger.watermarks.items()}
        labels["rhei.watermark"] = json.dumps(marks)
    if age_seconds is not None:
        labels["rhei.staleness_seconds"] = f"{age_seconds:.3f}"
    return found.replace_schema_metadata({**(found.schema.metadata or {}), **labels})


@contextmanager
def pointing(
    read: Callable[[], Collection[str]],
    mirrored: Callable[[], Mapping[str, Table]],
    followed: Collection[str],
) -> Iterator[None]:
    """Add to the source's refusal of a query which of its tables exist only in the mirror.

    Of a table that is nowhere, the nearest that is mirrored.
    """
    try:
        yield
    except QueryError as error:
        apart = {table.name for table in mirrored().values()} - set(followed)
        missed = (name for name in sorted(apart) if name.lower() in read())
        name = next((name for name in missed if _says(error.message, name)), None)
        if name is not None and error.hint is None:
            error.hint = f"table {name!r} exists only in the mirror: query it with '--hint olap'"
        elif error.hint is None:
            error.hint = _nearest_table(error.message, read(), followed)
        raise


def _says(message: str, name: str) -> bool:
    """Return whether a message has a name, in any case, as a word."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message, re.IGNORECASE) is not None


def _nearest_table(refused: str, read: Collection[str], followed: Collection[str]) -> str | None:
    """Return the table that was probably meant, where the source knows none of a name."""
    from difflib import get_close_matches  # noqa: PLC0415  (only on the way to an error)

    known = {name.lower(): name for name in followed}
    for name in sorted(set(read) - known.keys()):
        close = get_close_matches(name, known, n=1)
        if close and name in refused.lower():
            return f"did you mean {known[close[0]]!r}?"
    return None


def dated(found: pa.Table, not_followed: Mapping[str, datetime]) -> pa.Table:
    """Add to an answer's metadata which of its tables are no longer synced, and since when.

    `rhei.not_followed` (JSON, a timestamp for each table); left out if there is none.
    """
    if not not_followed:
        return found
    names = json.dumps({name: since.isoformat() for name, since in not_followed.items()})
    labels = {"rhei.not_followed": names}
    return found.replace_schema_metadata({**(found.schema.metadata or {}), **labels})


def unanswered(found: pa.Table, query: Query) -> bool:
    """Return whether a LIMIT cut between rows that are equal in its ORDER BY.

    Args:
        found: The mirror's answer, with one row more than the limit and the hidden keys.
        query: The translated query.
    """
    if query.limit is None or found.num_rows <= query.limit or query.limit == 0:
        return False
    last = found.slice(query.limit - 1, 2)
    for place, key in enumerate(query.ordering):
        first, second = last.column(len(query.columns) + place).to_pylist()
        if first != second and not (key.inexact and _near(first, second)):
            return False
    return True


def _near(first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return first is second
    return abs(first - second) <= 1e-9 * max(abs(first), abs(second))


def lacking(found: pa.Table, dead_letters: Mapping[str, int]) -> pa.Table:
    """Add to an answer's metadata how many rows the mirror lacks of its tables.

    `rhei.dead_letters` (JSON, a number for each table); left out if it lacks none.
    """
    if not dead_letters:
        return found
    labels = {"rhei.dead_letters": json.dumps(dead_letters)}
    return found.replace_schema_metadata({**(found.schema.metadata or {}), **labels})
