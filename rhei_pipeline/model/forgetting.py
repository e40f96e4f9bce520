"""What forgetting keys did, and what a search of the files' bytes found of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rhei_pipeline.model.report import Report, counted

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
