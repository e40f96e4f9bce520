"""Bad input: a clear error, and nothing lost."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import rhei_pipeline as rhei
from rhei_pipeline.errors import MirrorError, QueryError, SchemaError, SourceBusyError, SourceError
from tests.support.fix_world import World
from tests.support.forked import run
from tests.support.left_out import assert_left_out

MakeWorld = Callable[..., World]


def test_a_missing_source(make_world: MakeWorld) -> None:
    world = make_world()
    world.app.close()
    world.path.unlink()
    with pytest.raises(SourceError, match=r"does not exist.*source.path"):
        world.htap  # noqa: B018
    assert not world.path.exists()
    world.app = sqlite3.connect(world.path)


def test_a_source_that_is_no_database(make_world: MakeWorld) -> None:
    world = make_world()
    world.app.close()
    world.path.write_bytes(b"this is not a database at all" * 100)
    with pytest.raises(SourceError, match="not a valid SQLite database"):
        world.htap  # noqa: B018


def test_a_mirror_that_is_no_database(world: World) -> None:
    (world.directory / "mirror.duckdb").write_bytes(b"no mirror" * 1000)
    with pytest.raises(MirrorError, match="not a DuckDB database"):
        world.htap.sync_now()


def test_a_table_that_does_not_exist_is_named_with_the_nearest(make_world: MakeWorld) -> None:
    world = make_world(tables=[{"name": "ordes"}, {"name": "good"}])
    world.run("create table orders(id integer primary key)")
    assert_left_out(world, "ordes", r"'ordes'.*no such table.*did you mean 'orders'")


def test_a_column_that_does_not_exist_is_named(make_world: MakeWorld) -> None:
    world = make_world(tables=[{"name": "orders", "columns": ["id", "amout"]}, {"name": "good"}])
    world.run("create table orders(id integer primary key, amount real)")
    assert_left_out(world, "orders", r"'amout'.*did you mean 'amount'")


def test_a_source_without_tables_opens_and_the_first_one_is_picked_up(
    make_world: MakeWorld,
) -> None:
    world = make_world()
    world.run("create table keyless(a)")
    with pytest.raises(SchemaError, match="no table with a primary key"):
        world.htap.sync_now()
    assert "no table with a primary key" in str(world.htap.sync_status().last_error)
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    assert world.htap.sync_now().tables["t"].copied_rows == 1
    assert world.htap.sync_status().last_error is None


def test_a_damaged_registry(world: World) -> None:
    (world.directory / "registry.json").write_text("{")
    with pytest.raises(SchemaError, match=r"registry .* cannot be read.*delete it"):
        world.htap  # noqa: B018


def test_a_locked_source_is_told_and_nothing_is_lost(world: World) -> None:
    world.htap.sync_now()
    world.crash()
    settings = world.settings.model_copy(
        update={"source": world.settings.source.model_copy(update={"busy_timeout_seconds": 0.05})}
    )
    with rhei.HTAP(settings) as htap:
        world.run("update orders set status = 'x'")
        world.run("begin immediate")
        with pytest.raises(SourceBusyError, match="locked"):
            htap.sync_now()
        world.run("rollback")
        htap.sync_now()
    world.assert_equal("orders")


@pytest.mark.parametrize(
    "sql", ["begin", "COMMIT", " -- x\n rollback", "savepoint a", "/* x */ end"]
)
def test_a_transaction_is_no_statement(world: World, sql: str) -> None:
    with pytest.raises(QueryError, match="execute_batch"):
        world.htap.execute(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "delete from orders",
        "delete from orders returning *",
        "create table x(a)",
        "attach 'other.db' as other",
        "select nothing from orders",
        "",
        "select 1 union all select 'x'",
    ],
)
def test_a_query_of_the_source_only_reads(world: World, sql: str) -> None:
    with pytest.raises(QueryError):
        world.htap.query(sql, hint="oltp")
    assert world.app.execute("select count(*) from orders").fetchone() == (3,)


def test_answers_of_the_source_are_typed(world: World) -> None:
    found = world.htap.query("select id, amount, null as n from orders where id > ?", [2])
    assert [str(field.type) for field in found.schema] == ["int64", "double", "null"]
    assert found.to_pylist() == [{"id": 3, "amount": 3.5, "n": None}]


def test_as_of_needs_history_and_a_zone(world: World) -> None:
    from datetime import datetime  # noqa: PLC0415

    world.htap.sync_now()
    with pytest.raises(QueryError, match="keeps no history"):
        world.htap.as_of("orders", datetime.now().astimezone())


_FULL_DISK = """
import resource, sys, json
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import RheiError
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
settings = Settings(**json.loads(sys.argv[1]))
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with HTAP(settings) as htap:
        htap.sync_now()
    print("fitted")
except RheiError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.long
def test_a_disk_that_fills_up_loses_nothing(make_world: MakeWorld) -> None:
    """A file that may not grow fails as a full disk does, at whatever write meets the limit."""
    world = make_world(mode="temporal")
    world.run("create table t(id integer primary key, v blob)")
    world.htap.sync_now()
    world.crash()
    world.app.executemany(
        "insert into t values (?, ?)", ((n, os.urandom(2000)) for n in range(3000))
    )
    world.run("pragma wal_checkpoint(truncate)")
    size = world.path.stat().st_size
    for limit in (size // 4, size // 2, size * 4):
        found = run(_FULL_DISK, world.settings.model_dump_json(), str(limit))
        told = found.stdout.strip()
        assert told == "fitted" or "Error" in told, found.stderr
    assert told == "fitted"
    world.htap.sync_now()
    world.assert_equal("t")


@pytest.mark.long
def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "rhei_pipeline.cli.main",
            "sync",
            "--config",
            str(tmp_path / "no.yaml"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert "cannot be read" in found.stderr
    assert "Traceback" not in found.stderr
