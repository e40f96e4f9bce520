"""Batches of PostgreSQL's rows that end at their bytes, though few rows are read at a time."""

from collections.abc import Callable
from typing import Any

import pytest

from rhei_pipeline.model.changes import RowBatch
from rhei_pipeline.sources.postgres import read_ahead
from rhei_pipeline.sources.postgres import rows as reading
from tests.support.fix_postgres import PostgresWorld

MakeWorld = Callable[..., PostgresWorld]
ROWS, PORTION, LONG = 100, 500_000, 20_000

#: The value of each row by its number, its type, and how it is stored.
VALUES = {
    "compressed in its row": (f"repeat('x', {LONG})", "text", "main"),
    "compressed in its row, behind short ones": (
        f"repeat('x', case when i > 60 then {LONG} else 10 end)",
        "text",
        "main",
    ),
    "apart, behind short ones": (
        f"repeat('x', case when i > 60 then {LONG} else 10 end)",
        "text",
        "external",
    ),
    "no text in the server": (f"to_jsonb(repeat('x', {LONG}))", "jsonb", "external"),
    "bytes": (f"decode(repeat('00', {LONG}), 'hex')", "bytea", "main"),
}
SHAPES = {
    "plain": ("create table t(id int primary key, v {}, at timestamptz default now())",),
    "parts": (
        "create table t(id int primary key, v {}, at timestamptz default now())"
        " partition by range (id)",
        "create table t1 partition of t for values from (0) to (40)",
        "create table t2 partition of t for values from (40) to (1000)",
    ),
}


def fill(world: PostgresWorld, shape: str, value: str) -> None:
    sql, kind, storage = VALUES[value]
    tables = ["t"] if shape == "plain" else ["t1", "t2"]
    world.run(
        *[statement.format(kind) for statement in SHAPES[shape]],
        *[f"alter table {table} alter v set storage {storage}" for table in tables],
        f"insert into t select i, {sql} from generate_series(1, {ROWS}) i",
    )


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[RowBatch]:
    """Note every batch that is read, where a portion has few bytes."""
    found: list[RowBatch] = []

    inner = reading.PostgresRowReader.rows

    def rows(reader: reading.PostgresRowReader, *asked: Any) -> RowBatch | None:
        batch = inner(reader, *asked)
        found.extend([batch] if batch else [])
        return batch

    monkeypatch.setattr(reading.PostgresRowReader, "rows", rows)
    monkeypatch.setattr(reading, "PORTION_BYTES", PORTION)
    monkeypatch.setattr(read_ahead, "PORTION_BYTES", PORTION)
    monkeypatch.setattr("rhei_pipeline.model.portions.PORTION_BYTES", PORTION)
    monkeypatch.setattr("rhei_pipeline.model.portions._STEP", 10)
    return found


#: Triggers of a parent do not see what is written to its parts: such a table is refused.
CELLS = [
    pytest.param(
        method,
        value,
        shape,
        marks=() if (method, shape) == ("trigger", "plain") else pytest.mark.long,
    )
    for method in ("trigger", "polling", "logical")
    for value in VALUES
    for shape in (SHAPES if method != "trigger" else ["plain"])
]


@pytest.mark.parametrize(("method", "value", "shape"), CELLS)
def test_a_batch_ends_at_its_bytes_wherever_they_lie(
    make_postgres: MakeWorld,
    batches: list[RowBatch],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    value: str,
    shape: str,
) -> None:
    monkeypatch.setattr(reading, "_SAMPLE_ROWS", 50)
    polling = {"updated_at": "at", "clock": "database"}
    table = {"name": "t", **({"polling": polling} if method == "polling" else {})}
    world = make_postgres(capture={"method": method}, tables=[table], batch_rows=ROWS)
    fill(world, shape, value)
    if shape == "parts":
        world.run("analyze")
    assert world.htap.sync_now().tables["t"].copied_rows == ROWS
    assert sum(batch.rows.num_rows for batch in batches) == ROWS
    assert max(batch.rows.nbytes for batch in batches) < PORTION + 2 * LONG  # and a row
    assert world.htap.verify().equal


def test_the_rows_of_a_small_table_are_read_without_a_look_at_their_bytes(
    make_postgres: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    inner = reading.PostgresRowReader._range

    def counted(reader: reading.PostgresRowReader, *places: str | None) -> str:
        asked.append(reader.schema.name)
        return inner(reader, *places)

    monkeypatch.setattr(reading.PostgresRowReader, "_range", counted)
    world = make_postgres()
    world.run(
        "create table s(id int primary key)",
        "insert into s values (1)",
        "create table t(id int primary key, v text)",
        "insert into t select i, md5(i::text) from generate_series(1, 5000) i",
    )
    world.htap.sync_now()
    # The rows, and that there are no more; of the larger one, what they are estimated by, too.
    assert asked.count("s") <= 2 < asked.count("t")
