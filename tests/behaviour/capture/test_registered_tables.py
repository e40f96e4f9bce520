"""Tables that are registered at run time, and the end of a table's capture."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import rhei_pipeline as rhei
from rhei_pipeline import Mode, Settings
from rhei_pipeline.errors import SchemaError, SettingsError
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.refusals import refused
from tests.support.refusals import rhei as command

AnyWorld = World | PostgresWorld
#: What a source's captures leave in it of the table `t`.
LEFT = {
    World: "select count(*) from sqlite_master where sql is not null and type <> 'index' and"
    " (name like '\\_rhei\\_%\\_t' escape '\\' or tbl_name = 't' and name <> 't')",
    PostgresWorld: "select (select count(*) from pg_trigger where tgrelid = 't'::regclass)"
    " + (select count(*) from pg_publication_tables where tablename = 't')"
    " + (select count(*) from pg_class where relname = 'log_' || 't'::regclass::oid)",
}
WAYS: dict[str, dict[str, Any]] = {
    "sqlite": {},
    "buffered": {"buffered": True},
    "postgres by triggers": {"capture": {"method": "trigger"}},
    "postgres by its log": {"capture": {"method": "logical"}},
}


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Callable[..., AnyWorld]:
    """Make a world whose declaration names no table, captured in one of the ways."""

    def made(way: str, **options: Any) -> AnyWorld:
        kind = "make_postgres" if way.startswith("postgres") else "make_world"
        chosen = {"tables": [], **WAYS[way], **options}
        world: AnyWorld = request.getfixturevalue(kind)(**chosen)
        world.run(
            "create table t(id integer primary key, v text, w integer)",
            "create table u(id integer primary key)",
            "insert into t values (1, 'a', 1), (2, 'b', 2)",
        )
        return world

    return made


def left(world: AnyWorld) -> int:
    """Return how many parts of the capture of `t` the source has."""
    found = world.app.execute(LEFT[type(world)]).fetchone()
    assert found is not None
    return int(found[0])


def history(world: AnyWorld) -> list[str]:
    """Return the values that `t` has had for the key 1, by time."""
    sql = "select v from t where id = 1 order by _rhei_valid_from"
    values: list[str] = world.htap.query(sql, hint="olap")["v"].to_pylist()
    return values


@pytest.mark.long
@pytest.mark.parametrize("way", ["sqlite", "postgres by its log"])
def test_what_is_registered_is_remembered(make: Callable[..., AnyWorld], way: str) -> None:
    world = make(way)
    assert not world.htap.sync_now().tables
    world.htap.register_table("t", "temporal", columns=["id", "v"], types={"id": "int64"})
    world.htap.register_table("u")
    world.htap.sync_now()
    for _ in range(2):
        assert world.htap.tables() == ["t", "u"]
        found = world.htap.table_schemas()["t"]
        assert (found.mode, found.schema.names) == (Mode.TEMPORAL, ("id", "v"))
        shown = {table.name: table for table in rhei.declared_schemas(world.settings).tables}
        assert shown == {**world.htap.table_schemas()}
        world.htap.register_table("t")  # says nothing new
        world.crash()
    world.run("update t set v = 'c' where id = 1")
    world.htap.register_table("t", columns=["id", "v", "w"])
    world.htap.sync_now()
    assert world.htap.table_schemas()["t"].schema.names == ("id", "v", "w")
    assert world.htap.verify().equal
    assert set(history(world)) == {"a", "c"}
    with pytest.raises(SchemaError, match=r"column 'nothing'"):
        world.htap.register_table("t", columns=["id", "nothing"])
    with pytest.raises(SettingsError, match="types"):
        world.htap.register_table("t", types={"v": "no type"})
    world.htap.sync_now()
    assert world.htap.table_schemas()["t"].schema.names == ("id", "v", "w")


def test_a_polled_table_is_registered_with_how_it_is_polled(
    make_world: Callable[..., World],
) -> None:
    world = make_world(method="polling", tables=[])
    world.run(
        "create table t(id integer primary key, changed text)",
        "insert into t values (1, '2026-01-01T00:00:00Z')",
    )
    with pytest.raises(SchemaError, match="updated_at"):
        world.htap.register_table("t")
    world.htap.register_table("t", polling={"updated_at": "changed"})
    assert world.htap.sync_now().tables["t"].copied_rows == 1
    world.crash()
    assert not world.htap.sync_now().errors
    world.htap.unregister_table("t")
    assert world.htap.tables() == []


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_an_unregistered_table_leaves_nothing_in_the_source(
    make: Callable[..., AnyWorld], way: str
) -> None:
    world = make(way)
    world.htap.register_table("t", "temporal")
    world.htap.register_table("u")
    world.htap.sync_now()
    assert left(world)
    world.run("update t set v = 'b' where id = 1")
    world.htap.unregister_table("T" if isinstance(world, World) else "public.t")
    assert left(world) == 0
    for _ in range(2):
        # What was pending was applied first; the history stays, and is named.
        assert history(world) == ["a", "b"]
        assert world.htap.sync_now().not_followed.keys() == {"t"}
        assert world.htap.tables() == ["u"]
        world.crash()
    world.run("update t set v = 'unseen' where id = 1", "update t set v = 'c' where id = 1")
    world.htap.unregister_table("t")  # safe to repeat
    world.htap.register_table("t", "temporal")
    world.htap.sync_now()
    assert history(world) == ["a", "b", "c"]
    assert left(world)
    assert world.htap.verify().equal
    with pytest.raises(SchemaError, match="did you mean"):
        world.htap.unregister_table("tt")


@pytest.mark.parametrize("way", ["sqlite", "postgres by triggers"])
def test_what_another_mirror_needs_stays(make: Callable[..., AnyWorld], way: str) -> None:
    world = make(way)
    other = Settings(
        source=world.settings.source,
        capture=world.settings.capture,
        mirror={"path": world.directory / "other.duckdb"},
        registry={"path": world.directory / "other.json"},
        tables=[{"name": "t", "mode": "temporal"}],
    )
    with rhei.open(other) as htap:
        htap.sync_now()
        world.htap.register_table("t")
        world.htap.sync_now()
        world.run("update t set v = 'b' where id = 1")
        world.htap.unregister_table("t")
        assert left(world)
        world.run("update t set v = 'c' where id = 1")
        assert htap.sync_now().tables["t"].copied_rows == 0
        sql = "select v from t where id = 1 order by _rhei_valid_from"
        assert htap.query(sql, hint="olap")["v"].to_pylist() == ["a", "b", "c"]


@pytest.mark.long
@pytest.mark.parametrize("way", ["sqlite", "postgres by its log"])
def test_a_table_that_left_the_declaration_is_captured_for_a_week(
    make: Callable[..., AnyWorld], way: str
) -> None:
    named = [{"name": "t", "mode": "temporal"}, {"name": "u"}]
    world = make(way, tables=named)
    world.htap.sync_now()
    world.crash()
    world.tables = named[1:]
    world.run("update t set v = 'b' where id = 1")
    world.htap.sync_now()
    world.crash()
    world.run("update t set v = 'c' where id = 1")
    world.tables = named
    world.htap.sync_now()
    # A slot may have moved on for the other tables, and then only the difference is known.
    assert history(world) in [["a", "b", "c"], *([["a", "c"]] if way != "sqlite" else [])]
    world.crash()
    world.tables = named[1:]
    world.htap.sync_now()
    assert left(world)
    world.crash()
    registry = world.settings.registry.path
    form = json.loads(registry.read_text())
    form["tables"]["t"]["left_at"] = (datetime.now(UTC) - timedelta(days=8)).isoformat()
    registry.write_text(json.dumps(form))
    report = world.htap.sync_now()
    assert (left(world), [*report.not_followed]) == (0, ["t"])
    assert history(world)[-1] == "c"


def test_a_table_that_is_left_out_has_not_left(make: Callable[..., AnyWorld]) -> None:
    world = make("sqlite", tables=[{"name": "t", "mode": "temporal"}, {"name": "u"}])
    world.htap.sync_now()
    world.crash()
    world.run("alter table t rename to away")
    assert world.htap.sync_now().errors.keys() == {"t"}
    assert "left_at" not in world.settings.registry.path.read_text()


@pytest.mark.long
def test_the_slot_of_a_table_that_is_left_out_stays(make: Callable[..., AnyWorld]) -> None:
    world = make("postgres by its log", tables=[{"name": "t"}])
    slots = "select count(*) from pg_replication_slots where database = current_database()"
    world.htap.register_table("u")
    world.htap.sync_now()
    world.crash()
    world.run("alter table t rename to away")
    world.htap.unregister_table("u")
    assert world.app.execute(slots).fetchone() == (1,)
    world.crash()
    world.run("alter table away rename to t", "update t set v = 'b' where id = 1")
    assert world.htap.sync_now().tables["t"].copied_rows == 0
    world.crash()
    world.tables = []
    world.htap.unregister_table("t")
    assert world.app.execute(slots).fetchone() == (0,)


def test_a_dropped_table_that_is_not_declared_leaves_nothing(make: Callable[..., AnyWorld]) -> None:
    world = make("sqlite", tables=[{"name": "t"}, {"name": "u"}])
    world.htap.sync_now()
    world.crash()
    world.tables = [{"name": "u"}]
    world.htap.drop_table("t")
    assert left(world) == 0


def test_where_all_tables_are_mirrored_one_is_ignored_from_now_on(
    make: Callable[..., AnyWorld],
) -> None:
    world = make("sqlite", tables=None)
    world.htap.sync_now()
    world.crash()
    command(world.settings, world.directory, "unregister", "t")
    world.htap.sync_now()
    assert (world.htap.tables(), left(world)) == (["u"], 0)
    assert [table.name for table in rhei.declared_schemas(world.settings).tables] == ["u"]
    world.htap.register_table("T")
    world.crash()
    world.htap.sync_now()
    assert world.htap.tables() == ["t", "u"]


def test_what_the_declaration_says_is_not_contradicted(make: Callable[..., AnyWorld]) -> None:
    world = make("sqlite", tables=[{"name": "t", "columns": ["id", "v"]}])
    world.htap.register_table("t", columns=["id", "v"])
    with refused("change it there, and leave it out of the call", SchemaError):
        world.htap.register_table("T", columns=["id"])
    with refused(
        "remove it from 'tables' there; then 'rhei unregister' ends its capture", SchemaError
    ):
        world.htap.unregister_table("t")
    world.htap.sync_now()
    world.crash()
    world.tables = [{"name": "u"}]
    command(world.settings, world.directory, "unregister", "t")
    assert left(world) == 0
    world.tables = [{"name": "t", "columns": ["id"]}]
    world.htap.register_table("T")
    world.htap.sync_now()
    assert world.htap.table_schemas()["t"].schema.names == ("id",)
