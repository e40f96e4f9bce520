"""Delta Lake tables made from a mirror: read by another engine's reader, and never half a state."""

import json
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, QueryBuilder
from deltalake.transaction import CommitProperties, Transaction

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import MirrorDamagedError
from rhei_pipeline.mirrors.datafusion.delta import DeltaTables
from rhei_pipeline.mirrors.datafusion.delta_states import newest_state
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.mirrors.datafusion.storages import open_files
from rhei_pipeline.model.changes import NetChanges, Position
from rhei_pipeline.model.progress import CopyProgress
from rhei_pipeline.model.schema import Column, Mode, Table, TableSchema
from rhei_pipeline.testing.oracle import Row, arrow_rows
from tests.support.delta_readers import read_by_delta_rs
from tests.support.fix_world import World
from tests.support.forked import run
from tests.support.model import source_rows
from tests.support.parts import engine_of, manifest_of

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
BOTH_MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])
NOW = datetime(2026, 1, 1, tzinfo=UTC)


#: What a process that was killed may leave: a file of the form that the mirror gives.
LEFT_BEHIND = f"{'0' * 32}-{'0' * 16}.parquet"


def settings(world: World, interval: float = 0, *, vectors: bool = False) -> Settings:
    mirror = {
        "kind": "datafusion",
        "storage": "delta",
        "path": world.directory / "delta",
        "delta": {"interval_seconds": interval, "deletion_vectors": vectors},
    }
    return Settings(**{**world.settings.model_dump(), "mirror": mirror})


def delta_folder(world: World, table: str) -> str:
    return str(world.directory / "delta" / "delta" / "main" / table)


def delta(world: World, table: str) -> DeltaTable:
    return DeltaTable(delta_folder(world, table))


def present(world: World, table: str) -> frozenset[Row]:
    """Return the rows that a Delta reader finds to be valid now, with the source's columns."""
    found = read_by_delta_rs(delta(world, table))
    if "_rhei_valid_to" in found.column_names:
        found = found.filter(found["_rhei_valid_to"].is_null())
    return arrow_rows(found.select(world.columns(table)))


def filled(world: World) -> World:
    world.run("create table t(id integer primary key, v int)", "insert into t values (1, 1)")
    world.run("create table u(id integer primary key, v text)", "insert into u values (1, 'a')")
    return world


def versions(world: World, table: str) -> list[int]:
    """Return the versions of the mirror that were published, in their order."""
    found = delta(world, table).history()
    return [entry["rhei.version"] for entry in reversed(found) if "rhei.version" in entry]


@pytest.mark.long
@BOTH_MODES
def test_a_delta_reader_finds_what_the_source_holds(make_world: MakeWorld, mode: str) -> None:
    world, drawn = filled(make_world(mode=mode)), random.Random(3)
    for turn in range(16):
        for _ in range(20):
            world.run(
                f"replace into t(id, v) values ({drawn.randrange(90)}, {turn})",
                f"delete from t where id = {drawn.randrange(90)}",
            )
        if turn == 5:
            world.run("alter table t add column w text", "insert into t values (100, 1, 'x')")
        if turn == 10:
            world.run("delete from u")
        with HTAP(settings(world)) as htap:
            htap.sync_now()
            if turn % 5 == 4:
                htap.maintain()
            for table in ("t", "u"):
                assert present(world, table) == source_rows(world.app, table)
                everything = htap.query(f"select * from {table}", hint="olap")
                assert arrow_rows(read_by_delta_rs(delta(world, table))) == arrow_rows(everything)
            assert htap.verify().equal
    queried = QueryBuilder().register("t", delta(world, "t")).execute("select * from t")
    assert arrow_rows(pa.table(queried)) == arrow_rows(read_by_delta_rs(delta(world, "t")))
    told = delta(world, "t").history(1)[0]
    assert versions(world, "t") == sorted(set(versions(world, "t")))
    assert told["rhei.watermark"] > 0


def test_a_table_of_another_name_in_the_mirror_tells_its_watermark(world: World) -> None:
    world.tables = [{"name": "t", "mirror_name": "shown"}]
    with HTAP(settings(filled(world))) as htap:
        mark = htap.sync_now().tables["t"].watermark
        assert delta(world, "shown").history(1)[0]["rhei.watermark"] == mark


def test_within_the_interval_a_table_stays_and_closing_brings_it_up(world: World) -> None:
    with HTAP(settings(filled(world), 3600)) as htap:
        htap.sync_now()
        before = present(world, "t")
        world.run("insert into t values (2, 10)")
        htap.sync_now()
        assert present(world, "t") == before
        htap.maintain()
        assert present(world, "t") == source_rows(world.app, "t")
        world.run("create table w(id integer primary key)", "insert into w values (1)")
        htap.register_table("w")
        htap.sync_now()
        assert present(world, "w") == source_rows(world.app, "w"), "a new table waits for nothing"
        htap.drop_table("w")
        assert not DeltaTable.is_deltatable(delta_folder(world, "w")), "nor does one that is gone"
        world.run("insert into t values (3, 10)")
        htap.sync_now()
    assert present(world, "t") == source_rows(world.app, "t")


def test_what_has_not_changed_is_not_published_again(world: World) -> None:
    filled(world)
    folder = world.directory / "delta" / "delta" / "main" / "u"
    theirs = folder / "theirs.parquet"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("a file of somebody else")
    for _ in range(3):
        with HTAP(settings(world)) as htap:
            world.run("update u set v = v || 'x'")
            htap.sync_now()
    assert delta(world, "t").version() == 0
    assert len(versions(world, "u")) == 3
    # Whoever reads an earlier version goes on: its files stay for a while.
    earlier = [read_by_delta_rs(DeltaTable(folder, version=version)) for version in range(3)]
    assert [found["v"].to_pylist() for found in earlier] == [["ax"], ["axx"], ["axxx"]]
    assert theirs.exists()


def test_a_reader_reads_few_commits_however_many_there_were(world: World) -> None:
    filled(world)
    with HTAP(settings(world)) as htap:
        for key in range(2, 25):
            world.run(f"insert into t values ({key}, 1)")
            htap.sync_now()
    log = world.directory / "delta" / "delta" / "main" / "t" / "_delta_log"
    told = json.loads((log / "_last_checkpoint").read_text())
    assert delta(world, "t").version() - told["version"] < 10
    assert present(world, "t") == source_rows(world.app, "t")


def test_tables_that_were_deleted_are_published_anew(world: World) -> None:
    with HTAP(settings(filled(world))) as htap:
        htap.sync_now()
    subprocess.run(["rm", "-r", str(world.directory / "delta" / "delta")], check=True)  # noqa: S607
    with HTAP(settings(world)):
        pass
    assert present(world, "t") == source_rows(world.app, "t")


def test_a_log_that_lacks_an_entry_is_named_until_its_table_is_written_again(world: World) -> None:
    with HTAP(settings(filled(world))) as htap:
        for value in range(3):
            world.run(f"update t set v = {value} where id = 1")
            htap.sync_now()
    log = world.directory / "delta" / "delta" / "main" / "t" / "_delta_log"
    (log / f"{1:020}.json").unlink()
    world.run("update t set v = 10 where id = 1")
    with HTAP(settings(world)) as htap:
        assert "'rhei repair t'" in str(htap.sync_now().not_published)
        htap.repair("t")
        assert htap.sync_now().not_published is None
        assert present(world, "t") == source_rows(world.app, "t")


def test_what_a_writer_was_creating_when_it_died_is_deleted(world: World) -> None:
    with HTAP(settings(filled(world))) as htap:
        htap.sync_now()
    root = world.directory / "delta"
    left = [
        root / folder / "00000000000000000009.json.of_it.partial"
        for folder in ("manifests", "delta/main/t/_delta_log")
    ]
    for file in left:
        file.write_text("half an ent")
    with HTAP(settings(world)):
        assert not [file for file in left if file.exists()]
    assert present(world, "t") == source_rows(world.app, "t")


_SYNC_AND_DIE = """
import json, os, signal, sys
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.mirrors.datafusion import delta as delta_tables

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

exec(sys.argv[2])
with HTAP(Settings(**json.loads(sys.argv[1]))) as htap:
    htap.sync_now()
"""
_INSTANTS = {
    "after the mirror's commit": "delta_tables.DeltaTables.catch_up = die",
    "before the first file": "delta_tables._named_files = die",
    "after the vectors": "delta_tables.ShownFile.put = die",
    "after the files": "delta_tables.DeltaTarget.commit = die",
    "after a table's commit": "delta_tables.DeltaTarget.vacuum = die",
}


@BOTH_MODES
@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("instant", _INSTANTS.values(), ids=_INSTANTS.keys())
def test_a_process_killed_while_it_publishes(
    make_world: MakeWorld, mode: str, instant: str, *, vectors: bool
) -> None:
    world = filled(make_world(mode=mode))
    declared = settings(world, vectors=vectors)
    with HTAP(declared) as htap:
        htap.sync_now()
    before = {table: source_rows(world.app, table) for table in ("t", "u")}
    for turn in range(2):
        world.run(f"insert into t values ({turn + 2}, 0)", f"update t set v = {turn} where id = 1")
        world.run("update u set v = v || 'x'")
        died = run(_SYNC_AND_DIE, declared.model_dump_json(), instant)
        assert died.returncode == -signal.SIGKILL
        now = {table: source_rows(world.app, table) for table in ("t", "u")}
        for table in ("t", "u"):
            assert present(world, table) in (before[table], now[table])
        if instant != _INSTANTS["after a table's commit"]:
            assert [present(world, table) for table in ("t", "u")] == list(before.values())
    with HTAP(declared) as htap:
        htap.sync_now()
        assert htap.verify().equal
    for table in ("t", "u"):
        assert present(world, table) == source_rows(world.app, table)
        assert versions(world, table) == sorted(set(versions(world, table)))


def test_a_table_that_is_ahead_of_the_mirror_is_named(world: World) -> None:
    with HTAP(settings(filled(world))) as htap:
        htap.sync_now()
        mirror = engine_of(htap).mirror
        assert isinstance(mirror, DataFusionMirror)
        then = manifest_of(mirror).version + 2  # which the mirror comes to by another way
        ahead = Transaction(f"rhei-{mirror.mirror_id}", then)
        table = delta(world, "t")
        told = CommitProperties(app_transactions=[ahead])
        table.create_write_transaction([], "append", table.schema(), commit_properties=told)
        world.run("insert into t values (2, 2)")
        refused = str(htap.sync_now().not_published)
        assert re.search(rf"shows version {then}.*delete 'delta/main/t'", refused)
        assert htap.verify().equal
        subprocess.run(["rm", "-r", table.table_uri.removeprefix("file://")], check=True)  # noqa: S607
    assert present(world, "t") == source_rows(world.app, "t")


def adopt(mirror: DataFusionMirror, table: Table, rows: pa.Table) -> None:
    progress = CopyProgress(table.name, Position(1, "p"), "shape", complete=True)
    with mirror.transaction() as transaction:
        transaction.begin_copy(table, progress)
        transaction.append_copy(table, rows, progress)
        transaction.adopt_copy(table, NOW)


def declared(name: str, mode: Mode = Mode.DESTRUCTIVE, **kinds: pa.DataType) -> Table:
    columns = tuple(Column(column, kind) for column, kind in kinds.items())
    return Table(TableSchema(name, columns, (columns[0].name,)), mode)


def reader(mirror: DataFusionMirror, folder: str) -> DeltaTable:
    return DeltaTable(Path(mirror.path) / "delta" / folder)


ONE = pa.table({"k": pa.array([1])})
VALUES: dict[str, tuple[pa.DataType, list[Any]]] = {
    "k": (pa.int64(), [-(2**63), 2**63 - 1]),
    "small": (pa.int16(), [-(2**15), None]),
    "middle": (pa.int32(), [2**31 - 1, None]),
    "single": (pa.float32(), [0.1, None]),
    "real": (pa.float64(), [-0.0, float("inf")]),
    "text": (pa.string(), ["a\0😀", ""]),
    "bytes": (pa.binary(), [b"\xff\0", b""]),
    "yes": (pa.bool_(), [True, None]),
    "day": (pa.date32(), [date(1, 1, 1), date(9999, 12, 31)]),
    "local": (pa.timestamp("us"), [datetime(2026, 1, 1, 1, 2, 3, 456789), None]),  # noqa: DTZ001
    "instant": (pa.timestamp("us", "UTC"), [datetime(1900, 1, 1, tzinfo=UTC), None]),
    "money": (pa.decimal128(38, 10), [Decimal("-1.0000000001"), None]),
}


@pytest.mark.parametrize("mode", list(Mode))
def test_every_type_is_published_bit_for_bit(tmp_path: Path, mode: Mode) -> None:
    mirror = DataFusionMirror("delta", tmp_path / "m", delta=DeltaTables(0))
    table = declared("t", mode, **{name: kind for name, (kind, _) in VALUES.items()})
    arrays = [pa.array(values, kind) for kind, values in VALUES.values()]
    rows = pa.table(arrays, schema=table.schema.arrow)
    adopt(mirror, table, rows)
    found = read_by_delta_rs(reader(mirror, "main/t"))
    assert found.schema.types == table.mirror_schema.types
    assert arrow_rows(found.select(list(VALUES))) == arrow_rows(rows)
    mirror.close()


def test_a_type_that_readers_must_know_is_added_to_a_table_that_stands(tmp_path: Path) -> None:
    mirror, names = DataFusionMirror("delta", tmp_path / "m", delta=DeltaTables(0)), set()
    for kinds in (
        {},
        {"local": pa.timestamp("us")},
        {"local": pa.timestamp("us"), "v": pa.int16()},
    ):
        table = declared("t", Mode.TEMPORAL, k=pa.int64(), **kinds)
        adopt(mirror, table, table.schema.arrow.empty_table() if kinds else ONE)
        shown = mirror.query("select * from t")
        found = read_by_delta_rs(reader(mirror, "main/t"))
        assert set(found.column_names) == {*table.mirror_schema.names}
        assert found.select(shown.column_names).equals(shown)
        names.add(reader(mirror, "main/t").metadata().id)
    mirror.close()
    assert len(names) == 1, "whoever follows the table takes it for another one"


def test_a_table_goes_on_to_ask_readers_for_what_earlier_versions_need(tmp_path: Path) -> None:
    mirror = DataFusionMirror("delta", tmp_path / "m", delta=DeltaTables(0, deletion_vectors=True))
    for kinds in ({"local": pa.timestamp("us")}, {"v": pa.int16()}):
        table = declared("t", k=pa.int64(), **kinds)
        adopt(mirror, table, table.schema.arrow.empty_table())
        asked = reader(mirror, "main/t").protocol().reader_features or []
        assert set(asked) == {"deletionVectors", "timestampNtz"}
    assert read_by_delta_rs(reader(mirror, "main/t")).column_names == ["k", "v"]
    mirror.close()


def test_a_time_of_day_is_published_as_text(tmp_path: Path) -> None:
    mirror = DataFusionMirror("delta", tmp_path / "m", delta=DeltaTables(0))
    table = declared("t", k=pa.int64(), at=pa.time64("us"))
    given = [time(1, 2, 3, 456789), None]
    adopt(mirror, table, pa.table([[1, 2], given], schema=table.schema.arrow))
    found = read_by_delta_rs(reader(mirror, "main/t")).sort_by("k")
    assert found["at"].to_pylist() == ["01:02:03.456789", None]
    mirror.close()


def test_names_become_folders_that_nothing_takes_for_anything_else(tmp_path: Path) -> None:
    mirror = DataFusionMirror("delta", tmp_path / "m", delta=DeltaTables(0))
    for name in ("a/b", "..", "ö %2e", "A", "a~2f~b", "_delta_log"):
        table = declared(name, k=pa.int64(), **{"a b,;": pa.int64()})
        adopt(mirror, table, pa.table([[1], [2]], schema=table.schema.arrow))
    folders = {folder.name for folder in (tmp_path / "m" / "delta" / "main").iterdir()}
    assert folders == {
        "a~2f~b",
        "~2e~~2e~",
        "~f6~~20~~25~2e",
        "A",
        "a~7e~2f~7e~b",
        "~5f~delta~5f~log",
    }
    for folder in folders:
        assert read_by_delta_rs(reader(mirror, f"main/{folder}")).to_pylist() == [
            {"k": 1, "a b,;": 2}
        ]
    mirror.close()


def test_columns_that_differ_by_case_only_are_refused_by_name(tmp_path: Path) -> None:
    mirror = DataFusionMirror("delta", tmp_path / "m", delta=DeltaTables(0))
    table = declared("t", k=pa.int64(), K=pa.int64())
    rows = pa.table([[1], [2]], schema=table.schema.arrow)
    adopt(mirror, table, rows)
    assert "column 'K' differs from another one by case only" in str(mirror.not_published)
    assert mirror.count(table) == 1
    mirror.close()
    again = DataFusionMirror("delta", tmp_path / "m", lock_timeout_seconds=0)
    assert again.count(table) == 1
    again.close()
    assert "by case only" in str(again.not_published)


def test_files_that_no_version_names_any_more_are_deleted(tmp_path: Path) -> None:
    table = declared("t", k=pa.int64(), v=pa.int64())
    nothing = table.schema.arrow_key.empty_table()
    for opening in range(2):
        mirror = DataFusionMirror("delta", tmp_path / "m", delta=DeltaTables(0, retention_hours=0))
        if opening == 0:
            adopt(mirror, table, pa.table([[1, 2], [1, 2]], schema=table.schema.arrow))
        (tmp_path / "m" / "delta" / "main" / "t" / LEFT_BEHIND).write_bytes(b"x")
        for turn in range(5):
            values = {"k": [1, turn + 3], "v": [turn + opening * 10, 0]}
            with mirror.transaction() as transaction:
                changed = pa.table(values).cast(table.schema.arrow)
                transaction.merge(table, NetChanges(changed, nothing))
        there = {file.name for file in (tmp_path / "m" / "delta" / "main" / "t").glob("*.parquet")}
        named = {Path(uri).name for uri in reader(mirror, "main/t").file_uris()}
        assert there - {LEFT_BEHIND} == named
        assert opening == 0 or there == named
        mirror.close()


def test_versions_that_ended_in_place_are_published_with_their_ends(make_world: MakeWorld) -> None:
    world = make_world(mode="temporal", storage="delta")
    world.run("create table t(k integer primary key, v int)")
    world.app.executemany("insert into t values (?, 0)", ((key,) for key in range(50)))
    with HTAP(settings(world)) as htap:
        htap.sync_now()
        world.run("alter table t add column w text", "insert into t(k, v) values (60, 0)")
        htap.sync_now()
        world.run("update t set v = 1 where k < 3", "delete from t where k = 9")
        htap.sync_now()
    found = read_by_delta_rs(delta(world, "t")).to_pylist()
    ended = {row["k"]: row["_rhei_operation"] for row in found if row["_rhei_valid_to"]}
    assert ended == {0: "I", 1: "I", 2: "I", 9: "D"}
    assert len(found) == 54


@pytest.mark.parametrize("kept", [0, 0.5, 0.9])
def test_a_published_state_whose_file_is_damaged_is_named_and_written_again(
    kept: float, world: World
) -> None:
    filled(world)
    with HTAP(settings(world)) as htap:
        htap.sync_now()
    file = max((world.directory / "delta" / "published").iterdir())
    content = file.read_text()
    damaged = content[: int(len(content) * kept)]
    with closing(open_files("parquet", world.directory / "delta")) as files:
        file.write_text(damaged)
        with pytest.raises(MirrorDamagedError, match=re.escape(file.name)) as refused:
            newest_state(files)
        assert "rhei maintain" in str(refused.value)
        with HTAP(settings(world)) as htap:
            htap.maintain()
        found = newest_state(files)
        assert found is not None
        world.run("update t set v = 9 where id = 1")
        max(file.parent.iterdir()).write_text(damaged)
        with HTAP(settings(world)) as htap:
            htap.sync_now()
        later = newest_state(files)
    assert later is not None
    assert later.version > found.version
    assert delta(world, "t").version() in {table.version for table in later.tables}


def test_a_published_state_names_versions_that_are_there_though_tables_were_deleted(
    world: World,
) -> None:
    filled(world)
    for value in range(3):
        world.run(f"update t set v = {value} where id = 1")
        with HTAP(settings(world)) as htap:
            htap.sync_now()
    shutil.rmtree(world.directory / "delta" / "delta")
    with HTAP(settings(world)) as htap:
        htap.sync_now()  # nothing has changed
    files = open_files("parquet", world.directory / "delta")
    found = newest_state(files)
    files.close()
    assert found is not None
    there = {table.name: delta(world, table.name).version() for table in found.tables}
    assert {table.name: table.version for table in found.tables} == there
