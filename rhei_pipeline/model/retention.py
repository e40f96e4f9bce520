"""How much is kept: of a temporal table's past, what was removed of it, and of dead letters."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from rhei_pipeline.model.changes import LetterName
from rhei_pipeline.model.schema import Table


@dataclass(frozen=True, slots=True)
class HistoryBounds:
    """What is declared of a table's past; without either bound all of it is kept.

    Attributes:
        keep_days: Versions that ended longer ago are removed.
        keep_versions: So many versions of a row are kept, the present one among them.
    """

    keep_days: int | None = None
    keep_versions: int | None = None

    def __bool__(self) -> bool:
        """Return whether there is a bound."""
        return self.keep_days is not None or self.keep_versions is not None

    def of(self, table: Table, now: datetime) -> "Ageing":
        """Return what a table may lose now, by the clock of its source."""
        until = None if self.keep_days is None else now - timedelta(days=self.keep_days)
        return Ageing(table, until, self.keep_versions)


@dataclass(frozen=True, slots=True)
class Ageing:
    """A temporal table of which old versions are to be removed; never one that has not ended.

    Attributes:
        until: Those that ended by then; None: none for its age.
        versions: Of each row, those beyond the newest so many; None: none for their number.
    """

    table: Table
    until: datetime | None
    versions: int | None


@dataclass(frozen=True, slots=True)
class ExpiredHistory:
    """What was removed of a table's past.

    Attributes:
        versions: How many versions were removed.
        kept_since: From this instant on the history is whole; earlier ones are refused.
    """

    table: str
    versions: int
    kept_since: datetime


@dataclass(frozen=True, slots=True)
class LetterBounds:
    """The most dead letters that a table may have at once.

    Attributes:
        max_rows: How many; None: any number.
        max_bytes: How much their keys and columns may take, as text; None: any.
    """

    max_rows: int | None = None
    max_bytes: int | None = None

    def exceeded_by(self, now: Collection[LetterName], before: Collection[LetterName]) -> bool:
        """Return whether there are too many, and more than there were."""
        if self.max_rows is not None and len(now) > max(self.max_rows, len(before)):
            return True
        # Each of them is looked at for that, so only where it is asked for.
        return self.max_bytes is not None and _size(now) > max(self.max_bytes, _size(before))


def _size(names: Collection[LetterName]) -> int:
    return sum(len(part.encode()) for name in names for part in name if part)
