"""What a comparison in DuckDB finds, whether or not the digests of a portion are equal."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from rhei_pipeline.mirrors import met_rows
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.mirrors.duckdb.row_comparison import RowComparing
from rhei_pipeline.model.changes import Comparison, Position
from rhei_pipeline.model.progress import CopyProgress
from rhei_pipeline.model.schema import Column, Mode, Table, TableSchema
from tests.support.parts import connection_of

PORTION, ROWS = 50, 400
Row = tuple[str, int, float | None, str | None]
COLUMNS = {"a": pa.string(), "b": pa.int64(), "x": pa.float64(), "t": pa.string()}
SCHEMA = TableSchema("t", tuple(Column(n, kind) for n, kind in COLUMNS.items()), ("a", "b"))
#: What somebody did to the mirror's file, as SQL with the numbers of two keys.
DAMAGES = {
    "a value": "update t set x = 3.5 where b = $1",
    # Not by an update: DuckDB leaves 0.0 as it is.
    "a sign of zero": (
        "insert into t select * replace ('-0.0'::double as x) from t where b = $1;"
        "delete from t where b = $1 and not signbit(x)"
    ),
    "a null": "update t set t = null where b = $1",
    "values among each other": (
        "update t set t = o.t from t o where (t.b = $1 and o.b = $2) or (t.b = $2 and o.b = $1)"
    ),
    "a row too few": "delete from t where b = $1",
    "a row twice": "insert into t select * from t where b = $1",
    "a row in the place of another": "update t set b = b + 100000 where b = $1",
    "rows before and behind all": "insert into t(a, b) values ('', $1), ('zz', $2)",
}


@pytest.fixture(scope="module", params=list(Mode))
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Table, DuckDBMirror, list[Row]]]:
    table, progress = Table(SCHEMA, request.param), CopyProgress("t", Position(1, ""), "")
    rows: list[Row] = [(f"{n // 7:04}", n, 0.0 if n % 3 else None, f"é{n}") for n in range(ROWS)]
    with closing(DuckDBMirror(tmp_path_factory.mktemp("mirror") / "m.duckdb")) as mirror:
        with mirror.transaction() as transaction:
            transaction.begin_copy(table, progress)
            transaction.append_copy(table, as_arrow(rows), progress)
            transaction.adopt_copy(table, datetime.now(UTC))
        yield table, mirror, rows


def as_arrow(rows: list[Row]) -> pa.Table:
    columns = zip(*rows, strict=True)
    arrays = [pa.array(c, kind) for c, kind in zip(columns, COLUMNS.values(), strict=True)]
    return pa.table(arrays, schema=SCHEMA.arrow)


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have small portions compared; note how many rows each had that was looked up."""
    found: list[int] = []
    look = RowComparing._add

    def noting(comparing: RowComparing, into: met_rows.Differences, part: pa.Table) -> None:
        found.append(part.num_rows)
        look(comparing, into, part)

    monkeypatch.setattr(met_rows, "PORTION_ROWS", PORTION)
    monkeypatch.setattr(RowComparing, "_add", noting)
    return found


def compared(
    table: Table, mirror: DuckDBMirror, rows: list[Row], damage: Callable[[], None]
) -> tuple[Comparison, list[tuple[object, ...]]]:
    """Return what is found, and the rows that the mirror had; then it is as before."""
    parts = (as_arrow(rows[first : first + 30]) for first in range(0, len(rows), 30))
    where = "" if table.mode is Mode.DESTRUCTIVE else " where _rhei_valid_to is null"
    with mirror.transaction(trial=True) as transaction:
        damage()
        had = connection_of(mirror).execute(f"select a, b, x::varchar, t from t{where}").fetchall()
        return transaction.compare(table, parts), had


@pytest.mark.parametrize("kind", DAMAGES)
def test_whatever_differs_is_named_and_only_its_portion_is_looked_up(
    world: tuple[Table, DuckDBMirror, list[Row]], looked_up: list[int], kind: str
) -> None:
    table, mirror, rows = world
    draw = random.Random(kind)
    sql, numbers = DAMAGES[kind], draw.sample([n for n in range(ROWS) if n % 3], 2)

    def damage() -> None:
        for part in sql.split(";"):
            bound = {str(n): value for n, value in enumerate(numbers, 1) if f"${n}" in part}
            connection_of(mirror).execute(part, bound)

    found, had = compared(table, mirror, rows, damage)
    source: dict[object, object] = {(a, b): (x if x is None else str(x), t) for a, b, x, t in rows}
    counts = Counter((a, b) for a, b, _, _ in had)
    wrong = {(a, b) for a, b, x, t in had if (a, b) in source and source[a, b] != (x, t)}
    assert keys(found.missing) == source.keys() - counts.keys()
    assert keys(found.extra) == counts.keys() - source.keys()
    assert keys(found.duplicate) == {key for key, count in counts.items() if count > 1}
    assert keys(found.different) == wrong
    assert not found.equal
    assert len(looked_up) <= 2


def test_equal_rows_are_not_looked_up(
    world: tuple[Table, DuckDBMirror, list[Row]], looked_up: list[int]
) -> None:
    table, mirror, rows = world
    found, had = compared(table, mirror, rows, lambda: None)
    assert found.equal
    assert len(had) == ROWS
    assert looked_up == []


def keys(found: pa.Table) -> set[tuple[object, ...]]:
    return set(zip(*found.to_pydict().values(), strict=True))
