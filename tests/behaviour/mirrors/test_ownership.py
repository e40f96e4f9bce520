"""A mirror has one owner: another source or pipeline is refused, and the ways out work."""

import json
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from typer.testing import CliRunner

from examples.postgres_server import Server
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import MirrorError
from rhei_pipeline.protocols import Step
from rhei_pipeline.testing.oracle import arrow_rows
from rhei_pipeline.wiring.adoption import adopt
from rhei_pipeline.wiring.engine import unseen_events
from tests.support.fix_postgres import PostgresWorld, database
from tests.support.fix_world import World
from tests.support.forked import output_of
from tests.support.model import source_rows
from tests.support.other_process import copy

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
MIRRORS = pytest.mark.parametrize("storage", [None, "ipc", "parquet", "delta"])
METHODS = pytest.mark.parametrize("method", ["trigger", "polling"])
MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])
POLLED = {"name": "t", "polling": {"deletes": "reconcile", "reconcile_seconds": 0}}
OTHER = r"mirror .* belongs to another source, .*, not to .*rhei adopt"


def mirrored(make_world: MakeWorld, **options: Any) -> World:
    world = make_world(tables=[POLLED], **options)
    world.run("create table t(id integer primary key, v int, updated_at text)")
    world.run("insert into t values (1, 1, '2026-01-01'), (2, 2, '2026-01-02')")
    world.htap.sync_now()
    world.crash()
    return world


def another(world: World, name: str = "other.db") -> sqlite3.Connection:
    """Make another source, whose newest row is the same."""
    made = sqlite3.connect(world.directory / name, isolation_level=None)
    made.execute("pragma journal_mode = wal")
    made.execute("create table t(id integer primary key, v int, updated_at text)")
    made.execute("insert into t values (2, 2, '2026-01-02'), (3, 3, '2025-01-01')")
    return made


def follow(world: World, path: Path) -> Settings:
    source = {**world.settings.source.model_dump(), "path": path}
    return Settings(**{**world.settings.model_dump(), "source": source})


def rows_of(settings: Settings) -> frozenset[tuple[Any, ...]]:
    where = " where _rhei_valid_to is null" if settings.mode == "temporal" else ""
    with HTAP(settings) as htap:
        report = htap.sync_now()
        assert not report.errors
        assert htap.verify().equal
        return arrow_rows(htap.query(f"select id, v, updated_at from t{where}", hint="olap"))


@MIRRORS
@METHODS
def test_another_source_is_refused_and_neither_is_touched(
    make_world: MakeWorld, storage: str | None, method: str
) -> None:
    world = mirrored(make_world, storage=storage, method=method)
    with closing(another(world)) as other:
        before = other.execute("select * from sqlite_master").fetchall()
        with pytest.raises(MirrorError, match=OTHER) as caught:
            HTAP(follow(world, world.directory / "other.db"))
        assert "app.db" in str(caught.value)
        assert "other.db" in str(caught.value)
        assert other.execute("select * from sqlite_master").fetchall() == before
    world.run("insert into t values (4, 4, '2026-01-04')")
    assert rows_of(world.settings) == source_rows(world.app, "t")


@pytest.mark.parametrize("storage", [None, "parquet"])
@METHODS
@MODES
def test_an_adopted_source_is_mirrored_as_it_is(
    make_world: MakeWorld, storage: str | None, method: str, mode: str
) -> None:
    world = mirrored(make_world, storage=storage, method=method, mode=mode)
    with closing(another(world)) as other:
        settings = follow(world, world.directory / "other.db")
        before, now, _ = adopt(settings)
        assert before is not None
        assert [Path(owner.source.place).name for owner in (before, now)] == ["app.db", "other.db"]
        assert rows_of(settings) == source_rows(other, "t")
        if mode == "temporal":
            with HTAP(settings) as htap:
                ended = htap.query("select id from t where _rhei_operation = 'D'", hint="olap")
            assert ended["id"].to_pylist() == [1]
    with pytest.raises(MirrorError, match=OTHER):
        world.htap  # noqa: B018


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_a_copy_cut_off_before_the_adoption_is_begun_anew(
    make_world: MakeWorld, storage: str | None
) -> None:
    world = make_world(storage=storage, batch_rows=1, tables=[POLLED])
    world.run("create table t(id integer primary key, v int, updated_at text)")
    world.run("insert into t values (1, 1, ''), (2, 2, ''), (3, 3, '')")
    world.faults.arm(Step.COPY_BATCH, 2)
    assert world.surviving(world.htap.sync_now)
    with closing(another(world)) as other:
        settings = follow(world, world.directory / "other.db")
        adopt(settings)
        assert rows_of(settings) == source_rows(other, "t")


@MIRRORS
def test_a_database_with_triggers_is_known_again_where_it_was_moved(
    make_world: MakeWorld, storage: str | None
) -> None:
    world = mirrored(make_world, storage=storage)
    world.app.close()
    moved = world.directory / "elsewhere" / "app.db"
    moved.parent.mkdir()
    world.path.rename(moved)
    world.path, world.app = moved, sqlite3.connect(moved, isolation_level=None)
    world.run("insert into t values (4, 4, '')")
    report = world.htap.sync_now()
    assert report.tables["t"].copied_rows == 0
    assert report.inserted == 1
    assert world.htap.verify().equal


def test_a_polled_database_that_was_moved_is_refused_until_it_is_adopted(
    make_world: MakeWorld,
) -> None:
    world = mirrored(make_world, method="polling")
    world.app.close()
    moved = world.directory / "moved.db"
    world.path.rename(moved)
    with pytest.raises(MirrorError, match=OTHER):
        HTAP(follow(world, moved))
    adopt(follow(world, moved))
    with closing(sqlite3.connect(moved)) as source:
        assert rows_of(follow(world, moved)) == source_rows(source, "t")


def test_a_copy_of_a_database_beside_it_is_another_source(make_world: MakeWorld) -> None:
    world = mirrored(make_world)
    world.run("pragma wal_checkpoint(truncate)")
    copy(world.path, world.directory / "staging.db")
    with pytest.raises(MirrorError, match=OTHER):
        HTAP(follow(world, world.directory / "staging.db"))


@METHODS
def test_a_database_made_anew_or_linked_at_its_place_is_the_same_source(
    make_world: MakeWorld, method: str
) -> None:
    world = mirrored(make_world, method=method)
    linked = world.directory / "linked.db"
    linked.symlink_to(world.path)
    assert rows_of(follow(world, linked)) == source_rows(world.app, "t")
    world.app.close()
    for suffix in ("", "-wal", "-shm"):
        world.path.with_name(world.path.name + suffix).unlink(missing_ok=True)
    world.app = another(world, "app.db")
    assert rows_of(world.settings) == source_rows(world.app, "t")


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_another_pipeline_of_the_same_source_is_refused(
    make_world: MakeWorld, storage: str | None
) -> None:
    world = mirrored(make_world, storage=storage)
    named = {name: Settings(**{**world.settings.model_dump(), "name": name}) for name in "ab"}
    for _ in range(2):
        assert rows_of(named["a"]) == source_rows(world.app, "t")
        with pytest.raises(MirrorError, match=r"another pipeline, 'a', not to 'b'.*adopt"):
            HTAP(named["b"])
    assert rows_of(world.settings) == source_rows(world.app, "t")  # without a name, it is any
    with pytest.raises(MirrorError, match="another pipeline"):
        HTAP(named["b"])
    adopt(named["b"])
    with HTAP(named["b"]) as htap:
        assert htap.sync_now().tables["t"].copied_rows == 0
    with pytest.raises(MirrorError, match="another pipeline, 'b'"):
        HTAP(named["a"])


def rewrite_manifest(world: World, change: Callable[[dict[str, Any]], object]) -> None:
    for file in (world.settings.mirror.path / "manifests").glob("*.json"):
        form = json.loads(file.read_text())
        del form["crc32"]
        change(form)
        content = json.dumps(form).encode()
        file.write_bytes(content[:-1] + b', "crc32": "%08x"}' % zlib.crc32(content))


@pytest.mark.parametrize("storage", ["ipc", "parquet", "delta"])
def test_files_of_a_newer_format_are_refused_by_name(make_world: MakeWorld, storage: str) -> None:
    world = mirrored(make_world, storage=storage)
    rewrite_manifest(world, lambda form: form.update(format=99))
    with pytest.raises(MirrorError, match=r"mirror '.*' has format 99, and this version knows \d"):
        world.htap.sync_now()


@pytest.mark.long
def test_a_duckdb_file_of_a_newer_format_is_refused_and_left_alone(make_world: MakeWorld) -> None:
    world = mirrored(make_world)
    file = str(world.settings.mirror.path)
    output_of("import duckdb; duckdb.connect(r'" + file + "').execute('" + NEWER + "')")
    for _ in range(2):
        with pytest.raises(MirrorError, match=r"has format 99, and this version knows \d"):
            world.htap.sync_now()
    asked = f"duckdb.connect(r'{file}').execute('{FOUND}').fetchall()"
    found = output_of(f"import duckdb; print({asked})")
    assert "99" in found


NEWER = "update _rhei_mirror set format = 99"
FOUND = "select format from _rhei_mirror"


@pytest.mark.long
def test_the_command_adopts_and_says_whose_the_mirror_was(make_world: MakeWorld) -> None:
    world = mirrored(make_world)
    with closing(another(world)):
        form = follow(world, world.directory / "other.db").model_dump(mode="json")
        config = world.directory / "pipeline.yaml"
        config.write_text(yaml.safe_dump(form))
        told = CliRunner().invoke(app, ["adopt", "--json", "--config", str(config)])
        assert told.exit_code == 0, told.output
        assert "app.db" in json.loads(told.stdout)["was"]
        assert "other.db" in json.loads(told.stdout)["is"]
        synced = CliRunner().invoke(app, ["sync", "--json", "--config", str(config)])
        assert synced.exit_code == 0, synced.output
        config.write_text(yaml.safe_dump(form | {"name": "second"}))
        named = CliRunner().invoke(app, ["adopt", "--config", str(config)])
        assert "pipeline 'second'" in " ".join(named.output.replace("│", " ").split())
        assert "nothing has moved" not in named.output
        again = CliRunner().invoke(app, ["adopt", "--config", str(config)])
        assert (again.exit_code, "nothing has moved" in again.output) == (0, True)
        assert not any("another reader" in each.output for each in (told, named, again))
        for _ in range(2):  # each time it is one more
            apart = CliRunner().invoke(app, ["adopt", "--as-copy", "--config", str(config)])
            assert (apart.exit_code, "another reader" in apart.output) == (0, True)
        synced = CliRunner().invoke(app, ["sync", "--config", str(config)])
        assert synced.exit_code == 0, synced.output


def test_a_source_table_named_progress_is_mirrored(make_world: MakeWorld) -> None:
    """Its copy under way once had the name of our own record of copies."""
    world = make_world()
    world.run("create table progress(id integer primary key)", "insert into progress values (1)")
    world.htap.sync_now()
    world.assert_equal("progress")


@pytest.mark.parametrize("method", ["logical", "trigger", "polling"])
@pytest.mark.parametrize("storage", [None, "parquet"])
def test_another_database_of_a_server_is_refused_and_can_be_adopted(
    make_postgres: Callable[..., PostgresWorld], server: Server, method: str, storage: str | None
) -> None:
    world = make_postgres(capture={"method": method}, storage=storage, tables=[POLLED])
    for sql in POSTGRES:
        world.app.execute(sql)
    world.htap.sync_now()
    world.crash()
    for dsn in database(server):
        with psycopg.connect(dsn, autocommit=True) as other:
            for sql in (*POSTGRES, b"delete from t where id = 1"):
                other.execute(sql)
            source = {"kind": "postgres", "dsn": dsn}
            settings = Settings(**{**world.settings.model_dump(), "source": source})
            with pytest.raises(MirrorError, match=OTHER) as caught:
                HTAP(settings)
            assert "@" not in str(caught.value)
            adopt(settings)
            with HTAP(settings) as htap:
                htap.sync_now()
                assert htap.query("select id from t", hint="olap")["id"].to_pylist() == [2]
                assert htap.verify().equal


def test_a_database_that_was_renamed_is_the_same_source(
    make_postgres: Callable[..., PostgresWorld], server: Server
) -> None:
    world = make_postgres(capture={"method": "trigger"}, tables=[POLLED])
    for sql in POSTGRES:
        world.app.execute(sql)
    world.htap.sync_now()
    world.crash()
    world.app.close()
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        name = psycopg.conninfo.conninfo_to_dict(world.dsn)["dbname"]
        admin.execute(f"alter database {name} rename to {name}_2".encode())
        try:
            moved = PostgresWorld(server.dsn(f"{name}_2"), world.directory, world.tables)
            moved.capture = world.capture
            assert moved.htap.sync_now().tables["t"].copied_rows == 0
            moved.close()
        finally:
            admin.execute(f"alter database {name}_2 rename to {name}".encode())


@pytest.mark.long
@MODES
@pytest.mark.parametrize("method", ["logical", "stream", "trigger", "polling"])
def test_a_database_that_takes_the_name_of_another_is_the_same_source(
    make_postgres: Callable[..., PostgresWorld], server: Server, mode: str, method: str
) -> None:
    """As a restored copy does in the place of what it replaces, which keeps our slot."""
    is_stream = method == "stream"
    capture = {"method": "logical", "streaming": True} if is_stream else {"method": method}
    world = make_postgres(capture=capture, mode=mode, tables=[POLLED])
    for dsn in database(server):
        with psycopg.connect(dsn, autocommit=True) as restored:
            for connection in (world.app, restored):
                for sql in POSTGRES:
                    connection.execute(sql)
            restored.execute("insert into t values (3, 3, '2026-01-03')")
        world.htap.sync_now()
        world.close()
        swapped(server, world.dsn, dsn)
        try:
            moved = PostgresWorld(world.dsn, world.directory, [POLLED], mode, capture=capture)
            assert method in {"trigger", "polling"} or unseen_events(moved.settings) is None
            for key in (4, 5):
                assert not moved.htap.sync_now().errors
                moved.assert_equal("t")
                moved.run(f"insert into t values ({key}, 0, now())", "delete from t where id = 1")
            assert not moved.htap.sync_now().errors
            moved.assert_equal("t")
            moved.close()
        finally:
            swapped(server, world.dsn, dsn)


def swapped(server: Server, *dsns: str) -> None:
    """Have two databases change their names."""
    one, two = (psycopg.conninfo.conninfo_to_dict(dsn)["dbname"] for dsn in dsns)
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        for name, to in ((one, f"{one}_2"), (two, one), (f"{one}_2", two)):
            admin.execute(f"alter database {name} rename to {to}".encode())


POSTGRES = (
    b"create table t(id int primary key, v int, updated_at timestamptz)",
    b"insert into t values (1, 1, '2026-01-01'), (2, 2, '2026-01-02')",
)
