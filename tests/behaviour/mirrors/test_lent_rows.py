"""Rows that a connection of DuckDB sees for a while, without being registered each time."""

from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from rhei_pipeline.mirrors.duckdb.lent_rows import TOUCHED, UPSERTS, LentRows

FEW, MANY = pa.table({"a": [1, 2]}), pa.table({"b": range(2000)})


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with closing(duckdb.connect()) as opened:
        yield opened


def asked(connection: duckdb.DuckDBPyConnection, sql: str) -> list[tuple[Any, ...]]:
    return connection.execute(sql).fetchall()


def test_other_rows_are_seen_each_time_few_or_many(connection: duckdb.DuckDBPyConnection) -> None:
    lent = LentRows(connection)
    for rows in (FEW, pa.table({"b": ["x"], "a": [3]}), MANY, FEW):
        with lent.shown(UPSERTS, rows):
            assert asked(connection, f"select count(*) from {UPSERTS}") == [(rows.num_rows,)]
            shown = connection.sql(f"from {UPSERTS}").to_arrow_table()
            assert shown.equals(rows)
    with pytest.raises(duckdb.Error, match="so no longer"):
        asked(connection, f"from {UPSERTS}")
    # Whoever lists what there is asks for no rows.
    columns = f"select column_name from duckdb_columns() where table_name = '{UPSERTS}'"
    assert asked(connection, columns) == [("a",)]
    assert asked(connection, f"select column_name from pragma_show('{UPSERTS}')") == [("a",)]


@pytest.mark.parametrize("first", [FEW, MANY])
@pytest.mark.parametrize("ends_by", ["an error", "a trial"])
def test_rows_are_seen_after_a_transaction_was_rolled_back(
    connection: duckdb.DuckDBPyConnection, first: pa.Table, ends_by: str
) -> None:
    lent = LentRows(connection)
    with lent.within_transaction(trial=False), lent.shown(UPSERTS, FEW):
        pass
    connection.execute("begin")
    with suppress(ZeroDivisionError), lent.within_transaction(trial=ends_by == "a trial"):
        for name in (TOUCHED, UPSERTS):
            with lent.shown(name, first):
                asked(connection, f"from {name}")
        if ends_by == "an error":
            raise ZeroDivisionError
    connection.execute("rollback")
    for name in (TOUCHED, UPSERTS):
        with lent.within_transaction(trial=False), lent.shown(name, FEW):
            assert asked(connection, f"from {name}") == [(1,), (2,)]
