"""PostgreSQL by triggers: every version written around a migration is kept, as it was."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from rhei_pipeline.errors import SourceBusyError
from rhei_pipeline.protocols import Step
from rhei_pipeline.sources.postgres.triggers import registry as trigger_registry
from rhei_pipeline.testing.faults import Crash
from tests.support.fix_postgres import PostgresWorld
from tests.support.parts import engine_of

pytestmark = pytest.mark.turns

MakePostgres = Callable[..., PostgresWorld]
State = dict[str, Any] | None

CREATE = "create table t(id int primary key, code int not null unique, a int, b text)"


@dataclass
class Told:
    """An application's table as a dict, and all that each of its rows has been, in order.

    A row that was there when the table was altered also has a state that nobody wrote: it may be
    a version, or not.
    """

    world: PostgresWorld
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    states: dict[int, list[tuple[State, bool]]] = field(default_factory=dict)

    def put(self, key: int, **values: Any) -> None:
        """Write a row of that code, which is never changed."""
        names = ", ".join(values)
        holes = ", ".join(["%s"] * len(values))
        if key in self.rows:
            statement = f"update t set ({names}) = row({holes}) where code = %s"
            self.world.app.execute(statement.encode(), [*values.values(), key])
        else:
            statement = f"insert into t({names}, code) values ({holes}, %s)"
            self.world.app.execute(statement.encode(), [*values.values(), key])
        self._read(key)

    def end(self, key: int) -> None:
        """Delete a row."""
        self.world.app.execute("delete from t where code = %s", (key,))
        del self.rows[key]
        self.states[key].append((None, False))

    def clear(self) -> None:
        """Truncate the table."""
        self.world.run("truncate t")
        for key in list(self.rows):
            del self.rows[key]
            self.states[key].append((None, False))

    def alter(self, *statements: str) -> None:
        """Migrate the table."""
        self.world.run(*statements)
        for key in self.rows:
            self._read(key, written=False)

    def _read(self, key: int, *, written: bool = True) -> None:
        """Take what the row is now; the server's own word for it, never capture's."""
        with self.world.app.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            row = cursor.execute("select * from t where code = %s", (key,)).fetchone()
        assert row is not None
        self.rows[key] = row
        self.states.setdefault(key, []).append((row, not written))

    def assert_told(self, world: PostgresWorld | None = None) -> None:
        """The mirror has exactly these versions, and those that were written in time."""
        found = (world or self.world).versions("t", "_rhei_valid_from, _rhei_valid_to")
        assert {row["code"] for row in found} == {*self.states}
        for key, states in self.states.items():
            versions = [row for row in found if row["code"] == key]
            _assert_follow(states, versions)


def _assert_follow(states: list[tuple[State, bool]], versions: list[dict[str, Any]]) -> None:
    left = list(versions)
    ended: object = None
    last: State = None
    for state, optional in states:
        if state is None:
            assert last is not None
            assert ended is not None, "a row that was deleted has an open version"
            last = None
            continue
        shown = {n: state.get(n) for n in versions[0] if not n.startswith("_rhei_")}
        if left and all(_same(left[0][name], value) for name, value in shown.items()):
            ended = left.pop(0)["_rhei_valid_to"]
        elif not optional:
            assert last == state, (state, versions)
        last = state
    assert not left, (states, left)
    assert (ended is None) == (last is not None)


def _same(found: Any, expected: Any) -> bool:
    """Compare a value of the past, which may have a wider type by now."""
    return found == expected or (found is not None is not expected and str(expected) == found)


def migrated(make: MakePostgres, **options: Any) -> Told:
    """Return a table with a history, some of it pending."""
    world = make(**{"mode": "temporal", "capture": {"method": "trigger"}, **options})
    world.run(CREATE)
    told = Told(world)
    for key in (1, 2, 3):
        told.put(key, id=key, a=0, b="first")
    world.htap.sync_now()
    write(told, 10)
    return told


def write(told: Told, number: int, **more: Any) -> None:
    """Give one row several versions, end one that a sync has seen, and one that none has."""
    for value in range(number, number + 3):
        told.put(1, **more, id=1, **({"a": value} if "a" in told.rows[1] else {"c": value}))
    told.put(number, **more, id=number)
    told.put(number, **more, id=number + 1)
    told.end(number)


def synced(world: PostgresWorld) -> None:
    report = world.htap.sync_now()
    assert not report.errors
    assert world.htap.sync_now().events == 0
    assert world.htap.verify().equal


MIGRATIONS: dict[str, tuple[str, ...]] = {
    "add": ("alter table t add column d int default 7",),
    "drop": ("alter table t drop column b",),
    "rename": ("alter table t rename column a to c",),
    "rename and back": ("alter table t rename column a to c", "BACK"),
    "drop and add": ("alter table t drop column b", "alter table t add column b text default 'x'"),
    "widen": ("alter table t alter column a type bigint",),
    "rewrite": ("alter table t alter column a type text using 'n' || a",),
    "another key": (
        "alter table t drop constraint t_pkey",
        "alter table t add primary key (code)",
    ),
    "rename the table and back": ("alter table t rename to moved", "MOVED"),
}


def migrate(told: Told, migration: str) -> None:
    for statement in MIGRATIONS[migration]:
        if statement == "BACK":
            write(told, 50)
            told.alter("alter table t rename column c to a")
            # It was the same column all the time.
            for state, _ in (entry for entries in told.states.values() for entry in entries):
                if state and "c" in state:
                    state["a"] = state.pop("c")
        elif statement == "MOVED":
            told.world.run("update moved set a = a + 1 where code = 1")
            told.alter("alter table moved rename to t")
        elif "rename to moved" in statement:
            told.world.run(statement)
        else:
            told.alter(statement)


def options(way: str, directory: Path) -> dict[str, Any]:
    capture: dict[str, Any] = {"method": "trigger"}
    if way == "buffered":
        capture["buffer"] = {"path": directory / "cdc"}
    return {"storage": "parquet" if way == "parquet" else None, "capture": capture}


@pytest.mark.parametrize(
    ("migration", "way"),
    [
        *((migration, "duckdb") for migration in MIGRATIONS),
        ("drop", "parquet"),
        ("another key", "parquet"),
        ("add", "buffered"),
        ("rename", "buffered"),
    ],
)
def test_what_is_written_after_a_migration_is_kept_version_by_version(
    make_postgres: MakePostgres, migration: str, way: str, tmp_path: Path
) -> None:
    told = migrated(make_postgres, **options(way, tmp_path))
    migrate(told, migration)
    write(told, 20)
    told.end(3)
    synced(told.world)
    told.assert_told()


@pytest.mark.parametrize(
    ("migration", "step"),
    [
        *((migration, Step.ACKNOWLEDGED) for migration in MIGRATIONS),
        ("drop", Step.COPY_BEGUN),
    ],
)
def test_what_is_written_beside_a_migration_is_kept_version_by_version(
    make_postgres: MakePostgres, migration: str, step: Step
) -> None:
    """Between the last reading of the old log and the making of the new one, and behind it."""
    told = migrated(make_postgres)
    migrate(told, migration)
    told.world.faults.do_at(step, lambda: write(told, 20))
    synced(told.world)
    told.assert_told()


@pytest.mark.long
@pytest.mark.parametrize("way", ["parquet", "buffered"])
def test_nor_is_it_lost_by_other_mirrors(
    make_postgres: MakePostgres, way: str, tmp_path: Path
) -> None:
    told = migrated(make_postgres, **options(way, tmp_path))
    migrate(told, "rename")
    told.world.faults.do_at(Step.ACKNOWLEDGED, lambda: write(told, 20))
    synced(told.world)
    told.assert_told()


@pytest.mark.long
@pytest.mark.parametrize(
    ("modes", "migrations"),
    [
        (("temporal", "temporal"), ["add"]),
        (("destructive", "temporal"), ["rename"]),
        (("temporal", "temporal"), ["drop", "add"]),
        (("destructive", "temporal"), ["widen", "add"]),
        (("temporal", "temporal"), ["another key", "add"]),
    ],
)
def test_a_mirror_that_lags_behind_migrations_gets_every_version(
    make_postgres: MakePostgres, modes: tuple[str, str], migrations: list[str]
) -> None:
    first = make_postgres(mode=modes[0], capture={"method": "trigger"})
    told = migrated(make_postgres)
    told.world, other = first, told.world
    number = 100
    for migration in migrations:
        for statement in MIGRATIONS[migration]:
            told.alter(statement)
        write(told, number)
        first.htap.sync_now()
        write(told, number + 10)
        number += 20
    synced(first)
    write(told, number)
    with first.app.transaction():  # as a dump does, which nothing waits for
        for (log,) in first.app.execute("select log from _rhei.former").fetchall():
            first.app.execute(f"lock table _rhei.former_{log} in access share mode".encode())
        synced(other)
    told.assert_told(other)
    write(told, number + 10)
    synced(first)
    synced(other)
    left = first.app.execute("select count(*) from _rhei.former").fetchone()
    assert left == (0,), "a log that nobody needs is kept"


STEPS = [
    Step.SNAPSHOT,
    Step.CAPTURED,
    Step.COMMITTED,
    Step.ACKNOWLEDGED,
    Step.COPY_BEGUN,
    Step.COPY_COMPLETE,
    Step.PROMOTED,
    Step.RECORDED,
]


@pytest.mark.long
@pytest.mark.parametrize(
    ("step", "nth"),
    [
        *((step, 1) for step in STEPS),
        (Step.COMMITTED, 2),
        (Step.ACKNOWLEDGED, 2),
    ],
)
def test_a_sync_after_a_migration_that_dies_at_any_step_loses_no_version(
    make_postgres: MakePostgres, step: Step, nth: int
) -> None:
    told = migrated(make_postgres)
    migrate(told, "add")
    write(told, 20)
    told.world.faults.arm(step, nth)
    assert told.world.surviving(told.world.htap.sync_now)
    write(told, 30)
    synced(told.world)
    told.assert_told()


@pytest.mark.long
@pytest.mark.parametrize("name", ["retire", "go_on_numbering", "enter"])
def test_a_log_is_made_anew_whole_or_not_at_all(
    make_postgres: MakePostgres, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = migrated(make_postgres)
    migrate(told, "drop")
    write(told, 20)

    def dying(*given: Any) -> Any:
        getattr(before, name)(*given)
        raise Crash(name)

    before = SimpleNamespace(**{name: getattr(trigger_registry, name)})
    with monkeypatch.context() as patch:
        patch.setattr(trigger_registry, name, dying)
        assert told.world.surviving(told.world.htap.sync_now)
    write(told, 30)
    synced(told.world)
    told.assert_told()


@pytest.mark.long
def test_a_transaction_that_is_older_than_the_new_log_is_not_skipped(
    make_postgres: MakePostgres, dsn: str
) -> None:
    """Its number is lower than those of all that the new log was read with."""
    told = migrated(make_postgres)
    told.world.run("create table elsewhere(id int)")
    with psycopg.connect(dsn) as other:
        other.execute("insert into elsewhere values (1)")
        migrate(told, "drop")
        write(told, 20)
        synced(told.world)
        other.execute("update t set a = 77 where code = 2")
        write(told, 30)
        synced(told.world)
        other.execute("update t set a = 78 where code = 2")
        migrate_waits(told)
        other.commit()
    told._read(2)
    told.states[2].insert(-1, ({**told.rows[2], "a": 77}, False))
    synced(told.world)
    told.assert_told()


def migrate_waits(told: Told) -> None:
    """No log is changed under a transaction that has written the table."""
    source = engine_of(told.world.htap).source
    with told.world.app.transaction():
        told.world.run("set local lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            told.world.run("lock table t in share row exclusive mode")
    assert source.schema_version()


@pytest.mark.long
def test_a_reader_meets_no_log_but_the_one_of_its_own_moment(make_postgres: MakePostgres) -> None:
    """Tables are found by what is committed now, while their rows are as they were."""
    told = migrated(make_postgres)
    other = make_postgres(mode="temporal", capture={"method": "trigger"})
    other.htap.sync_now()
    told.states = {key: [(row, False)] for key, row in told.rows.items()}
    write(told, 20)
    table = engine_of(other.htap).pipeline.table("t")
    after = engine_of(other.htap).mirror.ledger().watermarks["t"].position
    with engine_of(other.htap).source.snapshot() as snapshot:
        migrate(told, "add")
        told.world.htap.sync_now()
        with pytest.raises(SourceBusyError, match="created again while it was read"):
            snapshot.pending(table, after)
    synced(other)
    told.assert_told(other)


VALUES: tuple[tuple[str, str, str], ...] = (
    ("numeric", "1.50", "'NaN'"),
    ("numeric(12, 3)", "1.500", "-0.001"),
    ("double precision", "'NaN'", "'-0'"),
    ("real", "0.1", "'-infinity'"),
    ("timestamptz", "'infinity'", "'2026-01-02 03:04:05.000006+05:30'"),
    ("timestamp", "'0001-01-01 00:00:00'", "'2026-01-02 03:04:05.6'"),
    ("date", "'infinity'", "'1999-12-31'"),
    ("time", "'23:59:59.999999'", "'00:00'"),
    ("bytea", r"'\x00ff41'", "''"),
    ("boolean", "true", "false"),
    ("char(4)", "'a'", "''"),
    ("text", "'\\N'", "E'quo\"te,\\n\\\\x \\u00e9'"),
    ("mood", "'sad'", "'very \"glad\", {}'"),
    ("mood[]", "array['sad', null]::mood[]", "'{}'"),
    ("pair", "(1, 'x,y')", "(null, null)"),
    ("interval", "'1 year -3 days'", "'00:00:00.1'"),
    ("jsonb", "'{\"a\": [1, 2.50]}'", "'null'"),
    ("int[]", "'{1,null,3}'", "'[0:1]={1,2}'"),
    ("whole", "3", "4"),
)


@pytest.mark.long
def test_values_are_exact_whichever_way_they_are_logged(make_postgres: MakePostgres) -> None:
    """The same values written before and after a column was renamed are equal in the mirror."""
    world = make_postgres(mode="temporal", capture={"method": "trigger"})
    columns = ", ".join(f"v{n} {kind}" for n, (kind, _, _) in enumerate(VALUES))
    world.run(
        "create type mood as enum ('sad', 'very \"glad\", {}')",
        "create type pair as (x int, y text)",
        "create domain whole as int check (value > 0)",
        f"create table t(id int primary key, turn int, {columns})",
        "insert into t(id, turn) values (1, 0)",
    )
    world.htap.sync_now()
    # An application writes with settings of its own.
    world.run(
        "set datestyle = 'German'",
        "set timezone = 'Asia/Kolkata'",
        "set bytea_output = 'escape'",
        "set extra_float_digits = 0",
        "set intervalstyle = 'sql_standard'",
    )

    def both() -> None:
        for one in (1, 2):
            given = ", ".join(f"v{n} = {values[one]}" for n, values in enumerate(VALUES))
            world.run(f"update t set {given}", "update t set turn_ = turn_ + 1")

    world.run("alter table t rename turn to turn_")
    world.htap.sync_now()
    both()
    world.htap.sync_now()
    world.run("alter table t rename v0 to v0_", "alter table t rename v0_ to v0")
    world.run("alter table t add column more int")
    both()
    synced(world)
    shown = ", ".join(f"v{n}::varchar" for n in range(len(VALUES)))
    found = world.htap.query(
        f"select {shown} from t where v1 is not null order by _rhei_valid_from", hint="olap"
    )
    rows = [tuple(row.values()) for row in found.to_pylist()]
    assert len(rows) == 8
    assert rows[0] != rows[2]
    assert rows[:4] == rows[4:]


def test_a_version_of_another_type_is_taken_exactly_or_named(
    make_postgres: MakePostgres, caplog: pytest.LogCaptureFixture
) -> None:
    """Written under a type that nobody read, and that does not fit into the one of now."""
    told = migrated(make_postgres)
    told.world.run(
        "alter table t add column r real",
        "update t set r = 0.1, a = 54 where code = 1",
        "alter table t alter r type double precision",
        "update t set a = 55 where code = 1",
        "alter table t add column d int",
        "update t set b = 'lost', a = 56 where code = 2",
        "alter table t drop column b",
    )
    assert told.world.htap.sync_now().dead_letters == 1
    synced(told.world)
    versions = told.world.versions("t")
    assert [row["a"] for row in versions if row["code"] == 1] == [0, 10, 11, 12, 55]
    letters = (
        engine_of(told.world.htap)
        .mirror.query(
            "select column_name, reason from _rhei_dead_letter where resolved_at is not null"
        )
        .to_pylist()
    )
    assert [(one["column_name"], "another type" in one["reason"]) for one in letters] == [
        ("r", True)
    ]
    assert [row["a"] for row in versions if row["code"] == 2] == [0, 56]
    assert "3 versions lack a value of a column that was dropped" in caplog.text


@pytest.mark.parametrize(
    ("migration", "write_after"),
    [
        ("alter table t rename column a to c", "update t set c = 5"),
        ("alter table t drop column b", "delete from t where code = 3"),
        ("alter table t add column c int default 4", "insert into t values (9, 9, 9, 'b', 9)"),
    ],
)
def test_no_statement_fails_in_a_transaction_that_sees_the_catalogue_of_before(
    make_postgres: MakePostgres, dsn: str, migration: str, write_after: str
) -> None:
    told = migrated(make_postgres)
    with psycopg.connect(dsn) as old:
        old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        old.execute("select from pg_class")
        told.world.run(migration)
        old.execute(write_after.encode())
    synced(told.world)
    told.world.assert_equal("t")
