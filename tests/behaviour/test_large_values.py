"""Batches are bounded by bytes as well as rows: large values take memory a few at a time."""

import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from rhei_pipeline.model import portions
from rhei_pipeline.model.portions import PORTION_BYTES

VALUE_BYTES = 6 * 2**20
VALUES = 20
#: As one batch all rows were held some six times over: 130 times the value; bounded, 60 times.
MOST_GROWTH = 90 * VALUE_BYTES

SYNC = """
import resource, sys
from rhei_pipeline import HTAP, Settings
d = sys.argv[1]
settings = Settings(
    source={"path": f"{d}/app.db"}, mirror={"path": f"{d}/mirror.duckdb"},
    registry={"path": f"{d}/registry.json"}, mode="destructive",
)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
with HTAP(settings) as htap:
    htap.query("select 1", hint="olap")
    resting = peak()
    copied = htap.sync_now().tables["t"].copied_rows
    print(copied, peak() - resting)
"""


def test_a_copy_of_large_values_holds_a_few_of_them_at_a_time(tmp_path: Path) -> None:
    app = sqlite3.connect(tmp_path / "app.db", isolation_level=None)
    app.execute("create table t(id integer primary key, v blob)")
    for _ in range(VALUES):
        app.execute("insert into t(v) values (zeroblob(?))", (VALUE_BYTES,))
    app.close()
    done = subprocess.run(
        [sys.executable, "-c", SYNC, str(tmp_path)], check=True, capture_output=True, text=True
    )
    copied, growth = map(int, done.stdout.split())
    assert copied == VALUES
    assert growth < MOST_GROWTH


@pytest.mark.parametrize("most", [None, 1_000])
def test_portions_hold_every_item_once_within_both_bounds(most: int | None) -> None:
    sizes = [10] * 3_000 + [PORTION_BYTES // 4] * 9 + [3 * PORTION_BYTES] * 2 + [1]
    left = list(sizes)

    def take(count: int) -> Sequence[int]:
        taken = left[:count]
        del left[:count]
        return taken

    def size_of(items: Sequence[int]) -> int:
        return sum(items)

    found = list(portions.portions(take, size_of, most))
    assert [size for portion in found for size in portion] == sizes
    assert all(len(portion) <= (most or len(sizes)) for portion in found)
    # A portion ends with the item that fills it; only where sizes jump are more asked for.
    assert sum(sum(portion[:-1]) > PORTION_BYTES for portion in found) <= 1
