"""Instants as datetimes, from the microseconds that databases and logs count."""

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant(microseconds: int) -> datetime:
    """Return the instant so many microseconds after the beginning of 1970; exact, unlike floats."""
    return _EPOCH + timedelta(microseconds=microseconds)
