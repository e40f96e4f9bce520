"""Large PostgreSQL tables, read by several connections in ranges of keys."""

from collections.abc import Callable
from typing import Any

import pytest

from rhei_pipeline.errors import SourceBusyError
from rhei_pipeline.protocols import Step
from rhei_pipeline.sources.postgres import read_ahead
from tests.support.fix_postgres import PostgresWorld

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
