"""What stands in a file's way is mended as the error says, and the next sync goes on."""

import errno
import json
import os
import shutil
import sqlite3
import threading
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from rhei_pipeline import HTAP, unseen_events
from rhei_pipeline.buffer import confirmation
from rhei_pipeline.buffer.log import ChangeLog
from rhei_pipeline.errors import (
    BufferBusyError,
    BufferDamagedError,
    BufferFullError,
    CaptureError,
    MirrorBusyError,
    MirrorDamagedError,
    MirrorError,
    PositionLostError,
    SourceError,
    TransientError,
)
from rhei_pipeline.holder.turn import turn_file
from rhei_pipeline.mirrors.datafusion import query_proof
from rhei_pipeline.mirrors.datafusion.manifest import FORMAT as FILES_FORMAT
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.mirrors.datafusion.reader import MirrorReader
from rhei_pipeline.mirrors.duckdb.housekeeping import FORMAT as DUCKDB_FORMAT
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.progress import Watermark
from rhei_pipeline.wiring.engine import bridge
from tests.support.damage import damage
from tests.support.delta_readers import read_by_delta_rs
from tests.support.fix_users import ordinary_user
from tests.support.fix_world import World
from tests.support.forked import Forked, output_of
from tests.support.holding import holding
from tests.support.other_process import copy
from tests.support.parts import engine_of, manifest_of, store_of
from tests.support.refusals import filled_in, refused, rhei

MakeWorld = Callable[..., World]


def rows_of(world: World) -> World:
    """Give a world two tables, mirrored."""
    world.run(
        "create table t(id integer primary key, v text)",
        "create table u(id integer primary key, v text)",
        "insert into t values (1, 'a'), (2, 'b')",
        "insert into u values (1, 'a')",
    )
    world.htap.sync_now()
    return world


def goes_on(world: World) -> None:
    """The next sync brings the mirror up to what was written meanwhile."""
    world.run("insert into t values (50, 'later')", "update u set v = 'later'")
    report = world.htap.sync_now()
    assert not report.errors
    world.assert_equal("t", "u")


def repaired(world: World, table: str) -> None:
    """Repair a table by its command."""
    world.crash()
    rhei(world.settings, world.directory, "repair", table)


# Whose the files are


def test_access_to_the_mirrors_folder_is_given(shared_place: Path) -> None:
    world = World(shared_place / "world", mirror_path=str(shared_place / "kept" / "m.duckdb"))
    folder = shared_place / "kept"
    folder.mkdir()
    with ExitStack() as stack:
        stack.callback(world.close)
        stack.enter_context(ordinary_user(world.directory, folder))
        folder.chmod(0o500)
        way_out = "give this user write access to its folder, or correct mirror.path"
        with refused(way_out, MirrorError):
            rows_of(world)
        folder.chmod(0o700)
        goes_on(world)
        world.close()


@pytest.mark.parametrize("given", ["access", "deletion"])
@pytest.mark.parametrize(
    ("storage", "file", "way_out"),
    [
        (
            None,
            "mirror.duckdb.lock",
            "give this user write access to {}; or end what has the mirror open, and delete that"
            " file",
        ),
        ("ipc", "ipc/lock", "give this user access to all that is in it, or correct mirror.path"),
    ],
)
def test_a_lock_that_another_user_has_left_is_named_and_given(
    shared_place: Path, storage: str | None, file: str, way_out: str, given: str
) -> None:
    world = rows_of(World(shared_place / "world", storage=storage))
    world.crash()
    lock = world.directory / file
    with ExitStack() as stack:
        stack.callback(world.close)
        stack.enter_context(ordinary_user(world.directory))
        lock.chmod(0o400)
        with refused(way_out, MirrorError) as met:
            world.htap.sync_now()
        shown = lock.name if storage else str(lock)
        assert f"its file {shown!r}: Permission denied" in met.error.message
        if given == "access":
            lock.chmod(0o600)
        else:
            lock.unlink()
        goes_on(world)
        world.close()


@pytest.mark.parametrize("storage", [None, "ipc"])
@pytest.mark.parametrize("syncing", [False, True])
def test_the_turn_of_another_user_is_named_and_given_while_that_holds_the_mirror(
    shared_place: Path, storage: str | None, *, syncing: bool
) -> None:
    world = rows_of(World(shared_place / "world", storage=storage))
    world.crash()
    turn = turn_file(world.directory / ("ipc/lock" if storage else "mirror.duckdb.lock"))
    way_out = "give this user write access to it and to its folder"
    with ExitStack() as stack:
        stack.enter_context(holding(world.settings, syncing=syncing))
        stack.enter_context(ordinary_user(world.directory))
        stack.callback(world.close)
        turn.chmod(0o400)
        asked: list[Callable[[str], object]] = [world.htap.initial_sync, world.htap.repair]
        for ask in asked:
            with refused(way_out, MirrorError) as met:
                ask("t")
            assert f"its file {str(turn)!r}: Permission denied" in met.error.message
        turn.chmod(0o600)
        world.crash()
        # Who holds the mirror may take its time to step aside.
        patient = world.settings.with_fields({"mirror": {"lock_timeout_seconds": 60}})
        with HTAP(patient) as htap:
            htap.initial_sync("t")
            htap.repair("t")
        goes_on(world)
        world.close()


def test_access_to_the_folder_of_a_buffer_is_given_while_it_is_open(shared_place: Path) -> None:
    world = rows_of(World(shared_place / "world", buffered=True))
    folder = world.buffer.parent
    with ExitStack() as stack:
        stack.callback(world.close)
        stack.enter_context(ordinary_user(world.directory))
        world.run("insert into t values (40, 'unseen')")
        folder.chmod(0o500)
        way_out = "give this user access to it and to its folder, or correct capture.buffer.path"
        for _ in range(2):
            with refused(way_out, CaptureError):
                world.htap.sync_now()
        folder.chmod(0o700)
        goes_on(world)


def test_what_a_poll_tells_others_is_written_once_its_folder_may_be_written(
    shared_place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tables = [{"name": n, "polling": {"updated_at": "id"}} for n in ("t", "u")]
    world = World(shared_place / "world", method="polling", tables=tables)
    rows_of(world)
    with ExitStack() as stack:
        stack.callback(world.close)
        stack.enter_context(ordinary_user(world.directory))
        (told,) = world.directory.glob("*.polled.json")
        before = told.read_text("utf-8")
        world.directory.chmod(0o500)
        for key in (40, 41):
            world.run(f"insert into t values ({key}, 'later')")
            assert not world.htap.sync_now().errors
        world.assert_equal("t", "u")
        assert told.read_text("utf-8") == before
        assert caplog.text.count("every sync tries again: give this user write access there") == 1
        world.directory.chmod(0o700)
        world.htap.sync_now()
        assert told.read_text("utf-8") != before


@pytest.mark.parametrize(
    ("failure", "way_out", "error"),
    [
        (errno.ENOSPC, "free space, then try again", BufferFullError),
        (errno.EIO, "check the disk and its mounts", TransientError),
    ],
)
def test_a_disk_that_does_not_take_what_a_buffer_confirms_is_mended(
    make_world: MakeWorld,
    monkeypatch: pytest.MonkeyPatch,
    failure: int,
    way_out: str,
    error: type[TransientError],
) -> None:
    def fails(_path: Path) -> None:
        raise OSError(failure, os.strerror(failure))

    world = rows_of(make_world(buffered=True))
    with monkeypatch.context() as there:
        there.setattr(confirmation, "make_durable", fails)
        world.run("insert into t values (40, 'unseen')")
        with refused(way_out, error):
            world.htap.sync_now()
    goes_on(world)


@pytest.mark.parametrize("method", ["trigger", "polling"])
def test_access_to_the_source_is_given(shared_place: Path, method: str) -> None:
    tables = [{"name": n, "polling": {"updated_at": "id"}} for n in ("t", "u")]
    world = World(
        shared_place / "world",
        method=method,
        tables=tables,
        mirror_path=str(shared_place / "kept" / "m.duckdb"),
    )
    world.run(
        "create table t(id integer primary key, v text)",
        "create table u(id integer primary key, v text)",
        "insert into t values (1, 'a'), (2, 'b')",
    )
    (shared_place / "kept").mkdir()
    with ExitStack() as stack:
        stack.callback(world.close)
        stack.enter_context(ordinary_user(world.directory, shared_place / "kept"))
        world.app.close()  # and with it go the WAL's files
        if method == "trigger":
            world.path.chmod(0o400)
            world.directory.chmod(0o500)
            way_out = (
                "capture installs triggers: give this user write access to the file and folder"
            )
        else:
            world.path.chmod(0o000)
            way_out = (
                "give this user read access; a database in WAL mode also needs its -shm and -wal"
                " files, which exist only while it is open, or write access to their folder"
            )
        with refused(way_out, SourceError):
            HTAP(world.settings).sync_now()
        world.path.chmod(0o600)
        world.directory.chmod(0o700)
        world.app = sqlite3.connect(world.path, isolation_level=None)
        goes_on(world) if method == "trigger" else world.htap.sync_now()
        world.assert_equal("t", "u")
        world.close()


def test_a_polled_wal_database_is_read_where_its_folder_may_not_be_written(
    shared_place: Path,
) -> None:
    """The second half of that way out: the application has it open, or the folder is given."""
    world = World(
        shared_place / "world",
        method="polling",
        tables=[{"name": "t", "polling": {"updated_at": "id"}}],
        mirror_path=str(shared_place / "kept" / "m.duckdb"),
    )
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    (shared_place / "kept").mkdir()
    with ExitStack() as stack:
        stack.callback(world.close)
        stack.enter_context(ordinary_user(world.directory, shared_place / "kept"))
        world.app.close()
        world.directory.chmod(0o500)
        with refused("or write access to their folder", SourceError):
            HTAP(world.settings).sync_now()
        world.directory.chmod(0o700)
        world.app = sqlite3.connect(world.path, isolation_level=None)
        world.app.execute("select count(*) from t").fetchall()
        world.directory.chmod(0o500)
        copied = World.settings.fget(world).model_copy(  # type: ignore[attr-defined]
            update={
                "registry": world.settings.registry.model_copy(
                    update={"path": shared_place / "kept" / "registry.json"}
                )
            }
        )
        with HTAP(copied) as htap:
            assert htap.sync_now().inserted == 1
        world.directory.chmod(0o700)
        world.close()


@pytest.mark.parametrize("method", ["trigger", "polling"])
def test_a_source_that_goes_while_it_is_open_is_put_back(
    make_world: MakeWorld, method: str
) -> None:
    world = make_world(
        method=method,
        tables=[{"name": n, "polling": {"updated_at": "id"}} for n in ("t", "u")],
    )
    rows_of(world)
    world.app.close()
    away = world.path.rename(world.directory / "away.db")
    way_out = "create it with your application first, or correct source.path"
    for work in (world.htap.sync_now, world.htap.verify):
        with refused(way_out, SourceError):
            work()
    away.rename(world.path)
    world.app = sqlite3.connect(world.path, isolation_level=None)
    world.run("insert into t values (9, 'put back')")
    world.htap.sync_now()
    world.assert_equal("t", "u")


# Who holds them


_HOLD = """
import sys
from pathlib import Path
from rhei_pipeline.buffer.log import ChangeLog
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
duckdb, files, buffer = map(Path, sys.argv[1:])
opened = DuckDBMirror(duckdb), DataFusionMirror("parquet", files), ChangeLog(buffer)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.long
def test_the_other_process_is_stopped(make_world: MakeWorld) -> None:
    worlds = [rows_of(make_world(**o)) for o in ({}, {"storage": "parquet"}, {"buffered": True})]
    places = [worlds[0].settings.mirror.path, worlds[1].settings.mirror.path, worlds[2].buffer]
    for world in worlds:
        world.crash()
        world.run("update t set v = 'c'")
    with Forked(_HOLD, *map(str, places)) as holder:
        assert holder.stdout.readline() == "held\n"
        for world in worlds[:2]:
            way_out = "only one process can write a mirror: stop the other one first"
            with refused(way_out, MirrorBusyError):
                world.htap.sync_now()
        way_out = "only one process can open a buffer: stop the other one first"
        with refused(way_out, BufferBusyError):
            bridge(worlds[2].settings)
        holder.kill()
    assert bridge(worlds[2].settings) == 2
    for world in worlds:
        goes_on(world)


@pytest.mark.parametrize("storage", [None, "parquet"], ids=["duckdb", "parquet"])
def test_what_has_it_open_in_this_process_is_used_or_closed(
    make_world: MakeWorld, storage: str | None
) -> None:
    world = rows_of(make_world(storage=storage))
    with refused("use the object that opened it, or close that first", MirrorBusyError):
        HTAP(world.settings)
    goes_on(world)
    world.crash()
    with HTAP(world.settings) as htap:
        assert not htap.sync_now().errors


@pytest.mark.parametrize(
    "make", [DuckDBMirror, lambda path: DataFusionMirror("parquet", path)], ids=["duckdb", "files"]
)
def test_a_commit_that_came_between_is_followed_by_another_sync(
    make: Callable[[Path], Any], tmp_path: Path
) -> None:
    first = make(tmp_path / "mirror")
    now = datetime.now(UTC)
    with (
        refused("another sync has committed since; run this one again", MirrorError),
        first.transaction() as transaction,
    ):
        for order in (5, 4):
            transaction.record(Watermark("t", Position(order, ""), now))
    with first.transaction() as transaction:
        transaction.record(Watermark("t", Position(6, ""), now))
    assert first.ledger().watermarks["t"].position.order == 6
    first.close()


# What is damaged or lost


def test_a_damaged_log_of_duckdb_is_moved_away(make_world: MakeWorld) -> None:
    world = rows_of(make_world())
    world.crash()
    world.run("update t set v = 'logged' where id = 1")
    world.htap.sync_now()
    mirror = world.settings.mirror.path
    log = mirror.with_name(f"{mirror.name}.wal")
    kept = world.directory / "kept"
    kept.mkdir()
    for file in (mirror, log):
        copy(file, kept / file.name)
    world.crash()
    shutil.copy(kept / mirror.name, mirror)
    shutil.copy(kept / log.name, log)
    assert damage(log, "flip half")
    way_out = (
        "move {} away: the mirror returns to its last checkpoint, and 'rhei sync' brings it up to"
        " date"
    )
    with refused(way_out, MirrorDamagedError) as met:
        world.htap.sync_now()
    Path(met.told[0].strip("'")).rename(world.directory / "away.wal")
    goes_on(world)


def file_of(world: World, table: str) -> Path:
    mirror = engine_of(world.htap).mirror
    assert isinstance(mirror, DataFusionMirror)
    [stored] = [t for t in manifest_of(mirror).tables.values() if t.relation == table]
    names = store_of(mirror).table_files(stored)
    [name] = [n for n in names if n.endswith(store_of(mirror).form.suffix)]
    return world.settings.mirror.path / name


@pytest.mark.parametrize("kind", ["remove", "flip half"])
def test_a_damaged_or_lost_file_of_a_table_is_repaired(make_world: MakeWorld, kind: str) -> None:
    world = rows_of(make_world(storage="parquet"))
    file = file_of(world, "t")
    world.crash()
    damage(file, kind)
    with refused("run 'rhei repair {}': it reads the rows again from the source") as met:
        world.htap.query("select * from t", hint="olap")
    assert met.error.table == "t"
    repaired(world, met.told[0])
    goes_on(world)


def test_a_damaged_file_of_no_table_is_repaired_with_any(make_world: MakeWorld) -> None:
    world = make_world(storage="parquet")
    world.run("create table t(id integer primary key, v integer)")
    world.run("create table u(id integer primary key, v integer)")
    world.run("insert into t values (1, 'no number'), (2, 2)", "insert into u values (1, 1)")
    world.htap.sync_now()
    mirror = engine_of(world.htap).mirror
    assert isinstance(mirror, DataFusionMirror)
    assert mirror.dead_letters().num_rows == 1
    manifest, store = manifest_of(mirror), store_of(mirror)
    owned = {name for table in manifest.tables.values() for name in store.table_files(table)}
    [letters] = {name for name in store.files_of(manifest) if "letters" in name} - owned
    world.crash()
    damage(world.settings.mirror.path / letters, "flip half")
    with refused("run 'rhei repair' with any table: it moves the file out of the mirror"):
        world.htap.dead_letters()
    repaired(world, "u")
    repaired(world, "t")  # as that tells, of the other tables' dead letters
    assert world.htap.dead_letters().num_rows == 1
    world.run("update t set v = 3 where id < 3", "insert into u values (2, 2)")
    assert not world.htap.sync_now().errors
    assert world.htap.verify().equal
    assert world.htap.dead_letters().num_rows == 0


@pytest.mark.parametrize("kind", ["remove", "flip half"])
def test_a_damaged_or_lost_manifest_is_restored_or_repaired(
    make_world: MakeWorld, kind: str
) -> None:
    world = rows_of(make_world(storage="parquet"))
    world.run("update t set v = 'newest'")
    world.htap.sync_now()
    world.crash()
    newest = max((world.settings.mirror.path / "manifests").iterdir())
    content = newest.read_bytes()
    damage(newest, kind)
    way_out = (
        "restore it, or run 'rhei repair' with any table: the mirror then returns to its state"
        " before that, and the next sync brings it up to date"
    )
    with refused(way_out, MirrorDamagedError):
        world.htap.sync_now()
    world.crash()
    newest.write_bytes(content)
    world.htap.sync_now()
    world.assert_equal("t", "u")
    world.crash()
    newest = max((world.settings.mirror.path / "manifests").iterdir())
    damage(newest, kind)
    with refused(way_out, MirrorDamagedError):
        world.htap.sync_now()
    repaired(world, "u")
    goes_on(world)


def test_a_damaged_confirmation_is_deleted_and_written_again(make_world: MakeWorld) -> None:
    world = rows_of(make_world(buffered=True))
    world.crash()
    note = world.directory / "cdc.confirmed.json"
    note.write_text("{")
    world.run("update t set v = 'c'")
    with refused("delete it: the next sync writes it again"):
        unseen_events(world.settings)
    note.unlink()
    bridge(world.settings)
    goes_on(world)
    assert unseen_events(world.settings) == 0


def test_what_is_opened_no_more_is_opened_again(make_world: MakeWorld, tmp_path: Path) -> None:
    for storage in (None, "memory"):
        world = rows_of(make_world(storage=storage))
        htap = world.htap
        world.crash()
        with refused("open it again"):
            htap.query("select * from t", hint="olap")
        goes_on(world)
    log = ChangeLog(tmp_path / "log")
    assert log.append(pa.table({"v": [1]})) == 1
    log.append(pa.table({"v": [2, 3]}))
    log.prune(1)
    way_out = "replay from {} on, or keep events longer with 'sync.prune: false'"
    with refused(way_out, PositionLostError) as met:
        list(log.read(0))
    assert [table["v"].to_pylist() for table in log.read(int(met.told[0]))] == [[2, 3]]
    log.close()
    with refused("open it again"):
        log.prune(1)
    with ChangeLog(tmp_path / "log") as log:
        assert log.prune(0) == 0


def test_a_version_that_is_kept_is_read(make_world: MakeWorld) -> None:
    world = make_world(storage="parquet")
    with refused("sync once, then read", MirrorError):
        MirrorReader(world.settings.mirror.path)
    rows_of(world)
    with MirrorReader(world.settings.mirror.path) as reader:
        named = reader.versions()
    with refused("read one that 'versions' names", MirrorError):
        MirrorReader(world.settings.mirror.path, named[-1] + 1)
    for version in named:
        with MirrorReader(world.settings.mirror.path, version) as reader:
            assert reader.version == version


def test_a_damaged_buffer_is_restored_or_moved_away(make_world: MakeWorld) -> None:
    world = rows_of(make_world(buffered=True))
    world.crash()
    way_out = "restore it, or move it away: its tables are then copied again"
    world.run("update t set v = 'c'")
    assert bridge(world.settings) == 2
    whole = world.directory / "whole"
    shutil.copytree(world.buffer, whole)
    for follow in (lambda: shutil.copytree(whole, world.buffer), lambda: None):
        (world.buffer / "CURRENT").write_text("nothing")
        with refused(way_out, BufferDamagedError):
            world.htap.sync_now()
        world.crash()
        shutil.rmtree(world.buffer)
        follow()
        goes_on(world)
        world.run("delete from t where id = 50")
        world.htap.sync_now()
        world.crash()


# What a newer version wrote


def _put_format(world: World, number: int) -> None:
    """Write another number of the mirror's format, as that version would."""
    path = world.settings.mirror.path
    if world.storage is None:
        output_of(
            "import duckdb, sys; duckdb.connect(sys.argv[1]).execute("
            "'update _rhei_mirror set format = ' + sys.argv[2])",
            str(path),
            str(number),
        )
        return
    for file in (path / "manifests").glob("*.json"):
        form = json.loads(file.read_text())
        del form["crc32"]
        form["format"] = number
        content = json.dumps(form).encode()
        file.write_bytes(content[:-1] + b', "crc32": "%08x"}' % zlib.crc32(content))


@pytest.mark.parametrize("storage", [None, "parquet"], ids=["duckdb", "parquet"])
def test_a_mirror_of_a_newer_version_is_left_to_it_or_made_elsewhere(
    make_world: MakeWorld, storage: str | None
) -> None:
    world = rows_of(make_world(storage=storage))
    world.crash()
    known = FILES_FORMAT if storage else DUCKDB_FORMAT
    _put_format(world, 99)
    way_out = "use the newer version of rhei-pipeline that wrote it, or give another path"
    with refused(way_out, MirrorError):
        world.htap.sync_now()
    world.crash()
    former = world.mirror_path
    world.mirror_path = str(world.directory / "other")
    goes_on(world)
    world.crash()
    world.mirror_path = former
    _put_format(world, known)  # as the newer version would go on
    (world.directory / "registry.json").unlink()  # it is the other mirror's by now
    world.run("delete from t where id = 50")
    goes_on(world)


# What queries and Delta readers see


def test_files_that_queries_misread_are_copied_anew(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file of ours is misread: a writer that trusts statistics with NaN is put in its place."""
    for mode in ("destructive", "temporal"):
        world = make_world(storage="parquet", mode=mode)
        world.run("create table t(id integer primary key, v real)")
        world.run("create table u(id integer primary key, v real)")
        world.run("insert into t values (1, 1.5)", "insert into u values (1, 1)")
        with monkeypatch.context() as broken:
            broken.setattr(query_proof, "misread_columns", lambda *_: ["v"])
            world.htap.sync_now()
            told = world.htap.verify().tables["t"].damage
        way_out = (
            "run 'rhei drop-table {}', with '--keep-as NAME' for its history: the next sync copies"
            " it into new files"
        )
        (name,) = filled_in(way_out, told)
        files = set((world.settings.mirror.path / "data").iterdir())
        world.crash()
        keep = ["--keep-as", "kept"] if mode == "temporal" else []
        rhei(world.settings, world.directory, "drop-table", name, *keep)
        world.htap.sync_now()
        assert set((world.settings.mirror.path / "data").iterdir()) - files
        assert world.htap.verify().equal


def test_a_delta_table_that_is_damaged_is_published_again(make_world: MakeWorld) -> None:
    world = rows_of(make_world(storage="delta"))
    world.crash()
    folder = world.settings.mirror.path / "delta" / "main" / "t"
    for file in (folder / "_delta_log").iterdir():
        file.write_text("damaged")
    world.run("update t set v = 'c'")
    way_out = (
        "the mirror itself is not affected; if {} is damaged, run 'rhei repair {}': it is published"
        " again"
    )
    _, name = filled_in(way_out, world.htap.sync_now().not_published)
    world.assert_equal("t", "u")
    repaired(world, name)
    goes_on(world)
    world.crash()
    assert read_by_delta_rs(DeltaTable(folder)).num_rows == 3


# What the page on operations says to do


def test_a_registry_that_cannot_be_written_is_given_access_or_another_path(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world = rows_of(make_world())
    world.crash()
    folder = world.directory / "folder"
    folder.write_text("a file where a folder is needed")
    registry = {"registry": {"path": folder / "registry.json"}}
    world.run("insert into t values (3, 'c')")
    with HTAP(world.settings.with_fields(registry)) as htap:
        assert htap.sync_now().inserted == 1
        filled_in("give this user write access there, or correct registry.path", caplog.text)
        folder.unlink()
        htap.sync_now()
        assert (folder / "registry.json").exists()
    goes_on(world)


def test_a_command_waits_for_the_mirror_as_long_as_is_declared(make_world: MakeWorld) -> None:
    world = rows_of(make_world())
    settings = world.settings.with_fields({"mirror": {"lock_timeout_seconds": 60}})
    threading.Timer(0.3, world.crash).start()
    with HTAP(settings) as htap:
        assert htap.verify().equal


def test_a_mirror_without_a_manifest_that_can_be_read_is_moved_away(make_world: MakeWorld) -> None:
    world = rows_of(make_world(storage="parquet"))
    world.crash()
    path = world.settings.mirror.path
    for file in (path / "manifests").iterdir():
        damage(file, "flip half")
    with pytest.raises(MirrorDamagedError):
        world.htap.sync_now()
    world.crash()
    path.rename(world.directory / "away")
    goes_on(world)
