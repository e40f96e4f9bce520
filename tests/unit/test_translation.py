"""A translated statement gives SQLite's own answer, for values at the edges of each type.

Neither a pipeline nor a file is needed: SQLite answers the statement, DuckDB its translation, both
over the same rows in memory.
"""

import sqlite3
from collections.abc import Iterator
from typing import Any

import duckdb
import pytest

from rhei_pipeline.query.router import plan
from tests.unit.test_routing import SQLITE

ROWS = [
    (1, None, "new", 1.5, None),
    (2, -7, "NEW", -2.25, None),
    (3, 7, "", 0.0, None),
    (4, 0, None, None, None),
    (5, 2**31, "50%_off's", 1e9, None),
    (6, -1, "Ünï", 0.1, None),
    (7, 7, "\N{FULLWIDTH LATIN CAPITAL LETTER A}z", 0.2, None),
]
#: Two conditions that are true and false for some rows, and null for others.
CONDITIONS = [
    *("customer_id > 0", "status = 'new'", "status <> 'new'", "amount >= 0.1", "not amount"),
    *("customer_id is null", "status in ('new', null)", "customer_id not in (7, 0)"),
    *("customer_id between -7 and 7", "status like 'n%'", "status like '%\\%%' escape '\\'"),
    *("status not like '%_'", "customer_id = 7.0", "customer_id", "not customer_id"),
    *("status is 'new'", "status is not null and customer_id % 2", "amount or customer_id"),
    *("customer_id / 2 = -3", "-customer_id > 0", "customer_id % -4 = 3", "abs(customer_id) = 7"),
    *("length(status) = 3", "upper(status) = 'NEW'", "substr(status, 2, 1) = 'e'"),
    *("coalesce(customer_id, 9) = 9", "nullif(customer_id, 7) is null"),
    *("case customer_id when 7 then 1 when null then 1 else 0 end", "status || 'x' = 'x'"),
    *("exists (select 1 from orders b where b.id = orders.customer_id)",),
    *("id in (select customer_id from orders)", "id not in (select customer_id from orders)"),
]
VALUES = [
    *("count(customer_id)", "count(distinct customer_id)", "sum(customer_id)", "min(status)"),
    *("max(status)", "total(customer_id)", "avg(customer_id)", "sum(amount is null)"),
    *("max(customer_id) / 3", "min(customer_id) % 3", "sum(customer_id / 2)", "count(*) * 1.5"),
    *("max(length(status))", "min(coalesce(customer_id, -99))", "sum(case when id > 3 then 1 end)"),
]
STATEMENTS = [
    *(f"select count(*), sum(id) from orders where {condition}" for condition in CONDITIONS),
    *(f"select {value} from orders" for value in VALUES),
    *(f"select {value} from orders where id > 99" for value in VALUES),
    "select customer_id, count(*) from orders group by customer_id order by customer_id",
    "select status, sum(id) from orders group by status order by status desc",
    "select customer_id % 2, count(*) from orders group by 1 having count(*) > 1 order by 1",
    "select a.id, count(b.id) from orders a left join orders b on a.customer_id = b.customer_id"
    " group by a.id order by a.id",
    "select count(*) from (select distinct customer_id from orders)",
    "with big as (select * from orders where amount > 0) select count(*), sum(id) from big",
    "select count(*) from orders a join orders b on a.id < b.id where a.status = b.status",
]


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[sqlite3.Connection, duckdb.DuckDBPyConnection]]:
    with sqlite3.connect(":memory:") as source, duckdb.connect(":memory:") as mirror:
        source.execute(
            "create table orders(id integer primary key, customer_id integer, status text,"
            " amount real, made timestamp)"
        )
        mirror.execute(
            "create table orders(id bigint, customer_id bigint, status varchar,"
            " amount double, made timestamp)"
        )
        source.executemany("insert into orders values (?, ?, ?, ?, ?)", ROWS)
        mirror.executemany("insert into orders values (?, ?, ?, ?, ?)", ROWS)
        yield source, mirror
    source.close()


def exact(rows: list[tuple[Any, ...]]) -> list[tuple[str, ...]]:
    """Return the values with their types, so that 1 is not 1.0."""
    return [tuple(map(repr, row)) for row in rows]


def test_a_translation_gives_the_answer_of_sqlite(
    engines: tuple[sqlite3.Connection, duckdb.DuckDBPyConnection],
) -> None:
    source, mirror = engines
    translated = 0
    for sql in STATEMENTS:
        query = plan(sql, [], SQLITE).query
        if query is not None:
            translated += 1
            found = mirror.execute(query.sql).fetchall()
            assert exact(found) == exact(source.execute(sql).fetchall()), (sql, query.sql)
    assert translated > len(STATEMENTS) * 3 / 4, "most of them have a translation"
