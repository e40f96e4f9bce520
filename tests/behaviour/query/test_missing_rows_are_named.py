"""Whoever asks the mirror for a table with dead letters is told that rows of it are missing."""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

import rhei_pipeline as rhei
from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import QueryError
from rhei_pipeline.htap import HTAP
from rhei_pipeline.model.change_feed import ChangeStream
from rhei_pipeline.model.streaming import Streamed
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

MakeWorld = Callable[..., World]
#: What only the mirror can answer, whoever is asked.
PRESENT = "select id from {} where _rhei_valid_to is null"


@pytest.fixture(params=[None, "parquet"])
def lacking(request: pytest.FixtureRequest, make_world: MakeWorld) -> World:
    """Mirror two tables, with a row in `t` that does not fit its type."""
    world = make_world(mode="temporal", storage=request.param)
    world.run(
        "create table t(id integer primary key, n integer)",
        "create table u(id integer primary key)",
        "insert into t values (1, 1), (2, 'no number')",
        "insert into u values (1)",
    )
    world.htap.sync_now()
    return world


def told(found: pa.Table | Streamed | ChangeStream) -> object:
    """Return what an answer says that it lacks."""
    labels: Mapping[bytes, bytes] = found.schema.metadata or {}
    return json.loads(labels.get(b"rhei.dead_letters", b"{}"))


def left(found: pa.Table) -> object:
    """Return which of its tables an answer says are no longer synced, and since when."""
    labels: Mapping[bytes, bytes] = found.schema.metadata or {}
    return json.loads(labels.get(b"rhei.not_followed", b"{}"))


def answers(htap: HTAP, table: str) -> Iterator[tuple[pa.Table | Streamed, pa.Table]]:
    """Yield the mirror's answers with their rows, whichever way they are asked for."""
    sql, now = PRESENT.format(table), datetime.now(UTC)
    for found in (htap.query(sql), htap.query(sql, hint="olap"), htap.as_of(table, now)):
        yield found, found
    for streamed in (htap.stream(sql), htap.stream(sql, hint="olap")):
        yield streamed, pa.Table.from_batches(streamed.batches, streamed.schema)


def test_every_answer_of_the_mirror_names_the_rows_that_it_lacks(lacking: World) -> None:
    for found, rows in answers(lacking.htap, "t"):
        assert rows["id"].to_pylist() == [1]
        assert told(found) == {"t": 1}
    for found, rows in answers(lacking.htap, "u"):
        assert rows.num_rows == 1
        assert told(found) == {}
    lacking.run("update t set n = 2 where id = 2")
    lacking.htap.sync_now()
    for found, rows in answers(lacking.htap, "t"):
        assert rows.num_rows == 2
        assert told(found) == {}


def test_a_statement_that_only_its_engine_can_read_names_all_that_is_lacking(
    make_world: MakeWorld,
) -> None:
    world = make_world()
    world.run("create table t(id integer primary key, n integer)", "insert into t values (1, 'x')")
    world.htap.sync_now()
    found = world.htap.query(
        "select (max(n)::integer)! from t", hint="olap"
    )  # a factorial is DuckDB's alone
    assert (found.num_rows, told(found)) == (1, {"t": 1})


def test_a_table_is_asked_of_its_source_until_it_is_copied_and_only_then_is_called_so(
    make_world: MakeWorld,
) -> None:
    world = make_world()
    world.run("create table t(id integer primary key)", "insert into t values (1), (2)")
    count, wrong = "select count(*) as n from t", "select nothing from t"
    assert world.htap.explain_route(count).engine == "oltp"
    assert world.htap.query(count)["n"].to_pylist() == [2]
    with pytest.raises(QueryError, match="table 't' is not copied yet"):
        world.htap.query(count, hint="olap")
    world.htap.sync_now()
    assert world.htap.explain_route(count).engine == "olap"
    with pytest.raises(QueryError) as refused:
        world.htap.query(wrong, hint="olap")
    assert "copied" not in refused.value.message


def test_such_a_statement_is_not_refused_for_a_table_that_it_may_not_read(
    make_world: MakeWorld,
) -> None:
    world = make_world()
    world.run(*(f"create table {name}(id integer primary key)" for name in "tu"))
    world.run("insert into t values (3)")
    world.htap.sync_now()
    world.crash()
    world.tables = [{"name": "t"}]
    assert world.htap.sync_now().not_followed.keys() == {"u"}
    asked = "select (max(id)::integer)! as n from t"
    found = world.htap.query(asked, hint="olap", max_staleness=60)
    assert found["n"].to_pylist() == [6]
    assert left(found)  # but it may read it


def of_the_past(htap: HTAP, table: str) -> list[pa.Table]:
    """Return what the mirror answers of a table's past, of which there is none yet."""
    since = htap.known_since(table)
    return [
        htap.as_of(table, since),
        htap.changes(table).rows,
        htap.changes(table, htap.changes(table).position).rows,
        htap.diff(table, since, datetime.now(UTC)),
    ]


def test_what_changed_names_the_rows_that_it_lacks(lacking: World) -> None:
    for table, missing in (("t", {"t": 1}), ("u", {})):
        assert [told(found) for found in of_the_past(lacking.htap, table)] == [missing] * 4
        streamed = lacking.htap.stream_changes(table)
        assert told(streamed) == missing
        assert pa.Table.from_batches(streamed.batches, streamed.schema).num_rows == 1


def test_the_past_names_the_rows_that_it_lacks_without_the_source_too(lacking: World) -> None:
    lacking.crash()
    (lacking.directory / "app.db").rename(lacking.directory / "moved.db")
    with HTAP(lacking.settings, hold=False) as htap:
        assert [told(found) for found in of_the_past(htap, "t")] == [{"t": 1}] * 4
        assert [told(found) for found in of_the_past(htap, "u")] == [{}] * 4


def test_readers_of_the_files_name_the_tables_that_are_no_longer_synced(lacking: World) -> None:
    lacking.crash()
    lacking.tables = [{"name": "t"}]
    since = {"u": lacking.htap.sync_now().not_followed["u"].isoformat()}
    assert [left(found) for found in of_the_past(lacking.htap, "u")] == [since] * 4
    assert [left(found) for found in of_the_past(lacking.htap, "t")] == [{}] * 4
    lacking.crash()
    settings = lacking.settings
    with rhei.reader(settings) as reader:
        assert left(reader.query("select * from u")) == since
        assert left(reader.query("select * from t")) == {}
    with rhei.reader({"shop": settings, "old": settings}) as reader:
        both = {f"{name}.u": since["u"] for name in ("shop", "old")}
        assert left(reader.query("select * from shop.u join old.u x using (id)")) == both
        assert left(reader.query("select * from shop.t")) == {}
    registry = settings.registry.path
    for kept in (
        "{",
        json.dumps(json.loads(registry.read_text()) | {"mirror": "of another"}),
        None,
    ):
        registry.unlink()
        if kept is not None:
            registry.write_text(kept)
        with rhei.reader(settings) as reader:
            assert left(reader.query("select * from u")) == {}


def test_readers_of_the_files_name_the_rows_that_they_lack(lacking: World) -> None:
    """Of the mirror alone, and of several at once, in schemas of their own or as one."""
    lacking.crash()
    settings = lacking.settings
    with rhei.reader(settings) as reader:
        assert told(reader.query(PRESENT.format("t"))) == {"t": 1}
        assert told(reader.query(PRESENT.format("u"))) == {}
    with rhei.reader({"shop": settings, "Old": settings}) as reader:
        # Before the schema stands the mirror's name; DuckDB calls its own schema so.
        whole = "shop.main.t" if settings.mirror.kind == "duckdb" else "shop.t"
        assert told(reader.query(PRESENT.format(whole))) == {"shop.t": 1}
        assert told(reader.query("select * from shop.t join Old.t x using (id)")) == {
            "shop.t": 1,
            "Old.t": 1,
        }
        assert told(reader.query(PRESENT.format("shop.u"))) == {}
    lacking.run("update t set n = 2 where id = 2")
    with HTAP(settings) as htap:
        htap.sync_now()
    with rhei.reader(settings) as reader:
        assert told(reader.query(PRESENT.format("t"))) == {}


def test_readers_of_a_published_copy_name_them(make_world: MakeWorld) -> None:
    world = make_world()
    world.published = {"path": world.directory / "copy.duckdb", "interval_seconds": 0}
    world.run(
        "create table t(id integer primary key, n integer)",
        "insert into t values (1, 1), (2, 'no number')",
    )
    world.htap.sync_now()  # whose process has the file open meanwhile
    with rhei.reader({"shop": world.settings}) as reader:
        found = reader.query("select * from shop.t")
    assert json.loads(found.schema.metadata[b"rhei.read_from"]) == {"shop": "published copy"}
    assert told(found) == {"shop.t": 1}


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_tables_are_known_by_the_names_that_they_have_in_the_mirror(
    make_world: MakeWorld, storage: str | None
) -> None:
    """One mirror's table may have the name that another table has in the source."""
    sales, plain = {"name": "t", "mirror_name": "Sales"}, {"name": "u", "mirror_name": "t"}
    world = make_world(mode="temporal", storage=storage, tables=[sales, plain])
    world.run(
        "create table t(id integer primary key, n integer)",
        "create table u(id integer primary key)",
        "insert into t values (1, 1), (2, 'no number')",
        "insert into u values (1)",
    )
    world.htap.sync_now()
    asked = {"Sales": {"t": 1}, "t": {}, "sales natural join t": {"t": 1}}
    for names, expected in asked.items():
        assert told(world.htap.query(f"select 1 from {names}", hint="olap")) == expected
        assert told(world.htap.stream(f"select 1 from {names}", hint="olap")) == expected
    world.crash()
    settings = world.settings
    with rhei.reader(settings) as reader:
        for names, expected in asked.items():
            assert told(reader.query(f"select 1 from {names}")) == expected
    with rhei.reader({"shop": settings, "old": settings}) as reader:
        assert told(reader.query("select 1 from shop.Sales, old.t")) == {"shop.t": 1}
        assert told(reader.query("select 1 from shop.t, old.t")) == {}
    world.tables = [plain]
    since = {"t": world.htap.sync_now().not_followed["t"].isoformat()}
    assert left(world.htap.query("select 1 from Sales", hint="olap")) == since
    assert left(world.htap.query("select 1 from t", hint="olap")) == {}
    with pytest.raises(QueryError, match="'t' is no longer followed"):
        world.htap.query(PRESENT.format("Sales"))
    world.crash()
    with rhei.reader(settings) as reader:
        assert left(reader.query("select 1 from Sales")) == since
        assert left(reader.query("select 1 from t")) == {}
    (world.directory / "app.db").rename(world.directory / "moved.db")
    with HTAP(world.settings, hold=False) as htap:
        assert told(htap.query("select 1 from Sales", hint="olap")) == {"t": 1}
        assert told(htap.query("select 1 from t", hint="olap")) == {}


def test_so_they_are_of_schemas_of_postgres(make_postgres: Callable[..., PostgresWorld]) -> None:
    lists = {"types": {"v": "int32[]"}}
    tables = [
        {"name": "t", "mirror_name": "sales", **lists},
        {"name": "Shop.t", "mirror_name": "Of T", **lists},
    ]
    world = make_postgres(capture={"method": "trigger"}, tables=tables)
    world.run('create schema "Shop"')
    for name in ("t", '"Shop".t'):
        world.run(
            f"create table {name}(id int primary key, v int[])",
            f"insert into {name} values (1, null), (2, '{{{{1, 2}}, {{3, 4}}}}')",
        )
    world.htap.sync_now()
    for name, expected in {
        "sales": {"t": 1},
        "public.sales": {"t": 1},
        '"Shop"."Of T"': {"Shop.t": 1},
    }.items():
        assert told(world.htap.query(f"select id from {name}", hint="olap")) == expected
    world.crash()
    with rhei.reader({"own": world.settings}) as reader:
        assert told(reader.query("select id from own.public.sales")) == {"own.t": 1}
        assert told(reader.query('select id from own."Shop"."Of T"')) == {"own.Shop.t": 1}


def test_the_command_that_shows_the_past_says_that_rows_are_missing(
    lacking: World, tmp_path: Path
) -> None:
    form, config = lacking.settings.model_dump(mode="json"), tmp_path / "pipeline.yaml"
    lacking.crash()
    mirror = {name: form["mirror"][name] for name in ("kind", "storage", "path")}
    source = {"path": form["source"]["path"]}
    declared = {"source": source, "mirror": mirror, "registry": form["registry"]}
    config.write_text(json.dumps({**declared, "mode": "temporal"}))
    now = datetime.now(UTC).isoformat()
    for table, says in (("t", True), ("u", False)):
        for asked in (
            ["as-of", table, now],
            ["changes", "--table", table],
            ["changes", "--table", table, "--json"],
            ["diff", "--table", table, "--from", now],
            ["diff", "--table", table, "--from", now, "--json"],
        ):
            ran = CliRunner().invoke(app, [*asked, "--config", str(config)])
            assert ran.exit_code == 0, ran.output
            assert ("1 row may be missing or old" in ran.stderr) is says
