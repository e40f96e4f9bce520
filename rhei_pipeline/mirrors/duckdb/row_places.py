"""Deletes rows of a table by their places there."""

import pyarrow as pa

from rhei_pipeline.mirrors.duckdb.statements import Statements
from rhei_pipeline.mirrors.duckdb.tables import apart, registered
from rhei_pipeline.mirrors.met_rows import Places

_PLACE, _GONE = "_rhei_place", "_rhei_gone"
#: So many places are a parameter: to register a table takes longer than a small statement.
FEW_PLACES = 250


def delete_at(statements: Statements, target: str, places: Places) -> int:
    """Delete the rows at these places, each named once; return how many they were."""
    parts = apart(pa.table({_PLACE: places}), _PLACE)
    return sum(_delete_part(statements, target, part) for part in parts)


def _delete_part(statements: Statements, target: str, part: pa.Table) -> int:
    statement = f"delete from {target} where rowid in (select"
    if part.num_rows <= FEW_PLACES:
        return statements.changed(f"{statement} unnest($1::bigint[]))", [part[_PLACE].to_pylist()])
    with registered(statements.connection, _GONE, part):
        return statements.changed(f"{statement} {_PLACE} from {_GONE})")
