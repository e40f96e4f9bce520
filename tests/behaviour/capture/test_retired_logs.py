"""A log made again for a changed table takes no version along that some mirror has not read."""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pytest

from rhei_pipeline.errors import RheiError
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.protocols import Step
from rhei_pipeline.sources import acknowledged
from rhei_pipeline.sources.sqlite.database import SqliteDatabase
from rhei_pipeline.sources.sqlite.triggers.source import SqliteTriggerSource
from tests.support.fix_world import World
from tests.support.parts import connection_of, engine_of

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
#: What one row became, in order; None where it was deleted.
Values = list[Any]

CREATE = "create table t(id integer primary key, a integer, b text)"


@dataclass
class Writer:
    """The application; it remembers what it committed, by key and in order."""

    app: sqlite3.Connection
    committed: dict[int, Values] = field(default_factory=dict)
    last: int = 0

    def update(self, key: int = 1, times: int = 2, also: str = "") -> None:
        """Update a row, each time to a value that no row ever had."""
        for _ in range(times):
            self.last += 1
            self.app.execute(f"update t set a = {self.last}{also} where id = {key}")
            self.committed[key].append(self.last)

    def insert(self, key: int) -> None:
        """Insert a row."""
        self.last += 1
        self.app.execute(f"insert into t(id, a) values ({key}, {self.last})")
        self.committed.setdefault(key, []).append(self.last)

    def delete(self, key: int) -> None:
        """Delete a row."""
        self.app.execute(f"delete from t where id = {key}")
        self.committed[key].append(None)

    def write(self) -> None:
        """Update a row, and have another one come and go."""
        self.update()
        key = max(self.committed) + 1
        self.insert(key)
        self.update(key)
        self.delete(key)


def told(world: World) -> dict[int, Values]:
    """Return what a history tells of each row; a migration alone makes no other value."""
    found: dict[int, Values] = {}
    versions = world.versions("t", "id, _rhei_valid_from, _rhei_valid_to nulls last")
    for version in versions:
        own = found.setdefault(version["id"], [])
        own.append(version["a"])
        if version["_rhei_operation"] == "D":
            own.append(None)
    return {key: [value for value, _ in groupby(values)] for key, values in found.items()}


def start(world: World) -> Writer:
    """Begin with a table that is in sync."""
    writer = Writer(world.app)
    world.run(CREATE)
    writer.insert(1)
    world.htap.sync_now()
    return writer


def assert_tells(writer: Writer, *worlds: World) -> None:
    """The histories hold every version, and nothing is left over."""
    for world in worlds:
        world.htap.sync_now()
        assert told(world) == writer.committed
        assert world.htap.verify().equal
    writer.write()
    for world in worlds:
        world.htap.sync_now()
    assert retired(worlds[0]) == []


def retired(world: World) -> list[str]:
    """Return the logs that are set aside."""
    rows = world.app.execute(
        "select name from sqlite_master where name like '\\_rhei\\_retired%' escape '\\'"
    )
    return [name for (name,) in rows]


def rebuilt(columns: str, chosen: str) -> list[str]:
    """Write the statements that make the table again; its triggers go with the old one."""
    return [
        "begin",
        f"create table other({columns})",
        f"insert into other select {chosen} from t",
        "drop table t",
        "alter table other rename to t",
        "commit",
    ]


IN_PLACE = {
    "add": ["alter table t add column c text default 'x'"],
    "drop": ["alter table t drop column b"],
    "rename": ["alter table t rename column b to c"],
    "index": ["create unique index i on t(a)"],
}
REBUILT = {
    "widened": rebuilt("id integer primary key, a real, b text", "id, a, b"),
    "key": rebuilt("id integer, a integer, b text, n integer, primary key(id, n)", "*, 1"),
}


@pytest.mark.parametrize(
    ("migration", "options"),
    [
        *((name, {}) for name in IN_PLACE),
        ("add", {"storage": "parquet"}),
        ("rename", {"buffered": True}),
        ("index", {"buffered": True}),
    ],
)
def test_versions_written_beside_a_migration(
    make_world: MakeWorld, migration: str, options: dict[str, Any]
) -> None:
    world = make_world(mode="temporal", **options)
    writer = start(world)
    writer.write()
    world.run(*IN_PLACE[migration])
    writer.write()
    world.faults.do_at(Step.ACKNOWLEDGED, writer.write)
    world.htap.sync_now()
    writer.write()
    assert_tells(writer, world)


@pytest.mark.parametrize("migration", REBUILT)
@pytest.mark.parametrize("buffered", [False, True])
def test_versions_written_beside_a_table_made_anew(
    make_world: MakeWorld, migration: str, *, buffered: bool
) -> None:
    world = make_world(mode="temporal", buffered=buffered)
    writer = start(world)
    writer.write()
    world.run("alter table t rename column b to c")

    def rebuild() -> None:
        writer.write()
        world.run("alter table t rename column c to b", *REBUILT[migration])

    world.faults.do_at(Step.ACKNOWLEDGED, rebuild)
    report = world.htap.sync_now()
    if migration == "key":
        # The past lacks a column of the key: nothing is lost, and the table is named.
        assert "'t'" in report.errors["t"]
        found = engine_of(world.htap).mirror.query("select a from t where id = 1 order by 1")
        assert found["a"].to_pylist() == writer.committed[1]
    else:
        assert_tells(writer, world)


def second_mirror(make_world: MakeWorld, first: World, **options: Any) -> World:
    """Return another mirror of the same source."""
    world = make_world(**options)
    world.app.close()
    world.app, world.path = first.app, first.path
    return world


MIGRATIONS = {
    "one": [["alter table t add column c text default 'x'"]],
    "two": [["alter table t add column c text"], ["alter table t drop column b"]],
    "back": [["alter table t add column c text"], ["alter table t drop column c"]],
    # It ends in the shape that the first one's log tells of, and rows have to be read, too.
    "default_and_back": [
        ["alter table t add column c text default 'x'"],
        ["alter table t add column d text"],
        ["alter table t drop column d"],
    ],
    "widened": [REBUILT["widened"], ["alter table t rename column b to c"]],
    "narrowed_and_back": [
        rebuilt("id integer primary key, a integer, b date", "*"),
        rebuilt("id integer primary key, a integer, b text", "*"),
    ],
    "index": [["create unique index i on t(a)"], ["drop index i"]],
    "many": [[f"alter table t add column c{number} integer"] for number in range(4)],
}


@pytest.mark.parametrize(
    ("migrations", "options"),
    [
        *((name, {}) for name in MIGRATIONS),
        ("two", {"storage": "parquet"}),
        ("two", {"buffered": True}),
        ("default_and_back", {"storage": "parquet"}),
        ("default_and_back", {"buffered": True}),
    ],
)
def test_a_mirror_that_lags_over_migrations(
    make_world: MakeWorld, migrations: str, options: dict[str, Any]
) -> None:
    first = make_world(mode="temporal")
    writer = start(first)
    first.run("update t set b = 'text'")
    late = second_mirror(make_world, first, mode="temporal", **options)
    late.htap.sync_now()
    writer.write()
    for statements in MIGRATIONS[migrations]:
        first.run(*statements)
        if "commit" not in statements:  # a table made again is not captured before a sync
            writer.write()
        first.htap.sync_now()
        writer.write()
    assert retired(first)
    # The first copy of a history knows no version of before.
    late.htap.sync_now()
    late.assert_equal("t")
    assert told(late)[1] == writer.committed[1]
    writer.write()
    assert_tells(writer, first, late)


def test_each_version_has_the_columns_that_it_was_written_with(make_world: MakeWorld) -> None:
    first = make_world(mode="temporal")
    writer = start(first)
    late = second_mirror(make_world, first, mode="temporal")
    late.htap.sync_now()
    writer.update(times=1, also=", b = 'old'")
    first.run("alter table t add column c text")
    first.htap.sync_now()
    writer.update(times=1, also=", b = 'both', c = 'both'")
    first.run("alter table t drop column b")
    first.htap.sync_now()
    writer.update(times=1, also=", c = 'new'")
    first.run("alter table t rename column c to d")
    for world in (late, first):
        world.htap.sync_now()
        by_a = {version["a"]: version for version in reversed(world.versions("t"))}
        # Who has followed since before knows that it was renamed; who was late, the names.
        called = "d" if world is first else "c"
        assert (by_a[2]["b"], by_a[3]["b"], by_a[3][called]) == ("old", "both", "both")
        assert (by_a[4]["b"], by_a[4]["d"]) == (None, "new")
        assert world.versions("t")[-1]["d"] == "new"


@pytest.mark.parametrize("plain_first", [False, True])
def test_a_plain_mirror_beside_a_history(make_world: MakeWorld, *, plain_first: bool) -> None:
    history = make_world(mode="temporal")
    writer = start(history)
    plain = second_mirror(make_world, history, mode="destructive")
    plain.htap.sync_now()
    for statements in MIGRATIONS["two"]:
        writer.write()
        history.run(*statements)
        writer.write()
        (plain if plain_first else history).htap.sync_now()
        writer.write()
    plain.htap.sync_now()
    plain.assert_equal("t")
    assert_tells(writer, history)
    assert plain.htap.verify().equal


@pytest.mark.parametrize("mode", ["temporal", "destructive"])
def test_what_went_by_between_two_logs_is_found_by_a_mirror_that_lags(
    make_world: MakeWorld, mode: str
) -> None:
    first = make_world(mode="temporal")
    writer = start(first)
    late = second_mirror(make_world, first, mode=mode)
    late.htap.sync_now()
    writer.update()
    first.run(
        "drop trigger _rhei_update_t", "update t set b = 'unseen'", "insert into t(id) values (7)"
    )
    first.htap.sync_now()
    late.htap.sync_now()
    late.assert_equal("t")
    assert late.htap.verify().equal
    if mode == "temporal":
        assert [(v["a"], v["b"]) for v in late.versions("t") if v["id"] == 1] == [
            (1, None),
            (2, None),
            (3, None),
            (3, "unseen"),
        ]


def test_a_log_of_before_logs_were_kept_is_read_to_its_end(make_world: MakeWorld) -> None:
    world = make_world(mode="temporal")
    writer = start(world)
    world.run("drop table _rhei_logs", "alter table t add column c text")
    world.faults.do_at(Step.ACKNOWLEDGED, writer.write)
    assert_tells(writer, world)


def test_a_mirror_that_was_away_for_a_week_holds_no_log_back(make_world: MakeWorld) -> None:
    first = make_world(mode="temporal")
    writer = start(first)
    late = second_mirror(make_world, first, mode="temporal")
    late.htap.sync_now()
    late.crash()
    for statements in MIGRATIONS["two"]:
        first.run(*statements)
        writer.write()
        first.htap.sync_now()
    assert len(retired(first)) == 2
    mirror = engine_of(first.htap).mirror.mirror_id
    first.app.execute("update _rhei_consumer set seen_at = 0 where mirror <> ?", (mirror,))
    writer.write()
    first.htap.sync_now()
    assert retired(first) == []
    late.htap.sync_now()
    late.assert_equal("t")


def test_a_mirror_with_nothing_to_do_says_daily_that_it_is_there(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(mode="temporal")
    start(world)
    world.htap.sync_now()

    def seen_after_a_sync() -> int:
        world.run("update _rhei_consumer set seen_at = 1")
        world.htap.sync_now()
        return int(world.app.execute("select min(seen_at) from _rhei_consumer").fetchone()[0])

    assert seen_after_a_sync() == 1
    monkeypatch.setattr(acknowledged, "SAY_AGAIN_SECONDS", 0.0)
    assert seen_after_a_sync() > 1
    monkeypatch.undo()
    assert seen_after_a_sync() == 1


def test_a_broken_view_of_the_application_keeps_no_log_from_being_retired(
    make_world: MakeWorld,
) -> None:
    world = make_world(mode="temporal")
    world.run("create table gone(id integer primary key)", "create view v as select * from gone")
    world.tables = [{"name": "t"}]
    writer = start(world)
    world.run("alter table t add column c text", "drop table gone")
    world.faults.do_at(Step.ACKNOWLEDGED, writer.write)
    assert_tells(writer, world)


@pytest.mark.parametrize("name", ["1_t", 'retired_"2" t'])
def test_logs_of_tables_with_odd_names(make_world: MakeWorld, name: str) -> None:
    first = make_world(mode="temporal")
    quoted = '"' + name.replace('"', '""') + '"'
    first.run(f"create table {quoted}(id integer primary key, a integer)")
    first.run(f"insert into {quoted} values (1, 1)")
    first.htap.sync_now()
    late = second_mirror(make_world, first, mode="temporal")
    late.htap.sync_now()
    for value in (2, 3):
        first.run(f"update {quoted} set a = {value}")
        first.run(f"alter table {quoted} add column c{value} integer")
        first.htap.sync_now()
    late.htap.sync_now()
    found = late.htap.query(f"select distinct a from {quoted} order by a", hint="olap")
    assert found["a"].to_pylist() == [1, 2, 3]


def test_retired_logs_are_no_tables_of_the_source(make_world: MakeWorld) -> None:
    first = make_world(mode="temporal")
    writer = start(first)
    late = second_mirror(make_world, first, mode="temporal")
    late.htap.sync_now()
    writer.write()
    first.run("alter table t add column c text")
    first.htap.sync_now()
    assert retired(first)
    database = SqliteDatabase(first.path)
    assert database.table_names() == ["t"]
    database.close()
    late.crash()
    assert set(late.htap.sync_status().tables) == {"t"}


def test_a_log_is_made_anew_whole_or_not_at_all(make_world: MakeWorld) -> None:
    world = make_world(mode="temporal")
    writer = start(world)
    world.run("alter table t add column c text", "create unique index i on t(b)")
    writer.write()
    world.crash()
    database = SqliteDatabase(world.path)
    source = SqliteTriggerSource(database, "another")
    table = Table(source.describe("t"), Mode.TEMPORAL)
    objects = "select name, sql from sqlite_master order by name"
    before = world.app.execute(objects).fetchall()
    refused = 0
    while True:
        met = iter(range(10_000))

        def deny(action: int, *_: object, met: Any = met, at: int = refused) -> int:
            is_met = action in WRITES and next(met) == at
            return sqlite3.SQLITE_DENY if is_met else sqlite3.SQLITE_OK

        connection_of(source).set_authorizer(deny)
        try:
            source.install(table, 0)
        except RheiError:
            refused += 1
            assert world.app.execute(objects).fetchall() == before
            writer.update(times=1)
            continue
        break
    assert refused > 30
    connection_of(source).set_authorizer(None)
    assert source.is_installed(table)
    source.close()
    database.close()
    assert_tells(writer, world)


WRITES = {
    sqlite3.SQLITE_INSERT,
    sqlite3.SQLITE_UPDATE,
    sqlite3.SQLITE_DELETE,
    sqlite3.SQLITE_CREATE_TABLE,
    sqlite3.SQLITE_CREATE_TRIGGER,
    sqlite3.SQLITE_DROP_TABLE,
    sqlite3.SQLITE_DROP_TRIGGER,
    sqlite3.SQLITE_ALTER_TABLE,
    sqlite3.SQLITE_TRANSACTION,
}
