"""NaN in a mirror of files: the files' statistics must never make a number of it."""

import math
import shutil
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datafusion import SessionContext
from deltalake import DeltaTable

from rhei_pipeline.errors import MirrorDamagedError
from rhei_pipeline.mirrors.datafusion.formats import Parquet
from rhei_pipeline.mirrors.datafusion.manifest import WITH_WHOLE_DIGESTS
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.mirrors.datafusion.reader import MirrorReader
from rhei_pipeline.model.changes import NetChanges, Position
from rhei_pipeline.model.progress import CopyProgress
from rhei_pipeline.model.schema import Column, Mode, Table, TableSchema
from tests.support.delta_readers import read_by_delta_rs
from tests.support.parts import manifest_of, store_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
COLUMNS = (Column("k", pa.int64()), Column("x", pa.float64()), Column("f", pa.float32()))
TABLE = Table(TableSchema("t", COLUMNS, ("k",)))
OLD = Path(__file__).parents[2] / "stored" / "format_2"
ASKED = "select max(x), sum(x), count(*) filter (where x > 5), max(f) from {}"


def rows() -> pa.Table:
    numbers = [math.nan, 5.0, 5.0]
    return pa.table({"k": [1, 2, 3], "x": numbers, "f": numbers}).cast(TABLE.schema.arrow)


@pytest.fixture(params=["ipc", "parquet", "delta"])
def mirror(request: pytest.FixtureRequest, tmp_path: Path) -> DataFusionMirror:
    made = DataFusionMirror(request.param, tmp_path / "m")
    progress = CopyProgress("t", Position(1, "p"), "shape", complete=True)
    with made.transaction() as transaction:
        transaction.begin_copy(TABLE, progress)
        transaction.append_copy(TABLE, rows(), progress)
        transaction.adopt_copy(TABLE, NOW)
    return made


def is_right(answer: tuple[object, ...]) -> bool:
    largest, total, above, largest_single = answer
    numbers = (largest, total, largest_single)
    return above == 1 and all(isinstance(n, float) and math.isnan(n) for n in numbers)


def test_every_engine_sees_a_nan_in_the_files(mirror: DataFusionMirror) -> None:
    assert is_right(tuple(mirror.query(ASKED.format("t")).to_pylist()[0].values()))
    with mirror.transaction(trial=True) as transaction:
        assert transaction.compare(TABLE, [rows()]).equal
    mirror.close()
    if mirror.storage == "ipc":
        return
    [file] = (Path(mirror.path) / "data").glob("*.parquet")
    session = SessionContext()
    session.register_parquet("t", file)
    assert is_right(tuple(session.sql(ASKED.format("t")).to_pylist()[0].values()))
    assert is_right(duckdb.execute(ASKED.format(f"'{file}'")).fetchone() or ())
    above = duckdb.execute(f"select count(*) from '{file}' where x > 5").fetchall()
    assert above == [(1,)]
    group = pq.ParquetFile(file).metadata.row_group(0)
    kept = {group.column(n).path_in_schema for n in range(4) if group.column(n).is_stats_set}
    assert kept == {"k", "_rhei_row"}


def test_a_delta_table_keeps_no_statistics_of_floating_columns(tmp_path: Path) -> None:
    mirror = DataFusionMirror("delta", tmp_path / "m")
    progress = CopyProgress("t", Position(1, "p"), "shape", complete=True)
    with mirror.transaction() as transaction:
        transaction.begin_copy(TABLE, progress)
        transaction.append_copy(TABLE, rows(), progress)
        transaction.adopt_copy(TABLE, NOW)
        gone = pa.table({"k": pa.array([3], pa.int64())})
        transaction.merge(TABLE, NetChanges(rows().slice(0, 0), gone))
    mirror.close()
    table = DeltaTable(f"{mirror.path}/delta/main/t")
    actions = pa.table(table.get_add_actions(flatten=True))
    for name in ("min.x", "max.x", "min.f", "max.f"):
        assert actions[name].null_count == actions.num_rows
    for file in Path(mirror.path, "delta/main/t").glob("*.parquet"):
        group = pq.ParquetFile(file).metadata.row_group(0)
        stated = {group.column(n).path_in_schema for n in range(3) if group.column(n).is_stats_set}
        assert not {"x", "f"} & stated
    found = read_by_delta_rs(table)["x"].to_pylist()
    assert sum(map(math.isnan, found)) == 1


@pytest.mark.parametrize("mirror", ["parquet", "delta"], indirect=True)
def test_polars_sees_a_nan_in_the_files(mirror: DataFusionMirror) -> None:
    mirror.close()
    [file] = (Path(mirror.path) / "data").glob("*.parquet")
    assert pl.scan_parquet(file).filter(pl.col("x").is_nan()).collect().height == 1


def test_verify_notices_statistics_that_mislead_queries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_statistics(_form: Parquet, table: pa.Table, sink: pa.NativeFile) -> None:
        pq.write_table(table, sink)

    monkeypatch.setattr(Parquet, "write", with_statistics)
    mirror = DataFusionMirror("parquet", tmp_path / "m")
    progress = CopyProgress("t", Position(1, "p"), "shape", complete=True)
    with mirror.transaction() as transaction:
        transaction.begin_copy(TABLE, progress)
        transaction.append_copy(TABLE, rows(), progress)
        transaction.adopt_copy(TABLE, NOW)
    with (
        pytest.raises(MirrorDamagedError, match="column 'x'"),
        mirror.transaction(trial=True) as transaction,
    ):
        transaction.compare(TABLE, [rows()])
    mirror.close()


# Mirrors of before files had checksums, and Parquet files had statistics of all columns


OLD_COLUMNS = (Column("k", pa.int64()), Column("x", pa.float64()), Column("s", pa.string()))
PLAIN = Table(TableSchema("plain", OLD_COLUMNS, ("k",)))
KEPT = Table(TableSchema("kept", OLD_COLUMNS, ("k",)), Mode.TEMPORAL)
PRESENT = pa.table({"k": [1, 2, 3], "x": [math.nan, 5.0, 5.0], "s": ["a", "B", "c"]})


@pytest.fixture(params=["ipc", "parquet"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.copytree(OLD / request.param, tmp_path / "m")
    return tmp_path / "m"


def everything(mirror: DataFusionMirror | MirrorReader) -> list[str]:
    questions = (
        "select * from plain order by k",
        "select * from kept order by k, _rhei_valid_from",
        "select * from snapshot.kept order by k",
        "select max(x), sum(x), count(*) filter (where x > 6) from plain",
        "select max(x), sum(x), count(*) filter (where x > 6) from kept",
    )
    return [str(mirror.query(question).to_pylist()) for question in questions]


def test_a_mirror_of_the_format_before_is_read_rightly_and_maintenance_writes_it_anew(
    old: Path,
) -> None:
    with MirrorReader(old) as reader:
        before = everything(reader)
    assert "'max(plain.x)': nan" in before[3]
    assert before[0].count("nan") == 1
    assert before[1].count("'_rhei_valid_to': None") == 3
    mirror = DataFusionMirror(_storage(old), old)
    assert everything(mirror) == before
    with mirror.transaction(trial=True) as transaction:
        assert transaction.compare(PLAIN, [PRESENT.cast(PLAIN.schema.arrow)]).equal
    assert mirror.dead_letters()["key"].to_pylist() == ["[9]"]
    assert mirror.maintain().done
    assert everything(mirror) == before
    manifest = manifest_of(mirror)
    named = set(store_of(mirror).files_of(manifest))
    assert named - manifest.files.keys() <= {manifest.letters}
    newest = max((old / "manifests").iterdir())
    assert f'"format": {WITH_WHOLE_DIGESTS}'.encode() in newest.read_bytes()
    mirror.close()
    again = DataFusionMirror(_storage(old), old)
    assert everything(again) == before
    again.close()


def test_a_change_to_a_mirror_of_the_format_before_keeps_what_it_holds(old: Path) -> None:
    mirror = DataFusionMirror(_storage(old), old)
    with mirror.transaction() as transaction:
        change = PRESENT.slice(2).set_column(2, "s", pa.array(["C"])).cast(PLAIN.schema.arrow)
        transaction.merge(PLAIN, NetChanges(change, PLAIN.schema.arrow_key.empty_table()))
    found = mirror.query("select k, s from plain order by k").to_pylist()
    assert [row["s"] for row in found] == ["a", "B", "C"]
    assert len(manifest_of(mirror).files) > 0
    mirror.close()


def test_a_missing_file_of_the_format_before_is_named_and_healed(old: Path) -> None:
    mirror = DataFusionMirror(_storage(old), old)
    [stored] = [t for t in manifest_of(mirror).tables.values() if t.relation == "plain"]
    name = store_of(mirror).place(max(stored.segments, key=lambda s: s.rows).name)
    (old / name).unlink()
    with pytest.raises(MirrorDamagedError, match=name) as caught:
        mirror.query("select * from plain")
    assert caught.value.table == "plain"
    assert mirror.query("select k from kept").num_rows > 0
    [healed] = mirror.heal(PLAIN)
    assert healed.file == name
    with mirror.transaction() as transaction:
        transaction.merge(PLAIN, NetChanges(PRESENT, PLAIN.schema.arrow_key.empty_table()))
        assert transaction.compare(PLAIN, [PRESENT.cast(PLAIN.schema.arrow)]).equal
    mirror.close()


def _storage(path: Path) -> str:
    return "ipc" if list((path / "data").glob("*.arrow")) else "parquet"
