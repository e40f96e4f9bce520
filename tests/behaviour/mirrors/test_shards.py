"""One declaration shares its tables among several pipelines, which are read as one mirror."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

import rhei_pipeline as rhei
from rhei_pipeline import Settings
from rhei_pipeline.cli.main import app
from rhei_pipeline.dagster import build_definitions
from rhei_pipeline.errors import SettingsError
from rhei_pipeline.settings.shards import Sharding
from rhei_pipeline.testing.oracle import arrow_rows
from tests.behaviour.privacy import test_people
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.model import source_rows

TABLES = [f"t{number}" for number in range(7)]


def filled(world: World) -> Settings:
    """Return a declaration with three shards over seven tables, which are found in the source."""
    for number, table in enumerate(TABLES):
        world.run(f"create table {table}(id integer primary key, v text)")
        world.run(f"insert into {table} values (1, 'a'), ({number + 2}, 'b')")
    values = {name: getattr(world.settings, name) for name in ("source", "mirror", "registry")}
    return Settings(**values, name="shop", shards=3, mode="temporal")


def sync(pipelines: Sequence[Settings]) -> dict[str, int | None]:
    """Sync each shard; return the watermark of each table."""
    found: dict[str, int | None] = {}
    for pipeline in pipelines:
        with rhei.open(pipeline) as htap:
            report = htap.sync_now()
            assert not report.errors
            found |= {name: table.watermark for name, table in report.tables.items()}
    return found


def told(found: pa.Table) -> Any:
    return json.loads((found.schema.metadata or {})[b"rhei.watermark"])


@pytest.mark.long
@pytest.mark.parametrize("storage", [None, "parquet"])
def test_shards_are_mirrors_of_their_own_and_read_as_one(
    make_world: Callable[..., World], storage: str | None
) -> None:
    world = make_world(storage=storage)
    settings = filled(world)
    pipelines = settings.pipelines()
    assert len({pipeline.mirror.path for pipeline in pipelines}) == 3
    sync(pipelines)
    for table in TABLES:
        world.run(f"update {table} set v = 'c' where id = 1", f"delete from {table} where id <> 1")
    world.run("create table t7(id integer primary key, v text)", "insert into t7 values (1, 'new')")
    marks = sync(pipelines)
    assert marks.keys() == {*TABLES, "t7"}
    day, end = date(2100, 1, 1), datetime(2100, 1, 2, tzinfo=UTC)
    for pipeline in pipelines:
        with rhei.open(pipeline) as htap:
            assert htap.verify().equal
            for table in htap.tables():
                htap.snapshot(table, {day: end})
    with rhei.reader(settings) as reader:
        for table in (*TABLES, "t7"):
            found = reader.query(f"select id, v from {table} where _rhei_valid_to is null")
            assert arrow_rows(found) == source_rows(world.app, table), table
        assert told(found) == marks
        every = " union all ".join(f"select * from snapshot.{table}" for table in TABLES)
        assert reader.query(f"select count(*) as n from ({every})")["n"].to_pylist() == [7]
        joined = "select count(*) as n from t0, t3, t5 where t0.id = t3.id and t3.id = t5.id"
        assert reader.query(joined)["n"].to_pylist() == [8]


def test_a_new_shard_moves_no_table_but_those_that_it_takes() -> None:
    names = [f"table_{number}" for number in range(500)]
    before, after = (Sharding(count, str) for count in (4, 5))
    moved = {name for name in names if before.shard_of(name) != after.shard_of(name)}
    assert moved == {name for name in names if after.shard_of(name) == 5}
    assert all(60 < size < 140 for size in Counter(map(after.shard_of, names)).values())


def test_patterns_name_the_tables_of_each_shard(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres(storage="parquet")
    world.run("create schema sales")
    names = ("orders", "order_items", "sales.bills", "other")
    for name in names:
        world.run(f"create table {name}(id int primary key)", f"insert into {name} values (1)")
    values = {name: getattr(world.settings, name) for name in ("source", "mirror", "registry")}
    declared = Settings(**values, shards=[["public.orders", "order_*"], ["sales.*"], ["no_*"]])
    pipelines = declared.pipelines()
    sync(pipelines)
    world.run(*(f"insert into {name} values (2), (3)" for name in names))
    sync(pipelines)
    mirrored = []
    for pipeline in pipelines:
        with rhei.open(pipeline) as htap:
            mirrored.append({name.removeprefix("public.") for name in htap.tables()})
            assert htap.verify().equal
    assert mirrored == [{"orders", "order_items"}, {"sales.bills"}, {"other"}]
    with rhei.reader(declared) as reader:
        found = reader.query(
            "select (select count(*) from orders) as a, (select count(*) from sales.bills) as b,"
            " (select count(*) from public.other) as c"
        )
    assert found.to_pylist() == [{"a": 3, "b": 3, "c": 3}]


def test_what_is_not_of_one_shard_is_refused_with_the_way_out(world: World) -> None:
    settings = filled(world)
    with pytest.raises(SettingsError, match=r"3 pipelines.*take one: rhei\.open"):
        rhei.open(settings)
    with pytest.raises(SettingsError, match=r"no shard 4.*give a number from 1 to 3"):
        settings.of_shard(4)
    with pytest.raises(SettingsError, match="leave the shard out"):
        world.settings.of_shard(1)
    assert settings.sharding is not None
    own = settings.sharding.shard_of("t0")
    other = own % 3 + 1
    with (
        rhei.open(settings.of_shard(other)) as htap,
        pytest.raises(SettingsError, match=f"belongs to shard {own}.*'--shard {own}'"),
    ):
        htap.register_table("t0")
    with rhei.open(settings.of_shard(own)) as htap:
        htap.register_table("t0")
        htap.sync_now()
        assert "t0" in htap.tables()


@pytest.mark.long
def test_commands_work_on_all_shards_or_on_one(
    make_world: Callable[..., World], tmp_path: Path
) -> None:
    world = make_world()
    settings = filled(world)
    config = tmp_path / "pipeline.yaml"
    config.write_text(json.dumps(settings.model_dump(mode="json")))

    assert settings.sharding is not None
    shard_of = settings.sharding.shard_of

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--config", str(config)])

    pending = [json.loads(line) for line in run("sync", "--dry-run", "--json").stdout.splitlines()]
    assert sorted(each["table"] for found in pending for each in found["pending"]) == TABLES
    reports = [json.loads(line) for line in run("sync", "--json").stdout.splitlines()]
    assert sorted(name for report in reports for name in report["tables"]) == TABLES
    sql = f"select count(*) as n from {', '.join(TABLES)}"
    assert json.loads(run("query", sql, "--json").stdout) == [{"n": 2**7}]
    assert run("verify").exit_code == 0
    assert run("as-of", "t3", "2100-01-01", "--json").exit_code == 0
    for unknown in (("repair", "t33"), ("as-of", "t33", "2100-01-01"), ("copy", "--table", "t33")):
        assert "did you mean 't3'?" in str(run(*unknown).exception)
    changes = [json.loads(line) for line in run("schema", "log", "--json").stdout.splitlines()]
    assert len(changes) == 3
    world.run("drop table t3", "create table t3(v text)")  # without a key it is left out
    assert run("sync").exit_code == 3
    assert run("sync", "--shard", str(shard_of("t3") % 3 + 1)).exit_code == 0
    for asked in (("query", "--explain", "select 1"), ("drop-table", "t1", "--discard-history")):
        refused = run(*asked)
        assert "name one for this command: '--shard 1', up to 3" in str(refused.exception)
    assert run("query", "--explain", "select 1", "--shard", "1").exit_code == 0
    world.run("drop table t4")
    assert run("sync").exit_code == 3
    way = re.search(r"'rhei (drop-table t4 --shard \d)'", run("status").output)
    assert way is not None
    assert run(*way[1].split(), "--discard-history", "--yes").exit_code == 0
    assert "t4" not in run("status").output


@pytest.mark.long
def test_a_person_is_forgotten_in_all_shards(
    make_world: Callable[..., World], tmp_path: Path
) -> None:
    world = make_world()
    test_people.live(world)
    values = {name: getattr(world.settings, name) for name in ("source", "mirror", "registry")}

    def declared(*shards: list[str]) -> Settings:
        tables = {"tables": test_people.TABLES, "people": test_people.PEOPLE}
        return Settings(**values, **tables, name="shop", shards=list(shards))

    with pytest.raises(SettingsError, match="'items' is found by 'orders', which is in another"):
        declared(["orders"], ["*"])
    settings = declared(["orders", "items"], ["visits"], ["customers"], ["nothing"])
    config = tmp_path / "pipeline.yaml"
    config.write_text(json.dumps(settings.model_dump(mode="json")))
    sync(settings.pipelines())
    test_people.gone(world)

    def run(*arguments: str) -> Result:
        asked = ["forget", "--person", "customer=42", "--config", str(config)]
        return CliRunner().invoke(app, [*asked, *arguments])

    done = run("--json")
    assert done.exit_code == 0, done.output
    told = [json.loads(line)["tables"] for line in done.stdout.splitlines()]
    assert [sorted(tables) for tables in told] == [
        ["items", "orders"],
        ["visits"],
        ["customers"],
        [],
    ]
    assert told[0]["orders"]["rows"] == 2
    with rhei.reader(settings) as reader:
        for table in test_people.PEOPLE["customer"]:
            assert reader.query(f"select count(*) as n from {table}")["n"].to_pylist() == [1]
    assert run("--dry-run").exit_code == 0


def test_each_shard_has_definitions_of_its_own(world: World) -> None:
    settings = filled(world)
    found = build_definitions(settings)
    jobs = {job.name for job in found.resolve_all_job_defs()}
    sensors = {sensor.name for sensor in found.sensors or ()}
    keys = [key.path for key in found.resolve_asset_graph().get_all_asset_keys()]
    for shard in (1, 2, 3):
        assert f"shop_shard_{shard}_sync" in jobs
        assert f"shop_shard_{shard}_pending_changes" in sensors
        assert found.get_repository_def().get_top_level_resources()[f"shop_shard_{shard}_olap"]
    mirrors = sorted(path[2] for path in keys if path[1] == "mirror" and path[2] in TABLES)
    assert mirrors == TABLES
    sharding = settings.sharding
    assert sharding is not None
    assert ["shop_shard_2", "mirror", "t1"] in keys or sharding.shard_of("t1") != 2


def test_no_answer_of_all_shards_is_older_or_less_than_it_says(
    make_world: Callable[..., World], tmp_path: Path
) -> None:
    """A query is not answered without its bound, and no shard's rows replace another's."""
    world = make_world()
    for table in ("a", "b"):
        world.run(f"create table {table}(id integer primary key, n integer)")
        world.run(f"insert into {table} values (1, 1), (2, 'no number')")
    values = {name: getattr(world.settings, name) for name in ("source", "mirror", "registry")}
    settings = Settings(**values, shards=[["a"], ["b"]])
    config, file = tmp_path / "pipeline.yaml", tmp_path / "rows.csv"
    config.write_text(json.dumps(settings.model_dump(mode="json")))
    sync(settings.pipelines())

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--config", str(config)])

    sql = "select count(*) as n from a, b"
    found = run("query", sql, "--json")
    assert json.loads(found.stdout) == [{"n": 1}]
    assert "table 'a': 1 row may be missing" in found.stderr
    assert "table 'b': 1 row may be missing" in found.stderr
    letters = run("dead-letters", "--json").stdout.splitlines()
    assert [each["table_name"] for line in letters for each in json.loads(line)] == ["a", "b"]
    asked: tuple[str, ...]
    for asked in (
        ("query", sql, "--max-staleness", "5"),
        ("query", sql, "--hint", "cluster"),
        ("dead-letters", "--output", str(file)),
        ("dead-letters", "--format", "csv"),
        ("dead-letters", "--format", "parquet"),
    ):
        refused = run(*asked)
        assert "name one for this command: '--shard 1', up to 2" in str(refused.exception), asked
        assert not refused.stdout
    assert not file.exists()
    assert run("dead-letters", "--output", str(file), "--shard", "2").exit_code == 1
    assert file.read_text().splitlines()[1].startswith('"b"')
    # Nor is what another shard keeps overwritten, whichever shard's rows are written.
    kept = settings.of_shard(2).registry.path
    for asked in (
        ("query", sql, "--output", str(kept)),
        ("as-of", "a", "2100-01-01", "--output", str(kept)),
        ("dead-letters", "--shard", "1", "--output", str(kept)),
    ):
        refused = run(*asked)
        assert "belongs to the registry of this pipeline" in str(refused.exception), asked
