"""What changed in a temporal table between two states that it had, or since one of them.

A state is named by an instant of the source, or by a consumer's position: then it is the one that
the mirror had when it gave that position, whatever became known since. Both are conditions on a
version's two instants, so that the engine of the mirror compares the states, and reads of a table
the versions that began or ended between them.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol, Self, TypeVar, cast

import pyarrow as pa

from rhei_pipeline.changes.history import History, ReadsPast, history_of, refuse_naive
from rhei_pipeline.errors import ChangesLostError, QueryError
from rhei_pipeline.model.array_texts import as_texts
from rhei_pipeline.model.change_feed import (
    OLD_PREFIX,
    ChangePosition,
    ChangeStream,
    TableChanges,
    changes_schema,
)
from rhei_pipeline.model.changes import CHANGED_AT, Operation
from rhei_pipeline.model.feed_state import FEED_PREFIX, KIND, LATE, FeedEntry, FeedState
from rhei_pipeline.model.instants import microseconds
from rhei_pipeline.model.schema import OPERATION, VALID_FROM, VALID_TO, Table, TableSchema
from rhei_pipeline.model.semantics import Translated
from rhei_pipeline.model.set_aside import as_they_were
from rhei_pipeline.model.streaming import Streamed
from rhei_pipeline.sql.text import disjunction, listed, literal, mirror_table, quote

#: What to do where a position says nothing any more.
OnLost = Literal["raise", "snapshot"]
#: Where a consumer stands: a position or its text, an instant, or nowhere yet.
After = ChangePosition | str | datetime | None

_OPENED, _ENDED, _WAS, _IS = "_rhei_opened", "_rhei_ended", "_rhei_was", "_rhei_is"

InstantText = Callable[[int], str]
_Answer = TypeVar("_Answer")


class ReadsHistory(ReadsPast, Protocol):
    """One who can answer from a mirror's history, and knows in which order it came."""

    def feed(self, table: Table) -> FeedState | None:
        """Return which state of a temporal table's history this is; None if there is no table."""

    def instant_text(self, microseconds: int) -> str:
        """Write an instant in the mirror's SQL."""


class StreamsHistory(ReadsHistory, Protocol):
    """One who can give a long answer in batches, too."""

    def stream(self, sql: str, params: Sequence[Any] | Mapping[str, Any], rows: int) -> Streamed:
        """As of `Mirror`."""


def changes(table: Table, after: After, mirror: ReadsHistory, on_lost: OnLost) -> TableChanges:
    """Return what changed since a position; see `HTAP.changes`."""
    asking = _Asking(table, _place(after), on_lost)
    rows, position, whole = asking.answered(mirror, mirror.query)
    return TableChanges(
        table.name, as_texts(rows).cast(changes_schema(table.schema)), position, whole
    )


def stream_changes(
    table: Table, after: After, mirror: StreamsHistory, rows: int, on_lost: OnLost
) -> ChangeStream:
    """Return the same in batches of about so many rows, none of which is held longer."""
    schema, asking = changes_schema(table.schema), _Asking(table, _place(after), on_lost)
    found, position, whole = asking.answered(mirror, lambda sql: mirror.stream(sql, (), rows))
    tables = (as_texts(pa.Table.from_batches([batch])).cast(schema) for batch in found.batches)
    batches = (batch for table in tables for batch in table.to_batches())
    return ChangeStream(table.name, schema, batches, position, snapshot=whole)


def diff(table: Table, a: datetime, b: datetime, mirror: ReadsHistory) -> pa.Table:
    """Return what differs between two instants; see `HTAP.diff`."""
    refuse_naive(a, b)
    known = history_of(table, mirror)
    for instant in (a, b):
        known.refuse_unknown(instant)
    compared = _Compared(table.schema, known.columns(min(a, b)), mirror.instant_text)
    found = mirror.query(
        compared.of(_State(microseconds(a)), _State(microseconds(b)), in_order=True)
    )
    # Maintenance may have removed versions while this was read.
    history_of(table, mirror).refuse_unknown(min(a, b))
    return as_they_were(found, ("", OLD_PREFIX))


def _place(after: After) -> ChangePosition | datetime | None:
    if isinstance(after, datetime):
        refuse_naive(after)
    return ChangePosition.parse(after) if isinstance(after, str) else after


@dataclass(frozen=True, slots=True)
class _Asking:
    """A consumer's question."""

    table: Table
    after: ChangePosition | datetime | None
    on_lost: OnLost

    def answered(
        self, mirror: ReadsHistory, ask: Callable[[str], _Answer]
    ) -> tuple[_Answer, ChangePosition, bool]:
        """Return the answer, the position after it, and whether it is the whole table.

        Up to that position it stays the same whatever is committed meanwhile, but for a history
        that is lost, or a commit that is the first late one: then it is asked for again.
        """
        self._known(mirror)
        is_raced = False
        names = self.table.schema.names
        while True:
            now = self._stand(mirror)
            since, then = self._since(now, mirror), _State.of(now.position)
            seen = now.late if since.late is None else since.late
            late = seen if is_raced or now.late > seen else None
            compared = _Compared(self.table.schema, names, mirror.instant_text, late)
            answer = ask(
                compared.all_of(then) if since.newest is None else compared.of(since, then)
            )
            later = self._stand(mirror)
            is_raced = later.late > now.late
            whole = later.knows(now.position) and not (is_raced and late is None)
            if whole and self._is_answerable(later, since):
                return answer, now.position, since is _EMPTY
            _close(answer)
            self._known(mirror)

    def _known(self, mirror: ReadsHistory) -> History:
        known = history_of(self.table, mirror)
        if isinstance(self.after, datetime):
            known.refuse_unknown(self.after)
        return known

    def _is_answerable(self, later: FeedState, since: "_State") -> bool:
        """Return whether no version of the earlier state was removed while this was read."""
        if since is _EMPTY or self.after is None:
            return True
        if isinstance(self.after, ChangePosition):
            return later.knows(self.after)
        return later.is_kept_at(since.newest)

    def _stand(self, mirror: ReadsHistory) -> FeedState:
        found = mirror.feed(self.table)
        if found is None:
            raise QueryError(
                "it is not in the mirror any more",
                table=self.table.name,
                hint="run 'rhei sync', which copies it",
            )
        return found

    def _since(self, now: FeedState, mirror: ReadsHistory) -> "_State":
        if self.after is None:
            return _EMPTY
        lost = self._why_lost(self.after, now, mirror)
        if lost is None:
            if isinstance(self.after, ChangePosition):
                return _State.of(self.after)
            # What is known of it by now; what comes while this is read is for the next answer.
            at = microseconds(self.after)
            return _State(None if now.newest is None else min(at, now.newest), now.late)
        if self.on_lost == "snapshot":
            return _EMPTY
        raise ChangesLostError(
            lost,
            table=self.table.name,
            hint="take the whole table afresh, with on_lost='snapshot' or without a position, and"
            " replace what was read before",
        )

    def _why_lost(
        self, after: ChangePosition | datetime, now: FeedState, mirror: ReadsHistory
    ) -> str | None:
        if isinstance(after, ChangePosition):
            return now.why_lost(after)
        # Read behind the state: a column that is set aside since then makes that another one.
        names = self._known(mirror).meant_otherwise(after)
        columns = ", ".join(map(repr, names))
        return f"the values of {columns} meant something else at the instant" if names else None


def _close(answer: object) -> None:
    if isinstance(answer, Streamed):
        answer.cancel()
        cast("Generator[pa.RecordBatch]", answer.batches).close()


@dataclass(frozen=True, slots=True)
class _Compared:
    """Writes the comparison of two states of a table, for the mirror's engine.

    Attributes:
        columns: The columns that are compared and shown.
        text: Writes an instant.
        late: Versions of later late commits than this are looked up in the feed; None: none are.
    """

    schema: TableSchema
    columns: Sequence[str]
    text: InstantText
    late: int | None = None

    def of(self, a: "_State", b: "_State", *, in_order: bool = False) -> Translated:
        """Write what differs, one row a key."""
        key = self.schema.primary_key
        values = [name for name in self.columns if name not in key]
        shown = {name: f"n.{quote(name)}" for name in values}
        shown |= {name: f"coalesce(n.{quote(name)}, o.{quote(name)})" for name in key}
        old = [f"o.{quote(name)} as {quote(OLD_PREFIX + name)}" for name in values]
        same = " and ".join(f"{self._key('o', name)} = {self._key('n', name)}" for name in key)
        differs = [self._differs(name) for name in [*values, *self._floating(key)]]
        return self._translated(
            f"with v as ({self._versions(a, b)}), d as (select * from v where {_WAS} <> {_IS})"
            f" select case when o.{_WAS} is null then {literal(Operation.INSERT)}"
            f" when n.{_IS} is null then {literal(Operation.DELETE)}"
            f" else {literal(Operation.UPDATE)} end as {OPERATION},"
            f" {', '.join(f'{shown[name]} as {quote(name)}' for name in self.columns)},"
            f" {', '.join([f'coalesce(n.{VALID_FROM}, o.{VALID_TO}) as {CHANGED_AT}', *old])}"
            f" from (select * from d where {_WAS}) o"
            f" full outer join (select * from d where {_IS}) n on {same}"
            f" where {disjunction([f'o.{_WAS} is null', f'n.{_IS} is null', *differs])}"
            + (f" order by {', '.join(shown[name] for name in key)}" if in_order else "")
        )

    def all_of(self, state: "_State") -> Translated:
        """Write all rows of a state, as inserts."""
        values = [name for name in self.columns if name not in self.schema.primary_key]
        old = [f"case when false then {quote(n)} end as {quote(OLD_PREFIX + n)}" for n in values]
        valid = self._valid(state)
        return self._translated(
            f"select {literal(Operation.INSERT)} as {OPERATION}, {listed(self.columns)},"
            f" {', '.join([f'{VALID_FROM} as {CHANGED_AT}', *old])} from {self._source()} t"
            f" where {valid}"
        )

    def _versions(self, a: "_State", b: "_State") -> str:
        states = f"{self._valid(a)} as {_WAS}, {self._valid(b)} as {_IS}"
        shown = f"select {listed([*self.columns, VALID_FROM, VALID_TO])}, {states} from"
        if self.late is not None or a.newest is None or b.newest is None:
            return f"{shown} {self._source()} t"
        # What a scan can leave out must be a condition on one column.
        low = self.text(min(a.newest, b.newest))
        name = mirror_table(self.schema)
        return (
            f"{shown} {name} where {VALID_FROM} > {low}"
            f" union all {shown} {name} where {VALID_FROM} <= {low} and {VALID_TO} > {low}"
        )

    def _source(self) -> str:
        """Write the versions with the numbers of the late commits that they came in."""
        name = mirror_table(self.schema)
        if self.late is None:
            return name
        opened = self._late(FeedEntry.OPENED, _OPENED, (VALID_FROM,))
        ended = self._late(FeedEntry.ENDED, _ENDED, (VALID_FROM, VALID_TO))
        return (
            f"(select t.*, coalesce(o.{_OPENED}, 0) as {_OPENED},"
            f" coalesce(e.{_ENDED}, 0) as {_ENDED} from {name} t"
            f" left join {opened} o on {self._same('t', 'o')} and t.{VALID_FROM} = o.{VALID_FROM}"
            f" left join {ended} e on {self._same('t', 'e')} and t.{VALID_FROM} = e.{VALID_FROM}"
            f" and t.{VALID_TO} = e.{VALID_TO})"
        )

    def _late(self, kind: FeedEntry, name: str, instants: Sequence[str]) -> str:
        own = [f"{self._key('f', n)} as {quote(n)}" for n in self.schema.primary_key]
        columns, by = ", ".join([*own, *instants]), len(own) + len(instants)
        return (
            f"(select {columns}, max({LATE}) as {name} from"
            f" {mirror_table(self.schema, FEED_PREFIX)} f"
            f" where {KIND} = {literal(kind)} and {LATE} > {self.late}"
            f" group by {', '.join(str(place) for place in range(1, by + 1))})"
        )

    def _valid(self, state: "_State") -> str:
        """Write the condition that holds for the versions that were valid."""
        if state.newest is None:
            return "false"
        then = self.text(state.newest)
        began, ends = f"{VALID_FROM} <= {then}", f"{VALID_TO} is null or {VALID_TO} > {then}"
        if self.late is not None and state.late is not None:
            began += f" and {_OPENED} <= {state.late}"
            ends += f" or {_ENDED} > {state.late}"
        return f"({began} and ({ends}))"

    def _same(self, version: str, entry: str) -> str:
        names = self.schema.primary_key
        return " and ".join(f"{self._key(version, name)} = {entry}.{quote(name)}" for name in names)

    def _key(self, row: str, name: str) -> str:
        """Write a part of a key so that 0.0 and -0.0, which are one key, are equal."""
        plain = f"{row}.{quote(name)}"
        return f"({plain} + 0.0)" if name in self._floating([name]) else plain

    def _differs(self, name: str) -> str:
        old, new = f"o.{quote(name)}", f"n.{quote(name)}"
        if name in self._floating([name]):
            # As text 0.0 and -0.0 are two values, and all NaNs one.
            old, new = f"cast({old} as varchar)", f"cast({new} as varchar)"
        return f"({old} is distinct from {new})"

    def _floating(self, names: Sequence[str]) -> list[str]:
        kinds = {column.name: column.type for column in self.schema.columns}
        return [n for n in names if n in kinds and pa.types.is_floating(kinds[n])]

    def _translated(self, sql: str) -> Translated:
        feed = FEED_PREFIX + self.schema.mirror_relation
        return Translated(
            sql, [self.schema.mirror_relation, *([feed] if self.late is not None else [])]
        )


@dataclass(frozen=True, slots=True)
class _State:
    """A state of the table: the versions that had begun by then, and had not ended.

    Attributes:
        newest: Microseconds; None: before all versions.
        late: How many late commits count; None: all, what became known later as well.
    """

    newest: int | None
    late: int | None = None

    @classmethod
    def of(cls, position: ChangePosition) -> Self:
        return cls(position.newest, position.late)


_EMPTY = _State(None)
