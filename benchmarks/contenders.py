"""Rhei Pipeline beside others that copy a SQLite table: all in turn, on the same changes.

Each runs in a process of its own, and measures itself with the helpers that it starts.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environments import UnavailableError, python_with
from benchmarks.orders import orders
from benchmarks.others.running import Running, running


@dataclass(frozen=True)
class Contender:
    """A program in `benchmarks.others`, its argument, and what it needs."""

    name: str
    module: str
    argument: str = ""
    packages: tuple[str, ...] = ()
    python: str = ""


_RHEI = ("rhei-engine==2.0.0",)
_DLT = ("dlt[duckdb,parquet,sqlalchemy]==1.31.0",)
CONTENDERS = (
    Contender("Rhei Pipeline, DuckDB", "with_pipeline", "duckdb"),
    Contender("Rhei Pipeline, memory", "with_pipeline", "memory"),
    Contender("Rhei Pipeline, Parquet", "with_pipeline", "parquet"),
    Contender("Rhei 2.0, memory", "with_rhei", "inmemory", _RHEI, "3.13"),
    Contender("Rhei 2.0, Vortex", "with_rhei", "vortex", _RHEI, "3.13"),
    Contender("dlt, DuckDB", "with_dlt", "", _DLT),
)
#: A program, and why it has no figures anywhere.
LEFT_OUT = ("sling", "not measured: it fetches DuckDB's program from the network when it runs")


@dataclass(frozen=True)
class Play:
    """How much is measured."""

    rows: int = 1_000_000
    rounds: int = 3
    inserts: int = 10_000
    small_cycles: int = 5
    # Each costs Rhei 2.0 time by the rows of the table, so that it gets a smaller one.
    updates: int = 20
    updated_rows: int = 100_000


#: Seconds of CPU, and by the clock.
Cost = tuple[float, float]
#: By the contender's name.
Costs = dict[str, Cost]


def measure() -> Iterator[tuple[str, str]]:
    """Measure all that can be installed here, against this project with DuckDB."""
    found, missing = compared(CONTENDERS, Play())
    for case, costs in found.items():
        ours = costs[CONTENDERS[0].name][0]
        for name, (cpu, wall) in costs.items():
            told = f"{cpu * 1000:,.1f} ms CPU, {wall * 1000:,.1f} ms by the clock"
            yield f"{case}: {name}", f"{told}: {cpu / ours:.2f} x"
    yield from (*missing.items(), LEFT_OUT)


def compared(
    contenders: Sequence[Contender], play: Play
) -> tuple[dict[str, Costs], dict[str, str]]:
    """Return by case what each contender took at the median, and why others could not run."""
    pythons: dict[Contender, Path] = {}
    missing: dict[str, str] = {}
    for one in contenders:
        try:
            pythons[one] = python_with(one.module, one.packages, one.python)
        except UnavailableError as why:
            missing[one.name] = str(why)
    with orders(play.rows) as large, orders(play.updated_rows) as small:
        rounds = [dict(_round(pythons, large.path, small.path, play)) for _ in range(play.rounds)]
    return {case: _middle([one[case] for one in rounds]) for case in rounds[0]}, missing


def _round(
    pythons: Mapping[Contender, Path], large: Path, small: Path, play: Play
) -> Iterator[tuple[str, Costs]]:
    """Play each case once, with all contenders in turn."""
    with _all_running(pythons, large) as programs:
        yield f"first copy of {play.rows:,} rows", _synced(programs)
        yield f"{play.inserts:,} inserts", _inserted(programs, play.inserts)
        cycles = [_inserted(programs, 10) for _ in range(play.small_cycles)]
        yield "10 inserts", _middle(cycles)
        yield "nothing to do", _synced(programs)
        _prove(programs)
    with _all_running(pythons, small) as programs:
        _synced(programs)
        for program in programs.values():
            program.update(play.updates)
        yield f"{play.updates} updates on {play.updated_rows:,} rows", _synced(programs)
        _prove(programs)


@contextmanager
def _all_running(pythons: Mapping[Contender, Path], table: Path) -> Iterator[dict[str, Running]]:
    with ExitStack() as open_ones:
        yield {
            one.name: open_ones.enter_context(running(table, python, one.module, one.argument))
            for one, python in pythons.items()
        }


def _inserted(programs: Mapping[str, Running], count: int) -> Costs:
    for program in programs.values():
        program.insert(count)
    return _synced(programs)


def _synced(programs: Mapping[str, Running]) -> Costs:
    return {name: program.sync() for name, program in programs.items()}


def _prove(programs: Mapping[str, Running]) -> None:
    for program in programs.values():
        program.prove()


def _middle(found: Sequence[Costs]) -> Costs:
    """Return the medians, by contender."""
    return {
        name: (
            statistics.median(costs[name][0] for costs in found),
            statistics.median(costs[name][1] for costs in found),
        )
        for name in found[0]
    }
