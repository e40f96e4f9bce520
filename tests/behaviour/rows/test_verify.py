"""Verify in bounded memory, part by part, on a budget."""

import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.progress import CopyProgress
from rhei_pipeline.model.schema import Column, Table, TableSchema

PART_ROWS, PARTS = 300_000, 14


def test_a_comparison_in_duckdb_holds_no_rows_that_it_has_compared(tmp_path: Path) -> None:
    """Nor does its transaction: what is staged or registered in one, DuckDB keeps until its end."""
    table = Table(TableSchema("t", (Column("k", pa.int64()), Column("v", pa.int64())), ("k",)))
    progress = CopyProgress("t", Position(1, ""), "")
    held: list[int] = []

    def parts() -> Iterator[pa.Table]:
        for first in range(0, PARTS * PART_ROWS, PART_ROWS):
            held.append(resident())
            numbers = pa.array(range(first, first + PART_ROWS), pa.int64())
            yield pa.table({"k": numbers, "v": numbers})

    with closing(DuckDBMirror(tmp_path / "mirror.duckdb")) as mirror:
        with mirror.transaction() as transaction:
            transaction.begin_copy(table, progress)
            for part in parts():
                transaction.append_copy(table, part, progress)
            transaction.adopt_copy(table, datetime.now(UTC))
        held.clear()
        with mirror.transaction(trial=True) as transaction:
            assert transaction.compare(table, parts()).equal
    compared = (PARTS - 3) * part.nbytes
    assert held[-1] - held[2] < compared / 2


def resident() -> int:
    """Return the bytes that this process holds in memory of its own."""
    told = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    assert told is not None
    return int(told[1]) * 1024
