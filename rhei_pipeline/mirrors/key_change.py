"""Whether a temporal table's past can go on under another primary key."""

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
    """Refuse a key under which the past would not be one version of each row at a time.

    Args:
        schema: The table as it is to be.
        built_for: The key it had.
        versions: All versions: the new key's columns, from when to when, and the operation.

    Raises:
        SchemaDriftError: A version has no such key, or two of one key overlap or leave a gap.
    """
    if _has_nulls(versions, schema.primary_key) or not _one_at_a_time(versions, schema):
        raise SchemaDriftError(
            f"its key was {', '.join(built_for)} and is now {', '.join(schema.primary_key)},"
            " which its past does not fit: several rows of it would be one",
            table=schema.name,
            hint="name the old key as 'primary_key' in the declaration while it is unique, or"
            f" begin anew: 'rhei drop-table {schema.name} --keep-as NAME' sets the history aside",
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
