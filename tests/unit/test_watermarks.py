"""What is recorded of tables in a DuckDB mirror, however many of them move at once."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import duckdb
import pytest

from rhei_pipeline.mirrors.duckdb.housekeeping import prepare
from rhei_pipeline.mirrors.duckdb.progress import ProgressRecords, read_ledger
from rhei_pipeline.mirrors.duckdb.statements import Statements
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.progress import Watermark

NAMES = [f"t{number}" for number in range(9)]
BEGUN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        prepare(connection, ":memory:")
        yield connection


def record(connection: duckdb.DuckDBPyConnection, *marks: Watermark) -> None:
    """Record these, as one transaction of a mirror does."""
    records = ProgressRecords(Statements(connection))
    for mark in marks:
        records.move(mark)
    records.write()


@pytest.mark.parametrize("seed", range(8))
def test_every_watermark_is_as_it_was_recorded_last(
    connection: duckdb.DuckDBPyConnection, seed: int
) -> None:
    chance, recorded = random.Random(seed), dict[str, Watermark]()
    for order in range(1, 30):
        moved = chance.sample(NAMES, chance.choice([1, 3, 7, 8, 9]))
        marks = [
            Watermark(
                name,
                # Most follow one log's head; some are another table's by now, or ahead of it.
                Position(order + chance.choice([0] * 20 + [1]), _proof(chance, recorded, name)),
                BEGUN + timedelta(seconds=order),
            )
            for name in moved
            if name not in recorded or recorded[name].position.order <= order
        ]
        record(connection, *marks)
        recorded |= {mark.table: mark for mark in marks}
        assert dict(read_ledger(connection).watermarks) == recorded


def _proof(chance: random.Random, recorded: dict[str, Watermark], name: str) -> str:
    if name in recorded and chance.random() < 0.98:
        return recorded[name].position.proof
    return f"{name} {chance.random()}"


def test_tables_that_follow_one_head_take_one_statement_without_their_names(
    connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for order in (1, 2):
        marks = [Watermark(name, Position(order, name), BEGUN) for name in NAMES]
        if order == 2:  # each alone would need its proof, and nothing brings them
            monkeypatch.setattr("rhei_pipeline.mirrors.duckdb.progress._GIVEN", "nowhere")
        record(connection, *marks)
    found = read_ledger(connection).watermarks
    assert {name: mark.position.order for name, mark in found.items()} == dict.fromkeys(NAMES, 2)


def test_a_row_that_is_not_known_of_is_not_moved(connection: duckdb.DuckDBPyConnection) -> None:
    record(connection, *(Watermark(name, Position(1, name), BEGUN) for name in NAMES))
    records = ProgressRecords(Statements(connection))
    records.ledger()
    connection.execute("insert into _rhei_watermark values ('other', 1, 'other', ?)", [BEGUN])
    for name in NAMES:
        records.move(Watermark(name, Position(2, name), BEGUN))
    records.write()
    found = read_ledger(connection).watermarks
    assert {name: mark.position.order for name, mark in found.items()} == {
        **dict.fromkeys(NAMES, 2),
        "other": 1,
    }
