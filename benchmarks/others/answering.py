"""How a program that is measured is asked: a line for each step, and its cost as the answer."""

import json
import sys
import time
from collections.abc import Callable, Mapping

from benchmarks.processor import cpu_seconds

#: What says whether a mirror is right: in all dialects the same.
PROOF = "select count(*), sum(id), sum(customer_id), sum(updated_at), max(note) from orders"
COLUMNS = {
    "id": "int64",
    "customer_id": "int64",
    "status": "utf8",
    "amount": "float64",
    "note": "utf8",
    "created_at": "int64",
    "updated_at": "int64",
}


def answer(sync: Callable[[], object], prove: Callable[[], list[object]]) -> None:
    """Do what each line of the input asks, until it ends."""
    steps: Mapping[str, Callable[[], object]] = {
        "sync": lambda: _cost(sync),
        "prove": prove,
    }
    for line in sys.stdin:
        answered = steps[line.strip()]()
        # DuckDB adds up to a decimal.
        print(json.dumps(answered, default=int), flush=True)


def _cost(act: Callable[[], object]) -> list[float]:
    """Return the seconds of CPU, those of ended helpers included, and by the clock."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    act()
    return [cpu_seconds() - cpu, time.perf_counter() - wall]
