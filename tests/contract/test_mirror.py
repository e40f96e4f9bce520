"""Our mirrors, and the stub, keep what every mirror promises."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from rhei_pipeline.errors import MirrorError
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.mirrors.duckdb import upsert
from rhei_pipeline.mirrors.duckdb.connecting import MEMORY
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.model.changes import DeadLetter, NetChanges
from rhei_pipeline.model.schema import Column, Mode, Table
from rhei_pipeline.model.schema import TableSchema as Schema
from rhei_pipeline.protocols import Mirror
from rhei_pipeline.testing import StubMirror
from rhei_pipeline.testing.mirror_contract import MirrorContract
from rhei_pipeline.testing.mirror_query_contract import MirrorQueryContract
from rhei_pipeline.testing.mirror_work import NOW, TABLE, copy, keys, merge, rows

KINDS = (
    "duckdb-file",
    "duckdb-memory",
    "datafusion-memory",
    "datafusion-ipc",
    "datafusion-parquet",
    "datafusion-delta",
)


def open_mirror(kind: str, directory: Path) -> Mirror:
    engine, _, storage = kind.partition("-")
    if engine == "datafusion":
        return DataFusionMirror(storage, directory / storage)
    return DuckDBMirror(MEMORY if storage == "memory" else directory / "m.duckdb")


class TestMirrors(MirrorContract, MirrorQueryContract):
    @pytest.fixture(params=KINDS)
    def adapter(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mirror]:
        made = open_mirror(request.param, tmp_path)
        yield made
        made.close()

    def test_an_owner_that_is_noted_changes_no_table(
        self, adapter: DuckDBMirror | DataFusionMirror
    ) -> None:
        copy(adapter, TABLE, rows(a=1.0))
        adapter.claim("its source")
        assert adapter.owner == "its source"
        assert adapter.tables().keys() == {'"t"'}

    def test_a_letter_that_was_resolved_keeps_its_time_though_its_row_fits_no_more(
        self, adapter: DuckDBMirror | DataFusionMirror
    ) -> None:
        letter = DeadLetter("t", '{"k": "a"}', "v", "why", NOW)
        times = [NOW, NOW + timedelta(days=1)]
        for at in times:
            with adapter.transaction() as transaction:
                transaction.quarantine([letter])
                transaction.release(replace(TABLE, mode=Mode.TEMPORAL), {letter.name}, at)
        kept = adapter.query("select resolved_at from _rhei_dead_letter order by resolved_at")
        assert kept["resolved_at"].to_pylist() == times


def test_how_high_keys_go_is_asked_again_after_a_transaction_that_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was asked when the highest row was deleted, which then was there again."""
    monkeypatch.setattr(upsert, "_MOST_NULLS", 0)  # what is deleted is so by itself
    table = Table(Schema("n", (Column("k", pa.int64()), Column("v", pa.int64())), ("k",)))
    nothing = table.schema.arrow.empty_table()

    def row(key: int, value: int) -> pa.Table:
        return pa.table({"k": [key], "v": [value]})

    with closing(DuckDBMirror(MEMORY)) as mirror:
        copy(mirror, table, pa.table({"k": [1, 9], "v": [0, 0]}))
        with pytest.raises(RuntimeError), mirror.transaction() as transaction:
            transaction.merge(table, NetChanges(nothing, row(9, 0).select(["k"])))
            transaction.merge(table, NetChanges(row(5, 1), nothing.select(["k"])))
            raise RuntimeError
        with mirror.transaction() as transaction:
            transaction.merge(table, NetChanges(row(9, 2), nothing.select(["k"])))
        assert mirror.query("select k, v from n order by k").to_pylist() == [
            {"k": 1, "v": 0},
            {"k": 9, "v": 2},
        ]


class TestStubMirror(MirrorContract):
    @pytest.fixture
    def adapter(self) -> Iterator[Mirror]:
        made = StubMirror()
        yield made
        made.close()


@pytest.mark.parametrize("engine", ["duckdb", "datafusion"])
def test_a_query_that_needs_too_much_memory_fails_alone(engine: str, tmp_path: Path) -> None:
    limit = 2**26
    made: Mirror
    if engine == "duckdb":
        made = DuckDBMirror(tmp_path / "m.duckdb", memory_limit_bytes=limit)
    else:
        made = DataFusionMirror("ipc", tmp_path / "m", memory_limit_bytes=limit)
    copy(made, TABLE, rows())
    merge(made, rows(**{f"a key of some length {n}": float(n) for n in range(4000)}), keys())
    with pytest.raises(MirrorError, match=r"memory limit.*mirror\.memory_limit"):
        made.query("select array_agg(a.k) as l from t a cross join t b")
    ordered = made.query("select k from t order by v desc")["k"].to_pylist()
    assert ordered[0] == "a key of some length 3999"
    assert merge(made, rows(z=1.0), keys()).inserted == 1
    made.close()
