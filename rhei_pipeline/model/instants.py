"""Instants as datetimes, from the microseconds that databases and logs count."""

from datetime import UTC, date, datetime, time, timedelta

from rhei_pipeline.errors import QueryError

#: What a call takes for an instant.
When = datetime | date | str
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant(count: int) -> datetime:
    """Return the instant so many microseconds after the beginning of 1970; exact, unlike floats."""
    return _EPOCH + timedelta(microseconds=count)


def microseconds(when: datetime) -> int:
    """Return how many microseconds after the beginning of 1970 an instant is."""
    return (when - _EPOCH) // datetime.resolution


def as_instant(when: When) -> datetime:
    """Return the instant that is meant; a day means its beginning in UTC.

    Raises:
        QueryError: A text is no date or time in the form of ISO 8601.
    """
    if isinstance(when, str):
        try:
            is_day = len(when) == len("2026-11-01")
            when = date.fromisoformat(when) if is_day else datetime.fromisoformat(when)
        except ValueError:
            raise QueryError(
                f"{when!r} is no date or time", hint="such as '2026-11-01' or '2026-11-01T12:00Z'"
            ) from None
    return when if isinstance(when, datetime) else datetime.combine(when, time(), UTC)
