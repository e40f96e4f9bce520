"""Doubled keys, rows without a key, histories that contradict themselves: found and mended."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import ChangesLostError
from rhei_pipeline.mirrors.datafusion.buffered_rows import append_rows, append_versions
from rhei_pipeline.mirrors.datafusion.transaction import FileTransaction
from rhei_pipeline.mirrors.duckdb.transaction import DuckDBTransaction
from rhei_pipeline.model.reports import TableVerification
from rhei_pipeline.model.schema import OPERATION, VALID_FROM, VALID_TO
from tests.support.fix_world import World
from tests.support.parts import connection_of, engine_of

MakeWorld = Callable[..., World]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _world(make_world: MakeWorld, mode: str, storage: str | None = None) -> World:
    world = make_world(mode=mode, storage=storage)
    world.run(
        "create table t(id integer primary key, a integer)",
        "insert into t values (1, 10), (2, 20), (3, 30)",
    )
    world.htap.sync_now()
    world.run("update t set a = 11 where id = 1")
    world.htap.sync_now()
    return world


def _forge(world: World, *statements: str) -> None:
    """Change the mirror's file as a fault, or another program, might."""
    with engine_of(world.htap).mirror.transaction() as transaction:
        assert isinstance(transaction, DuckDBTransaction)
        for statement in statements:
            connection_of(transaction).execute(statement)


def _verified(world: World) -> TableVerification:
    return world.htap.verify().tables["t"]


@pytest.mark.parametrize(
    "forged",
    [
        "insert into t select * from t where id = 2",
        "insert into t select * from t where id = 2 union all select * from t where id = 2",
        "insert into t values (2, 99)",
    ],
)
def test_a_doubled_key_of_a_plain_mirror_is_named_and_removed(
    make_world: MakeWorld, forged: str
) -> None:
    world = _world(make_world, "destructive")
    _forge(world, forged)
    found = _verified(world)
    assert (found.duplicate, found.samples["duplicate"]) == (1, ('{"id": 2}',))
    assert not found.equal
    assert world.htap.repair("t").deleted >= 1
    world.assert_equal("t")
    assert _verified(world).equal


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_row_without_a_key_is_named_and_removed(make_world: MakeWorld, mode: str) -> None:
    world = _world(make_world, mode)
    history = ", now()::timestamptz, null, 'I'" if mode == "temporal" else ""
    _forge(world, f"insert into t values (null, 5{history})")
    assert _verified(world).extra == 1
    world.htap.repair("t")
    world.assert_equal("t")
    assert _verified(world).equal


@pytest.mark.parametrize(
    "forged",
    [
        # The same version twice, and one that is valid beside another.
        "insert into t select * from t where id = 2",
        "insert into t select id, 99, _rhei_valid_from + interval 1 millisecond, null, 'U' from t"
        " where id = 2",
        "insert into t select id, 99, _rhei_valid_from - interval 1 millisecond, null, 'U' from t"
        " where id = 2",
        # An old version that ends after the next one began.
        "update t set _rhei_valid_to = _rhei_valid_to + interval 1 millisecond where a = 10",
        "update t set _rhei_valid_to = null where a = 10",
    ],
)
def test_versions_that_are_valid_at_once_are_named_and_end(
    make_world: MakeWorld, forged: str
) -> None:
    world = _world(make_world, "temporal")
    before = len(world.versions("t"))
    position = world.htap.changes("t").position
    _forge(world, forged)
    found = _verified(world)
    assert (found.broken_history, found.equal) == (1, False)
    # In parts, with the last of them.
    found = world.htap.verify("t", max_rows=1_000).tables["t"]
    assert (found.broken_history, found.equal) == (1, False)
    world.htap.repair("t")
    world.assert_equal("t")
    assert _verified(world).equal
    assert len(world.versions("t")) >= before
    with pytest.raises(ChangesLostError):  # how versions ended, no change tells
        world.htap.changes("t", position)


@pytest.mark.parametrize(
    "forged",
    [
        "update t set _rhei_valid_to = _rhei_valid_from - interval 1 millisecond where a = 10",
        "update t set _rhei_valid_to = _rhei_valid_to - interval 1 microsecond where a = 10",
        "insert into t values (7, 7, '2020-01-01', '2020-01-02', 'I')",
    ],
)
def test_a_history_that_cannot_be_mended_stays_named(make_world: MakeWorld, forged: str) -> None:
    world = _world(make_world, "temporal")
    _forge(world, forged)
    for _ in range(2):
        found = _verified(world)
        assert (found.broken_history, found.equal) == (1, False)
        world.htap.repair("t")


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("storage", ["memory", "parquet", "ipc"])
def test_a_doubled_key_in_files_is_named_and_mended(
    make_world: MakeWorld, mode: str, storage: str
) -> None:
    world = _world(make_world, mode, storage)
    table = engine_of(world.htap).pipeline.table("t")
    for place in range(2):
        rows = pa.table({"id": [2], "a": [90 + place]}, table.schema.arrow)
        with engine_of(world.htap).mirror.transaction() as transaction:
            assert isinstance(transaction, FileTransaction)
            buffer = transaction._buffer(table)
            if mode == "destructive":
                append_rows(buffer, table, rows)
            else:
                since = pa.array([NOW - timedelta(days=place)], pa.timestamp("us", "UTC"))
                versions = rows.append_column(VALID_FROM, since)
                versions = versions.append_column(VALID_TO, pa.nulls(1, since.type))
                versions = versions.append_column(OPERATION, pa.array(["I"]))
                append_versions(buffer, table, versions, past=False)
    found = _verified(world)
    assert (found.duplicate, found.samples["duplicate"]) == (1, ('{"id": 2}',))
    assert found.broken_history == (1 if mode == "temporal" else 0)
    position = world.htap.changes("t").position if mode == "temporal" else None
    world.htap.repair("t")
    world.assert_equal("t")
    assert _verified(world).equal
    if position is not None:
        with pytest.raises(ChangesLostError):
            world.htap.changes("t", position)


@pytest.mark.long
def test_the_command_line_names_what_contradicts_itself(make_world: MakeWorld) -> None:
    world = _world(make_world, "temporal")
    _forge(world, "insert into t select * from t where id = 2")
    world.crash()
    declared = world.directory / "pipeline.yaml"
    declared.write_text(
        f"source: {{path: {world.path}}}\nmode: temporal\n"
        f"mirror: {{path: {world.directory / 'mirror.duckdb'}}}\n"
        f"registry: {{path: {world.directory / 'registry.json'}}}\n"
    )
    told = CliRunner().invoke(app, ["verify", "--config", str(declared)])
    assert told.exit_code == 1
    assert "contradicts itself" in told.output
    assert CliRunner().invoke(app, ["repair", "t", "--config", str(declared)]).exit_code == 0
    told = CliRunner().invoke(app, ["verify", "--config", str(declared)])
    assert (told.exit_code, "contradicts itself" in told.output) == (0, False)


def test_a_version_without_a_key_is_ended_once(make_world: Callable[..., World]) -> None:
    """Copied again, its table keeps the instant at which it was ended: the past stays as it is."""
    world = make_world(mode="temporal")
    world.run("create table t(id integer primary key, n integer)", "insert into t values (1, 1)")
    world.htap.sync_now()
    connection_of(engine_of(world.htap).mirror).execute(
        f"insert into t select null, 8, {VALID_FROM}, null, 'I' from t"
    )
    found = []
    for _ in range(2):
        world.htap.initial_sync("t")
        found.append(world.versions("t", "n"))
    assert found[0] == found[1]
    assert [(row["n"], row[VALID_TO] is None) for row in found[0]] == [(1, True), (8, False)]
