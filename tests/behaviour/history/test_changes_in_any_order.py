"""Whenever versions come to a mirror, and however dated: changes add up to what it holds."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhei_pipeline import ChangePosition, Column, Mode, Position, Table, TableChanges, TableSchema
from rhei_pipeline.capabilities import TellsChanges, kept_since, refuse_unless_expiring
from rhei_pipeline.changes import consume
from rhei_pipeline.errors import ChangesLostError, QueryError
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.model.changes import ChangeBatch, event_schema
from rhei_pipeline.model.instants import microseconds
from rhei_pipeline.model.progress import CopyProgress
from rhei_pipeline.model.retention import Ageing
from rhei_pipeline.sync.cycle import keep_versions

TABLE = Table(
    TableSchema(
        "s.things",
        (Column("k", pa.float64()), Column("b", pa.string()), Column("v", pa.float64())),
        ("k", "b"),
        "s",
    ),
    Mode.TEMPORAL,
)
START = datetime(2026, 1, 1, tzinfo=UTC)
EXAMPLES = 6
KINDS: dict[str, Callable[[Path], TellsChanges]] = {
    "duckdb": lambda path: DuckDBMirror(path / "m.duckdb"),
    "datafusion": lambda path: DataFusionMirror("ipc", path / "ipc"),
}

Key = tuple[str, str]
Rows = dict[Key, str]


@dataclass(frozen=True)
class Commit:
    """Some batches of events, each of a key, a value (None: deleted) and a microsecond."""

    batches: list[list[tuple[float, str, float | None, int]]]
    whole: bool
    dies: bool
    reopens: bool


EVENTS = st.tuples(
    st.sampled_from([0.0, -0.0, 1.0, float("nan")]),
    st.sampled_from(["a", "b"]),
    st.sampled_from([None, None, 0.0, -0.0, 1.0, 2.0]),
    st.integers(0, 12) | st.sampled_from([10**9]),
)
COMMITS = st.builds(
    Commit,
    st.lists(st.lists(EVENTS, min_size=1, max_size=4), min_size=1, max_size=2),
    st.booleans(),
    st.sampled_from([False, False, False, True]),
    st.sampled_from([False, False, True]),
)


def name(row: Mapping[str, Any]) -> Key:
    """Name a key as text: both zeros are one, and so are all NaNs."""
    return repr(row["k"] + 0.0), row["b"]


@dataclass
class Copy:
    """What a consumer has, and where it stands."""

    rows: Rows = field(default_factory=dict)
    position: ChangePosition | str | datetime | None = None

    def apply(self, found: pa.Table) -> None:
        """Apply changes; each fits what is there."""
        seen = set()
        for row in found.to_pylist():
            key, operation = name(row), row["_rhei_operation"]
            assert key not in seen
            seen.add(key)
            assert (operation == "I") == (key not in self.rows), row
            if operation != "I":
                assert self.rows.pop(key) == repr(row["_rhei_old_v"])
            if operation != "D":
                self.rows[key] = repr(row["v"])

    def read(self, mirror: TellsChanges, *, may_lose: bool = False) -> TableChanges:
        """Read on from where it stands."""
        found = consume.changes(TABLE, self.position, mirror, "snapshot" if may_lose else "raise")
        if found.snapshot:
            assert may_lose or self.position is None
            self.rows = {}
        self.apply(found.rows)
        self.position = found.position
        return found


@dataclass
class Play:
    """A mirror being written, what it has to hold, and a consumer at each of its states."""

    directory: Path
    kind: str
    model: Rows = field(default_factory=dict)
    copies: list[Copy] = field(default_factory=list)
    #: So many of the copies may have lost their positions.
    lost: int = 0

    def __post_init__(self) -> None:
        self.mirror = KINDS[self.kind](self.directory)
        progress = CopyProgress(TABLE.name, Position(1, "p"), "shape", complete=True)
        with self.mirror.transaction() as transaction:
            transaction.begin_copy(TABLE, progress)
            transaction.append_copy(TABLE, TABLE.schema.arrow.empty_table(), progress)
            transaction.adopt_copy(TABLE, START)
        self.see()

    def commit(self, work: Commit) -> None:
        if work.reopens:
            self.mirror.close()
            self.mirror = KINDS[self.kind](self.directory)
        expected, standing = dict(self.model), self.counted()
        with self.mirror.transaction(trial=work.dies) as transaction:
            for batch in work.batches:
                events = self.events(batch, expected)
                told = ChangeBatch(events, len(batch), whole_transactions=work.whole)
                keep_versions(TABLE, told, transaction)
        if not work.dies:
            self.model = expected
            if work.whole and self.has_tie(standing, parts=len(work.batches)):
                self.lost = len(self.copies)
        self.see()

    def events(self, batch: list[tuple[float, str, float | None, int]], model: Rows) -> pa.Table:
        told = []
        for number, (k, b, v, at) in enumerate(batch):
            model.pop(name({"k": k, "b": b}), None)
            if v is not None:
                model[name({"k": k, "b": b})] = repr(v)
            told.append(
                {
                    "_rhei_sequence": number,
                    "_rhei_changed_at": START + timedelta(microseconds=at),
                    "_rhei_live": v is not None,
                    "k": k,
                    "b": b,
                    "v": v,
                }
            )
        return pa.Table.from_pylist(told, schema=event_schema(TABLE.schema))

    def counted(self) -> Counter[tuple[Any, ...]]:
        """Count the versions of one key, beginning and end."""
        found = self.mirror.query('select * from "s"."things"').to_pylist()
        return Counter((name(r), r["_rhei_valid_from"], r["_rhei_valid_to"]) for r in found)

    def has_tie(self, before: Counter[tuple[Any, ...]], parts: int) -> bool:
        """Whether a transaction ended what another one of the same instant had begun.

        Where a transaction came in parts, its own versions may be taken for another's.
        """
        made = self.counted() - before
        empty = [(key, since) for key, since, until in made if since == until]
        return any(parts > 1 or before[key, since, None] for key, since in empty)

    def see(self) -> None:
        """One more consumer reads all of it; it then has what the mirror has to hold."""
        self.copies.append(Copy())
        self.copies[-1].read(self.mirror)
        assert self.copies[-1].rows == self.model

    def check(self) -> None:
        """From wherever one stands, one comes to the present, at once or by all states between."""
        positions = [copy.position for copy in self.copies]
        assert sorted(map(str, positions)) == list(map(str, positions))
        for number, copy in enumerate(self.copies):
            copy.position = str(copy.position)
            copy.read(self.mirror, may_lose=number < self.lost)
            assert copy.rows == self.model
            assert copy.read(self.mirror).rows.num_rows == 0
        self.check_instants()

    def check_instants(self) -> None:
        """The difference of two instants leads from the one state to the other, and no further."""
        instants = [START + timedelta(microseconds=at) for at in (3, 0, 12, 2 * 10**9)]
        versions = self.mirror.query('select * from "s"."things"').to_pylist()
        states = [self.state(versions, at) for at in instants]
        since = Copy(dict(states[0]), instants[0])
        since.read(self.mirror)
        assert since.rows == self.model
        for (since_at, before), (until, after) in pairwise(zip(instants, states, strict=True)):
            copy = Copy(dict(before))
            found = consume.diff(TABLE, since_at, until, self.mirror)
            copy.apply(found)
            assert copy.rows == after
            assert {name(row) for row in found.to_pylist()} >= {
                key for key in {*before, *after} if before.get(key) != after.get(key)
            }

    def state(self, versions: list[dict[str, Any]], at: datetime) -> Rows:
        return {
            name(row): repr(row["v"])
            for row in versions
            if row["_rhei_valid_from"] <= at
            and (row["_rhei_valid_to"] is None or row["_rhei_valid_to"] > at)
        }


def play(kind: str, commits: list[Commit]) -> None:
    with TemporaryDirectory() as directory:
        played = Play(Path(directory), kind)
        try:
            for work in commits:
                played.commit(work)
            played.check()
        finally:
            played.mirror.close()


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@given(commits=st.lists(COMMITS, max_size=5))
@settings(max_examples=EXAMPLES, deadline=None)
def test_changes_add_up_whenever_versions_come(kind: str, commits: list[Commit]) -> None:
    play(kind, commits)


@dataclass
class Shortened(Play):
    """The same, and now and then old versions are removed."""

    #: Since when the history is kept.
    since: datetime | None = None

    def versions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.mirror.query('select * from "s"."things"').to_pylist()
        return found

    def shorten(self, until: int | None, count: int | None) -> None:
        """Remove versions: those that were to go went, and what was later is as it was."""
        before = self.versions()
        at = None if until is None else START + timedelta(microseconds=until)
        gone = [row for row in before if at is not None and ended_by(row, at)]
        if count is not None:
            many = [row for row in before if newer_than(row, before) >= count and has_ended(row)]
            gone += [row for row in many if row not in gone]
        found = refuse_unless_expiring(self.mirror, TABLE).expire([Ageing(TABLE, at, count)])
        assert [each.versions for each in found] == ([len(gone)] if gone else [])
        if found:
            ends = [row["_rhei_valid_to"] for row in gone]
            self.since = max([*ends, *([self.since] if self.since else [])])
            assert found[0].kept_since == self.since
            assert kept_since(self.mirror) == {TABLE.name: self.since}
        after = self.versions()
        assert Counter(map(repr, after)) == Counter(repr(r) for r in before if r not in gone)
        for instant in (START + timedelta(microseconds=n) for n in (0, 3, 5, 9, 12, 10**9)):
            if self.since is None or instant >= self.since:
                assert self.state(after, instant) == self.state(before, instant)
            else:
                with pytest.raises(QueryError, match="its history is kept since"):
                    consume.diff(TABLE, instant, START + timedelta(days=9), self.mirror)

    def check(self) -> None:
        """Whoever stands before that is told so; all others come to the present."""
        for number, copy in enumerate(self.copies):
            held = ChangePosition.parse(str(copy.position))
            try:
                copy.read(self.mirror)
            except ChangesLostError:
                assert self.since is not None or number < self.lost
                assert copy is not self.copies[-1]
                copy.read(self.mirror, may_lose=True)
            else:
                stood = held.newest
                assert stood is None or self.since is None or stood >= microseconds(self.since)
            assert copy.rows == self.model


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@given(
    commits=st.lists(
        st.tuples(COMMITS, st.none() | st.integers(0, 13), st.sampled_from([None, None, 1, 2, 3])),
        max_size=5,
    )
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_what_stays_of_a_shortened_history_is_as_it_was(
    kind: str, commits: list[tuple[Commit, int | None, int | None]]
) -> None:
    with TemporaryDirectory() as directory:
        played = Shortened(Path(directory), kind)
        try:
            for work, until, count in commits:
                played.commit(work)
                if until is not None or count is not None:
                    played.shorten(until, count)
                    played.see()
            played.check()
        finally:
            played.mirror.close()


def has_ended(row: Mapping[str, Any]) -> bool:
    return row["_rhei_valid_to"] is not None


def ended_by(row: Mapping[str, Any], at: datetime) -> bool:
    return has_ended(row) and row["_rhei_valid_to"] <= at


def newer_than(row: Mapping[str, Any], versions: list[dict[str, Any]]) -> int:
    """Return how many versions of the same key are newer."""
    return sum(name(other) == name(row) and span(other) > span(row) for other in versions)


def span(row: Mapping[str, Any]) -> tuple[datetime, datetime]:
    until: datetime | None = row["_rhei_valid_to"]
    return row["_rhei_valid_from"], until or datetime.max.replace(tzinfo=UTC)
