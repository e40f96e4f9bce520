"""What happens to the file of a SQLite source beside the statements that are run on it."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import rhei_pipeline as rhei
from rhei_pipeline import Settings
from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import SourceError
from rhei_pipeline.wiring.engine import unseen_events
from tests.support.fix_world import World
from tests.support.other_process import copy
from tests.support.refusals import refused

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]

BOTH_MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])
STAMP = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
_WRITE = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as application:
    application.execute(f"update t set v = 'new', at = {sys.argv[2]} where id = 2")
"""
WAYS: dict[str, dict[str, Any]] = {
    "trigger": {},
    "buffer": {"buffered": True},
    "polling": {
        "method": "polling",
        "tables": [{"name": "t", "polling": {"updated_at": "at", "clock": "database"}}],
    },
}
ALL_WAYS = pytest.mark.parametrize("way", WAYS)
_RESTART = "end this process, run 'pragma integrity_check' in the sqlite3 shell, and start it again"


@pytest.fixture
def make(make_world: MakeWorld) -> MakeWorld:
    """Make a world with a synced table."""

    def made(way: str, mode: str) -> World:
        world = make_world(mode=mode, **WAYS[way])
        world.run(
            "create table t(id integer primary key, v text, at text)",
            f"insert into t values (1, 'a', {STAMP}), (2, 'b', {STAMP})",
        )
        world.htap.sync_now()
        return world

    return made


def put_in_place(world: World, *statements: str) -> None:
    """Put a changed copy of the source in its place, under whoever has it open."""
    copy = world.directory / "copy.db"
    world.run(f"vacuum into '{copy}'")
    with closing(sqlite3.connect(copy, isolation_level=None)) as changed:
        for statement in statements:
            changed.execute(statement)
    swap(world, copy)


def swap(world: World, copy: Path) -> None:
    """Put a file in the source's place."""
    world.app.close()
    for suffix in ("-wal", "-shm"):
        world.path.with_name(world.path.name + suffix).unlink(missing_ok=True)
    copy.replace(world.path)
    world.app = sqlite3.connect(world.path, isolation_level=None)


@BOTH_MODES
@ALL_WAYS
def test_a_file_put_in_its_place_is_followed_while_it_is_open(
    make: MakeWorld, mode: str, way: str
) -> None:
    world = make(way, mode)
    put_in_place(world, f"update t set v = 'new', at = {STAMP} where id = 1")
    world.htap.sync_now()
    world.assert_equal("t")
    world.run(f"update t set v = 'newer', at = {STAMP} where id = 2")
    world.htap.sync_now()
    world.assert_equal("t")


@BOTH_MODES
@ALL_WAYS
def test_an_older_file_put_in_its_place_is_followed_while_it_is_open(
    make: MakeWorld, mode: str, way: str
) -> None:
    world = make(way, mode)
    older = world.directory / "older.db"
    world.run(f"vacuum into '{older}'", f"update t set v = 'lost', at = {STAMP}")
    world.htap.sync_now()
    swap(world, older)
    world.htap.sync_now()
    world.assert_equal("t")


@BOTH_MODES
@ALL_WAYS
def test_a_backup_written_into_the_file_is_followed(make: MakeWorld, mode: str, way: str) -> None:
    world = make(way, mode)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as kept:
        world.app.backup(kept)
        kept.execute(f"update t set v = 'restored', at = {STAMP} where id = 1")
        kept.backup(world.app)
    world.htap.sync_now()
    world.assert_equal("t")


@pytest.mark.parametrize("way", ["trigger", "buffer"])
def test_an_older_file_put_in_its_place_is_something_to_see_to(make: MakeWorld, way: str) -> None:
    """Though nothing is pending in it, and nothing is written since."""
    world = make(way, "temporal")
    older = world.directory / "older.db"
    world.run(f"vacuum into '{older}'", "update t set v = 'lost'")
    world.htap.sync_now()
    world.crash()
    assert unseen_events(world.settings) == 0
    (note,) = world.directory.glob("*.read.json")
    before = note.read_text("utf-8")
    swap(world, older)
    assert unseen_events(world.settings) is None
    world.htap.sync_now()
    world.assert_equal("t")
    world.crash()
    assert unseen_events(world.settings) == 0
    # A crash before what was acknowledged is noted, and an older version that noted nothing.
    note.write_text(before, "utf-8")
    world.run("update t set v = 'c'")
    world.htap.sync_now()
    world.crash()
    assert unseen_events(world.settings) == 0
    note.unlink()
    assert unseen_events(world.settings) == 0


def test_writes_and_reads_of_the_source_go_to_the_file_that_is_there(
    make: MakeWorld,
) -> None:
    world = make("trigger", "destructive")
    assert world.htap.query("select v from t where id = 1", hint="oltp")["v"].to_pylist() == ["a"]
    put_in_place(world, "update t set v = 'new' where id = 1")
    assert world.htap.query("select v from t where id = 1", hint="oltp")["v"].to_pylist() == ["new"]
    world.htap.execute("update t set v = 'written' where id = 2")
    world.htap.execute_batch([("insert into t values (3, 'c', null)", ())])
    assert world.app.execute("select v from t order by id").fetchall() == [
        ("new",),
        ("written",),
        ("c",),
    ]
    world.htap.sync_now()
    world.assert_equal("t")


def restored_in_place(world: World, backup: Path) -> None:
    """Put a backup into the source's file and remove its log, as others do beside the engine."""
    world.app.close()
    for suffix in ("-wal", "-shm"):
        world.path.with_name(world.path.name + suffix).unlink()
    copy(backup, world.path)


@pytest.mark.parametrize(("way", "mode"), [("trigger", "temporal"), ("polling", "destructive")])
def test_a_log_that_was_removed_under_it_is_named(make: MakeWorld, way: str, mode: str) -> None:
    """It sees no later commit: it would report for ever that there is nothing to do."""
    world = make(way, mode)
    backup = world.directory / "backup.db"
    world.run(f"vacuum into '{backup}'", f"update t set v = 'lost', at = {STAMP} where id = 1")
    world.htap.sync_now()
    asks: list[Callable[[], object]] = [
        world.htap.sync_now,
        lambda: world.htap.query("select v from t", hint="oltp"),
    ]
    if way == "trigger":  # what is polled is never written
        asks.append(lambda: world.htap.execute("delete from t"))
    restored_in_place(world, backup)
    for ask in asks:
        with refused(_RESTART, SourceError):
            ask()
    world.crash()
    world.app = sqlite3.connect(world.path, isolation_level=None)
    assert world.app.execute("pragma integrity_check").fetchall() == [("ok",)]
    assert world.app.execute("select v from t order by id").fetchall() == [("a",), ("b",)]
    world.htap.sync_now()
    world.assert_equal("t")


@pytest.mark.parametrize("way", ["trigger", "polling"])
def test_so_is_one_in_the_place_of_which_an_application_has_made_another(
    make: MakeWorld, way: str
) -> None:
    """The application goes on in a log of its own; what it commits there is not seen here."""
    world = make(way, "destructive")
    backup = world.directory / "backup.db"
    world.run(f"vacuum into '{backup}'", f"update t set v = 'lost', at = {STAMP} where id = 1")
    with closing(sqlite3.connect(backup)) as kept:
        kept.execute("pragma journal_mode = wal")
    world.htap.sync_now()
    restored_in_place(world, backup)
    subprocess.run([sys.executable, "-S", "-c", _WRITE, str(world.path), STAMP], check=True)
    assert world.path.with_name(f"{world.path.name}-wal").exists()
    with refused(_RESTART, SourceError):
        world.htap.sync_now()
    world.crash()
    world.app = sqlite3.connect(world.path, isolation_level=None)
    world.htap.sync_now()
    world.assert_equal("t")


def test_so_is_one_of_a_database_that_went_into_wal_mode_since(make: MakeWorld) -> None:
    """What is polled is opened for reading alone, in whatever mode it is."""
    world = make("polling", "destructive")
    world.crash()
    backup = world.directory / "backup.db"
    world.run(f"vacuum into '{backup}'", "pragma journal_mode = delete")
    world.htap.sync_now()
    world.run("pragma journal_mode = wal", f"update t set v = 'lost', at = {STAMP} where id = 1")
    world.htap.sync_now()
    restored_in_place(world, backup)
    with refused(_RESTART, SourceError):
        world.htap.sync_now()
    world.app = sqlite3.connect(world.path, isolation_level=None)


@BOTH_MODES
def test_what_fires_no_trigger_is_found_by_verify_and_healed_by_repair(
    make: MakeWorld, mode: str
) -> None:
    world = make("trigger", mode)
    with world.app.blobopen("t", "v", 1) as value:
        value.write(b"z")
    world.htap.sync_now()
    assert world.htap.verify().tables["t"].different == 1
    world.htap.repair("t")
    world.assert_equal("t")
    assert world.htap.verify().equal


def test_file_table_and_mirror_are_made_in_one_go(tmp_path: Path) -> None:
    path, mirror = tmp_path / "new" / "app.db", {"path": tmp_path / "mirror.duckdb"}
    registry = {"path": tmp_path / "registry.json"}
    way_out = (
        "correct source.path; or, for a new database, create it with your application first, or"
        " declare 'create: true' under 'source'"
    )
    with refused(way_out, SourceError):
        rhei.open(Settings(source={"path": path}, mirror=mirror, registry=registry))
    settings = Settings(
        source={"path": path, "create": True}, mirror=mirror, registry=registry, tables=None
    )
    # Who only looks does not make it.
    assert not rhei.declared_schemas(settings).tables
    told = [found.what for found in rhei.validate(settings)]
    assert "the source's file does not exist yet" in told
    assert not path.parent.exists()
    with rhei.open(settings) as htap:
        assert not htap.sync_now().tables
        assert not htap.sync_status().tables
        assert htap.verify().equal
        htap.execute("create table t(id integer primary key, v text)")
        htap.register_table("t")
        htap.execute("insert into t values (?, ?)", [1, "a"])
        assert htap.sync_now().tables["t"].copied_rows == 1
        assert htap.query("select v from t", hint="olap")["v"].to_pylist() == ["a"]
    path.unlink()
    # A file that was mirrored is lost, and not a new one.
    with refused(
        "put it back; or delete its mirror and registry as well",
        SourceError,
    ):
        rhei.open(settings)
    assert not path.exists()
    mirror["path"].unlink()
    registry["path"].unlink()
    with rhei.open(settings) as htap:
        assert not htap.sync_now().tables


def test_a_new_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").symlink_to(tmp_path / "nowhere")
    settings = Settings(
        source={"path": tmp_path / "file" / "app.db", "create": True}, mirror={"path": ":memory:"}
    )
    assert rhei.validate(settings)
    with refused("give this user write access to its folder, or correct source.path", SourceError):
        rhei.open(settings)
    (tmp_path / "file").unlink()
    rhei.open(settings).close()


def test_commands_are_in_order_where_nothing_is_there_yet(tmp_path: Path) -> None:
    config = tmp_path / "pipeline.yaml"
    config.write_text("source: {path: a.db, create: true}\nmirror: {path: m.duckdb}\n")
    for command in ("check", "sync", "status", "verify"):
        found = CliRunner().invoke(app, [command, "--config", str(config)])
        assert found.exit_code == 0, (command, found.output, found.exception)
