"""Mirrors of one table share its log: none takes from another what that one needs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rhei_pipeline.protocols import Step
from rhei_pipeline.testing.oracle import by_key
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.parts import engine_of

EXAMPLES = 3
SOAK_EXAMPLES = 1_500
COLUMNS = ("a", "b", "c")
CREATE = "create table t(id integer primary key, a integer, b varchar(9) unique, c real)"
FORGOTTEN = {
    "sqlite": "update _rhei_consumer set seen_at = 0 where mirror = '{}'",
    "postgres": "update _rhei.consumer set seen_at = '2020-01-01' where mirror = '{}'",
}

Rows = dict[tuple[Any, ...], dict[str, Any]]
AnyWorld = World | PostgresWorld


@dataclass
class Consumer:
    """A mirror, its declaration, and which columns it has had at each instant since it came."""

    world: AnyWorld
    columns: frozenset[str]
    mode: str
    #: Where it came to the table's states.
    since: int
    #: By state: the columns that it had then, and has had ever since.
    had: dict[int, frozenset[str]] = field(default_factory=dict)

    def declare(self, columns: frozenset[str]) -> None:
        """Mirror these columns from now on, in a process begun anew."""
        self.world.crash()
        self.columns = columns
        self.had = {state: names & columns for state, names in self.had.items()}
        self.world.tables = [{"name": "t", "columns": ["id", *sorted(columns)]}]

    def rows(self) -> Rows:
        """Return the mirror's rows that are valid now."""
        where = " where _rhei_valid_to is null" if self.mode == "temporal" else ""
        found = self.world.htap.query(f"select * from t{where}", hint="olap")
        return by_key(found.to_pylist(), ["id"])

    def shown(self, rows: Rows, columns: frozenset[str]) -> Rows:
        """Return rows with these columns alone."""
        return {key: {n: row[n] for n in ("id", *sorted(columns))} for key, row in rows.items()}

    def check_history(self, states: Sequence[tuple[datetime, Rows]]) -> None:
        """Its history shows what the table was at each instant."""
        for number, (instant, rows) in enumerate(states):
            if number < self.since or self.mode != "temporal":
                continue
            had = self.had[number]
            held = by_key(self.world.htap.as_of("t", instant).to_pylist(), ["id"])
            assert self.shown(held, had) == self.shown(rows, had), number


@dataclass
class Played:
    """A history being played; the oracle is the table itself."""

    make: Callable[[], AnyWorld]
    forgotten: str
    consumers: dict[int, Consumer] = field(default_factory=dict)
    states: list[tuple[datetime, Rows]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.first = self.make()
        self.first.run(CREATE, "insert into t values (1, 1, 'x', 1), (2, 2, 'y', null)")
        self.note()

    def note(self) -> None:
        """Note the table's state, and an instant at which it was that."""
        rows = self.first.app.execute("select id, a, b, c from t").fetchall()
        known = by_key((dict(zip(("id", *COLUMNS), r, strict=True)) for r in rows), ["id"])
        # SQLite's clock has milliseconds, and an instant within one is the end of it.
        now = datetime.now(UTC)
        end = now.replace(microsecond=now.microsecond // 1000 * 1000) + timedelta(microseconds=900)
        for one in self.consumers.values():
            one.had[len(self.states)] = one.columns
        self.states.append((end, known))
        while datetime.now(UTC) <= end + timedelta(microseconds=100):
            time.sleep(0.0002)

    def come(self, slot: int, columns: frozenset[str], mode: str) -> None:
        """A new mirror comes; the one whose place it takes is gone for good."""
        gone = self.consumers.pop(slot, None)
        if gone is not None:
            mirror = engine_of(gone.world.htap).mirror.mirror_id
            gone.world.crash()
            self.first.run(self.forgotten.format(mirror))
        world = self.make()
        world.mode = mode
        self.consumers[slot] = Consumer(world, columns, mode, len(self.states))
        self.consumers[slot].declare(columns)
        self.sync(slot, is_same=False)
        self.note()

    def declare(self, slot: int, columns: frozenset[str], _mode: str) -> None:
        """A mirror is declared otherwise, and goes on."""
        if slot in self.consumers:
            self.consumers[slot].declare(columns)
            self.sync(slot, is_same=False)

    def sync(self, slot: int, *, is_same: bool = True) -> None:
        """Sync one mirror: it holds the table's rows, and copies none that it had."""
        one = self.consumers.get(slot)
        if one is None:
            return
        report = one.world.htap.sync_now()
        assert not report.errors
        if is_same:
            assert report.tables["t"].copied_rows == 0
        assert one.shown(one.rows(), one.columns) == one.shown(self.states[-1][1], one.columns)

    def write(self, statement: str) -> None:
        """Write as the application does."""
        self.first.run(statement)
        self.note()

    def end(self) -> None:
        """All mirrors are brought up to date; nothing was taken from any."""
        for slot, one in self.consumers.items():
            self.sync(slot)
            assert one.world.htap.verify().equal
            one.check_history(self.states)


def play(played: Played, actions: Sequence[tuple[Any, ...]]) -> None:
    for name, *arguments in actions:
        getattr(played, name)(*arguments)
    played.end()


_SLOTS = st.integers(0, 1)
_CHOSEN = st.frozensets(st.sampled_from(COLUMNS), min_size=1)
_KEYS = st.integers(1, 3)
_VALUES = st.integers(0, 9)
_WRITES = st.one_of(
    st.builds(
        "insert into t select {0}, {1}, 'b{1}', {1}"
        " where 'b{1}' not in (select b from t where id <> {0} and b is not null)"
        " on conflict(id) do update set a = {1}".format,
        _KEYS,
        _VALUES,
    ),
    st.builds(
        "update t set {1} = {2} where id = {0}".format, _KEYS, st.sampled_from("ac"), _VALUES
    ),
    st.builds(
        "update t set b = 'v{0}{1}' where id = {0}"
        " and 'v{0}{1}' not in (select b from t where b is not null)".format,
        _KEYS,
        _VALUES,
    ),
    st.builds(
        "update t set id = {1} where id = {0} and {1} not in (select id from t)".format,
        _KEYS,
        _KEYS,
    ),
    st.builds("delete from t where id = {}".format, _KEYS),
)


def _actions(modes: Sequence[str]) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    mode = st.sampled_from(modes)
    action = st.one_of(
        st.tuples(st.just("write"), _WRITES),
        st.tuples(st.just("write"), _WRITES),
        st.tuples(st.just("sync"), _SLOTS),
        st.tuples(st.sampled_from(["come", "declare"]), _SLOTS, _CHOSEN, mode),
    )
    both = [st.tuples(st.just("come"), st.just(slot), _CHOSEN, mode) for slot in (0, 1)]
    return st.builds(
        lambda first, *rest: [*first, *rest[0]],
        st.tuples(*both),
        st.lists(action, min_size=4, max_size=14),
    )


MIXED = _actions(["temporal", "temporal", "destructive"])
_A, _AB = frozenset("a"), frozenset("ab")
_WRITTEN = [("write", "insert into t values (3, 1, 'b1', 1)"), ("write", "update t set a = 4")]
#: What was written is in the log that was made for the other mirror.
DECLARED_WITH_A_COLUMN_THAT_ONLY_THE_NEW_LOG_HAS = [
    ("come", 0, _A, "temporal"),
    ("come", 1, _AB, "temporal"),
    *_WRITTEN,
    ("declare", 0, _AB, ""),
]
#: A log of keys is followed by one of rows, while the first mirror is behind.
ROWS_LOGGED_FOR_ANOTHER = [
    ("come", 0, _A, "destructive"),
    ("write", "delete from t where id = 1"),
    ("come", 1, _A, "temporal"),
    *_WRITTEN,
]


def _on_sqlite(actions: Sequence[tuple[Any, ...]]) -> None:
    worlds: list[World] = []
    with TemporaryDirectory() as directory:

        def make() -> World:
            world = World(Path(directory) / str(len(worlds)))
            if worlds:
                world.app.close()
                world.app, world.path = worlds[0].app, worlds[0].path
            worlds.append(world)
            return world

        try:
            play(Played(make, FORGOTTEN["sqlite"]), actions)
        finally:
            for world in worlds:
                world.close()


def _on_postgres(dsn: str, actions: Sequence[tuple[Any, ...]]) -> None:
    worlds: list[PostgresWorld] = []
    with TemporaryDirectory() as directory:

        def make() -> PostgresWorld:
            path = Path(directory) / str(len(worlds))
            path.mkdir()
            worlds.append(PostgresWorld(dsn, path, capture={"method": "trigger"}))
            return worlds[-1]

        try:
            make().run("drop schema if exists _rhei cascade", "drop table if exists t")
            play(Played(make, FORGOTTEN["postgres"]), actions)
        finally:
            for world in worlds:
                world.close()


def beside(first: World, directory: Path, **options: Any) -> World:
    """Return another mirror of the same source."""
    world = World(directory, **options)
    world.app.close()
    world.app, world.path = first.app, first.path
    return world


def only(*columns: str, **options: Any) -> list[dict[str, Any]]:
    return [{"name": "t", "columns": ["id", *columns], **options}]


def test_a_mirror_that_asks_for_another_key_is_refused_and_takes_nothing(
    make_world: Callable[..., World], tmp_path: Path
) -> None:
    first = make_world(mode="temporal", tables=only("a"))
    first.run("create table t(id integer primary key, a integer not null unique, b text)")
    first.run("insert into t values (1, 1, 'x')")
    first.htap.sync_now()
    second = beside(first, tmp_path / "second", tables=only("a", primary_key=["a"]))
    try:
        error = second.htap.sync_now().errors["t"]
        assert "another mirror captures it by another key" in str(error)
        first.run("update t set a = 2", "update t set a = 3")
        report = first.htap.sync_now()
        assert (report.events, report.tables["t"].copied_rows) == (2, 0)
        assert [version["a"] for version in first.versions("t")] == [1, 2, 3]
        # The way out that the error names.
        assert "primary_key: [id]" in str(error)
        second.crash()
        second.tables = only("a", primary_key=["id"])
        assert not second.htap.sync_now().errors
        assert second.htap.verify().equal
    finally:
        second.crash()


def test_what_a_copy_needs_is_kept_while_another_mirror_syncs(
    make_world: Callable[..., World], tmp_path: Path
) -> None:
    first = make_world(mode="temporal", tables=only("a"))
    first.run(CREATE, "insert into t values (1, 1, 'x', 1), (2, 1, 'y', 1), (3, 1, 'z', 1)")
    first.htap.sync_now()

    def write_and_sync() -> None:
        first.run("update t set a = 2 where id = 1", "update t set a = 3 where id = 1")
        assert first.htap.sync_now().events == 2

    second = beside(first, tmp_path / "second", tables=only("a"), mode="temporal", batch_rows=2)
    try:
        second.faults.do_at(Step.COPY_BATCH, write_and_sync)
        second.htap.sync_now()
        assert second.faults.seen.count(Step.COPY_BEGUN) == 1
        assert second.htap.verify().equal
    finally:
        second.crash()


def test_what_a_mirror_needs_that_an_older_version_made_is_what_its_log_holds(
    make_world: Callable[..., World], tmp_path: Path
) -> None:
    first = make_world(mode="temporal", tables=only("a"))
    first.run(CREATE, "insert into t values (1, 1, 'x', 1)")
    first.htap.sync_now()
    first.crash()
    first.run("drop table _rhei_need")
    second = beside(first, tmp_path / "second", mode="temporal", tables=only("b"))
    try:
        second.htap.sync_now()
        first.run("update t set a = 2, b = 'y'", "update t set a = 3, b = 'z'")
        for world, column, values in ((second, "b", ["x", "y", "z"]), (first, "a", [1, 2, 3])):
            assert world.htap.sync_now().tables["t"].copied_rows == 0
            assert [version[column] for version in world.versions("t")] == values
    finally:
        second.crash()


#: A table that begins again without an event, and one beside it whose history takes another shape.
_BEGUN_AGAIN = (
    "drop table t",
    "create table t(id integer primary key, a integer)",
    "insert into t values (4, 4)",
)
_REBUILT = {
    "sqlite": (
        "create table rebuilt(id integer primary key, a integer, b text)",
        "insert into rebuilt select id, a, null from other",
        "drop table other",
        "alter table rebuilt rename to other",
    ),
    "postgres": ("alter table other add column b text",),
}
_TWO_TABLES = (
    "create table t(id integer primary key, a integer)",
    "insert into t values (1, 1), (2, 2)",
    "create table other(id integer primary key, a integer)",
    "insert into other values (1, 1)",
)


def has_all(world: AnyWorld) -> bool:
    """Sync; return whether a history's rows that are valid now are the source's."""
    assert world.htap.sync_now().errors == {}
    held = world.htap.query("select id from t where _rhei_valid_to is null", hint="olap")
    wanted = [key for (key,) in world.app.execute("select id from t order by id").fetchall()]
    return sorted(held["id"].to_pylist()) == wanted and world.htap.verify().equal


@pytest.mark.pairs
@pytest.mark.parametrize("storage", [None, "parquet"])
@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_what_another_mirror_marked_is_compared_before_its_log_is_read_on(
    storage: str | None,
    buffered: bool,  # noqa: FBT001
    reopened: bool,  # noqa: FBT001
    mode: str,
    make_world: Callable[..., World],
    tmp_path: Path,
) -> None:
    first = make_world(mode=mode)
    first.run(*_TWO_TABLES)
    first.htap.sync_now()
    second = beside(first, tmp_path / "second", mode="temporal", storage=storage, buffered=buffered)
    try:
        second.htap.sync_now()
        first.run(*_REBUILT["sqlite"], *_BEGUN_AGAIN)
        if reopened:
            second.crash()
        first.htap.sync_now()
        assert has_all(second)
        assert second.htap.sync_now().events == 0
    finally:
        second.crash()


@pytest.mark.parametrize("method", ["trigger", "logical"])
def test_what_another_mirror_of_postgres_met_first_is_in_each(
    method: str, make_postgres: Callable[..., PostgresWorld]
) -> None:
    worlds = [make_postgres(mode="temporal", capture={"method": method}) for _ in range(2)]
    worlds[0].run(*_TWO_TABLES)
    for world in worlds:
        world.htap.sync_now()
    worlds[0].run(*_REBUILT["postgres"], *_BEGUN_AGAIN)
    assert [has_all(world) for world in worlds] == [True, True]


@pytest.mark.long
@settings(max_examples=EXAMPLES)
@given(actions=MIXED)
def test_mirrors_with_other_columns_come_and_go(actions: Sequence[tuple[Any, ...]]) -> None:
    _on_sqlite(actions)


@pytest.mark.long
@settings(max_examples=1)
@example(actions=DECLARED_WITH_A_COLUMN_THAT_ONLY_THE_NEW_LOG_HAS)
@example(actions=ROWS_LOGGED_FOR_ANOTHER)
@given(actions=MIXED)
def test_mirrors_of_postgres_with_other_columns_come_and_go(
    dsn: str, actions: Sequence[tuple[Any, ...]]
) -> None:
    _on_postgres(dsn, actions)


@pytest.mark.soak
@settings(max_examples=SOAK_EXAMPLES)
@given(actions=MIXED)
def test_mirrors_come_and_go_a_thousand_times(actions: Sequence[tuple[Any, ...]]) -> None:
    _on_sqlite(actions)
