"""How a standing table takes on another shape: without a row rewritten, wherever types widen."""

import numpy as np
import pyarrow as pa

from rhei_pipeline.errors import SchemaDriftError
from rhei_pipeline.history import refuse_unknown_key
from rhei_pipeline.olap.digests import key_hashes
from rhei_pipeline.olap.draft import Draft
from rhei_pipeline.olap.segment_store import conform
from rhei_pipeline.schema import VALID_TO, Mode, Table, type_name

_INTEGERS = (pa.int16(), pa.int32(), pa.int64())


def outgrown(draft: Draft, table: Table) -> bool:
    """Fit the standing table to the schema; tell whether it has to be made anew instead.

    Raises:
        SchemaDriftError: A temporal table's past does not fit the new types, or the new key.
    """
    standing, wanted = draft.schema, table.mirror_schema
    if table.mode is Mode.DESTRUCTIVE or VALID_TO not in standing.names:
        return not _equal(standing, wanted)
    refuse_unknown_key(table.schema, standing.names)
    retyped = [f for f in wanted if f.name in standing.names and not _kept(standing, f)]
    _fit(draft, table, [f for f in retyped if not _widens(standing.field(f.name).type, f.type)])
    types = {field.name: field for field in retyped}
    added = [field for field in wanted if field.name not in standing.names]
    draft.reshape(pa.schema([*(types.get(f.name, f) for f in standing), *added]))
    return False


def last_good_rows(standing: Draft, table: Table, keys: pa.Table) -> pa.Table:
    """Return a table's present rows of these keys in its new columns.

    Null where the table does not have a column, or where the new type has no such value.
    """
    wanted, key = table.schema.arrow, list(table.schema.primary_key)
    if not set(key) <= set(standing.schema.names):
        return wanted.empty_table()
    former = pa.schema([standing.schema.field(name) for name in key])
    found = standing.find(key_hashes(keys.select(key).cast(former)))
    held = [name for name in wanted.names if name in standing.schema.names]
    rows = standing.take(np.unique(found.places), held)
    fitted = {name: _fitting(rows[name], wanted.field(name).type) for name in held}
    return conform(pa.table(fitted), wanted)


def _fitting(values: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """Cast the values that the type has exactly; the others become null."""
    fitted = [_fitted(value, kind) for value in values]
    return pa.array(fitted, kind)


def _fitted(value: pa.Scalar, kind: pa.DataType) -> object:
    try:
        cast = value.cast(kind)
        return cast.as_py() if cast.cast(value.type).equals(value) else None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _equal(standing: pa.Schema, wanted: pa.Schema) -> bool:
    return bool(standing.names == wanted.names and standing.types == wanted.types)


def _kept(standing: pa.Schema, wanted: pa.Field) -> bool:
    return bool(standing.field(wanted.name).type.equals(wanted.type))


def _widens(old: pa.DataType, new: pa.DataType) -> bool:
    """Tell whether every value of the old type is one of the new type, so reading casts it."""
    if old in _INTEGERS and new in _INTEGERS:
        return _INTEGERS.index(old) <= _INTEGERS.index(new)
    if pa.types.is_decimal(old) and pa.types.is_decimal(new):
        whole = (old.precision - old.scale, new.precision - new.scale)
        return bool(whole[0] <= whole[1] and old.scale <= new.scale)
    return bool(old.equals(pa.float32()) and new.equals(pa.float64()))


def _fit(draft: Draft, table: Table, retyped: list[pa.Field]) -> None:
    """Make sure that the past can be read as the new types."""
    for wanted in retyped:
        try:
            for past in (False, True):
                for rows, _ in draft.scan([wanted.name], past=past):
                    rows[wanted.name].cast(wanted.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise SchemaDriftError(
                f"column {wanted.name!r} became {type_name(wanted.type)},"
                " which its past does not fit",
                table=table.name,
                hint="give the column its old type with 'types', or drop the mirror's table",
            ) from error
