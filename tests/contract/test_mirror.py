"""Our mirrors, and the stub, keep what every mirror promises."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from rhei_pipeline.errors import MirrorError
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.mirrors.duckdb.connecting import MEMORY
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.model.changes import DeadLetter
from rhei_pipeline.model.schema import Mode
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
