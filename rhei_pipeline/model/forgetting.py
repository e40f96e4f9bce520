"""What forgetting keys did, and what a search of the files' bytes found of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.report import Report, counted, named

#: Searches files for texts; returns of each file how often it holds each.
Search = Callable[[Sequence[bytes]], Mapping[str, Sequence[int]]]

#: What no search of ours reaches.
BEYOND = (
    "the source: its log, its free space and its backups",
    "backups, and copies that others made of the mirror's files",
    "Dagster's event log, if rows were written there by code of yours",
    "blocks that the file system has freed and not written over",
)

#: Where the mirror had no row of the keys any more.
ROWS_OF_BEFORE = (
    "texts of rows that a sync or an earlier run has removed: they are not known any more, and"
    " the keys' own texts alone were searched for"
)


#: Between a column and the table whose keys it holds.
_REFERS = "->"


@dataclass(frozen=True, slots=True)
class Trace:
    """How a person's rows are found in a table.

    Attributes:
        column: It holds what names the person; or, where `of` is given, keys of that table.
        of: A table in which the person's rows were found before.
    """

    table: str
    column: str
    of: str | None = None

    @classmethod
    def parse(cls, table: str, text: str) -> Self:
        """Read it as it is declared: `customer_id`, or `order_id -> orders`."""
        column, _, of = (part.strip() for part in text.partition(_REFERS))
        return cls(table, column, of or None)


def traces(declared: Mapping[str, str]) -> tuple[Trace, ...]:
    """Return how a person's rows are found, in the order in which that is declared.

    Raises:
        SchemaError: A table is found by one that is not named before it.
    """
    found = tuple(Trace.parse(table, text) for table, text in declared.items())
    for place, trace in enumerate(found):
        if trace.of is not None and trace.of not in {each.table for each in found[:place]}:
            raise SchemaError(
                f"its rows are to be found by {trace.of!r}, which is not named before it",
                table=trace.table,
                hint=f"name {trace.of!r} above it",
            )
    return found


@dataclass(frozen=True, slots=True, repr=False)
class ForgetReport(Report):
    """What was forgotten of a table's keys, and what is left of them. It holds no value of theirs.

    Attributes:
        keys: How many keys were asked for.
        rows: Rows and versions removed, with those in snapshots.
        searched: Texts of these rows that no other row of the table has; the files were searched
            for them.
        before, after: How often files held one of them, before and after.
        kept: What still stands on the disk, in words.
        beyond: What could not be searched.
        dry_run: Nothing was changed: this is what there is to forget.
    """

    table: str
    keys: int
    rows: int
    searched: int
    before: Mapping[str, int]
    after: Mapping[str, int]
    kept: tuple[str, ...] = ()
    beyond: tuple[str, ...] = BEYOND
    dry_run: bool = False
    shown = ("table", "keys", "rows", "searched")

    @property
    def is_clear(self) -> bool:
        """Whether nothing of the keys was found any more."""
        return not self.after and not self.kept

    def _facts(self) -> Iterator[str]:
        yield repr(self.table)
        if self.dry_run:
            yield "dry run"
        yield counted(self.keys, "key")
        yield counted(self.rows, "row")
        yield f"searched for {counted(self.searched, 'text')}"
        if self.after:
            yield f"found in {counted(len(self.after), 'file')}"


@dataclass(frozen=True, slots=True, repr=False)
class PersonReport(Report):
    """What was forgotten of a person, table by table. It does not say of whom.

    Attributes:
        person: What the declaration calls such people.
        tables: What was found and forgotten in each table.
        dry_run: Nothing was changed: this is what there is to forget.
    """

    person: str
    tables: Mapping[str, ForgetReport]
    dry_run: bool = False
    derived = ("is_clear",)
    shown = ForgetReport.shown

    @property
    def is_clear(self) -> bool:
        """Whether nothing of the person was found any more in any table."""
        return all(found.is_clear for found in self.tables.values())

    def _facts(self) -> Iterator[str]:
        yield repr(self.person)
        if self.dry_run:
            yield "dry run"
        yield counted(len(self.tables), "table")
        yield counted(sum(found.keys for found in self.tables.values()), "key")
        yield counted(sum(found.rows for found in self.tables.values()), "row")
        yield from named("not clear", [n for n, found in self.tables.items() if not found.is_clear])
