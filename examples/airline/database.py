"""The airline's past, and what is known of a flight."""

from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from typing import Any

from examples.airline.application import connect
from examples.airline.data import flights_by_day, read

_COLUMNS = {
    "airlines": ("carrier", "name"),
    "airports": ("faa", "name", "lat", "lon", "alt", "tz", "dst", "tzone"),
    "planes": (
        "tailnum",
        "year",
        "type",
        "manufacturer",
        "model",
        "engines",
        "seats",
        "speed",
        "engine",
    ),
    "weather": ("origin", "time_hour", "temp", "humid", "wind_speed", "precip", "visib"),
}
#: How a new flight is entered, in the order of `scheduled`.
SCHEDULE = (
    "insert into flights(flight_date, carrier, flight, tailnum, origin, dest,"
    " scheduled_departure, distance, status) values (?, ?, ?, ?, ?, ?, ?, ?, 'scheduled')"
)
_PAST = (
    "flight_date",
    "carrier",
    "flight",
    "tailnum",
    "origin",
    "dest",
    "scheduled_departure",
    "distance",
    "departed_at",
    "arrived_at",
    "departure_delay",
    "arrival_delay",
    "status",
)

Row = dict[str, str | None]


def build(database: str, until: date) -> int:
    """Fill an empty database with everything that had happened before a day; return its flights.

    A cancelled flight is deleted by the application, so none of the past is there.
    """
    application = connect(database)
    try:
        application.create()
        for table, columns in _COLUMNS.items():
            rows = (tuple(row[column] for column in columns) for row in read(table))
            application.load(table, columns, rows)
        application.load("flights", _PAST, _past(until))
        return int(application.value("select count(*) from flights"))
    finally:
        application.close()


def _past(until: date) -> Iterator[tuple[Any, ...]]:
    for day, rows in flights_by_day(until=until).items():
        for row in rows:
            if row["dep_time"] is not None:
                yield (*scheduled(day, row), *outcome(day, row))


def scheduled(day: date, row: Row) -> tuple[Any, ...]:
    """Return what is known of a flight when it is entered."""
    return (
        day.isoformat(),
        row["carrier"],
        int(row["flight"] or 0),
        row["tailnum"],
        row["origin"],
        row["dest"],
        str(at(day, row["sched_dep_time"])),
        int(row["distance"] or 0),
    )


def outcome(day: date, row: Row) -> tuple[Any, ...]:
    """Return departed_at, arrived_at, both delays and the last status."""
    left = departure(day, row)
    landed = arrival(day, row)
    status = "arrived" if landed else "departed"
    return (
        str(left),
        None if landed is None else str(landed),
        number(row["dep_delay"]),
        number(row["arr_delay"]),
        status,
    )


def departure(day: date, row: Row) -> datetime:
    """Return when it left."""
    return at(day, row["sched_dep_time"]) + timedelta(minutes=number(row["dep_delay"]) or 0)


def arrival(day: date, row: Row) -> datetime | None:
    """Return when it landed, by the clock at its destination; None when that is not known."""
    if row["arr_time"] is None:
        return None
    left, landed = departure(day, row), at(day, row["arr_time"])
    # Flying west, a short flight may land before it left; a day later it did not.
    return landed if landed > left - timedelta(hours=6) else landed + timedelta(days=1)


def at(day: date, clock: str | None) -> datetime:
    """Read a clock time as 517 for 05:17; 2400 is midnight at the day's end."""
    hours, minutes = divmod(int(clock or 0), 100)
    return datetime.combine(day, time()) + timedelta(hours=hours, minutes=minutes)


def number(text: str | None) -> int | None:
    """Read a number that may be missing."""
    return None if text is None else int(text)
