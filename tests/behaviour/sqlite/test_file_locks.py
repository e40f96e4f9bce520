"""No command and no call gives up a lock on a database that this process has open."""

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from rhei_pipeline import HTAP
from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import MirrorBusyError
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.server.flight.access import Credentials
from rhei_pipeline.server.flight.server import ServerOptions
from rhei_pipeline.server.serve import Addresses, serving
from tests.support.fix_world import World
from tests.support.forked import output_of, run
from tests.support.locks import assert_held, file_locks, record_locks

MakeWorld = Callable[..., World]


def serve(htap: HTAP) -> None:
    with serving(htap, Addresses("127.0.0.1", 0, 0), ServerOptions(Credentials())):
        pass


def refused(htap: HTAP) -> None:
    with pytest.raises(MirrorBusyError, match="already open in this process"):
        HTAP(htap.settings)


CALLS: dict[str, Callable[[HTAP], object]] = {
    "sync_now": lambda htap: htap.sync_now(),
    "initial_sync_all": lambda htap: htap.initial_sync_all(),
    "sync_status": lambda htap: htap.sync_status(),
    "verify": lambda htap: htap.verify(),
    "row_parity": lambda htap: htap.row_parity("orders"),
    "repair": lambda htap: htap.repair("orders"),
    "maintain": lambda htap: htap.maintain(),
    "execute": lambda htap: htap.execute("update orders set status = 'x'"),
    "query the mirror": lambda htap: htap.query("select * from orders", hint="olap"),
    "query the source": lambda htap: htap.query("select * from orders", hint="oltp"),
    "stream": lambda htap: list(htap.stream("select count(*) from orders").batches),
    "as_of": lambda htap: htap.as_of("orders", datetime.now(UTC)),
    "snapshot": lambda htap: htap.snapshot("orders", {datetime.now(UTC).date(): datetime.now(UTC)}),
    "dead_letters": lambda htap: htap.replay_dead_letters(),
    "register_table": lambda htap: htap.register_table("orders"),
    "drop_column": lambda htap: htap.drop_column("orders", "amount"),
    "serve": serve,
    "another mirror's opening": refused,
}


@pytest.fixture
def published(world: World) -> World:
    """A world whose mirror is temporal, and published after each commit."""
    world.mode = "temporal"
    world.published = {"path": world.directory / "published.duckdb", "interval_seconds": 0}
    world.htap.sync_now()
    return world


@pytest.mark.long
def test_no_call_gives_up_a_lock(published: World) -> None:
    for name, call in CALLS.items():
        published.run("update orders set status = status || 'y'")
        call(published.htap)
        assert record_locks(published.directory / "mirror.duckdb"), f"{name}: DuckDB's lock is lost"
        assert record_locks(published.path), f"{name}: SQLite's lock is lost"
    assert_held(published.directory / "mirror.duckdb")


COMMANDS = [
    ["sync"],
    ["copy"],
    ["status"],
    ["query", "select * from orders"],
    ["query", "select * from orders", "--hint", "olap", "--json"],
    ["verify"],
    ["repair", "orders"],
    ["maintain"],
    ["dead-letters"],
    ["as-of", "orders", "2999-01-01"],
    ["check"],
]


@pytest.mark.long
def test_no_command_gives_up_a_lock(published: World, monkeypatch: pytest.MonkeyPatch) -> None:
    published.crash()
    config = published.directory / "pipeline.yaml"
    form = published.settings.model_dump(mode="json", exclude_none=True)
    config.write_text(yaml.safe_dump(form))
    held: list[int] = []
    close = DuckDBMirror.close

    def watched(mirror: DuckDBMirror) -> None:
        held.append(record_locks(Path(mirror.path)))
        close(mirror)

    monkeypatch.setattr(DuckDBMirror, "close", watched)
    for command in COMMANDS:
        published.run("update orders set status = status || 'z'")
        result = CliRunner().invoke(app, [*command, "--config", str(config)])
        assert result.exit_code == 0, (command, result.output)
        assert held, command
        assert all(held), command
        assert record_locks(published.path), f"{command}: SQLite's lock is lost"
        held.clear()


@pytest.mark.long
def test_syncs_beside_a_mirror_that_publishes_go_through_its_holder(published: World) -> None:
    published.htap.sync_now()
    for _ in range(3):
        published.run("update orders set status = status || '+'")
        output_of(_SYNC, published.settings.model_dump_json())
        published.assert_equal("orders")
        assert_held(published.directory / "mirror.duckdb")
    assert record_locks(published.path), "SQLite's lock is lost"


def lose_lock_of(file: Path) -> None:
    """Do what no code of ours does."""
    file.open("rb").close()


@pytest.mark.long
def test_our_own_lock_refuses_where_duckdbs_is_lost(world: World) -> None:
    world.htap.sync_now()
    mirror = world.directory / "mirror.duckdb"
    lose_lock_of(mirror)
    assert not record_locks(mirror)
    done = run(_OPEN, str(mirror))
    assert "MirrorBusyError" in done.stderr
    assert "is held by another process" in done.stderr


def test_a_lock_ends_with_the_mirror_and_with_a_mirror_that_does_not_open(world: World) -> None:
    mirror = world.directory / "mirror.duckdb"
    for _ in range(2):
        DuckDBMirror(mirror, lock_timeout_seconds=0).close()
    linked = world.directory / "linked.duckdb"
    linked.symlink_to(mirror)
    first = DuckDBMirror(mirror)
    with pytest.raises(MirrorBusyError, match="already open in this process"):
        DuckDBMirror(linked, lock_timeout_seconds=0)
    first.close()
    first.close()
    DuckDBMirror(linked, lock_timeout_seconds=0).close()
    assert not (world.directory / ":memory:.lock").exists()
    DuckDBMirror(":memory:").close()


def test_the_files_of_a_datafusion_mirror_stay_locked(make_world: MakeWorld) -> None:
    world = make_world(storage="parquet", mode="temporal")
    world.run("create table orders(id integer primary key, status text, amount real)")
    for name, call in CALLS.items():
        call(world.htap)
        assert file_locks(world.directory / "parquet" / "lock"), name


def test_a_buffer_stays_locked(make_world: MakeWorld) -> None:
    world = make_world(buffered=True, mode="temporal")
    world.run("create table orders(id integer primary key, status text, amount real)")
    for name, call in CALLS.items():
        call(world.htap)
        assert record_locks(world.buffer / "LOCK"), name


def test_a_local_database_stays_locked(make_world: MakeWorld) -> None:
    world = make_world(method="polling", local={"path": "local.db"}, tables=[{"name": "t"}])
    world.local = {"path": world.directory / "local.db"}
    world.run("create table t(id integer primary key, updated_at text)")
    local = sqlite3.connect(world.directory / "local.db", isolation_level=None)
    local.execute("pragma journal_mode = wal")
    local.execute("create table mine(id integer primary key)")
    before = record_locks(world.directory / "local.db")
    world.htap.sync_now()
    assert record_locks(world.directory / "local.db") >= before > 0
    local.close()


_SYNC = """
import sys, json
from rhei_pipeline import HTAP, Settings
with HTAP(Settings(**json.loads(sys.argv[1]))) as htap:
    htap.sync_now()
"""
_OPEN = """
import sys
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
DuckDBMirror(sys.argv[1], lock_timeout_seconds=0)
"""
