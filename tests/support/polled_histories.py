"""Random histories of an application that stamps its rows, on either database; and their play."""

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from hypothesis import strategies as st

from rhei_pipeline.model.polling import Horizon, Keyset
from rhei_pipeline.protocols import Step
from rhei_pipeline.testing.oracle import Row, arrow_rows, exact
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.parts import engine_of

TABLES = ("items", "pairs")
SQLITE_NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now')"
POSTGRES_NOW = "now()"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_IDS = st.integers(1, 4)
_NOTES = st.sampled_from(["", "a", "b", "é"])
_PARTS = st.sampled_from(["k", "l"])

Statement = tuple[str, tuple[Any, ...]]


def schema(text: str, integer: str, stamp: str) -> tuple[str, ...]:
    """Return the tables, with a source's own names of types."""
    return (
        f"create table items(id {integer} primary key, note {text}, updated_at {stamp},"
        f" deleted_at {text})",
        "create index items_updated on items(updated_at, id)",
        f"create table pairs(a {text} not null, b {integer} not null, w {integer},"
        f" updated_at {stamp}, deleted_at {text}, primary key (a, b))",
        "create index pairs_updated on pairs(updated_at)",
    )


_puts = st.one_of(
    st.tuples(
        st.just(
            "insert into items values (?, ?, {now}, null) on conflict (id) do update set"
            " note = excluded.note, updated_at = excluded.updated_at, deleted_at = null"
        ),
        st.tuples(_IDS, _NOTES),
    ),
    st.tuples(
        st.just("update items set note = ?, updated_at = {now} where id = ?"),
        st.tuples(_NOTES, _IDS),
    ),
    st.tuples(st.just("update items set note = note || '!', updated_at = {now}"), st.just(())),
    st.tuples(
        st.just(
            "insert into pairs values (?, ?, ?, {now}, null) on conflict (a, b) do update set"
            " w = excluded.w, updated_at = excluded.updated_at, deleted_at = null"
        ),
        st.tuples(_PARTS, st.integers(1, 2), _IDS),
    ),
    st.tuples(st.just("update pairs set w = w + 1, updated_at = null"), st.just(())),
)
#: What only a comparison of the whole table can find.
_unseen = st.one_of(
    st.tuples(st.just("delete from items where id = ?"), st.tuples(_IDS)),
    st.tuples(st.just("delete from pairs where b = ?"), st.tuples(st.integers(1, 2))),
    st.tuples(st.just("update items set id = ? where id = ?"), st.tuples(_IDS, _IDS)),
    st.tuples(st.just("update items set note = 'silent' where id = ?"), st.tuples(_IDS)),
)
_soft = st.one_of(
    st.tuples(
        st.just("update items set deleted_at = 'x', updated_at = {now} where id = ?"),
        st.tuples(_IDS),
    ),
    st.tuples(
        st.just("update pairs set deleted_at = 'x', updated_at = {now} where b = ?"),
        st.tuples(st.integers(1, 2)),
    ),
    st.tuples(
        st.just("update items set deleted_at = null, updated_at = {now} where id = ?"),
        st.tuples(_IDS),
    ),
)


@dataclass(frozen=True)
class Write:
    """A transaction; `elsewhere` it stays open until its connection's next turn."""

    done: tuple[Statement, ...]
    undone: tuple[Statement, ...]
    commits: bool
    elsewhere: bool
    prepares: bool


@dataclass(frozen=True)
class Sync:
    """A sync, or a repeated copy of a table, that crashes at a step or does not."""

    table: str | None
    crash_at: Step | None
    occurrence: int


def histories(policy: str) -> st.SearchStrategy[list[Write | Sync]]:
    """Draw histories whose deletes are learned of in one way."""
    statements = _puts | _puts | (_unseen if policy == "reconcile" else _soft)
    writes = st.builds(
        Write,
        st.lists(statements, min_size=1, max_size=4).map(tuple),
        st.lists(statements, max_size=2).map(tuple),
        st.sampled_from([True, True, True, False]),
        st.sampled_from([False, False, True]),
        st.booleans(),
    )
    steps = st.none() | st.sampled_from(list(Step))
    syncs = st.builds(Sync, st.none(), steps, st.integers(1, 3))
    copies = st.builds(Sync, st.sampled_from(TABLES), steps, st.integers(1, 3))
    return st.lists(writes | writes | syncs | syncs | copies, min_size=3, max_size=20)


#: How deletes are learned of, and what happened.
drawn = st.sampled_from(["reconcile", "soft_delete:deleted_at"]).flatmap(
    lambda policy: st.tuples(st.just(policy), histories(policy))
)


@dataclass(frozen=True)
class State:
    """What a table was as of an instant; after a restart, that is only sure where it lasts."""

    instant: datetime
    table: str
    rows: frozenset[Row]
    lasting: bool


@dataclass
class Play:
    """A history being played, by two connections of the application and the engine."""

    world: World | PostgresWorld
    policy: str
    now: str
    other: Any
    states: list[State] = field(default_factory=list)
    _prepared: bool = False

    def run(self, actions: Sequence[Write | Sync]) -> None:
        """Play all; after each sync mirror and source are equal, and they were at each before."""
        self._settled()
        for action in actions:
            self.world.faults.disarm()
            if isinstance(action, Sync):
                self._sync(action)
            elif action.elsewhere:
                self._write_elsewhere(action)
            else:
                self._write(action)
        self._end_elsewhere(prepares=False)
        self._end_elsewhere(prepares=False)
        self._settled()
        assert self.world.htap.verify().equal
        if self.world.mode == "temporal":
            for state in self.states:
                found = arrow_rows(self.world.htap.as_of(state.table, state.instant))
                assert found == state.rows, (state.instant, state.table)

    def _write(self, action: Write) -> None:
        app = self.world.app
        with suppress(sqlite3.OperationalError):  # the other connection is writing
            app.execute("begin immediate" if self._is_sqlite else "begin")
            self._statements(app, action)
            app.execute("commit" if action.commits else "rollback")

    def _write_elsewhere(self, action: Write) -> None:
        self._end_elsewhere(prepares=action.prepares)
        self.other.execute("begin immediate" if self._is_sqlite else "begin")
        self._statements(self.other, action)

    def _end_elsewhere(self, *, prepares: bool) -> None:
        """Commit what was prepared; then commit or prepare what is open."""
        if self._prepared:
            self.world.app.execute(f"commit prepared '{self._gid}'".encode())  # type: ignore[arg-type]
            self._prepared = False
        if not self._is_open:
            return
        if prepares and not self._is_sqlite:
            self.other.execute(f"prepare transaction '{self._gid}'")
            self._prepared = True
        else:
            self.other.execute("commit")

    @property
    def _gid(self) -> str:
        return f"elsewhere {id(self)}"

    @property
    def _is_sqlite(self) -> bool:
        return isinstance(self.world, World)

    @property
    def _is_open(self) -> bool:
        if self._is_sqlite:
            return bool(self.other.in_transaction)
        return bool(self.other.info.transaction_status != psycopg.pq.TransactionStatus.IDLE)

    def _statements(self, connection: Any, action: Write) -> None:
        for statement in action.done:
            self._statement(connection, statement)
        connection.execute("savepoint undone")
        for statement in action.undone:
            self._statement(connection, statement)
        connection.execute("rollback to undone")

    def _statement(self, connection: Any, statement: Statement) -> None:
        sql = statement[0].format(now=self.now)
        sql = sql if self._is_sqlite else sql.replace("?", "%s")
        connection.execute("savepoint statement")
        # A broken constraint, a lock of the other one: the application's everyday life.
        with suppress(psycopg.Error, sqlite3.IntegrityError):
            connection.execute(sql, statement[1] or ())
            connection.execute("release statement")
            return
        connection.execute("rollback to statement")

    def _sync(self, action: Sync) -> None:
        if action.crash_at:
            self.world.faults.arm(action.crash_at, action.occurrence)
        if self.world.surviving(lambda: self._work(action.table)):
            self.states = [state for state in self.states if state.lasting]
        else:
            self._settled()

    def _work(self, table: str | None) -> None:
        if table is None:
            self.world.htap.sync_now()
        else:
            self.world.htap.initial_sync(table)

    def _settled(self) -> None:
        """Sync; the mirror is what the source shows, and was so when that was recorded."""
        self.world.faults.disarm()
        self.world.htap.sync_now()
        for table in TABLES:
            state = self._alive(table)
            assert self.world.mirror_rows(table) == state, table
            mark = engine_of(self.world.htap).mirror.ledger().watermarks[table]
            form = Keyset if self._is_sqlite else Horizon
            known = form.read(mark.position.proof, "updated_at")
            assert known is not None
            lasting = mark.recorded_at == _EPOCH + timedelta(microseconds=known.clock)
            self.states.append(State(mark.recorded_at, table, state, lasting))

    def _alive(self, table: str) -> frozenset[Row]:
        where = "" if self.policy == "reconcile" else " where deleted_at is null"
        return frozenset(map(exact, self.world.app.execute(f"select * from {table}{where}")))
