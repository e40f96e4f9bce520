"""The state of polling: how far a table was polled, and the form of its timestamps. Pure values.

Independent of the kind of database: a source encodes values as its own text, and its clock as
microseconds since 1970.
"""

import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

from rhei_pipeline.errors import SettingsError

_SOFT_DELETE = "soft_delete:"
_ISO = re.compile(r"\d{4}-\d\d-\d\d([ T])\d\d:\d\d:\d\d(\.\d{1,9})?(Z|\+00:00|\+00)?")
_SECOND = 1_000_000
#: Integers below these count seconds, milliseconds, microseconds: each bound is past year 5000.
_UNITS = ((10**11, "s", 1), (10**14, "ms", 1_000), (10**17, "us", _SECOND))
_JULIAN_BELOW = 10**7  # a Julian day; as Unix seconds it would lie in April 1970
_JULIAN_EPOCH = 2440587.5
_DAY_SECONDS = 86_400


class Clock(StrEnum):
    """Whose clock sets rows' timestamps: only the database's own follows the order of commits."""

    DATABASE = "database"
    APPLICATION = "application"


class DeletePolicy(StrEnum):
    """How deletes are found."""

    DISABLED = "disabled"
    SOFT_DELETE = "soft_delete"
    RECONCILE = "reconcile"


@dataclass(frozen=True, slots=True)
class PollOptions:
    """How one table is polled.

    Attributes:
        updated_at: The timestamp column that every write sets.
        policy, deleted_at: How deletes are found; the column that marks a deleted row.
        clock: Whose clock sets it, as declared.
        reconcile_seconds: How often the whole table is compared, if that is needed.
    """

    updated_at: str = "updated_at"
    policy: DeletePolicy = DeletePolicy.DISABLED
    deleted_at: str | None = None
    clock: Clock = Clock.APPLICATION
    reconcile_seconds: float = 3600.0

    @property
    def is_compared(self) -> bool:
        """Whether the whole table must be compared at an interval."""
        return self.clock is Clock.APPLICATION or self.policy is DeletePolicy.RECONCILE

    def is_due(self, audited: int, clock: int) -> bool:
        """Return whether the interval since the last rescan has passed; both in microseconds."""
        return not 0 <= clock - audited < self.reconcile_seconds * _SECOND


def parse_deletes(text: str) -> tuple[DeletePolicy, str | None]:
    """Parse `disabled`, `reconcile` or `soft_delete:<column>`.

    Raises:
        SettingsError: It is none of them.
    """
    if text.startswith(_SOFT_DELETE) and text != _SOFT_DELETE:
        return DeletePolicy.SOFT_DELETE, text.removeprefix(_SOFT_DELETE)
    if text in {DeletePolicy.DISABLED, DeletePolicy.RECONCILE}:
        return DeletePolicy(text), None
    raise SettingsError(
        f"deletes {text!r} is unknown", hint="use disabled, reconcile or soft_delete:<column>"
    )


@dataclass(frozen=True, slots=True)
class Keyset:
    """How far a table has been polled; its text is the proof of a position.

    Attributes:
        column: The timestamp's column; another one makes the rest meaningless.
        at: The newest timestamp read that the source's clock had reached, exactly, as the source
            encodes it. Rows before it do not change any more. None: no row had one.
        key: The key of a row that had it: without that row, the source was restored or changed.
        ties, ahead, blank: Digests of the rows with `at`, a later timestamp, or none. Such rows
            can change again without a newer timestamp, so they are read again.
        clock: The source's clock then, in microseconds. audited: The source's clock at the last
        rescan; None: never. schema: The source's count of schema changes then.
    """

    column: str
    at: str | None
    key: str | None
    ties: str
    ahead: str
    blank: str
    clock: int
    audited: int | None = None
    schema: int | None = None

    def text(self) -> str:
        """Return it as a position's proof."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def read(cls, proof: str, column: str) -> Self | None:
        """Parse a position's proof; None if it is not one of polling by this column."""
        found = _fields(proof)
        return cls(**found) if _names(cls) == set(found) and found["column"] == column else None


@dataclass(frozen=True, slots=True)
class Horizon:
    """How far a table of PostgreSQL has been polled; its text is the proof of a position.

    Attributes:
        column: The timestamp's column; another one makes the rest meaningless.
        origin: The identifiers of the server, its timeline and the table.
        low: Microseconds since 1970. Transactions that were open when the table was read set no
            earlier timestamp; rows from here on are read again. None: all rows are.
        least: The newest timestamp then, as the source encodes it, if timestamps need not follow
            its clock; reading starts there if that is earlier.
        newest, key: Timestamp and key of the newest row: a source without it was restored.
        writers: The transactions that wrote the row versions from `low` on, and those without a
            timestamp; None if there are too many.
        seen: A digest of those versions.
        clock: The source's clock then, in microseconds.
        xid: The number of the server's next transaction then.
        audited: Its clock when the table was last compared whole; None: never.
        doubted: A change may have been missed since.
        kinds: The types of the key's columns; None: an earlier version of this package did not say.
    """

    column: str
    origin: str
    low: int | None
    least: str | None
    newest: str | None
    key: tuple[str, ...]
    writers: tuple[str, ...] | None
    seen: str
    clock: int
    xid: int
    audited: int | None = None
    doubted: bool = False
    kinds: tuple[int, ...] | None = None

    def text(self) -> str:
        """Return it as a position's proof."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def read(cls, proof: str, column: str) -> Self | None:
        """Parse a position's proof; None if it is not one of polling by this column."""
        found = {"kinds": None, **_fields(proof)}
        if _names(cls) != set(found) or found["column"] != column:
            return None
        writers, kinds = (
            None if found[name] is None else tuple(found[name]) for name in ("writers", "kinds")
        )
        return cls(**{**found, "key": tuple(found["key"]), "writers": writers, "kinds": kinds})

    def has_key_of(self, kinds: tuple[int, ...]) -> bool:
        """Return whether its key may be one of a table whose key has these types now."""
        return len(self.key) == len(kinds) if self.kinds is None else self.kinds == kinds


def _fields(proof: str) -> dict[str, Any]:
    try:
        found = json.loads(proof)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _names(kind: type) -> set[str]:
    return set(kind.__dataclass_fields__)  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Stamp:
    """The form in which a column stores timestamps.

    Attributes:
        epoch: Unit of integers since 1970.
        separator, digits, zone: The form of ISO text; digits of the fraction, zone as written.
        julian: Reals are Julian days rather than seconds since 1970.
    """

    kind: type
    epoch: str | None = None
    separator: str = " "
    digits: int = 0
    zone: str = ""
    julian: bool = False

    @classmethod
    def of(cls, value: object) -> "Stamp | None":
        """Return the form of a value; None when it is not known."""
        if isinstance(value, float):
            return cls(float, julian=abs(value) < _JULIAN_BELOW)
        if isinstance(value, int):
            unit = next((name for bound, name, _ in _UNITS if abs(value) < bound), None)
            return cls(int, unit) if unit else None
        found = _ISO.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            return None
        separator, fraction, zone = found.groups(default="")
        return cls(str, separator=separator, digits=max(len(fraction) - 1, 0), zone=zone)

    def newest(self, clock: int, precision: int) -> Any:  # noqa: ANN401  (of the column's kind)
        """Return the largest value that the source's clock may have produced by now.

        Args:
            clock: Microseconds since 1970.
            precision: The resolution of the source's clock, in microseconds.
        """
        latest = clock + precision - 1
        if self.kind is int:
            return self.floor(latest)
        if self.kind is float:
            seconds = latest / _SECOND
            return seconds / _DAY_SECONDS + _JULIAN_EPOCH if self.julian else seconds
        moment = datetime.fromtimestamp(latest // _SECOND, UTC)
        fraction = f".{latest % _SECOND:06d}000"[: self.digits + 1] if self.digits else ""
        return f"{moment:%Y-%m-%d{self.separator}%H:%M:%S}{fraction}{self.zone}"

    def floor(self, clock: int) -> int:
        """Return an integer's value at an instant in microseconds, rounded down."""
        return clock * next(per for _, name, per in _UNITS if name == self.epoch) // _SECOND

    @property
    def real_scale(self) -> tuple[float, float]:
        """What to subtract from a real, and then multiply by, to get microseconds."""
        if self.julian:
            return _JULIAN_EPOCH, float(_DAY_SECONDS * _SECOND)
        return 0.0, float(_SECOND)
