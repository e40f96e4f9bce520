"""A table that is left out, and what its error says to do: the next sync takes it in."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.fix_world import World
from tests.support.parts import engine_of
from tests.support.refusals import filled_in, refused, rhei

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
Follow = Callable[[World, tuple[str, ...]], None]


def sql(*statements: str) -> Follow:
    """Follow a way out in the source."""
    return lambda world, _told: world.run(*statements)


def declared(**entry: Any) -> Follow:
    """Follow a way out in the declaration of table `t`."""

    def declare(world: World, _told: tuple[str, ...]) -> None:
        world.crash()
        others = [each for each in world.tables or () if each["name"] != "t"]
        world.tables = [*others, {"name": "t", **entry}]

    return declare


def left_out(world: World, _told: tuple[str, ...]) -> None:
    """Leave table `t` out of the declaration."""
    world.crash()
    world.tables = [{"name": "good"}]


def polled(world: World, _told: tuple[str, ...]) -> None:
    """Poll every table."""
    world.crash()
    world.method = "polling"
    world.tables = [{"name": n, "polling": {"updated_at": "id"}} for n in ("good", "t")]


def dropped(*options: str) -> Follow:
    """Drop the table that is told from the mirror."""

    def drop(world: World, told: tuple[str, ...]) -> None:
        world.crash()
        rhei(world.settings, world.directory, "drop-table", told[-1], *options)

    return drop


@dataclass(frozen=True)
class Walk:
    """A table that is left out, or one that was mirrored and then is.

    Attributes:
        way_out: What its error says to do.
        follow: Does that; the next sync then takes the table in.
        made: What makes the table `t`; where it is mirrored first, `broken` comes after that.
        broken: What changes it.
        options: How the world is made.
        redeclared: How `t` is declared when it is broken.
        kept: The name under which its history is kept.
        gone: Whether the table is no more to be mirrored.
    """

    way_out: str
    follow: Follow
    made: tuple[str, ...]
    broken: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    redeclared: dict[str, Any] | None = None
    kept: str | None = None
    gone: bool = False


KEYED = ("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
ADD_KEY = "add one, or name a unique key without nulls as 'primary_key'"
NO_KEY = ("create table t(id integer not null unique, v text)", "insert into t values (1, 'a')")
RESERVED = "rename the column, or leave it out with 'columns'"
RESERVED_NAME = "rename the table in the source, or leave it out of 'tables'"
OF_CASE = "leave it out by tables[].columns, or use storage: parquet"
COLLATION = (
    "set 'capture: {method: polling}', and name another unique key without nulls as 'primary_key'"
)
OF_INDEX = "set 'capture: {method: polling}', or drop the unique indexes that use it"
UNKNOWN_KEY = (
    "declare as 'primary_key' a unique key without nulls whose columns its history has, or start"
    " again: 'rhei drop-table {} --keep-as NAME' keeps the history under another name"
)
UNFIT_KEY = (
    "declare the old key as 'primary_key' while it is unique and without nulls, or start again:"
    " 'rhei drop-table {} --keep-as NAME' keeps the history under another name"
)
UNFIT_TYPE = (
    "keep the old type with 'types: {{}: {}}' in the declaration, or start again: 'rhei drop-table"
    " {} --keep-as NAME' keeps the history under another name"
)
FORMER_NAME = (
    "declare the former 'mirror_name', or run 'rhei drop-table {}', with '--keep-as NAME' for its"
    " history"
)
TOO_WIDE = (
    "shorten its key or its unique indexes, mirror fewer of its columns with 'columns', or set"
    " 'capture: {method: polling}'"
)
_COLUMNS = ", ".join(f"c{n} int" for n in range(520))
_TERMS = ", ".join(f"c{n}" for n in range(520))
MADE_WIDE = (
    f"create table t(id integer primary key, {_COLUMNS}, unique({_TERMS}))",
    "insert into t(id) values (1)",
)
KEEP = ("--keep-as", "kept")
TEMPORAL = {"mode": "temporal"}
#: Two versions of rows whose `code` is 1 overlap: it is no key of the history.
NEW_KEY = (
    "insert into t values (2, 1, 'b')",
    "update t set code = 2 where id = 2",
    "create table other(id integer not null unique, code integer primary key, v text)",
    "insert into other select * from t",
    "drop table t",
    "alter table other rename to t",
)
CODED = (
    "create table t(id integer primary key, code integer, v text)",
    "insert into t values (1, 1, 'a')",
)
ANOTHER_KEY = (
    "create table other(code integer primary key, v text, id integer not null unique)",
    "insert into other select id + 10, v, id from t",
    "drop table t",
    "alter table other rename to t",
)
RETYPED = (
    "create table other(id integer primary key, v integer)",
    "insert into other values (1, 7)",
    "drop table t",
    "alter table other rename to t",
)

FIRST = {
    "key added": Walk(
        ADD_KEY,
        sql(
            "create table n(id integer primary key, v text)",
            "insert into n select * from t",
            "drop table t",
            "alter table n rename to t",
        ),
        NO_KEY,
    ),
    "key named": Walk(ADD_KEY, declared(primary_key=["id"]), NO_KEY),
    "view": Walk(
        "mirror the tables it is made from",
        left_out,
        ("create view t as select 1 as id",),
        gone=True,
    ),
    "column renamed": Walk(
        RESERVED,
        sql("alter table t rename column _rhei_x to x"),
        ("create table t(id integer primary key, _rhei_x text)", "insert into t values (1, 'a')"),
    ),
    "column left out": Walk(
        RESERVED,
        declared(columns=["id"]),
        ("create table t(id integer primary key, _rhei_x text)", "insert into t values (1, 'a')"),
    ),
    "index shortened": Walk(
        TOO_WIDE,
        sql(
            "create table n(id integer primary key, " + _COLUMNS + ")",
            "insert into n select * from t",
            "drop table t",
            "alter table n rename to t",
        ),
        MADE_WIDE,
    ),
    "wide polled": Walk(TOO_WIDE, polled, MADE_WIDE),
}
LATER = {
    "no such key, declared": Walk(
        UNKNOWN_KEY, declared(primary_key=["id"]), KEYED, ANOTHER_KEY, TEMPORAL
    ),
    "no such key, started again": Walk(
        UNKNOWN_KEY, dropped(*KEEP), KEYED, ANOTHER_KEY, TEMPORAL, kept="kept"
    ),
    "unfit key, declared": Walk(UNFIT_KEY, declared(primary_key=["id"]), CODED, NEW_KEY, TEMPORAL),
    "unfit key, started again": Walk(
        UNFIT_KEY, dropped(*KEEP), CODED, NEW_KEY, TEMPORAL, kept="kept"
    ),
    "unfit type, declared": Walk(
        UNFIT_TYPE, declared(types={"v": "string"}), KEYED, RETYPED, TEMPORAL
    ),
    "unfit type, started again": Walk(
        UNFIT_TYPE, dropped(*KEEP), KEYED, RETYPED, TEMPORAL, kept="kept"
    ),
    "mirror name, declared": Walk(
        FORMER_NAME, declared(), KEYED, redeclared={"mirror_name": "other"}
    ),
    "mirror name, dropped": Walk(
        FORMER_NAME, dropped(), KEYED, redeclared={"mirror_name": "other"}
    ),
    "mirror name, history kept": Walk(
        FORMER_NAME, dropped(*KEEP), KEYED, (), TEMPORAL, {"mirror_name": "other"}, kept="kept"
    ),
}


def _made(make_world: MakeWorld, walk: Walk, storage: str | None = None) -> World:
    world = make_world(storage=storage, **walk.options)
    world.tables = [{"name": "good"}, {"name": "t"}]
    world.run("create table good(id integer primary key, v text)", *walk.made)
    world.run("insert into good values (1, 'a')")
    return world


def _walked(world: World, walk: Walk) -> None:
    """Meet the error beside a table that goes on, follow its way out, and compare."""
    if walk.redeclared:
        declared(**walk.redeclared)(world, ())
    world.run("update good set v = 'b'")
    report = world.htap.sync_now()
    world.assert_equal("good")
    told = filled_in(walk.way_out, report.errors["t"])
    walk.follow(world, told)
    world.run("update good set v = 'c'")
    for _ in range(2):
        assert not world.htap.sync_now().errors
    world.assert_equal("good")
    if walk.gone:
        return
    found = engine_of(world.htap).pipeline.table("t")
    names = ", ".join(f'"{name}"' for name in found.schema.names)
    relation = found.schema.mirror_relation
    still = " where _rhei_valid_to is null" if found.mode.value == "temporal" else ""
    mirrored = world.htap.query(f"select {names} from {relation}{still}", hint="olap")
    rows = [tuple(map(str, row.values())) for row in mirrored.to_pylist()]
    source = world.app.execute(f"select {names} from t").fetchall()
    assert sorted(rows) == sorted(tuple(map(str, row)) for row in source)
    assert rows
    if walk.kept:
        assert world.htap.query(f"select * from {walk.kept}", hint="olap").num_rows > 0


@pytest.mark.parametrize("case", FIRST)
def test_a_table_that_is_refused_at_first_is_taken_in(make_world: MakeWorld, case: str) -> None:
    _walked(_made(make_world, FIRST[case]), FIRST[case])


#: Each on DuckDB, and on files those that the two mirrors refuse by code of their own.
OF_MIRRORS = [
    *((case, None) for case in LATER),
    ("unfit key, started again", "parquet"),
    ("unfit type, started again", "parquet"),
    ("mirror name, history kept", "parquet"),
]


@pytest.mark.parametrize(("case", "storage"), OF_MIRRORS)
def test_a_table_that_is_refused_later_is_taken_in_again(
    make_world: MakeWorld, case: str, storage: str | None
) -> None:
    walk = LATER[case]
    world = _made(make_world, walk, storage)
    assert not world.htap.sync_now().errors
    for statement in walk.broken:
        world.run(statement)
        if statement.startswith("insert into t"):
            world.htap.sync_now()
    _walked(world, walk)


def test_a_table_that_is_gone_is_made_again_or_declared_no_more(make_world: MakeWorld) -> None:
    world = make_world(tables=[{"name": "good"}, {"name": "gone"}])
    made = "create table {}(id integer primary key)"
    world.run(made.format("good"), made.format("gone"), "insert into gone values (1)")
    world.run(*(made.format(f"w{number}") for number in range(30)))
    assert not world.htap.sync_now().errors
    world.run("drop table gone")
    way_out = "create it there, or start again without it in 'tables'; {}"
    (known,) = filled_in(way_out, world.htap.sync_now().errors["gone"])
    assert known.endswith(", ...)")  # whoever has many tables is not told them all
    world.run(made.format("gone"), "insert into gone values (2)")
    assert not world.htap.sync_now().errors
    world.assert_equal("good", "gone")
    world.run("drop table gone")
    assert "gone" in world.htap.sync_now().errors
    left_out(world, ())
    assert not world.htap.sync_now().errors


def test_a_reserved_table_is_renamed_or_left_out(make_world: MakeWorld) -> None:
    world = make_world(tables=[{"name": "good"}, {"name": "_rhei_x"}])
    made = "create table {}(id integer primary key)"
    world.run(made.format("good"), made.format("_rhei_x"), "insert into _rhei_x values (1)")
    filled_in(RESERVED_NAME, world.htap.sync_now().errors["_rhei_x"])
    world.run("alter table _rhei_x rename to x")
    world.crash()
    world.tables = [{"name": "good"}, {"name": "x"}]
    assert not world.htap.sync_now().errors
    world.assert_equal("good", "x")
    world.crash()
    world.tables = [{"name": "good"}]
    assert not world.htap.sync_now().errors


def test_a_key_of_the_applications_own_collation_gives_way_to_another(
    make_world: MakeWorld,
) -> None:
    world = make_world(tables=[{"name": "good"}, {"name": "t"}])
    world.app.create_collation("own", lambda a, b: (a > b) - (a < b))
    world.run(
        "create table good(id integer primary key)",
        "create table t(name text collate own primary key, id integer not null unique)",
        "insert into t values ('a', 1)",
    )
    filled_in(COLLATION, world.htap.sync_now().errors["t"])
    declared(primary_key=["id"])(world, ())
    filled_in(OF_INDEX, world.htap.sync_now().errors["t"])
    polled(world, ())
    world.tables = [{**each, "primary_key": ["id"]} for each in world.tables or ()]
    assert not world.htap.sync_now().errors
    world.assert_equal("t")
    world.run("insert into t values ('b', 2)", "delete from t where id = 1")
    world.htap.sync_now()
    assert world.htap.query("select name from t where id = 2", hint="olap").num_rows == 1


def test_a_unique_index_of_the_applications_own_collation_is_dropped(
    make_world: MakeWorld,
) -> None:
    world = make_world(tables=[{"name": "good"}, {"name": "t"}])
    world.app.create_collation("own", lambda a, b: (a > b) - (a < b))
    world.run("create table good(id integer primary key)", *KEYED)
    world.run("create unique index odd on t(v collate own)")
    filled_in(OF_INDEX, world.htap.sync_now().errors["t"])
    world.run("drop index odd")
    assert not world.htap.sync_now().errors
    world.assert_equal("t")


def test_an_index_that_cannot_be_read_is_dropped_or_its_table_left_out(
    make_world: MakeWorld,
) -> None:
    for follow in (sql("drop index odd"), left_out):
        world = make_world(tables=[{"name": "good"}, {"name": "t"}])
        world.run("create table good(id integer primary key)", *KEYED)
        world.run("create unique index odd on t(lower(v)) /* a comment that goes on")
        way_out = "drop the index, or leave the table out of 'tables'"
        filled_in(way_out, world.htap.sync_now().errors["t"])
        follow(world, ())
        assert not world.htap.sync_now().errors
        world.assert_equal("good")


def test_a_buffered_table_whose_schema_changed_is_synced_again(make_world: MakeWorld) -> None:
    """A cycle looks at the schemas before it reads; who reads without that is told to sync."""
    world = make_world(buffered=True, tables=[{"name": "good"}, {"name": "t"}])
    world.run("create table good(id integer primary key)", *KEYED)
    world.htap.sync_now()
    pipeline = engine_of(world.htap).pipeline
    table, after = pipeline.table("t"), pipeline._mirror.ledger().watermarks["t"].position
    world.run("alter table t add column more text", "insert into t values (2, 'b', 'c')")
    with refused("sync again"), pipeline._source.snapshot() as snapshot:
        list(snapshot.changes(table, after, 100))
    world.htap.sync_now()
    world.assert_equal("t", "good")
