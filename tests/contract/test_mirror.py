"""What every mirror promises, whatever engine holds it."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from threading import Timer

import pyarrow as pa
import pytest

from rhei_pipeline.errors import MirrorError, QueryError, SchemaDriftError
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.mirrors.duckdb.mirror import MEMORY, DuckDBMirror
from rhei_pipeline.model.changes import Counts, DeadLetter, NetChanges, Position
from rhei_pipeline.model.progress import CopyProgress, TableState, Watermark
from rhei_pipeline.model.schema import Column, Mode, Table, TableSchema
from rhei_pipeline.protocols import Mirror

SCHEMA = TableSchema("t", (Column("k", pa.string()), Column("v", pa.float64())), ("k",))
TABLE = Table(SCHEMA)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def open_mirror(kind: str, directory: Path) -> Mirror:
    engine, _, storage = kind.partition("-")
    if engine == "datafusion":
        return DataFusionMirror(storage, directory / storage)
    return DuckDBMirror(MEMORY if storage == "memory" else directory / "m.duckdb")


KINDS = (
    "duckdb-file",
    "duckdb-memory",
    "datafusion-memory",
    "datafusion-ipc",
    "datafusion-parquet",
    "datafusion-delta",
)


@pytest.fixture(params=KINDS)
def mirror(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mirror]:
    made = open_mirror(request.param, tmp_path)
    with made.transaction() as transaction:
        transaction.begin_copy(TABLE, CopyProgress("t", Position(1, "p"), "shape"))
        transaction.adopt_copy(TABLE, NOW)
    yield made
    made.close()


def rows(**values: float | None) -> pa.Table:
    return pa.table({"k": list(values), "v": pa.array(values.values(), pa.float64())})


def keys(*names: str) -> pa.Table:
    return pa.table({"k": pa.array(names, pa.string())})


def merge(mirror: Mirror, upserts: pa.Table, tombstones: pa.Table) -> Counts:
    with mirror.transaction() as transaction:
        return transaction.merge(TABLE, NetChanges(upserts, tombstones))


def held(mirror: Mirror) -> dict[str, float | None]:
    found = mirror.query("select * from t").to_pylist()
    assert len({row["k"] for row in found}) == len(found)
    return {row["k"]: row["v"] for row in found}


def test_a_merge_counts_rows_that_really_changed(mirror: Mirror) -> None:
    assert merge(mirror, rows(a=1.0, b=2.0), keys()) == Counts(2, 0, 0)
    assert merge(mirror, rows(a=1.0, b=3.0, c=None), keys("x")) == Counts(1, 1, 0)
    assert merge(mirror, rows(), keys("a", "x")) == Counts(0, 0, 1)
    assert held(mirror) == {"b": 3.0, "c": None}


def test_minus_zero_is_another_value_than_zero(mirror: Mirror) -> None:
    merge(mirror, rows(a=0.0), keys())
    assert merge(mirror, rows(a=-0.0), keys()).updated == 1
    assert str(held(mirror)["a"]) == "-0.0"


def test_null_and_a_value_differ_and_two_nulls_do_not(mirror: Mirror) -> None:
    merge(mirror, rows(a=None), keys())
    assert merge(mirror, rows(a=None), keys()).total == 0
    assert merge(mirror, rows(a=0.0), keys()).updated == 1


def test_rows_and_watermark_come_and_go_together(mirror: Mirror) -> None:
    with pytest.raises(RuntimeError), mirror.transaction() as transaction:
        transaction.merge(TABLE, NetChanges(rows(a=1.0), keys()))
        transaction.record(Watermark("t", Position(5, "p"), NOW))
        raise RuntimeError
    assert held(mirror) == {}
    assert mirror.ledger().state("t") is TableState.NEW


def test_a_watermark_never_goes_back(mirror: Mirror) -> None:
    with mirror.transaction() as transaction:
        transaction.record(Watermark("t", Position(5, "p"), NOW))
    with pytest.raises(MirrorError, match="would go back"), mirror.transaction() as transaction:
        transaction.record(Watermark("t", Position(4, "q"), NOW))
    assert mirror.ledger().watermarks["t"] == Watermark("t", Position(5, "p"), NOW)


def test_a_copys_progress_is_recorded_with_its_rows(mirror: Mirror) -> None:
    progress = CopyProgress("t", Position(3, "p"), "shape", resume="here")
    with mirror.transaction() as transaction:
        transaction.begin_copy(TABLE, progress)
        transaction.append_copy(TABLE, rows(a=1.0), progress)
    assert mirror.ledger().copies["t"] == progress
    assert mirror.ledger().state("t") is TableState.COPYING
    assert held(mirror) == {}


def test_a_complete_copy_differs_by_its_net_changes(mirror: Mirror) -> None:
    merge(mirror, rows(a=1.0, b=2.0, c=3.0), keys())
    progress = CopyProgress("t", Position(3, "p"), "shape", complete=True)
    with mirror.transaction() as transaction:
        transaction.begin_copy(TABLE, progress)
        transaction.append_copy(TABLE, rows(a=1.0, b=5.0, d=4.0), progress)
        assert transaction.adopt_copy(TABLE, NOW) is None
        found = list(transaction.copy_differences(TABLE, 2))
    upserts = pa.concat_tables([part.upserts for part in found]).to_pylist()
    assert sorted(row["k"] for row in upserts) == ["b", "d"]
    assert pa.concat_tables([part.tombstones for part in found]).to_pylist() == [{"k": "c"}]


def test_a_key_that_the_past_does_not_have_is_refused_and_nothing_is_lost(mirror: Mirror) -> None:
    past, renamed = (
        Table(TableSchema("h", (Column(key, pa.string()),), (key,)), Mode.TEMPORAL)
        for key in ("k", "other")
    )
    progress = CopyProgress("h", Position(1, "p"), "shape", complete=True)

    def copy(table: Table, values: list[str]) -> None:
        with mirror.transaction() as transaction:
            transaction.begin_copy(table, progress)
            rows = pa.table({table.schema.primary_key[0]: values})
            transaction.append_copy(table, rows, progress)
            transaction.adopt_copy(table, NOW)

    copy(past, ["a", "b"])
    with pytest.raises(SchemaDriftError, match="its past has no 'other'"):
        copy(renamed, ["a"])
    assert mirror.count(past) == 2


def test_a_comparison_names_what_differs_and_changes_nothing(mirror: Mirror) -> None:
    merge(mirror, rows(a=1.0, b=2.0, c=3.0), keys())
    with mirror.transaction() as transaction:
        found = transaction.compare(TABLE, [rows(a=1.0), rows(b=5.0, d=4.0)])
    assert found.missing.to_pylist() == [{"k": "d"}]
    assert found.extra.to_pylist() == [{"k": "c"}]
    assert found.different.to_pylist() == [{"k": "b"}]
    assert len(held(mirror)) == 3


def test_digests_name_the_parts_that_differ_and_the_keys_too_many(mirror: Mirror) -> None:
    merge(mirror, rows(a=1.0, b=2.0, c=3.0, z=-0.0), keys())
    with mirror.transaction() as transaction:
        parts = [rows(a=1.0), rows(b=5.0), rows(z=0.0), rows(d=4.0), rows()]
        stale, extra = transaction.compare_digests(TABLE, parts)
    assert stale == [1, 2, 3]
    assert extra.to_pylist() == [{"k": "c"}]


def test_a_dead_letter_is_kept_once_until_it_is_released(mirror: Mirror) -> None:
    letter = DeadLetter("t", '{"k": "a"}', "v", "why", NOW)
    for _ in range(2):
        with mirror.transaction() as transaction:
            transaction.quarantine([letter, letter])
    assert mirror.dead_letters("t").num_rows == 1
    assert mirror.dead_letters("other").num_rows == 0
    with mirror.transaction() as transaction:
        assert transaction.quarantined(TABLE) == {letter.name}
        transaction.release(TABLE, {letter.name}, NOW)
    assert mirror.dead_letters().num_rows == 0


def test_a_temporal_table_keeps_what_it_lacked_as_resolved(mirror: Mirror) -> None:
    letter = DeadLetter("t", '{"k": "a"}', "v", "why", NOW)
    with mirror.transaction() as transaction:
        transaction.quarantine([letter])
        transaction.release(Table(SCHEMA, Mode.TEMPORAL), {letter.name}, NOW)
    assert mirror.dead_letters().num_rows == 0
    kept = mirror.query("select resolved_at is not null as resolved from _rhei_dead_letter")
    assert kept["resolved"].to_pylist() == [True]


@pytest.mark.parametrize(
    "sql",
    [
        "delete from t",
        "with gone as (delete from t returning *) select * from gone",
        "create table x(a int)",
        "drop table t",
        "copy t to 'out.csv'",
        "select * from read_csv('pyproject.toml')",
        "select * from 'pyproject.toml'",
        "attach 'other.duckdb' as other",
        "install httpfs",
        "set threads = 1",
        "select 1; select 2",
        "",
        "select * from nowhere",
        "selec 1",
    ],
)
def test_a_query_only_reads_tables(mirror: Mirror, sql: str) -> None:
    merge(mirror, rows(a=1.0), keys())
    with pytest.raises(QueryError):
        mirror.query(sql)
    assert held(mirror) == {"a": 1.0}


def test_queries_take_parameters_and_keep_types_when_empty(mirror: Mirror) -> None:
    merge(mirror, rows(a=1.0, b=2.0), keys())
    assert mirror.query("select v from t where k = ?", ["b"]).to_pylist() == [{"v": 2.0}]
    assert mirror.query("select k, v from t where false").schema == SCHEMA.arrow


def test_streamed_rows_are_of_the_state_they_began_with(mirror: Mirror) -> None:
    merge(mirror, rows(**{f"k{number}": float(number) for number in range(1000)}), keys())
    streamed = mirror.stream("select k, v from t where v >= $least", {"least": 10.0}, 100)
    for _ in range(5):  # more commits than states are retained
        merge(mirror, rows(k500=-1.0), keys("k20"))
        merge(mirror, rows(k500=-2.0, k20=-3.0), keys("k30"))
    batches = list(streamed.batches)
    assert {batch.schema for batch in batches} == {streamed.schema}
    found = pa.Table.from_batches(batches).sort_by("v")
    assert found["v"].to_pylist() == [float(number) for number in range(10, 1000)]


def test_a_stream_that_is_cancelled_ends_in_an_error(mirror: Mirror) -> None:
    many = 300_000
    values = pa.array(range(many), pa.float64())
    merge(mirror, pa.table({"k": values.cast(pa.string()), "v": values}), keys())
    streamed = mirror.stream("select a.k from t a cross join t b", {}, 100)
    next(streamed.batches)
    streamed.cancel()
    with pytest.raises(QueryError):
        list(streamed.batches)


def test_a_stream_is_cancelled_before_its_first_row(mirror: Mirror) -> None:
    values = pa.array(range(5000), pa.float64())
    merge(mirror, pa.table({"k": values.cast(pa.string()), "v": values}), keys())
    sql = "select max(a.v * b.v - c.v) as n from t a cross join t b cross join t c"
    with pytest.raises(QueryError):
        # The timer's thread ends what this one waits for.
        next(mirror.stream(sql, {}, 100, lambda cancel: Timer(0.3, cancel).start()).batches)
    assert mirror.query("select count(*) as n from t")["n"].to_pylist() == [5000]


def test_a_stream_that_was_cancelled_before_it_began_is_an_error(mirror: Mirror) -> None:
    merge(mirror, rows(a=1.0), keys())
    with pytest.raises(QueryError, match="cancelled"):
        next(mirror.stream("select k from t", {}, 100, lambda cancel: cancel()).batches)
    assert mirror.query("select count(*) as n from t")["n"].to_pylist() == [1]


def test_a_stream_only_reads(mirror: Mirror) -> None:
    with pytest.raises(QueryError, match="DELETE"):
        mirror.stream("delete from t", {}, 100)


@pytest.mark.parametrize("engine", ["duckdb", "datafusion"])
def test_a_query_that_needs_too_much_memory_fails_alone(engine: str, tmp_path: Path) -> None:
    limit = 2**26
    made: Mirror
    if engine == "duckdb":
        made = DuckDBMirror(tmp_path / "m.duckdb", memory_limit_bytes=limit)
    else:
        made = DataFusionMirror("ipc", tmp_path / "m", memory_limit_bytes=limit)
    with made.transaction() as transaction:
        transaction.begin_copy(TABLE, CopyProgress("t", Position(1, "p"), "shape"))
        transaction.adopt_copy(TABLE, NOW)
    merge(made, rows(**{f"a key of some length {n}": float(n) for n in range(4000)}), keys())
    with pytest.raises(MirrorError, match=r"memory limit.*mirror\.memory_limit"):
        made.query("select array_agg(a.k) as l from t a cross join t b")
    ordered = made.query("select k from t order by v desc")["k"].to_pylist()
    assert ordered[0] == "a key of some length 3999"
    assert merge(made, rows(z=1.0), keys()).inserted == 1
    made.close()
