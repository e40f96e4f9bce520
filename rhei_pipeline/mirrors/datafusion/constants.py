"""Columns that have one value in all rows of a segment, and so are in no file.

A manifest keeps the value as a number or a text; the column's type says what it means.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.mirrors.datafusion.digests import row_digests
from rhei_pipeline.model.schema import HISTORY_NAMES
from rhei_pipeline.model.selection import columns_of

Constant = int | str


def constant_of(value: pa.Scalar) -> Constant | None:
    """Return a value as a manifest keeps it; None where that would not be read back as the same."""
    kind = value.type
    if pa.types.is_binary(kind) or (pa.types.is_floating(kind) and not pc.is_finite(value).as_py()):
        return None
    counted = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_timestamp, pa.types.is_time)
    is_number = any(is_such(kind) for is_such in counted)
    kept: Constant = value.cast(pa.int64() if is_number else pa.string()).as_py()
    try:
        return kept if as_scalar(kept, kind).equals(value) else None
    except pa.ArrowInvalid:  # a day beyond those that Arrow writes, or an infinite one
        return None


def as_scalar(constant: Constant, kind: pa.DataType) -> pa.Scalar:
    """Return what a manifest keeps as a value of a column's type."""
    return pa.scalar(constant).cast(kind)


def conform(
    rows: pa.Table, schema: pa.Schema, constants: Mapping[str, Constant] | None = None
) -> pa.Table:
    """Give rows a table's columns: constants and nulls for missing ones, wider types."""
    constants, own = constants or {}, columns_of(rows)
    columns = []
    for field in schema:
        if field.name in own:
            columns.append(own[field.name].cast(field.type))
        elif field.name in constants:
            value = as_scalar(constants[field.name], field.type)
            columns.append(pa.repeat(value, rows.num_rows))
        else:
            columns.append(pa.nulls(rows.num_rows, field.type))
    return pa.table(columns, schema=schema)


def constant_digest(constants: Mapping[str, Constant], schema: pa.Schema) -> np.uint64:
    """Return what such columns add to the digest of each row: its index knows the files' alone."""
    own = tuple(
        sorted((name, value) for name, value in constants.items() if name not in HISTORY_NAMES)
    )
    if not own:
        return np.uint64(0)
    return _digest(own, pa.schema([schema.field(name) for name, _ in own]))


@lru_cache(maxsize=1024)
def _digest(constants: tuple[tuple[str, Constant], ...], schema: pa.Schema) -> np.uint64:
    columns = [pa.array([as_scalar(value, schema.field(name).type)]) for name, value in constants]
    return np.uint64(row_digests(pa.table(columns, schema=schema))[0])
