"""The timestamp column of a polled PostgreSQL table: bounds as SQL, and its texts as instants."""

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.model.instants import instant
from rhei_pipeline.model.polling import Stamp
from rhei_pipeline.model.schema import Column
from rhei_pipeline.model.type_names import INSTANT
from rhei_pipeline.sources.postgres.polling.clauses import Clause
from rhei_pipeline.sources.postgres.types import admit_text
from rhei_pipeline.sql.text import literal, quote

_SECOND = 1_000_000
#: The type of instants in questions.
MOMENT = "timestamptz"
_UTC = {"UTC", "Etc/UTC", "GMT", "Etc/GMT"}
#: Instants before year 1 are no stamps.
_EARLIEST = -62_135_596_800 * _SECOND
#: No application stamps rows before 1990: smaller numbers count something else.
_PLAUSIBLE = 631_152_000 * _SECOND


class Family(Enum):
    """Kinds of columns that can hold timestamps."""

    INSTANT = "timestamptz"
    TIMESTAMP = "timestamp"
    DATE = "date"
    INTEGER = "integer"
    REAL = "real"
    TEXT = "text"

    @property
    def is_written_alike(self) -> bool:
        """Whether the column's type alone defines the form of its timestamps."""
        return self is Family.INSTANT or self is Family.TIMESTAMP or self is Family.DATE


#: By the type's oid, as `postgres_schema` reads it; others hold no stamps.
FAMILIES = {
    1184: Family.INSTANT,
    1114: Family.TIMESTAMP,
    1082: Family.DATE,
    20: Family.INTEGER,
    23: Family.INTEGER,
    701: Family.REAL,
    1700: Family.REAL,
    25: Family.TEXT,
    1043: Family.TEXT,
}


@dataclass(frozen=True, slots=True)
class Zone:
    """A time zone: its name, and whether its clock ever goes back."""

    name: str
    goes_back: bool


@dataclass(frozen=True, slots=True)
class StampColumn:
    """The timestamp column that every write sets.

    Attributes:
        zone: The time zone of dates and of timestamps without one; texts without one are in UTC.
        is_nullable: Whether a row may have no timestamp.
    """

    name: str
    family: Family
    zone: Zone
    is_nullable: bool

    @property
    def sql(self) -> str:
        """The column, quoted."""
        return quote(self.name)

    @property
    def zone_noted(self) -> str:
        """The zone as a position's origin notes it; empty where timestamps do not depend on it."""
        return f" {self.zone.name}" if self.family in {Family.TIMESTAMP, Family.DATE} else ""

    @property
    def instant_sql(self) -> str:
        """The column's timestamp, as text that `instants` reads."""
        if self.family in {Family.TIMESTAMP, Family.DATE}:
            return f"{self.sql}::timestamp at time zone {literal(self.zone.name)}"
        return self.sql

    def form(self, newest: str | None) -> Stamp | None:
        """Return the form of the column's timestamps, judged by one; None if unknown."""
        if newest is None or self.family.is_written_alike:
            return None
        kinds = {Family.INTEGER: int, Family.REAL: float, Family.TEXT: str}
        found = Stamp.of(kinds[self.family](newest))
        if found is None or found.julian or not _is_plausible(found, newest):
            return None
        return found

    def doubt(self, form: Stamp | None) -> str | None:
        """Return why timestamps in this form need not follow the clock."""
        name = repr(self.name)
        if self.family in {Family.TIMESTAMP, Family.DATE}:
            why = f"{name} holds local time of {self.zone.name}, whose clock goes back in autumn"
            return why if self.zone.goes_back else None
        if self.family is Family.TEXT and form is not None and not form.zone:
            why = f"{name} holds text without a zone, and the database's is {self.zone.name}"
            return None if self.zone.name in _UTC else why
        return None

    def bound(self, micros: int, form: Stamp | None) -> Clause | None:
        """Return the earliest timestamp of a write at this instant or later.

        None if the column's form is not known.
        """
        moment = Clause.of(written(micros), MOMENT)
        if self.family is Family.INSTANT:
            return moment
        local = f"({moment.text} at time zone {literal(self.zone.name)})"
        if self.family is Family.TIMESTAMP:
            return Clause(local, moment.values)
        if self.family is Family.DATE:
            return Clause(f"{local}::date", moment.values)
        return None if form is None else self._bound_in(form, micros)

    def _bound_in(self, form: Stamp, micros: int) -> Clause:
        if form.kind is int:
            return Clause.of(str(form.floor(micros)), "bigint")
        if form.kind is float:
            # A double does not hold every microsecond.
            return Clause.of(repr((micros - 1) / _SECOND))
        # Without its fraction, which texts of one instant may write with more digits or fewer.
        moment = instant(micros)
        return Clause.of(f"{moment:%Y-%m-%d{form.separator}%H:%M:%S}")

    def instants(
        self, texts: pa.Array, form: Stamp | None, now: int, since: int = _EARLIEST
    ) -> pa.Array:
        """Convert timestamps to instants; one of another form becomes now.

        So does one ahead of the clock, or not later than `since`, both in microseconds.
        """
        present = pa.scalar(now, pa.int64())
        if not self.family.is_written_alike and form is None:
            return pa.repeat(present, len(texts)).cast(INSTANT)
        found = self._admitted(texts, form).cast(pa.int64())
        dated = pc.and_(pc.greater(found, since), pc.less(found, present))
        return pc.if_else(pc.fill_null(dated, fill_value=False), found, present).cast(INSTANT)

    def _admitted(self, texts: pa.Array, form: Stamp | None) -> pa.Array:
        if form is not None and form.kind is float:
            reals, _ = admit_text(texts, Column("", pa.float64()))
            return pc.round(pc.multiply(reals, float(_SECOND))).cast(pa.int64(), safe=False)
        if form is not None and form.kind is int:
            return admit_text(texts, Column("", INSTANT, epoch=form.epoch))[0]
        kind = INSTANT if form is None or form.zone else pa.timestamp("us")
        return admit_text(texts, Column("", kind))[0]


@lru_cache(maxsize=256)
def written(micros: int) -> str:
    """Return an instant as text of the type `MOMENT`; in one snapshot most tables ask for one."""
    return instant(micros).isoformat()


def _is_plausible(form: Stamp, newest: str) -> bool:
    if form.kind is str:
        return True
    if form.kind is float:
        return float(newest) * _SECOND >= _PLAUSIBLE
    return int(newest) >= form.floor(_PLAUSIBLE)
