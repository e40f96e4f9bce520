"""Brings a table's rows up to others: those that are equal already are left alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhei_pipeline.mirrors.duckdb.comparison import differs_sql, digested_sql
from rhei_pipeline.mirrors.duckdb.lent_rows import UPSERTS
from rhei_pipeline.mirrors.duckdb.row_places import delete_at
from rhei_pipeline.mirrors.duckdb.statements import Statements
from rhei_pipeline.mirrors.duckdb.tables import registered
from rhei_pipeline.mirrors.met_rows import Flags, Places
from rhei_pipeline.model.changes import Counts, NetChanges
from rhei_pipeline.model.large_rows import are_large
from rhei_pipeline.model.schema import Column, Table
from rhei_pipeline.model.selection import each_once
from rhei_pipeline.sql.text import listed, matching

NUMBER, _PLACE, _TELLS = "_rhei_number", "_rhei_place", "_rhei_tells"
_EQUAL, _UNDECIDED = "_rhei_equal", "_rhei_undecided"
_DIGESTED = "_rhei_digested"
#: The number of the column in which a row differs that is equal.
_EQUALS = -1
#: So many rows are compared by their numbers first: of a large table, reading texts takes most.
_MANY = 5_000
#: Of so many rows that came, one at most may not differ in the columns that tell the others.
_TOLD = 100
#: The most nulls that keys of deleted rows may take beside them.
_MOST_NULLS = 2**20


def fit_together(changes: NetChanges) -> bool:
    """Return whether keys that go are to stand behind the rows, so that a table is asked once.

    They have nulls beside them, and large values would be copied to tell them apart.
    """
    nulls = changes.tombstones.num_rows * changes.upserts.num_columns
    return bool(0 < nulls <= _MOST_NULLS) and not are_large(changes.upserts)


def numbered(rows: pa.Table) -> pa.Table:
    """Return rows, each with its number."""
    return rows.append_column(NUMBER, pa.array(np.arange(rows.num_rows, dtype=np.int64)))


@dataclass(frozen=True, slots=True)
class Upsert:
    """What is registered, and is to be brought to a table.

    Attributes:
        statements: In the transaction that writes.
        table: What is written.
        target: Its name, or that of its copy.
        rows: How many rows are registered.
        count: How many of them, at the beginning, are to be in the table. Those of the keys behind
            them are to go.
        large: Whether there are large values among them.
        new: How many of them the table cannot have.
        telling: By table, the fewest columns in which nearly all rows differed that came last.
    """

    statements: Statements
    table: Table
    target: str
    rows: int
    count: int
    large: bool
    new: int
    telling: dict[str, tuple[str, ...]]

    def run(self) -> Counts:
        """Write those that differ, and delete those that go.

        Nothing of them is staged: until it commits, a transaction holds in memory all that it
        staged. Large ones are only scanned, and compared by digests: a join would hold their
        values once more.
        """
        told = self._told()
        if not told or self.count < self.rows or self.large or self.new == self.rows:
            return self._compare()
        # To find rows of a large table takes as long as to delete them: which these are is not
        # asked before, where nearly all that came last differed in these columns.
        same = matching("t", "u", self.table.schema.primary_key)
        replaced = self.statements.changed(
            f"delete from {self.target} t using {UPSERTS} u"
            f" where {same} and {differs_sql(self.table, 't', 'u', told)}"
        )
        if replaced == self.count - self.new:
            self._insert(np.zeros(0, np.int64))
            return Counts(self.new, replaced)
        noted = self.telling.pop(self.table.name)
        rest = self._compare()
        if (self.count - rest.inserted) * _TOLD <= replaced:
            self.telling[self.table.name] = noted
        return Counts(rest.inserted - replaced, rest.updated + replaced, rest.deleted)

    def _told(self) -> list[Column]:
        """Return the columns in which nearly all rows differed that came last, if these are."""
        names = self.telling.get(self.table.name, ())
        columns = {column.name: column for column in self.table.schema.value_columns}
        return [columns[name] for name in names] if columns.keys() >= {*names} else []

    def _compare(self) -> Counts:
        met = self._met_by_any()
        stays = met.numbers < self.count
        replaced = int(np.count_nonzero(met.differ & stays))
        leaves = met.differ | ~stays
        gone = delete_at(self.statements, self.target, met.places[leaves])
        equal = met.numbers[~leaves]
        if len(equal) < self.count:
            self._insert(equal)
        inserted = self.count - len(each_once(met.numbers[stays]))
        return Counts(inserted, replaced, gone - replaced)

    def _met_by_any(self) -> "_Met":
        if self.new == self.rows:
            none = np.zeros(0, np.int64)
            return _Met(none, none, np.zeros(0, np.int32))
        return self._met_by_digests() if self.large else self._met()

    def _insert(self, equal: Places) -> None:
        """Insert the rows but for those that the table has as they are."""
        names = listed(self.table.schema.names)
        statement = f"insert into {self.target}({names}) select {names} from {UPSERTS}"
        some, params = f"where {NUMBER} < $1", [self.count]
        if self.count == self.rows:
            some, params = "", []
        if not len(equal):
            self.statements.run(f"{statement} {some}", params)
            return
        with registered(self.statements.connection, _EQUAL, pa.table({NUMBER: equal})):
            self.statements.run(f"{statement} anti join {_EQUAL} using ({NUMBER}) {some}", params)

    def _met(self) -> "_Met":
        columns = self._compared()
        first = self._compared_first()
        met = self._look_up(first or columns)
        undecided = met.numbers[~met.differ & (met.numbers < self.count)]
        self._note_telling(first or columns, met)
        if not first or not len(undecided):
            return met
        with registered(self.statements.connection, _UNDECIDED, pa.table({NUMBER: undecided})):
            rows = f"(from {UPSERTS} semi join {_UNDECIDED} using ({NUMBER}))"
            rest = self._look_up(columns, rows)
        decided = ~np.isin(met.numbers, undecided)
        return _Met(
            np.concatenate([met.numbers[decided], rest.numbers]),
            np.concatenate([met.places[decided], rest.places]),
            np.concatenate([met.tells[decided], rest.tells]),
        )

    def _compared(self) -> list[Column]:
        """Return what rows are compared by: texts behind, and keys, of which a zero has a sign."""
        if not self.count:
            return []
        schema = self.table.schema
        return [*sorted(schema.value_columns, key=_is_text), *schema.key_columns]

    def _compared_first(self) -> list[Column]:
        """Return the columns that may tell nearly all rows that differ; none: compare all."""
        if self.count and (told := self._told()):
            return told
        outside = self.table.schema.value_columns
        quick = [column for column in outside if not _is_text(column)]
        return [] if self.count < _MANY or len(quick) == len(outside) else quick

    def _note_telling(self, columns: Sequence[Column], met: "_Met") -> None:
        """Note the columns in which nearly all rows differ: the next ones may do so, too.

        Of a large table, each column that is read takes a third of what the keys take, or more.
        """
        told = met.tells[met.numbers < self.count]
        counts = np.bincount(told[told >= 0], minlength=1)
        order = np.argsort(-counts, kind="stable")
        others = len(told) - np.cumsum(counts[order])
        enough = np.flatnonzero(others * _TOLD <= len(told))
        if len(told):
            self.telling.pop(self.table.name, None)
        if len(told) and len(enough):
            chosen = order[: enough[0] + 1]
            self.telling[self.table.name] = tuple(columns[number].name for number in chosen)

    def _met_by_digests(self) -> "_Met":
        digested = self.statements.connection.sql(
            f"from {digested_sql(self.table, UPSERTS, f'{NUMBER}, ')}"
        )
        with registered(self.statements.connection, _DIGESTED, digested.to_arrow_table()):
            present = digested_sql(self.table, self.target, "rowid, ")
            return self._look_up(self._compared(), _DIGESTED, present)

    def _look_up(
        self, columns: Sequence[Column], rows: str = UPSERTS, present: str | None = None
    ) -> "_Met":
        tests = [differs_sql(self.table, "t", "u", [column]) for column in columns]
        cases = " ".join(f"when {test} then {number}" for number, test in enumerate(tests))
        tells = f"case {cases} else {_EQUALS} end" if cases else f"{_EQUALS}"
        found = self.statements.run(
            f"select u.{NUMBER}, t.rowid as {_PLACE}, {tells} as {_TELLS} from {rows} u"
            f" join {present or self.target} t"
            f" on {matching('t', 'u', self.table.schema.primary_key)}"
        ).fetchnumpy()
        return _Met(found[NUMBER], found[_PLACE], found[_TELLS])


@dataclass(frozen=True, slots=True)
class _Met:
    """Which rows a table has.

    Attributes:
        numbers: Theirs, among those that came.
        places: Where they are in the table.
        tells: The first of the compared columns in which they differ.
    """

    numbers: Places
    places: Places
    tells: npt.NDArray[np.int32]

    @property
    def differ(self) -> Flags:
        """Whether they differ."""
        differ: Flags = self.tells != _EQUALS
        return differ


def _is_text(column: Column) -> bool:
    return bool(pa.types.is_string(column.type) or pa.types.is_binary(column.type))
