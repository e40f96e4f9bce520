"""Large PostgreSQL tables, read by several connections in ranges of keys."""

from collections.abc import Callable
from typing import Any

import pytest

from rhei_pipeline.capabilities import snapshot_for_copy
from rhei_pipeline.errors import SourceBusyError
from rhei_pipeline.model.changes import RowBatch
from rhei_pipeline.protocols import Step
from rhei_pipeline.sources.postgres import read_ahead
from rhei_pipeline.sources.postgres import rows as reading
from tests.support.fix_postgres import PostgresWorld
from tests.support.parts import engine_of

MakeWorld = Callable[..., PostgresWorld]
BATCH = 20
ROWS = 400

KEYS = {
    "number": ("id int primary key", "i * 7 % 401"),
    "large": ("id bigint primary key", "9223372036854775807 - i"),
    "text": ("id text primary key", "chr(65 + i % 50) || i || chr(228 + i % 9)"),
    "instant": ("id timestamptz primary key", "'2026-01-01'::timestamptz + i * interval '1h'"),
    "uuid": ("id uuid primary key", "md5(i::text)::uuid"),
    "numeric": ("id numeric primary key", "i / 3.0"),
    "pair": ("a int, id text, primary key (id, a)", "i % 3, chr(65 + i % 60) || 'x''\\'"),
}


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Note every connection that joins in a snapshot."""
    opened: list[object] = []

    class Noted(read_ahead.ReadAhead):
        def __init__(self, reader: Any, share: Callable[[], Any], *rest: Any) -> None:
            def noted() -> Any:
                opened.append(share())
                return opened[-1]

            super().__init__(reader, noted, *rest)

    monkeypatch.setattr("rhei_pipeline.sources.postgres.logical.snapshot.ReadAhead", Noted)
    return opened


def fill(world: PostgresWorld, kind: str, rows: int = ROWS) -> None:
    columns, key = KEYS[kind]
    extra = " || i" if kind == "pair" else ""
    world.run(
        f"create table t({columns}, v int)",
        f"insert into t select {key}{extra}, i from generate_series(1, {rows}) i",
    )


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_every_kind_are_read_in_ranges(
    make_postgres: MakeWorld, kind: str, shared: list[object]
) -> None:
    world = make_postgres(batch_rows=BATCH)
    fill(world, kind)
    assert world.htap.sync_now().tables["t"].copied_rows == ROWS
    assert len(shared) == read_ahead.READERS
    found = world.htap.query("select v from t order by v", hint="olap")
    assert found["v"].to_pylist() == list(range(1, ROWS + 1))
    assert world.htap.verify().equal


@pytest.mark.parametrize("rows", [BATCH * 4, BATCH * 5, BATCH * 5 + 1, BATCH * 6 - 1])
def test_the_last_range_may_be_of_any_size(make_postgres: MakeWorld, rows: int) -> None:
    world = make_postgres(batch_rows=BATCH)
    fill(world, "number", rows)
    assert world.htap.sync_now().tables["t"].copied_rows == rows
    world.assert_equal("t")


WIDTHS = {
    # Bytes of each text by its number, and how it is stored.
    "narrow": ("10", "extended"),
    "wide": ("3000", "plain"),
    "compressed": ("20000", "main"),
    "apart": ("3000", "external"),
    "apart, in few rows": ("case when i between 381 and 385 then 20000 else 10 end", "external"),
}
SHAPES = {
    "plain": ("create table t(id int primary key, v text)",),
    "parts": (
        "create table t(id int primary key, v text) partition by range (id)",
        "create table t1 partition of t for values from (0) to (250)",
        "create table t2 partition of t for values from (250) to (1000)",
    ),
}


def fill_texts(world: PostgresWorld, shape: str, size: str, storage: str) -> None:
    tables = ["t"] if shape == "plain" else ["t1", "t2"]
    world.run(
        *SHAPES[shape],
        *[f"alter table {table} alter v set storage {storage}" for table in tables],
        f"insert into t select i, repeat('x', {size}) from generate_series(1, {ROWS}) i",
    )


@pytest.mark.parametrize("analyzed", [True, False], ids=["counted", "never counted"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_ranges_end_at_their_rows_or_bytes_whatever_is_known_of_the_table(
    make_postgres: MakeWorld,
    monkeypatch: pytest.MonkeyPatch,
    width: str,
    shape: str,
    *,
    analyzed: bool,
) -> None:
    portion, found = 50_000, list[RowBatch]()
    monkeypatch.setattr(reading, "PORTION_BYTES", portion)
    world = make_postgres(batch_rows=BATCH)
    fill_texts(world, shape, *WIDTHS[width])
    if analyzed:
        world.run("analyze")

    class Noted(read_ahead.ReadAhead):
        def next(self) -> RowBatch | None:
            batch = super().next()
            found.extend([batch] if batch else [])
            return batch

    monkeypatch.setattr("rhei_pipeline.sources.postgres.logical.snapshot.ReadAhead", Noted)
    world.htap.sync_now()
    world.assert_equal("t")
    counts = [batch.rows.num_rows for batch in found]
    assert sum(counts) == ROWS
    assert width != "narrow" or set(counts) == {BATCH}
    assert max(batch.rows.nbytes for batch in found) < portion + 32_000  # and a row


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_copy_that_was_cut_off_goes_on_where_it_ended(
    make_postgres: MakeWorld, mode: str
) -> None:
    world = make_postgres(batch_rows=BATCH, mode=mode)
    fill(world, "text")
    world.faults.arm(Step.COPY_BATCH, 7)
    assert world.surviving(world.htap.sync_now)
    world.faults.disarm()
    world.run("delete from t where v % 7 = 0", "update t set v = -v where v % 5 = 0")
    report = world.htap.sync_now()
    assert 0 < report.tables["t"].copied_rows <= ROWS - 6 * BATCH
    world.assert_equal("t")
    assert world.htap.verify().equal


def test_a_reader_that_is_ended_is_tried_again(make_postgres: MakeWorld) -> None:
    world = make_postgres(batch_rows=BATCH)
    fill(world, "number")

    def end_readers(*_: object) -> None:
        world.run(
            "select pg_terminate_backend(pid) from pg_stat_activity where state in"
            " ('idle in transaction', 'active') and pid <> pg_backend_pid()"
            " and datname = current_database() and application_name = 'rhei'"
        )

    with pytest.raises(SourceBusyError):
        world.htap.initial_sync("t", on_progress=end_readers)
    world.htap.sync_now()
    world.assert_equal("t")


def test_a_table_is_read_again_from_its_beginning_in_one_snapshot(
    make_postgres: MakeWorld, shared: list[object]
) -> None:
    world = make_postgres(batch_rows=BATCH)
    fill(world, "number")
    world.htap.sync_now()
    engine = engine_of(world.htap)
    table = engine.pipeline.table("t")
    shared.clear()
    with snapshot_for_copy(engine.source) as snapshot:
        snapshot.count(table)
        for _ in range(2):
            found, resume = list[int](), None
            while batch := snapshot.rows(table, resume, BATCH):
                found += batch.rows["v"].to_pylist()
                resume = batch.resume
            assert sorted(found) == list(range(1, ROWS + 1))
    assert len(shared) == 2 * read_ahead.READERS


def test_ranges_whose_rows_are_all_rejected_leave_the_others_as_large(
    make_postgres: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their rows have no bytes by which the next ranges could be judged."""
    ends: list[int] = []
    inner = reading.PostgresRowReader.end_of

    def end_of(reader: reading.PostgresRowReader, resume: str | None, limit: int) -> str | None:
        ends.append(limit)
        return inner(reader, resume, limit)

    monkeypatch.setattr(reading.PostgresRowReader, "end_of", end_of)
    world = make_postgres(batch_rows=BATCH)
    world.run(
        "create table t(id int primary key, v date)",
        "insert into t select i, case when i between 21 and 100 then '20000-01-01'::date"
        f" else '2026-01-01' end from generate_series(1, {ROWS}) i",
    )
    assert world.htap.sync_now().tables["t"].dead_letters == 80
    assert set(ends) == {BATCH}
    assert world.htap.query("select count(*) as n from t", hint="olap")["n"][0].as_py() == ROWS - 80
