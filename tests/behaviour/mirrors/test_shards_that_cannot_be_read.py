"""A shard that cannot be read is missed by those queries alone that read its tables."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner

import rhei_pipeline as rhei
from rhei_pipeline import Settings
from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import MirrorBusyError, MirrorError, QueryError, RheiError
from tests.support.fix_world import World

MakeWorld = Callable[..., World]
TABLES = ("a1", "a2", "b1", "c1")
SHARDS = [["a*"], ["b*"], []]
#: Statements about tables of shards that can be read, with what SQLite says of them itself.
OF_OTHERS = (
    "select count(*) as n from a1",
    "select sum(x.id + y.id) as n from a1 x join c1 y on x.id = y.id",
    "with b1 as (select * from a2) select count(*) as n from b1",
    "select count(*) as n from main.a2 where v in (select v from A1)",
)
#: Statements that read the shard that cannot be read, or that it would answer, too.
OF_ITS_OWN = (
    "select count(*) from b1",
    "select count(*) from a1, b1",
    'select count(*) from main."b1"',
    "select (select count(*) from b1) from a1",
    "with b1 as (select * from b1) select count(*) from b1",
    "select count(*) from b_that_is_newer",
)
#: What asks for a table's plan or columns, as the two engines write it.
ABOUT = ("explain select * from {}", "/* a plan */ explain select * from {}", "describe {}")
ABOUT_OF = {
    None: (
        "-- a plan\nexplain /* in full */ analyze select * from {}",
        "explain (analyze, format json) (select * from {})",
        "show {}",
        "/* rows */ summarize {}",
    ),
    "parquet": ("-- a plan\nexplain analyze verbose select * from {}",),
}
#: The same of DuckDB's own lists of all tables.
LISTS = (
    "show tables",
    "with pg_tables as (select * from pg_tables) select count(*) from pg_tables",
    "select (with pg_tables as (select 1) select count(*) from pg_tables), count(*) from pg_tables",
    "with t as (select * from duckdb_tables), duckdb_tables as (select 1) select count(*) from t",
    "describe",
    "select count(*) from duckdb_tables()",
    "select count(*) from information_schema.tables",
)


def synced(world: World) -> Settings:
    for number, table in enumerate(TABLES):
        world.run(f"create table {table}(id integer primary key, v text)")
        world.run(f"insert into {table} values (1, 'a'), ({number + 2}, 'b')")
    return of_shards(world, SHARDS)


def of_shards(world: World, shards: list[list[str]]) -> Settings:
    """Return a declaration whose shards are synced."""
    own = world.settings
    mirror = own.mirror.model_dump(exclude_unset=True) | {"lock_timeout_seconds": 0.1}
    settings = Settings.model_validate(
        {"source": own.source, "registry": own.registry, "mirror": mirror, "shards": shards}
    )
    for shard in settings.pipelines():
        with rhei.open(shard) as htap:
            htap.sync_now()
    return settings


def of_source(world: World, sql: str) -> tuple[object, ...]:
    with closing(sqlite3.connect(world.path)) as database:
        return tuple(database.execute(sql).fetchone())


def newest_of(mirror: Path) -> Path:
    return max((mirror / "manifests").glob("*.json"))


@contextmanager
def damaged(shard: Settings) -> Iterator[None]:
    path = shard.mirror.path
    (path if path.is_file() else newest_of(path)).write_bytes(b"x" * 100)
    yield


@contextmanager
def gone(shard: Settings) -> Iterator[None]:
    path = shard.mirror.path
    path.unlink() if path.is_file() else shutil.rmtree(path)
    yield


@contextmanager
def newer(shard: Settings) -> Iterator[None]:
    with duckdb.connect(str(shard.mirror.path)) as database:
        database.execute("update _rhei_mirror set format = 99")
    yield


@contextmanager
def held(shard: Settings) -> Iterator[None]:
    with rhei.open(shard) as htap:
        htap.sync_now()
        yield


Fault = Callable[[Settings], AbstractContextManager[object]]


@pytest.mark.parametrize(
    ("storage", "fault"),
    [
        (None, damaged),
        pytest.param(None, gone, marks=pytest.mark.long),
        pytest.param(None, newer, marks=pytest.mark.long),
        pytest.param(None, held, marks=pytest.mark.long),
        ("parquet", damaged),
        pytest.param("parquet", gone, marks=pytest.mark.long),
        pytest.param("ipc", damaged, marks=pytest.mark.long),
    ],
)
def test_queries_of_the_others_are_answered(
    make_world: MakeWorld, tmp_path: Path, storage: str | None, fault: Fault
) -> None:
    world = make_world(storage=storage)
    settings = synced(world)
    config = tmp_path / "pipeline.yaml"
    config.write_text(json.dumps(settings.model_dump(mode="json")))
    theirs = settings.of_shard(2)
    with fault(theirs), rhei.reader(settings) as reader:
        for sql in OF_OTHERS:
            found = reader.query(sql)
            assert tuple(found.to_pylist()[0].values()) == of_source(world, sql), sql
            read = json.loads((found.schema.metadata or {})[b"rhei.read_from"])
            assert read == {"shard_1": "file", "shard_3": "file"}
        for asked in (*ABOUT, *ABOUT_OF.get(storage, ())):
            assert reader.query(asked.format("a1")).num_rows, asked
            with pytest.raises(RheiError, match="shard_2"):
                reader.query(asked.format("b1"))
        # A calendar is no table of anybody's.
        days = "select count(*) as n from a1 cross join generate_series(1, 3) d"
        assert reader.query(days)["n"].to_pylist() == [6]
        assert reader.query("values (1)").num_rows == 1
        for sql in (*OF_ITS_OWN, *(LISTS if storage is None else ())):
            with pytest.raises(RheiError, match="shard_2") as refused:
                reader.query(sql)
            assert isinstance(refused.value, MirrorError | MirrorBusyError), sql
        # Whose it would be can be told from its name; that nobody may have hidden it, cannot.
        with pytest.raises(QueryError, match=r"a9.*another mirror may have it.*shard_2"):
            reader.query("select * from a9")
        with pytest.raises(QueryError) as wrong:
            reader.query("with c as (select nothing from a1) select * from c")
        assert "shard_2" not in str(wrong.value)

        def run(*asked: str) -> tuple[int, str, str]:
            done = CliRunner().invoke(app, [*asked, "--config", str(config)])
            return done.exit_code, done.stdout, done.stderr + str(done.exception or "")

        code, answer, _ = run("query", "select count(*) as n from a1", "--json")
        assert code == 0
        assert json.loads(answer) == [{"n": 2}]
        code, _, why = run("query", "select count(*) as n from b1", "--json")
        assert code == 1
        assert "shard_2" in why


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_what_none_of_them_can_answer_is_refused(
    make_world: MakeWorld, storage: str | None
) -> None:
    settings = synced(make_world(storage=storage))
    with damaged(settings.of_shard(1)), damaged(settings.of_shard(2)):
        with rhei.reader(settings) as reader:
            assert reader.query("select count(*) as n from c1")["n"].to_pylist() == [2]
            for shard, table in ((1, "a2"), (2, "b1")):
                with pytest.raises(MirrorError, match=f"shard_{shard}"):
                    reader.query(f"select * from {table}")
        with (
            damaged(settings.of_shard(3)),
            rhei.reader(settings) as reader,
            pytest.raises(MirrorError, match="shard_1"),
        ):
            reader.query("select 1")


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_of_several_pipelines_the_others_are_answered(
    make_world: MakeWorld, storage: str | None
) -> None:
    shop, bills = make_world(storage=storage), make_world(storage=storage)
    for world in (shop, bills):
        world.run("create table orders(id integer primary key)", "insert into orders values (1)")
        world.htap.sync_now()
        world.crash()
    both = {"shop": shop.settings, "bills": bills.settings}
    with damaged(bills.settings), rhei.reader(both) as reader:
        for sql in ("shop.orders", "shop.main.orders"):
            assert reader.query(f"select count(*) as n from {sql}")["n"].to_pylist() == [1]
        for sql in ("bills.orders", "shop.orders, bills.orders", "bills.main.orders"):
            with pytest.raises(MirrorError, match=bills.settings.mirror.path.name):
                reader.query(f"select count(*) from {sql}")
        # By its name a table cannot be one of theirs.
        for sql in ("orders", "shop.nothing", "nobody.orders"):
            with pytest.raises(QueryError, match=sql.rpartition(".")[2]) as wrong:
                reader.query(f"select count(*) from {sql}")
            assert "another mirror" not in str(wrong.value)


def test_dead_letters_that_cannot_be_read_leave_out_their_shard_alone(
    make_world: MakeWorld,
) -> None:
    world = make_world(storage="parquet")
    for table in ("a1", "b1"):
        world.run(f"create table {table}(id integer primary key, n integer)")
        world.run(f"insert into {table} values (1, 1), (2, 'no number')")
    settings = of_shards(world, [["a*"], ["b*"]])
    theirs = settings.of_shard(2).mirror.path
    name = json.loads(newest_of(theirs).read_text().splitlines()[0])["letters"]
    assert name
    for file in (theirs / "data").glob(f"*{name.rpartition('/')[2]}*"):
        file.write_bytes(b"x" * file.stat().st_size)
    with rhei.reader(settings) as reader:
        found = reader.query("select count(*) as n from a1")
        assert found["n"].to_pylist() == [1]
        assert json.loads((found.schema.metadata or {})[b"rhei.dead_letters"]) == {"a1": 1}
        with pytest.raises(MirrorError, match="shard_2"):
            reader.query("select count(*) from b1")
