"""Random histories of an application on PostgreSQL, with another transaction open meanwhile."""

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg
from hypothesis import strategies as st

from rhei_pipeline.protocols import Step
from rhei_pipeline.testing.oracle import Dated, State, by_key
from tests.support.fix_postgres import PostgresWorld
from tests.support.playing import Work, worked

TABLES = ("items", "pairs", "sales.child")
_PACES = (("items", 1), ("items", 3), ("pairs", 2), ("sales.child", 1))
KEYS = {"items": ("id",), "pairs": ("a", "b"), "sales.child": ("id",)}
SCHEMA = (
    "create schema if not exists sales",
    "create table items(id int primary key, code text unique, qty float8, note text,"
    " price numeric(4, 1) default 1)",
    "alter table items alter note set storage external",
    "create table sales.child(id int primary key,"
    " item int references items(id) on delete cascade on update cascade)",
)
_PAIRS = "create table pairs(a text, b int, v bytea, w numeric(6, 2), primary key (a, b))"
PARTITIONED = (
    f"{_PAIRS} partition by list (b)",
    "create table pairs_1 partition of pairs for values in (1)",
    "create table pairs_2 partition of pairs default",
)
#: An application's own triggers: one touches a row again, one undoes an insert.
BUSY = (
    _PAIRS,
    "create or replace function again() returns trigger language plpgsql as $$ begin"
    " update pairs set w = coalesce(w, 0) + 1 where a = new.a and b = new.b; return null; end $$",
    "create trigger again after insert on pairs for each row execute function again()",
    "create or replace function undo() returns trigger language plpgsql as $$ begin"
    " delete from items where id = new.id; return null; end $$",
    "create trigger undo after insert on items for each row when (new.note = '')"
    " execute function undo()",
)
CLEAR = (
    "drop schema if exists sales, _rhei cascade",
    "drop table if exists items, pairs cascade",
)
LONG = "out of line " * 400

_IDS = st.integers(1, 4)
_CODES = st.sampled_from([None, "a", "b", "c"])
_NOTES = st.sampled_from([None, "", "é", LONG])
_QUANTITIES = st.sampled_from([None, 0.0, -0.0, 1.5, float("inf")])
_PARTS = st.sampled_from(["k", "K", "ß"])
_NUMBERS = st.integers(1, 3)
_BLOBS = st.sampled_from([None, b"", b"\0\xff"])

Statement = tuple[str, tuple[Any, ...]]
statements = st.one_of(
    st.tuples(
        st.just(
            "insert into items values (%s, %s, %s, %s) on conflict (id) do update"
            " set qty = excluded.qty, note = excluded.note"
        ),
        st.tuples(_IDS, _CODES, _QUANTITIES, _NOTES),
    ),
    st.tuples(st.just("update items set qty = %s where id = %s"), st.tuples(_QUANTITIES, _IDS)),
    st.tuples(st.just("update items set id = %s where id = %s"), st.tuples(_IDS, _IDS)),
    st.tuples(st.just("update items set qty = qty + 1"), st.just(())),
    st.tuples(st.just("delete from items where id = %s"), st.tuples(_IDS)),
    st.tuples(
        st.just("insert into pairs values (%s, %s, %s, %s) on conflict do nothing"),
        st.tuples(_PARTS, _NUMBERS, _BLOBS, st.sampled_from([None, 1, 2.5])),
    ),
    st.tuples(st.just("update pairs set b = %s where b = %s"), st.tuples(_NUMBERS, _NUMBERS)),
    st.tuples(st.just("delete from pairs where a = %s"), st.tuples(_PARTS)),
    st.tuples(
        st.just("insert into sales.child values (%s, %s) on conflict do nothing"),
        st.tuples(_IDS, _IDS),
    ),
    st.tuples(st.just("truncate sales.child"), st.just(())),
    st.tuples(st.just("truncate pairs"), st.just(())),
)
_MIGRATIONS = st.sampled_from(
    [
        "alter table items add column extra int default 7",
        "alter table items drop column note",
        "alter table items rename column note to remark",
        "alter table pairs alter column w type numeric(8, 3)",
        "vacuum full items",
    ]
)
_LOG_MIGRATIONS = st.sampled_from(
    [
        "alter table items replica identity full",
        "alter table items replica identity default",
        "drop publication",
        "drop slot",
    ]
)
_TRIGGER_MIGRATIONS = st.sampled_from(
    [
        "alter table items disable trigger all",
        # Nothing shows afterwards but what the triggers noted meanwhile.
        "alter table pairs rename column b to c; update pairs set c = c + 10;"
        " alter table pairs rename column c to b",
        "drop trigger if exists _rhei_update on items",
        "delete from _rhei.consumer",
        "drop schema _rhei cascade",
        "drop log",
    ]
)


@dataclass(frozen=True)
class Write:
    """A transaction: some statements, some of them undone by a savepoint, then an end."""

    done: tuple[Statement, ...]
    undone: tuple[Statement, ...]
    commits: bool
    elsewhere: bool


@dataclass(frozen=True)
class Spoiling:
    """One statement that gives a row a value which the mirror cannot keep, or one that it can."""

    statement: Statement


@dataclass(frozen=True)
class Migration:
    """Something an administrator does."""

    sql: str


writes = st.builds(
    Write,
    st.lists(statements, min_size=1, max_size=4).map(tuple),
    st.lists(statements, max_size=2).map(tuple),
    st.sampled_from([True, True, True, False]),
    st.sampled_from([False, False, True]),
)
_crashes = st.none() | st.sampled_from(list(Step))
_table = st.sampled_from(TABLES)
syncs = st.builds(Work, st.just("sync"), _table, _crashes, st.integers(1, 3))
works = st.builds(
    Work,
    st.sampled_from(["copy", "repair", "repair", "verify", "replay", "reopen"]),
    _table,
    _crashes,
    st.integers(1, 2),
)
_prices = st.sampled_from(["NaN", "NaN", "2.5"])
spoilings = st.builds(
    Spoiling,
    st.tuples(
        st.just("update pairs set w = %s where a = %s and b = %s"),
        st.tuples(_prices, _PARTS, _NUMBERS),
    )
    | st.tuples(st.just("update items set price = %s where id = %s"), st.tuples(_prices, _IDS)),
)
_done = writes | writes | spoilings | syncs | works

calm = st.lists(_done, min_size=3, max_size=20)


def _stormy(*migrations: st.SearchStrategy[str]) -> st.SearchStrategy[list[Any]]:
    administered = st.builds(Migration, st.one_of(_MIGRATIONS, *migrations))
    return st.lists(_done | administered, min_size=3, max_size=20)


stormy = _stormy(_LOG_MIGRATIONS)
triggers_stormy = _stormy(_TRIGGER_MIGRATIONS)


@dataclass
class Play:
    """A history being played."""

    world: PostgresWorld
    dated: bool
    other: psycopg.Connection[Any]
    states: list[tuple[datetime, dict[str, Dated]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.mirror = worked(self.world, KEYS, _PACES)

    def run(self, actions: list[Write | Spoiling | Work | Migration]) -> None:
        """Play all; the mirror is as expected after each piece of work, and in the end."""
        self._work(_SYNC)
        self.note()
        for action in actions:
            self.world.faults.disarm()
            if isinstance(action, Write):
                self._write(action)
            elif isinstance(action, Spoiling):
                self._spoil(*action.statement)
            elif isinstance(action, Work):
                self._work(action)
            else:
                self._migrate(action.sql)
            if self.dated:
                self.note()
        self.other.rollback()
        self._work(_SYNC)
        self.mirror.check_verification(self.world.htap.verify())
        for instant, state in self.states if self.dated else ():
            for table, dated in state.items():
                found = self.world.htap.as_of(table, instant).to_pylist()
                dated.check(by_key(found, KEYS[table]))

    def note(self) -> None:
        """Date the present state, a moment behind the last commit."""
        found = self.world.app.execute("select clock_timestamp() from pg_sleep(0.0005)").fetchone()
        assert found is not None
        self._saw()
        state = {table: Dated.of(expected) for table, expected in self.mirror.expected.items()}
        self.states.append((found[0].astimezone(UTC), state))

    def _saw(self, *, whole: bool = False) -> None:
        for table, expected in self.mirror.expected.items():
            expected.saw(self._state(table), whole=whole)

    def _state(self, table: str) -> State:
        fit = _FITS.get(table, "true")
        found = self.world.app.execute(f"select *, {fit} as fits from {table}".encode())
        names = [column.name for column in found.description or ()]
        rows = by_key((dict(zip(names, row, strict=True)) for row in found), KEYS[table])
        unfit = {key for key, row in rows.items() if not row.pop("fits")}
        return State(rows, unfit)

    def _write(self, action: Write) -> None:
        # The other connection's transaction stays open until its next turn.
        connection = self.other if action.elsewhere else self.world.app
        self._commit(connection)
        if not action.elsewhere:
            connection.execute("begin")
        for sql, params in action.done:
            # Left open, it would lock every reader out, this oracle too.
            if not (action.elsewhere and sql.startswith("truncate")):
                self._statement(connection, sql, params)
        connection.execute("savepoint undone")
        for sql, params in () if action.elsewhere else action.undone:
            self._statement(connection, sql, params)
        connection.execute("rollback to undone")
        if not action.elsewhere:
            connection.execute("commit" if action.commits else "rollback")
            self._saw()

    def _spoil(self, sql: str, params: tuple[Any, ...]) -> None:
        with suppress(psycopg.Error):  # the other one may hold the row
            self.world.app.execute(sql.encode(), params)
        self._saw(whole=True)

    def _commit(self, connection: psycopg.Connection[Any]) -> None:
        connection.commit()
        self._saw()

    def _statement(
        self, connection: psycopg.Connection[Any], sql: str, params: tuple[Any, ...]
    ) -> None:
        connection.execute("savepoint statement")
        # A broken constraint, a lock of the other one: the application's everyday life.
        with suppress(psycopg.Error):
            connection.execute(sql.encode(), params or None)
            return
        connection.execute("rollback to statement")

    def _work(self, work: Work) -> None:
        self.world.faults.disarm()
        if not self.dated or work.kind in {"copy", "repair"}:
            self._commit(self.other)  # a copy, which may be due, waits for older transactions
        self.mirror.do(work)

    def _migrate(self, sql: str) -> None:
        self._commit(self.other)
        app = self.world.app
        if sql == "drop slot":
            with suppress(psycopg.Error):
                app.execute(
                    "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
                    " where database = current_database()"
                )
        elif sql == "drop publication":
            for (name,) in app.execute("select pubname from pg_publication").fetchall():
                app.execute(f"drop publication {name}".encode())
        elif sql == "drop log":
            with suppress(psycopg.Error):
                relation = app.execute("select 'items'::regclass::oid").fetchone()
                app.execute(f"drop table _rhei.log_{relation and relation[0]}".encode())
        else:
            with suppress(psycopg.Error):
                app.execute(sql.encode())
        self._saw()


_SYNC = Work("sync", TABLES[0], None, 1)
#: What the mirror can keep.
_FITS = {"items": "price is distinct from 'NaN'", "pairs": "w is distinct from 'NaN'"}
