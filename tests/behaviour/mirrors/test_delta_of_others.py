"""A Delta table that somebody else made where one of a mirror's is to be, or has written to."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from rhei_pipeline.errors import MirrorUnreachableError
from rhei_pipeline.mirrors.datafusion.local_files import LocalFiles
from rhei_pipeline.testing.oracle import arrow_rows
from tests.support.delta_readers import read_by_delta_rs
from tests.support.fix_world import World
from tests.support.forked import run

MakeWorld = Callable[..., World]
BOTH_MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])


def published(world: World, table: str = "t") -> Path:
    return world.directory / "delta" / "delta" / "main" / table


def assert_read_alike(world: World, table: str = "t") -> None:
    """Two readers find what the mirror holds, and no row twice."""
    held = world.htap.query(f"select * from {table}", hint="olap")
    shown = str(published(world, table))
    for found in (read_by_delta_rs(DeltaTable(shown)), pl.read_delta(shown).to_arrow()):
        assert found.num_rows == held.num_rows
        assert arrow_rows(found.cast(held.schema)) == arrow_rows(held)


def test_a_delta_table_of_others_is_named_and_left_as_it_is(make_world: MakeWorld) -> None:
    world = make_world(storage="delta", delta={"interval_seconds": 0})
    world.run("create table t(id integer primary key)", "create table u(id integer primary key)")
    world.run("insert into t values (1), (2)", "insert into u values (1)")
    theirs = world.directory / "delta" / "delta" / "main" / "t"
    write_deltalake(theirs, pa.table({"name": ["theirs"]}))

    def look() -> None:
        assert read_by_delta_rs(DeltaTable(theirs)).to_pylist() == [{"name": "theirs"}]
        assert DeltaTable(theirs).version() == 0

    assert "somebody else made" in str(world.htap.sync_now().not_published)
    look()
    assert read_by_delta_rs(DeltaTable(theirs.parent / "u")).num_rows == 1
    assert "somebody else made" in str(world.htap.sync_status().not_published)
    world.assert_equal("t", "u")
    world.htap.repair("t")
    look()
    world.crash()
    world.tables = [{"name": "u"}]
    world.htap.sync_now()
    world.htap.drop_table("t")
    world.htap.sync_now()
    look()


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_table_that_others_compacted_is_published_again_while_the_source_is_quiet(
    make_world: MakeWorld, mode: str
) -> None:
    world = make_world(storage="delta", mode=mode, delta={"interval_seconds": 0})
    world.run("create table t(id integer primary key, v int)")
    for key in range(3):
        world.run(f"insert into t values ({key}, {key})")
        world.htap.sync_now()
    shown = str(world.directory / "delta" / "delta" / "main" / "t")
    before = set(DeltaTable(shown).file_uris())
    DeltaTable(shown).optimize.compact()
    assert not before & set(DeltaTable(shown).file_uris())
    world.crash()
    assert world.htap.sync_now().not_published is None
    assert set(DeltaTable(shown).file_uris()) == before
    held = world.htap.query("select * from t", hint="olap")
    assert arrow_rows(read_by_delta_rs(DeltaTable(shown))) == arrow_rows(held)


def keyed(rows: pa.Schema, key: int) -> pa.Table:
    """Return a row of a key with nothing else in it."""
    return pa.table({name: [key if name == "id" else None] for name in rows.names}, schema=rows)


def of_two_tables(make_world: MakeWorld, mode: str, *, vectors: bool) -> World:
    delta = {"interval_seconds": 0, "deletion_vectors": vectors}
    world = make_world(storage="delta", mode=mode, delta=delta)
    world.run("create table t(id integer primary key, v int)", "insert into t values (1, 1)")
    world.run("create table u(id integer primary key)", "insert into u values (1)")
    world.htap.sync_now()
    world.run("insert into t values (777, 2)", "update t set v = 5 where id = 1")
    world.htap.sync_now()
    return world


@BOTH_MODES
@pytest.mark.parametrize("vectors", [False, True])
def test_a_table_that_others_partitioned_has_no_partitions_after_the_next_sync(
    make_world: MakeWorld, mode: str, *, vectors: bool
) -> None:
    world = of_two_tables(make_world, mode, vectors=vectors)
    shown = published(world)
    columns = pa.schema(DeltaTable(shown).schema().to_arrow())
    theirs = keyed(columns, 9)
    write_deltalake(shown, theirs, mode="overwrite", schema_mode="overwrite", partition_by=["v"])
    assert DeltaTable(shown).metadata().partition_columns == ["v"]
    world.run("insert into t values (3, 3)")
    assert world.htap.sync_now().not_published is None
    assert DeltaTable(shown).metadata().partition_columns == []
    assert_read_alike(world)


@BOTH_MODES
@pytest.mark.parametrize("by", ["repair", "maintain"])
def test_what_others_appended_to_a_quiet_table_goes_while_the_mirror_is_open(
    make_world: MakeWorld, mode: str, by: str
) -> None:
    world = of_two_tables(make_world, mode, vectors=False)
    world.htap.maintain()
    shown = published(world)
    theirs = keyed(pa.schema(DeltaTable(shown).schema().to_arrow()), 9)
    write_deltalake(shown, theirs, mode="append")
    assert 9 in pl.read_delta(str(shown))["id"].to_list()
    if by == "repair":
        world.htap.repair("t")
    else:
        world.htap.maintain()
    assert_read_alike(world)


def holding(folder: Path, key: int) -> list[Path]:
    """Return the files below a folder that hold a key, whatever the log says of them."""
    return [file for file in folder.rglob("*.parquet") if _has(file, key)]


def _has(file: Path, key: int) -> bool:
    if "_delta_log" in file.parts:
        return False
    return key in pl.read_parquet(file, hive_partitioning=False)["id"].to_list()


@BOTH_MODES
@pytest.mark.parametrize("theirs", ["compacted", "partitioned"])
@pytest.mark.parametrize(
    ("way", "vectors"),
    [("forget", False), ("forget", True), ("drop", False), ("vectors switched off", True)],
)
def test_copies_of_rows_that_others_wrote_go_with_the_table(
    make_world: MakeWorld, mode: str, theirs: str, way: str, *, vectors: bool
) -> None:
    world = of_two_tables(make_world, mode, vectors=vectors)
    for key in (10, 11):
        world.run(f"insert into t values ({key}, 2)")
        world.htap.sync_now()
    shown = published(world)
    if theirs == "compacted":
        DeltaTable(shown).optimize.compact()
    else:
        rows = read_by_delta_rs(DeltaTable(shown))
        write_deltalake(shown, rows, mode="overwrite", schema_mode="overwrite", partition_by=["v"])
    copied = [file for file in holding(shown, 777) if "part-" in file.name]
    assert copied
    of_nobody = shown / "part-of-nobody.parquet"
    pl.DataFrame({"id": [0]}).write_parquet(of_nobody)
    world.run("delete from t where id = 777")
    world.htap.sync_now()
    assert {*holding(shown, 777)} >= {*copied}  # for who reads an earlier version
    if way == "forget":
        world.htap.forget("t", [{"id": 777}])
        assert not holding(world.directory / "delta", 777)
        assert_read_alike(world)
    elif way == "drop":
        world.crash()
        world.tables = [{"name": "u"}]
        world.htap.sync_now()
        world.htap.drop_table("t", keep_as="kept" if mode == "temporal" else None)
        assert not holding(shown, 777)
    else:
        world.crash()
        world.delta = {"interval_seconds": 0, "deletion_vectors": False}
        world.htap.sync_now()
        assert not {*copied} & {*holding(shown, 777)}
        assert_read_alike(world)
    assert of_nobody.exists()


_DROP_AND_DIE = """
import json, os, signal, sys
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.mirrors.datafusion import delta as delta_tables

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

with HTAP(Settings(**json.loads(sys.argv[1]))) as htap:
    htap.sync_now()
    delta_tables._delete = die
    htap.drop_table("t", keep_as=sys.argv[2] or None)
"""


@BOTH_MODES
def test_the_delta_table_of_a_dropped_table_goes_though_the_process_was_killed(
    make_world: MakeWorld, mode: str
) -> None:
    world = of_two_tables(make_world, mode, vectors=False)
    world.crash()
    world.tables = [{"name": "u"}]
    kept = "kept" if mode == "temporal" else ""
    died = run(_DROP_AND_DIE, world.settings.model_dump_json(), kept)
    assert died.returncode == -signal.SIGKILL
    assert DeltaTable.is_deltatable(str(published(world)))
    world.htap.sync_now()
    assert not DeltaTable.is_deltatable(str(published(world)))
    assert not list(published(world).glob("*.parquet"))
    assert_read_alike(world, "u")
    world.tables = None
    world.crash()
    world.htap.sync_now()
    assert_read_alike(world)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in files_of(folder)}


def files_of(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def of_parts(theirs: Path, *, more: int = 0) -> None:
    """Tell of three versions by a checkpoint in parts alone, as other programs write them."""
    for number in range(3):
        write_deltalake(theirs, pa.table({"name": [f"theirs {number}"]}), mode="append")
    DeltaTable(theirs).create_checkpoint()
    for number in range(more):
        write_deltalake(theirs, pa.table({"name": [f"more {number}"]}), mode="append")
    log = theirs / "_delta_log"
    for number in range(3):
        (log / f"{number:020}.json").unlink()
    part = f"{2:020}.checkpoint.0000000001.0000000001.parquet"
    (log / f"{2:020}.checkpoint.parquet").rename(log / part)
    (log / "_last_checkpoint").write_text('{"version":2,"size":6,"parts":1}')


def of_parts_and_more(theirs: Path) -> None:
    """Commit one more version behind such a checkpoint."""
    of_parts(theirs, more=1)


def not_to_be_read(theirs: Path) -> None:
    write_deltalake(theirs, pa.table({"name": ["theirs"]}))
    (theirs / "_delta_log" / f"{0:020}.json").write_text("of a later kind")


@BOTH_MODES
@pytest.mark.parametrize("make", [of_parts, of_parts_and_more, not_to_be_read])
def test_a_table_of_others_whose_log_is_not_understood_is_left_as_it_is(
    make_world: MakeWorld, mode: str, make: Callable[[Path], None]
) -> None:
    world = make_world(storage="delta", mode=mode, delta={"interval_seconds": 0})
    world.run("create table t(id integer primary key)", "create table u(id integer primary key)")
    world.run("insert into t values (1)", "insert into u values (1)")
    theirs = published(world)
    make(theirs)
    before = contents(theirs)
    for _ in range(2):
        assert "somebody else made" in str(world.htap.sync_now().not_published)
        world.htap.repair("t")
        world.htap.maintain()
    assert contents(theirs) == before
    assert_read_alike(world, "u")
    world.crash()
    world.tables = [{"name": "u"}]
    world.htap.sync_now()
    world.htap.drop_table("t", keep_as="kept" if mode == "temporal" else None)
    assert world.htap.sync_now().not_published is None
    assert contents(theirs) == before


@pytest.mark.parametrize("name", ["not json", "a checkpoint in parts alone"])
def test_a_table_of_ours_whose_log_was_damaged_is_written_again(
    make_world: MakeWorld, name: str
) -> None:
    world = of_two_tables(make_world, "destructive", vectors=False)
    shown = published(world)
    log = shown / "_delta_log"
    if name == "not json":
        max(log.glob("*.json")).write_text("damaged")
    else:
        of_their_parts = log / f"{9:020}.checkpoint.0000000001.0000000002.parquet"
        of_their_parts.write_text("damaged")
        for file in log.glob("*.json"):
            file.unlink()
    world.crash()
    world.run("insert into t values (5, 5)")
    assert "rhei repair t" in str(world.htap.sync_now().not_published)
    world.htap.repair("t")
    assert world.htap.sync_now().not_published is None
    assert_read_alike(world)


def test_files_outside_and_directories_that_a_log_names_stay(make_world: MakeWorld) -> None:
    world = of_two_tables(make_world, "destructive", vectors=False)
    shown = published(world)
    (shown / "kept").mkdir()
    (shown / "kept" / "of_nobody").write_text("theirs")
    ours = next(file.name for file in shown.glob("*.parquet"))
    of_u = next(published(world, "u").glob("*.parquet"))
    odd = ["kept", ".", "", "kept/", "../u/" + of_u.name, "%2e%2e/u/" + of_u.name, f"{ours}/below"]
    odd += [str(of_u), of_u.as_uri()]
    newest = max(shown.glob("_delta_log/*.json"))
    removed = [{"path": name, "deletionTimestamp": 1, "dataChange": True} for name in odd]
    lines = "".join(json.dumps({"remove": each}) + "\n" for each in removed)
    newest.write_text(newest.read_text() + lines)
    world.crash()
    world.run("insert into t values (3, 3)")
    assert world.htap.sync_now().not_published is None  # which deletes what was left long ago
    assert_read_alike(world)
    world.crash()
    world.tables = [{"name": "u"}]
    world.htap.sync_now()
    world.htap.drop_table("t")
    assert world.htap.sync_now().not_published is None
    assert [file.name for file in files_of(shown)] == ["of_nobody"]
    assert_read_alike(world, "u")


def test_a_store_that_does_not_answer_does_not_make_a_table_ours(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(storage="delta", delta={"interval_seconds": 0})
    world.run("create table t(id integer primary key)", "create table u(id integer primary key)")
    theirs = published(world)
    write_deltalake(theirs, pa.table({"name": ["theirs"]}))
    before = contents(theirs)
    world.htap.sync_now()
    world.crash()
    world.tables = [{"name": "u"}]
    world.htap.sync_now()
    read, failed = LocalFiles.get, list[str]()

    def get(files: LocalFiles, name: str) -> pa.Buffer:
        if "/t/_delta_log/" in name and not failed:
            failed.append(name)
            raise MirrorUnreachableError("the store did not answer", hint="try again")
        return read(files, name)

    monkeypatch.setattr(LocalFiles, "get", get)
    world.htap.drop_table("t")
    assert failed
    assert contents(theirs) == before
    assert world.htap.sync_now().not_published is None
    assert contents(theirs) == before


def test_files_of_partitions_go_when_their_time_is_up(make_world: MakeWorld) -> None:
    """A log has their names as parts of addresses: with `%2520` for a space."""
    world = make_world(storage="delta", delta={"interval_seconds": 0})
    world.run("create table t(id integer primary key, v text)")
    world.run("insert into t values (1, 'a b'), (2, '10:30')")
    world.htap.sync_now()
    shown = published(world)
    rows = read_by_delta_rs(DeltaTable(shown))
    write_deltalake(shown, rows, mode="overwrite", schema_mode="overwrite", partition_by=["v"])
    assert len(list(shown.glob("v=*/*.parquet"))) == 2
    world.crash()
    world.run("insert into t values (3, 'c')")
    world.htap.sync_now()
    world.crash()
    for entry in shown.glob("_delta_log/*.json"):
        lines = [json.loads(line) for line in entry.read_text().splitlines()]
        for removed in (line["remove"] for line in lines if "remove" in line):
            removed["deletionTimestamp"] = 1
        entry.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    world.run("insert into t values (4, 'd')")
    assert world.htap.sync_now().not_published is None
    assert not list(shown.glob("v=*/*.parquet"))
    assert_read_alike(world)
