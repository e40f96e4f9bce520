"""Checks whether a temporal table's history stays valid under another primary key."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.changes.compaction import key_codes
from rhei_pipeline.errors import SchemaDriftError
from rhei_pipeline.model.changes import Operation
from rhei_pipeline.model.schema import OPERATION, VALID_FROM, VALID_TO, TableSchema

_OPEN = np.iinfo(np.int64).max


def refuse_unfit_key(schema: TableSchema, built_for: Sequence[str], versions: pa.Table) -> None:
    """Refuse a key under which the history would have two versions of a row at once.

    Args:
        schema: The table with the new key.
        built_for: The key it had before.
        versions: All versions: the new key's columns, valid from, valid to, and the operation.

    Raises:
        SchemaDriftError: A version has no such key, or two of one key overlap or leave a gap.
    """
    if _has_nulls(versions, schema.primary_key) or not _one_at_a_time(versions, schema):
        raise SchemaDriftError(
            f"its key was {', '.join(built_for)} and is now {', '.join(schema.primary_key)},"
            " which its history does not fit: several of its rows would share one key",
            table=schema.name,
            hint="declare the old key as 'primary_key' while it is unique and without nulls, or "
            f"start again: 'rhei drop-table {schema.name} --keep-as NAME' keeps the history under "
            "another name",
        )


def _has_nulls(versions: pa.Table, key: Sequence[str]) -> bool:
    return any(versions[name].null_count for name in key)


def _one_at_a_time(versions: pa.Table, schema: TableSchema) -> bool:
    """Return whether each key's versions follow one another, and end only by a deletion."""
    codes = key_codes(versions.select(list(schema.primary_key)))
    starts = versions[VALID_FROM].cast(pa.int64()).to_numpy()
    ends = pc.fill_null(versions[VALID_TO].cast(pa.int64()), _OPEN).to_numpy()
    deleted = pc.equal(versions[OPERATION], Operation.DELETE.value).to_numpy()
    order = np.lexsort((deleted, ends, starts, codes))
    codes, starts, ends, deleted = codes[order], starts[order], ends[order], deleted[order]
    followed = codes[1:] == codes[:-1]
    fits = np.where(deleted[:-1], starts[1:] >= ends[:-1], starts[1:] == ends[:-1])
    last = np.append(~followed, True)[: len(codes)]
    return bool(fits[followed].all() and (deleted | (ends == _OPEN))[last].all())
