"""The views of a mirror of files: each table over its segments, as DataFusion's SQL."""

from collections.abc import Iterator

import pyarrow as pa

from rhei_pipeline.errors import QueryError
from rhei_pipeline.mirrors.datafusion.formats import ROW
from rhei_pipeline.mirrors.datafusion.manifest import Manifest, Segment, StoredTable
from rhei_pipeline.model.feed_state import FEED_PREFIX
from rhei_pipeline.model.schema import OPERATION, RESERVED_PREFIX, VALID_TO
from rhei_pipeline.sql.text import datafusion_type, literal, quote

MAIN = "main"
SEGMENTS = "_rhei_segments"
#: A schema of PostgreSQL's whose tables need not be qualified, as in the source.
_UNQUALIFIED = "public"


def views_of(manifest: Manifest) -> Iterator[tuple[str, StoredTable]]:
    """Yield the views of a state; a qualified name comes before an unqualified one."""
    shown = [
        table
        for table in manifest.tables.values()
        if not table.relation.startswith(RESERVED_PREFIX) or table.relation.startswith(FEED_PREFIX)
    ]
    taken = {(table.namespace or MAIN, table.relation) for table in shown}
    for table in shown:
        for place in _places(table):
            if place == (table.namespace or MAIN, table.relation) or place not in taken:
                yield f"{quote(place[0])}.{quote(place[1])}", table


def relations_of(manifest: Manifest) -> set[str]:
    """Return the names of a state's tables, in all forms in which a query may give them."""
    return {form for table in manifest.tables.values() for form in _forms(table)}


def _forms(table: StoredTable) -> tuple[str, str]:
    """Return a table's name as it is, and as DataFusion reads it unquoted."""
    return table.relation, table.relation.lower()


def _places(table: StoredTable) -> set[tuple[str, str]]:
    """Return the names that find a table."""
    namespaces = {table.namespace or MAIN}
    if table.namespace == _UNQUALIFIED:
        namespaces.add(MAIN)
    return {(name, form) for name in namespaces for form in _forms(table)}


def segment_table(segment: Segment) -> str:
    """Return the name under which a segment is registered."""
    return f"{SEGMENTS}.s{segment.name}"


def presence_function(segment: Segment) -> str:
    """Return the name of the function that shows which of its rows are not removed."""
    return f"_rhei_present_{segment.name}"


def end_function(segment: Segment) -> str:
    """Return the name of the function that shows when its versions end."""
    return f"_rhei_end_{segment.name}"


def operation_function(segment: Segment) -> str:
    """Return the name of the function that shows what ended its versions."""
    return f"_rhei_operation_{segment.name}"


def view_sql(table: StoredTable) -> str:
    """Return the query that shows a table."""
    if not table.segments:
        columns = ", ".join(
            f"{_cast('null', field)} as {quote(field.name)}" for field in table.schema
        )
        return f"select {columns} where false"
    return " union all ".join(_select(table, segment) for segment in table.segments)


def _select(table: StoredTable, segment: Segment) -> str:
    columns = ", ".join(
        f"{_value(segment, field)} as {quote(field.name)}" for field in table.schema
    )
    condition = f" where {presence_function(segment)}({ROW})" if segment.hidden_rows else ""
    return f"select {columns} from {segment_table(segment)}{condition}"


def _value(segment: Segment, wanted: pa.Field) -> str:
    if segment.ended and wanted.name == VALID_TO:
        return f"{end_function(segment)}({ROW})"
    if segment.ended and wanted.name == OPERATION:
        return f"coalesce({operation_function(segment)}({ROW}), {_standing(segment, wanted)})"
    return _standing(segment, wanted)


def _standing(segment: Segment, wanted: pa.Field) -> str:
    place = segment.schema.get_field_index(wanted.name)
    if place >= 0:
        standing = segment.schema.field(place).type
        own = quote(wanted.name)
        return own if standing.equals(wanted.type) else _cast(own, wanted)
    constant = segment.constants.get(wanted.name)
    if constant is None:
        return _cast("null", wanted)
    if isinstance(constant, int):
        return _cast(str(constant), wanted)
    is_text = pa.types.is_string(wanted.type)
    return literal(constant) if is_text else _cast(literal(constant), wanted)


def _cast(value: str, field: pa.Field) -> str:
    return f"arrow_cast({value}, {literal(datafusion_type(field.type))})"


def refuse_hidden(sql: str) -> None:
    """Refuse the files' own tables, which hold rows that were removed since, and the feeds."""
    # In the text, not in its tokens: DataFusion's are its own, and a name has no escapes.
    if SEGMENTS in sql.lower():
        raise QueryError(f"schema {SEGMENTS!r} is not for reading", hint="read the tables")
    if FEED_PREFIX in sql.lower():
        raise QueryError(
            f"tables that begin with {FEED_PREFIX!r} are the mirror's housekeeping",
            hint="'rhei changes' shows what they tell",
        )
