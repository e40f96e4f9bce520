"""The airline's application at work: days of flights, written as they happen.

    python -m examples.airline.writer --database data/airline.db --days 7
    python -m examples.airline.writer --database data/airline.db --endless

Flights are entered as inserts, departures and arrivals are updates, cancellations are deletes,
each hour in a few transactions. Now and then one is rolled back, a weather reading is corrected
(with REPLACE on SQLite), and a plane is registered again with an upsert.
"""

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import count, groupby

from examples.airline.application import Application, connect
from examples.airline.data import flights_by_day
from examples.airline.database import SCHEDULE, Row, arrival, departure, number, scheduled

_KEY = "flight_date = ? and carrier = ? and flight = ? and origin = ?"
_REGISTER_PLANE = (
    "insert into planes(tailnum, year, seats) values (?, ?, ?)"
    " on conflict(tailnum) do update set seats = excluded.seats"
)
#: One hour in so many is tried and rolled back before it is written.
_ROLLED_BACK = 10
_YEAR = 365
#: The day after the last of which there are flights.
_END = date(2014, 1, 1)


@dataclass(frozen=True)
class Event:
    """Something that happens to a flight, and the statement that writes it down."""

    at: datetime
    kind: str
    sql: str
    params: tuple[str | int | None, ...]


@dataclass
class Day:
    """How many rows a day's transactions wrote."""

    scheduled: int = 0
    departed: int = 0
    arrived: int = 0
    cancelled: int = 0

    @property
    def changes(self) -> int:
        """All of them."""
        return self.scheduled + self.departed + self.arrived + self.cancelled


def events(day: date, rows: list[Row]) -> list[Event]:
    """Return what happens on a day, in the order it happens."""
    found = [event for row in rows for event in _events_of(day, row)]
    return sorted(found, key=lambda event: event.at)


def _events_of(day: date, row: Row) -> Iterator[Event]:
    entry = scheduled(day, row)
    key = (entry[0], entry[1], entry[2], entry[4])
    planned = datetime.fromisoformat(entry[6])
    yield Event(planned - timedelta(hours=3), "scheduled", SCHEDULE, entry)
    if row["dep_time"] is None:
        yield Event(planned, "cancelled", f"delete from flights where {_KEY}", key)
        return
    left, landed = departure(day, row), arrival(day, row)
    sql = (
        f"update flights set departed_at = ?, departure_delay = ?, status = 'departed' where {_KEY}"
    )
    yield Event(left, "departed", sql, (str(left), number(row["dep_delay"]), *key))
    if landed is not None:
        sql = (
            f"update flights set arrived_at = ?, arrival_delay = ?, status = 'arrived' where {_KEY}"
        )
        # By the clock at its destination it may land before it left; it is written down after.
        done = max(landed, left + timedelta(minutes=1))
        yield Event(done, "arrived", sql, (str(landed), number(row["arr_delay"]), *key))


def play_day(airline: Application, day: date, rows: list[Row], seconds: float = 0.0) -> Day:
    """Write one day; with `seconds`, spread over so long."""
    written = Day()
    hours = groupby(events(day, rows), key=lambda event: event.at.replace(minute=0))
    started = time.monotonic()
    for place, (hour, happening) in enumerate(hours):
        _write_hour(airline, list(happening), place, written)
        _correct_something(airline, hour)
        _pace(started, seconds * (place + 1) / 30)
    return written


def _write_hour(airline: Application, happening: list[Event], place: int, written: Day) -> None:
    if place % _ROLLED_BACK == _ROLLED_BACK - 1:
        with airline.transaction(kept=False):
            for event in happening:
                airline.run(event.sql, event.params)
    with airline.transaction():
        for event in happening:
            rows = airline.run(event.sql, event.params)
            setattr(written, event.kind, getattr(written, event.kind) + rows)


def _correct_something(airline: Application, hour: datetime) -> None:
    airline.run(airline.correct_weather, ("JFK", hour.timetuple().tm_yday))
    airline.run(_REGISTER_PLANE, (f"N{hour.day:03d}RP", hour.year, 100 + hour.hour))


def _pace(started: float, due: float) -> None:
    time.sleep(max(started + due - time.monotonic(), 0.0))


def days_from(first: date, last_known: date) -> Iterator[tuple[date, date]]:
    """Yield days without end, each with the day of 2013 whose flights it repeats."""
    for place in count():
        day = first + timedelta(days=place)
        known = day
        while known > last_known:
            known -= timedelta(days=_YEAR)
        yield day, max(known, date(2013, 1, 1))


def main() -> None:
    """Write days until there are no more to write, or until told to stop."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    end = arguments.first + timedelta(days=arguments.days)
    is_of_the_year = not arguments.endless and end <= _END
    known = flights_by_day(arguments.first, end) if is_of_the_year else flights_by_day()
    airline = connect(arguments.database)
    try:
        for place, (day, source) in enumerate(days_from(arguments.first, max(known))):
            if not arguments.endless and place == arguments.days:
                break
            written = play_day(airline, day, known.get(source, []), arguments.seconds_per_day)
            print(
                f"{day}  {written.scheduled:5d} scheduled  {written.departed:5d} departed "
                f" {written.arrived:5d} arrived  {written.cancelled:4d} cancelled",
                flush=True,
            )
    except KeyboardInterrupt:
        pass
    finally:
        airline.close()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write flights as an airline would.")
    parser.add_argument("--database", required=True, help="a SQLite file, or postgresql://...")
    parser.add_argument("--first", type=date.fromisoformat, default=date(2013, 12, 1))
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--seconds-per-day", type=float, default=0.0)
    parser.add_argument("--endless", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
