"""A query that is refused, and what the refusal says to do instead, on each side."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.cli.repl import Shell
from rhei_pipeline.errors import QueryError, SchemaError
from rhei_pipeline.holder.held import Hint
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from tests.support.fix_world import World
from tests.support.parts import connection_of, engine_of
from tests.support.refusals import filled_in, refused

MakeWorld = Callable[..., World]


@pytest.fixture
def mirrored(make_world: MakeWorld, request: pytest.FixtureRequest) -> World:
    """Make a table of three rows, mirrored in DuckDB unless a test says otherwise."""
    made = make_world(storage=getattr(request, "param", None))
    made.run(
        "create table t(id integer primary key, v text, n)",
        "insert into t values (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)",
    )
    made.htap.sync_now()
    return made


@dataclass(frozen=True)
class Walk:
    """A query that is refused, and the one to ask instead.

    Attributes:
        way_out: What the refusal says to do.
        asked: The query.
        instead: The query that does what it says.
        hint: Which side is asked.
        instead_hint: Which side is asked instead.
    """

    way_out: str
    asked: str
    instead: str
    hint: Hint = "olap"
    instead_hint: Hint | None = None


READING = "a query reads tables only"
OF_FILES = (
    "a query reads tables only: load the file into the source, or use a client of your own for it"
)
ONE_BY_ONE = "run them one by one"
SHORTER = "make them shorter, or write 'range' and 'generate_series' in FROM"
AS_NUMBER = "give its length as a number, or write 'range' and 'generate_series' in FROM"
ON_MIRROR = "the mirror answers reading queries on mirrored tables"
NESTED = "select " + "(" * 3000 + "1" + ")" * 3000

OF_BOTH = [
    Walk(ONE_BY_ONE, "select 1; select 2", "select 1"),
    Walk(ONE_BY_ONE, "select 1; select 2", "select 2", "oltp"),
    Walk("close it", "select 'a from t", "select 'a' from t", "oltp"),
    Walk(READING, "select load_extension('x')", "select v from t", "oltp"),
    Walk(
        "the application that owns the database sets its pragmas",
        "pragma user_version = 7",
        "pragma user_version",
        "oltp",
    ),
    Walk(
        "cast it to one type in the query",
        "select n from t union all select 'x'",
        "select cast(n as text) as n from t union all select 'x'",
        "oltp",
    ),
    Walk(
        "cast the column to blob in the query",
        "select cast(x'ff' as text) as v",
        "select cast(x'ff' as blob) as v",
        "oltp",
    ),
    Walk(OF_FILES, "select * from 'a.csv'", "select * from t"),
    Walk(ON_MIRROR, "select * from nowhere", "select * from t"),
]
OF_DUCKDB = [
    Walk("'rhei status' shows what it tells", "select * from _rhei_progress", "select 1"),
    Walk(
        "name them: on x in (...)",
        "pivot t on v using count(*)",
        "select * from (pivot t on v in ('a', 'b') using count(*))",
    ),
    Walk("nest it less", NESTED, "select ((1))"),
    Walk(READING, "select * from duckdb_settings()", "select * from t"),
    Walk(READING, "select * from pragma_database_list", "select * from t"),
    Walk(SHORTER, "select repeat(repeat('a', 100000), 100000)", "select repeat('a', 10)"),
    Walk(AS_NUMBER, "select repeat(v, id * 100) from t", "select repeat(v, 100) from t"),
    Walk(
        AS_NUMBER,
        "select unnest(range(id)) from t",
        "select range from t, range(3)",
    ),
    Walk(OF_FILES, "attach 'other.db'", "select * from t"),
    Walk(OF_FILES, "copy t to 'a.csv'", "select * from t"),
]
OF_DATAFUSION = [
    Walk("read the tables", "select * from _rhei_segments.x", "select * from t"),
    Walk(OF_FILES, "copy t to 'a.csv'", "select * from t"),
]


def _walked(world: World, walk: Walk) -> None:
    with refused(walk.way_out):
        world.htap.query(walk.asked, hint=walk.hint)
    assert world.htap.query(walk.instead, hint=walk.instead_hint or walk.hint).num_rows > 0


@pytest.mark.parametrize("mirrored", [None, "memory"], indirect=True, ids=["duckdb", "datafusion"])
def test_a_refused_query_is_asked_as_its_refusal_says(mirrored: World) -> None:
    for walk in OF_BOTH:
        _walked(mirrored, walk)


def test_a_query_refused_for_duckdb_is_asked_as_its_refusal_says(mirrored: World) -> None:
    for walk in OF_DUCKDB:
        _walked(mirrored, walk)


@pytest.mark.parametrize("mirrored", ["memory"], indirect=True)
def test_a_query_refused_for_datafusion_is_asked_as_its_refusal_says(mirrored: World) -> None:
    for walk in OF_DATAFUSION:
        _walked(mirrored, walk)


@pytest.mark.parametrize("mirrored", ["parquet"], indirect=True)
def test_a_value_is_given_for_each_placeholder(mirrored: World) -> None:
    sql = "select v from t where id > ?"
    with refused("give one value for each placeholder", QueryError) as met:
        mirrored.htap.query(sql, [1, 2], hint="olap")
    assert "no placeholder for parameter '2'" in str(met.error)
    assert mirrored.htap.query(sql, [1], hint="olap").num_rows == 2


@pytest.mark.parametrize("mirrored", [None, "memory"], indirect=True, ids=["duckdb", "datafusion"])
def test_a_write_goes_through_execute_and_reaches_the_mirror(mirrored: World) -> None:
    hints: tuple[Hint, ...] = ("auto", "oltp", "olap")
    for place, hint in enumerate(hints, start=10):
        write = f"insert into t values ({place}, 'new', 0)"
        with refused("use execute for writes: a sync brings them to the mirror", QueryError):
            mirrored.htap.query(write, hint=hint)
        assert mirrored.htap.execute(write) == 1
    mirrored.htap.sync_now()
    mirrored.assert_equal("t")


@pytest.mark.parametrize("word", ["begin", "savepoint x"])
def test_a_transaction_goes_through_execute_batch(mirrored: World, word: str) -> None:
    for refuse in (mirrored.htap.execute, mirrored.htap.query):
        with refused("give all statements of the transaction to execute_batch", QueryError):
            refuse(word)
    writes = ["insert into t values (4, 'd', 4)", "delete from t where id = 1"]
    assert mirrored.htap.execute_batch([(sql, ()) for sql in writes]) == 2
    mirrored.htap.sync_now()
    mirrored.assert_equal("t")


def test_rows_are_locked_in_a_transaction(make_world: MakeWorld) -> None:
    world = make_world(storage="memory")
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    world.htap.sync_now()
    with refused("lock them in execute_batch's transaction", QueryError):
        world.htap.query("select * from t for update", hint="olap")
    # SQLite's transactions lock all there is.
    assert world.htap.execute_batch([("update t set id = 2", ())]) == 1


def test_a_setting_is_declared(mirrored: World) -> None:
    with refused("a query only reads mirrored tables; settings belong in the declaration"):
        mirrored.htap.query("set memory_limit = '100MB'", hint="olap")
    mirrored.crash()
    declared = mirrored.settings.model_dump()
    declared["mirror"]["memory_limit"] = "100MB"
    with HTAP(Settings(**declared)) as htap:
        mirror = engine_of(htap).mirror
        assert isinstance(mirror, DuckDBMirror)
        found = connection_of(mirror).execute("select current_setting('memory_limit')")
        assert found.fetchone() == ("95.3 MiB",)


@pytest.mark.parametrize("storage", [None, "parquet"], ids=["duckdb", "parquet"])
def test_a_mirror_that_holds_nothing_is_synced_first(
    make_world: MakeWorld, storage: str | None
) -> None:
    world = make_world(storage=storage)
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    with refused("mirror {} holds no table yet: run 'rhei sync' first", QueryError):
        world.htap.query("select * from anything", hint="olap")
    world.htap.sync_now()
    assert world.htap.query("select * from t", hint="olap").num_rows == 1


def test_what_belongs_to_a_call_is_given_as_its_refusal_says(make_world: MakeWorld) -> None:
    world = make_world(
        mode="temporal", tables=[{"name": "t"}, {"name": "d", "mode": "destructive"}]
    )
    world.run("create table t(id integer primary key)", "create table d(id integer primary key)")
    world.run("insert into t values (1)", "insert into d values (1)")
    htap = world.htap
    now = datetime.now(UTC)
    with refused("run 'rhei sync', which copies it", QueryError):
        htap.as_of("t", now)
    htap.sync_now()
    with refused("use 'auto', 'oltp', 'olap' or 'cluster'", QueryError):
        htap.query("select 1", hint="mirror")  # type: ignore[arg-type]
    with refused("give a number of seconds; 0 asks for the present state", QueryError):
        htap.query("select count(*) from t", max_staleness=-1)
    assert htap.query("select count(*) as n from t", max_staleness=0)["n"].to_pylist() == [1]
    written: Any = htap.execute("insert into t values (2)")
    with refused(
        "pass what execute returned, or its 'token': a number alone has no commit time", QueryError
    ):
        htap.query("select count(*) from t", after=1)  # type: ignore[arg-type]
    for after in (written, written.token):
        assert htap.query("select count(*) as n from t", after=after)["n"].to_pylist() == [2]
    htap.sync_now()
    later = datetime.now(UTC)
    with refused("give one, such as UTC", QueryError):
        htap.as_of("t", later.replace(tzinfo=None))
    with refused("give a later timestamp; earlier states were never recorded", QueryError):
        htap.as_of("t", now - timedelta(days=1))
    assert htap.as_of("t", later).num_rows == 2
    with refused("did you mean {}?", SchemaError) as met:
        htap.as_of("tt", later)
    assert htap.as_of(met.told[0].strip("'"), later).num_rows == 2
    with refused("declare 'mode: temporal'", QueryError):
        htap.as_of("d", later)
    world.crash()
    world.tables = [{"name": "t"}, {"name": "d"}]
    world.htap.sync_now()
    assert world.htap.as_of("d", datetime.now(UTC)).num_rows == 1


def test_days_before_the_history_are_not_chosen(make_world: MakeWorld) -> None:
    world = make_world(mode="temporal")
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    world.htap.sync_now()
    begin = datetime.now(UTC)
    days = {(begin + timedelta(days=n)).date(): begin + timedelta(days=n) for n in (-1, 1)}
    with refused(
        "choose days from {} on, and set 'schedule.snapshots_from' to it", QueryError
    ) as met:
        world.htap.snapshot("t", days)
    first = met.told[0]
    chosen = {day: at for day, at in days.items() if day.isoformat() >= first}
    assert world.htap.snapshot("t", chosen) == dict.fromkeys(chosen, 1)
    declared = world.settings.model_dump()
    declared["schedule"]["snapshots_from"] = first
    assert Settings(**declared).schedule.snapshots_from.isoformat() == first


def test_a_polled_source_is_written_by_its_application_or_a_local_database(
    make_world: MakeWorld,
) -> None:
    world = make_world(method="polling")
    world.run("create table t(id integer primary key, updated_at integer)")
    world.run("insert into t values (1, 1)")
    world.htap.sync_now()
    way_out = "write with its own application, or declare a 'local' database beside it"
    with refused(way_out, QueryError):
        world.htap.execute("insert into t values (2, 2)")
    world.run("insert into t values (2, 2)")
    world.htap.sync_now()
    world.assert_equal("t")
    with refused("change the table in the source; the next sync follows the change", QueryError):
        world.htap.drop_column("t", "updated_at")
    world.crash()
    world.local = {"path": world.directory / "local.db"}
    world.htap.execute("create table note(id integer primary key)")
    assert world.htap.execute("insert into note values (1)") == 1
    assert world.htap.query("select * from note", hint="oltp").num_rows == 1
    with refused("change the table in the source; the next sync follows the change", QueryError):
        world.htap.drop_column("t", "updated_at")
    world.run("alter table t add column v text", "insert into t values (3, 3, 'c')")
    world.htap.sync_now()
    world.assert_equal("t")


def test_the_shell_lists_what_it_names(mirrored: World, capsys: pytest.CaptureFixture[str]) -> None:
    def typed(line: str) -> tuple[str, str]:
        lines = iter([line, "\\q"])
        Shell(mirrored.htap, lambda _prompt: next(lines)).run()
        told = capsys.readouterr()
        return told.out, told.err

    filled_in("\\? lists them", typed("\\nothing")[1])
    assert "\\d" in typed("\\?")[0].partition("\n")[2]
    filled_in("\\d lists the tables", typed("\\d nothing")[1])
    assert typed("\\d")[0].split()[-1] == "t"


MANY = "select a.id, b.id as other from t a, t b, t c, t d, t e, t f, t g, t h, t i, t j, t k"


@pytest.mark.long
def test_a_query_beyond_its_limits_is_made_smaller_or_given_more(mirrored: World) -> None:
    mirrored.crash()

    def opened(**limits: Any) -> HTAP:
        return HTAP(mirrored.settings.with_fields({"queries": limits}))

    hints: tuple[Hint, ...] = ("oltp", "olap")
    with opened(query_bytes=2**20, query_seconds=300) as htap:
        for hint in hints:
            with refused("ask for less at once, stream it, or raise queries.query_bytes"):
                htap.query(MANY, hint=hint)
            assert htap.query(f"{MANY} limit 10", hint=hint).num_rows == 10
        assert sum(batch.num_rows for batch in htap.stream(MANY).batches) == 3**11
    with opened(query_bytes=2**26) as htap:
        assert [htap.query(MANY, hint=hint).num_rows for hint in hints] == [3**11] * 2
    more = ", ".join(f"t {name}" for name in "lmnopqrsuvw")
    slow = f"select count(*) as n from ({MANY}, {more}) x"
    with opened(query_seconds=0.2) as htap:
        for hint in hints:
            with refused("ask for less at once, or raise queries.query_seconds"):
                htap.query(slow, hint=hint)
    with opened(query_seconds=300, at_once=1, turn_seconds=0) as htap:
        first = htap.stream(MANY).batches
        next(first)
        with refused("try again, or let more run at once: queries.at_once"):
            htap.query("select count(*) as n from t")
        first.close()  # type: ignore[attr-defined]
        assert htap.query("select count(*) as n from t")["n"].to_pylist() == [3]
        counted = f"select count(*) as n from ({MANY}) x"
        assert htap.query(counted, hint="olap")["n"].to_pylist() == [3**11]
    with opened(at_once=2, turn_seconds=0) as htap:
        first = htap.stream(MANY).batches
        next(first)
        assert htap.query("select count(*) as n from t")["n"].to_pylist() == [3]
        first.close()  # type: ignore[attr-defined]
