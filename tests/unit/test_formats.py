"""How a segment's columns are stored in Parquet; every engine reads them as they were."""

import random
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datafusion import SessionContext

from rhei_pipeline.mirrors.datafusion.formats import ROW, Parquet, encoded

DRAW = random.Random(1)
LOW, HIGH = -(2**63), 2**63 - 1
#: How to draw a value of each type, also the outermost ones, whose differences are too wide.
DRAWN: dict[str, tuple[pa.DataType, Callable[[], Any]]] = {
    "outermost": (pa.int64(), lambda: DRAW.choice([LOW, HIGH, None, DRAW.randint(LOW, HIGH)])),
    "wide": (pa.int64(), lambda: DRAW.randint(LOW, HIGH)),
    "int": (pa.int32(), lambda: DRAW.randint(-(2**31), 2**31 - 1)),
    "short": (pa.int16(), lambda: DRAW.randint(-(2**15), 2**15 - 1)),
    "moment": (pa.timestamp("us"), lambda: DRAW.randint(-(2**55), 2**55)),
    "day": (pa.date32(), lambda: DRAW.randint(-100_000, 100_000)),
    "time": (pa.time64("us"), lambda: DRAW.randrange(86_400_000_000)),
    "single": (pa.float32(), DRAW.random),
    "flag": (pa.bool_(), lambda: DRAW.random() > 0.5),
    "money": (pa.decimal128(20, 2), lambda: Decimal(DRAW.randint(-(10**9), 10**9)) / 100),
    "bytes": (pa.binary(), lambda: DRAW.randbytes(9)),
    "text": (pa.string(), lambda: str(DRAW.random())),
    "word": (pa.string(), lambda: DRAW.choice(["sent", "paid", None])),
    "few": (pa.int64(), lambda: DRAW.choice([LOW, HIGH])),
    "nothing": (pa.int64(), lambda: None),
    "parts": (pa.struct({"p": pa.int64(), "q": pa.string()}), lambda: {"p": 1, "q": "a"}),
}


def drawn(count: int) -> pa.Table:
    columns = {
        name: pa.array([draw() for _ in range(count)], kind) for name, (kind, draw) in DRAWN.items()
    }
    return pa.table({**columns, ROW: pa.array(np.arange(count), pa.uint32())})


@pytest.mark.parametrize("count", [1, 20, 3_000])
def test_every_engine_reads_each_type_as_it_was_written(count: int, tmp_path: Path) -> None:
    rows, file = drawn(count), tmp_path / "rows.parquet"
    content = encoded(Parquet(), rows)
    with pa.OSFile(str(file), "wb") as sink:
        sink.write(content)
    session = SessionContext()
    session.register_parquet("t", file)
    order = f"order by {ROW}"
    seen = [
        Parquet().read(content, rows.column_names),
        session.sql(f"select * from t {order}").to_arrow_table(),
        duckdb.from_parquet(str(file)).order(ROW).to_arrow_table(),
        pl.read_parquet(file).to_arrow(),
    ]
    for found in seen:
        assert found.cast(rows.schema).equals(rows)


def test_a_dictionary_is_made_of_repeated_values_only() -> None:
    file = pq.ParquetFile(pa.BufferReader(encoded(Parquet(), drawn(3_000))))
    group = file.metadata.row_group(0)
    columns = [group.column(n) for n in range(group.num_columns)]
    with_dictionary = {c.path_in_schema for c in columns if c.has_dictionary_page}
    assert with_dictionary == {"word", "few", "nothing", "outermost"}
    by_difference = {c.path_in_schema for c in columns if "DELTA_BINARY_PACKED" in c.encodings}
    assert by_difference == {"wide", "int", "short", "moment", "day", "time", ROW}


@pytest.mark.parametrize("kind", [pa.string_view(), pa.binary_view(), pa.null(), pa.uuid()])
def test_values_that_cannot_be_counted_are_written_as_well(kind: pa.DataType) -> None:
    rows = pa.table({"v": pa.nulls(3_000, kind), ROW: pa.array(np.arange(3_000), pa.uint32())})
    assert Parquet().read(encoded(Parquet(), rows), ["v", ROW]).num_rows == 3_000


def test_a_file_of_few_rows_is_neither_compressed_nor_has_dictionaries() -> None:
    file = pq.ParquetFile(pa.BufferReader(encoded(Parquet(), drawn(10))))
    group = file.metadata.row_group(0)
    columns = [group.column(n) for n in range(group.num_columns)]
    assert {column.compression for column in columns} == {"UNCOMPRESSED"}
    assert not any(column.has_dictionary_page for column in columns)
