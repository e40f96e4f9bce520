"""Tables of as many columns as SQLite allows: the application writes on, and all of it arrives."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.sources.sqlite.database import SqliteDatabase
from rhei_pipeline.sources.sqlite.triggers.source import SqliteTriggerSource
from tests.support.fix_world import World

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]

BOTH_MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])
COLUMNS = 2_000  # SQLITE_MAX_COLUMN


def wide(count: int, constraint: str = "") -> str:
    """Write a table of so many columns."""
    columns = ", ".join(f"c{number} integer" for number in range(count - 2))
    return f"create table t(id integer primary key, v text, {columns}{constraint})"


WRITES = (
    "insert into t(id, c0, {last}) values (3, 3, 3)",
    "update t set v = 'c', {last} = 4 where id = 1",
    "replace into t(id, {last}) values (3, 5)",
    "update t set id = 4 where id = 2",
    "delete from t where id = 4",
)


@pytest.mark.long
@BOTH_MODES
def test_a_mirror_follows_every_statement_over_a_table_of_more_columns_than_one_join_names(
    make_world: MakeWorld, mode: str
) -> None:
    world = make_world(mode=mode)
    world.run(wide(300), "insert into t(id, v, c297) values (1, 'a', 1), (2, 'b', 2)")
    world.htap.sync_now()
    world.run(*(sql.format(last="c297") for sql in WRITES))
    # The triggers of before outlive the column that they name.
    world.run("alter table t drop column c1", "update t set c297 = 6 where id = 1")
    assert world.htap.sync_now().tables["t"].error is None
    world.assert_equal("t")
    if mode == "temporal":
        versions = world.versions("t", order="id, _rhei_valid_from")
        assert [(row["id"], row["c297"]) for row in versions] == [
            *((1, 1), (1, 4), (1, 6)),
            (2, 2),
            *((3, 3), (3, 5)),
            (4, 2),
        ]


@pytest.mark.long
@BOTH_MODES
@pytest.mark.parametrize("count", [1_000, COLUMNS])
def test_changes_of_a_table_of_as_many_columns_as_there_can_be_are_read_whole(
    tmp_path: Path, mode: str, count: int
) -> None:
    last = f"c{count - 3}"
    app = sqlite3.connect(tmp_path / "app.db", isolation_level=None)
    app.execute(wide(count))
    app.execute(f"insert into t(id, v, {last}) values (1, 'a', 1), (2, 'b', 2)")
    source = SqliteTriggerSource(SqliteDatabase(tmp_path / "app.db"), "mirror")
    table = Table(source.describe("t"), Mode(mode))
    source.install(table, 0)
    with source.snapshot() as snapshot:
        after = snapshot.head(table)
    for sql in WRITES:
        app.execute(sql.format(last=last))
    source.touch(table, [(1,)])
    with source.snapshot() as snapshot:
        batches = [batch.events for batch in snapshot.changes(table, after, 2)]
        found = pa.concat_tables(batches).to_pylist()
    rows = [(row["id"], row["_rhei_live"], row["v"], row["c0"], row[last]) for row in found]
    if mode == "destructive":
        gone = (False, None, None, None)
        assert sorted(rows) == [
            (1, True, "c", None, 4),
            (2, *gone),
            (3, True, None, None, 5),
            (4, *gone),
        ]
    else:
        assert rows == [
            (3, True, None, 3, 3),
            (1, True, "c", None, 4),
            (3, True, None, None, 5),
            (4, True, "b", None, 2),
            (2, False, None, None, None),
            (4, False, None, None, None),
            (1, True, "c", None, 4),
        ]
    app.close()
    source.close()


def test_where_triggers_would_be_too_deep_the_table_is_refused_and_the_application_writes_on(
    make_world: MakeWorld,
) -> None:
    world = make_world()
    terms = ", ".join(f"c{number}" for number in range(900))
    world.run("create table good(id integer primary key)", wide(1_000, f", unique({terms})"))
    report = world.htap.sync_now()
    assert "cannot be captured by triggers" in str(report.tables["t"].error)
    world.run("insert into good values (1)", "insert into t(id, c0) values (1, 1)")
    world.htap.sync_now()
    world.assert_equal("good")


@pytest.mark.long
def test_triggers_of_before_that_do_harm_go_with_the_refusal(make_world: MakeWorld) -> None:
    world = make_world(tables=[{"name": "t"}])
    terms = ", ".join(f"c{number}" for number in range(900))
    world.run(wide(1_000))
    world.htap.sync_now()
    world.crash()
    world.run(
        f"create unique index u on t({terms})",
        wide(1_000).replace("table t", "table twin"),
        "drop trigger _rhei_insert_t",
        "create trigger _rhei_insert_t after insert on t"
        " begin select 1 from t natural left join twin; end",
    )
    with pytest.raises(sqlite3.OperationalError, match="too large"):
        world.run("insert into t(id) values (1)")
    assert "cannot be captured" in str(world.htap.sync_now().tables["t"].error)
    # SQLite does not look at the schema again for a statement that fails to compile.
    world.run("select count(*) from t", "insert into t(id) values (1)")
