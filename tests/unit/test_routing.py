"""Every class of statement goes to its side, with the reason."""

import math
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from rhei_pipeline.model.schema import Column, Mode, TableSchema
from rhei_pipeline.model.semantics import Kind, MirroredTable
from rhei_pipeline.query.named_tables import tables_read
from rhei_pipeline.query.router import Plan, Router, plan
from rhei_pipeline.query.translation.meaning import Catalog

ORDERS = TableSchema(
    "orders",
    (
        Column("id", pa.int64()),
        Column("customer_id", pa.int64()),
        Column("status", pa.string()),
        Column("amount", pa.float64()),
        Column("made", pa.timestamp("us")),
    ),
    ("id",),
)
KINDS = {"id": Kind.INT, "customer_id": Kind.INT, "status": Kind.TEXT, "amount": Kind.REAL}
SQLITE = Catalog(
    "sqlite",
    "duckdb",
    {"orders": MirroredTable(ORDERS, Mode.DESTRUCTIVE, KINDS, all_columns=ORDERS.names)},
)
POSTGRES = Catalog(
    "postgres",
    "duckdb",
    {"orders": MirroredTable(ORDERS, Mode.DESTRUCTIVE, KINDS, frozenset({"status"}), ORDERS.names)},
)

STAYS = [
    ("insert into orders values (1, 1, 'x', 1, null)", "writes"),
    ("update orders set amount = 1", "writes"),
    ("delete from orders", "writes"),
    ("replace into orders(id) values (1)", "writes"),
    ("insert into orders(id) select max(id) + 1 from orders", "writes"),
    ("with gone as (select max(id) from orders) delete from orders", "writes"),
    ("with n as (select count(*) c from orders) insert into orders(id) select c from n", "writes"),
    ("create table x as select count(*) from orders", "schema"),
    ("alter table orders add column x", "schema"),
    ("drop table orders", "schema"),
    ("vacuum", "schema"),
    ("begin", "transaction"),
    ("commit", "transaction"),
    ("savepoint a", "transaction"),
    ("pragma table_info(orders)", "session"),
    ("attach 'x' as y", "session"),
    ("explain select count(*) from orders", "plan"),
    ("explain query plan select count(*) from orders", "plan"),
    ("values (1), (2)", "no table"),
    ("select 1", "rows of one table"),
    ("select * from orders where id = 1", "rows of one table"),
    ("select distinct status from orders order by 1 limit 3", "rows of one table"),
    ("select min(id, 2) from orders", "rows of one table"),
    ("select count(*) as n from (select 1 as one) x", "no table"),
    ("select count(*) from invoices", "not mirrored"),
    ("select count(*) from sqlite_master", "system table"),
    ("select count(*) from orders o join temp.x on 1", "not mirrored"),
    ("select count(rowid) from orders", "rowid"),
    ("select count(*) from orders where nothing = 1", "nothing"),
    ('select count(*) from orders where status = "new"', "may read it as text"),
    ("select strftime('%Y', made), count(*) from orders group by 1", "takes the date"),
    ("select group_concat(status) from orders", "exists only in the source"),
    (
        "select json_extract(status, '$.a'), count(*) from orders group by 1",
        "exists only in the source",
    ),
    ("select count(*) from orders where made > '2024'", "another form"),
    ("select status, id from orders group by status", "not grouped"),
    ("select count(*) from orders where status glob 'a*'", "another answer"),
    ("select count(*) from orders where status = 1", "compares"),
    ("select customer_id, count(*) from orders group by 1 limit 3", "no ORDER BY"),
    ("select count(*) from orders where 1 < id = 1", "brackets"),
    (
        "with recursive r(n) as (select 1 union all select n + 1 from r) select n from r",
        "recursive",
    ),
    ("with orders as (select * from orders) select count(*) from orders", "reads from itself"),
    (
        "with a as (select id from orders), orders as (select 1) select count(*) from a",
        "a later one",
    ),
    ("select count(*) from orders where id is true", "truth"),
    ("select count(*) from orders where id & 1", "another answer"),
    ("select count(*) from orders where status collate nocase = 'a'", "another answer"),
    (
        "select status, count(*) from orders group by status order by 1 collate nocase",
        "another answer",
    ),
    ("selec count(*) from orders", "parsed"),
    ("select count(*) from orders where", "parsed"),
    ("select 1; select 2", "one statement"),
    ("", "none"),
]
GOES = [
    "select count(*) from orders",
    "select COALESCE(MAX(amount), 0) from orders",
    "select total(amount) from orders",
    "select 1 + (2 * max(id)) from main.orders",
    "select customer_id, sum(id) from orders group by customer_id having count(*) > 1",
    "select o.id from orders o join orders p on o.id = p.customer_id",
    "select o.id from orders o left join orders p using (id)",
    "select o.id from orders o, orders p where o.id = p.customer_id",
    "select o.id from orders o cross join orders p",
    "select id, rank() over (order by amount) as place from orders",
    "with big as (select * from orders where amount > 5) select id from big",
    "select id from orders union select customer_id from orders",
    "select id from orders intersect select customer_id from orders",
    "select id from orders except select customer_id from orders",
    "select id from orders where customer_id in (select id from orders)",
    "select id from orders where id in (select 1)",
    "select id from orders where exists (select 1 from orders p where p.id = orders.customer_id)",
    "select s.n from (select count(*) as n from orders) s",
    "select id, (select max(id) from orders) as most from orders",
    "select customer_id, count(*) from orders group by 1 order by 2 desc, 1 limit 10",
    "select count(*) from orders where status like 'NEW%' and id / 2 > 3",
    "SELECT Count( * ) FROM ORDERS -- all",
    "select count(made) from orders",
]


def of(sql: str, catalog: Catalog = SQLITE) -> Plan:
    return plan(sql, [], catalog)


@pytest.mark.parametrize(("sql", "reason"), STAYS)
def test_these_stay_with_the_source(sql: str, reason: str) -> None:
    found = of(sql).route
    assert found.engine == "oltp"
    assert reason in found.reason


@pytest.mark.parametrize("sql", GOES)
def test_these_go_to_the_mirror(sql: str) -> None:
    assert of(sql).route.engine == "olap", of(sql).route.reason


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("with gone as (delete from orders returning *) select count(*) from gone", "writes"),
        ("select max(id) into other from orders", "writes"),
        ("select count(*) from orders where status > 'a'", "collation"),
        ("select max(status) from orders", "collation"),
        ("select char_length(status), count(*) from orders group by 1", "only the source knows"),
        ("select sum(id * 1.5) % 2 as x from orders", "remainder"),
        ("select count(*) from pg_catalog.pg_class", "system table"),
        ("select count(*) from other.orders", "not mirrored"),
        ('select count(*) from "Orders"', "not mirrored"),
        ("select count(*) from orders where status ilike 'a'", "locale"),
        (
            "select customer_id / 2, count(*) as n from orders group by 1, random()",
            "exists only in the source",
        ),
    ],
)
def test_these_stay_with_postgres(sql: str, reason: str) -> None:
    found = of(sql, POSTGRES).route
    assert found.engine == "oltp"
    assert reason in found.reason


@pytest.mark.parametrize(
    ("sql", "names"),
    [
        ("select count(*), Max( o.amount ), id + 1 from orders o", None),
        (
            "select count(*), Max( o.amount ) , sum(id)/2 from orders o",
            ("count(*)", "Max( o.amount )", "sum(id)/2"),
        ),
        ("select o.ID, count(*) as N from orders o group by 1", ("id", "N")),
        ("select distinct count(*) from orders", ("count(*)",)),
        (
            "select (select max(id) from orders), 'a,b' || max(status) from orders",
            ("(select max(id) from orders)", "'a,b' || max(status)"),
        ),
    ],
)
def test_columns_have_the_names_that_sqlite_gives(sql: str, names: tuple[str, ...] | None) -> None:
    found = of(sql)
    if names is None:
        assert found.route.engine == "oltp"
    else:
        assert found.names == names


def test_columns_have_the_names_that_postgres_gives() -> None:
    sql = (
        "select count(*), MAX(o.id), sum(id) + 1, coalesce(max(id), 0), customer_id"
        " from orders o group by 5"
    )
    assert of(sql, POSTGRES).names == ("count", "max", "?column?", "coalesce", "customer_id")


def test_a_plan_knows_the_types_of_what_stays() -> None:
    found = of("select id, amount, made, strftime('%Y', made) from orders where id = 1")
    assert [column and column.type for column in found.columns or ()] == [
        pa.int64(),
        pa.float64(),
        pa.timestamp("us"),
        None,
    ]


def test_plans_are_kept_by_text_and_by_the_types_of_parameters() -> None:
    router = Router(SQLITE, remembered=2)
    sql = "select count(*) from orders where id = ?"
    assert router.plan(sql, [1]) is router.plan(sql, [2])
    assert router.plan(sql, ["x"]).route.engine == "oltp"
    router.plan("select 1")
    router.plan("select 2")
    assert len(router._plans) == 2


@pytest.mark.parametrize(
    ("plain", "other"),
    [
        (1, 2**40),
        (1.5, math.nan),
        ("a", "a\0b"),
        (datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC)),  # noqa: DTZ001
    ],
)
def test_a_plan_for_one_value_is_none_for_another_that_means_something_else(
    plain: object, other: object
) -> None:
    router = Router(SQLITE)
    sql = "select count(*) from orders where id = ?"
    assert router.plan(sql, [plain]) is router.plan(sql, [plain])
    assert router.plan(sql, [plain]) is not router.plan(sql, [other])


def test_a_very_long_statement_is_planned_each_time() -> None:
    router, sql = Router(SQLITE), f"select count(*) from orders -- {'x' * 20_000}"
    assert router.plan(sql) is not router.plan(sql)


@pytest.mark.parametrize(
    ("sql", "scans"),
    [
        ("select status from orders where id = 1", False),
        ("select status from orders where 1 = id", False),
        ("select status from orders where id in (1, 2)", False),
        ("select status from orders where status = 'new'", True),
        ("select id from orders", True),
        ("select 1", False),
    ],
)
def test_what_reads_one_table_by_its_key_reads_few_rows(sql: str, *, scans: bool) -> None:
    notes = replace(ORDERS, name="notes", primary_key=("status",))  # a key of another table
    other = MirroredTable(notes, Mode.DESTRUCTIVE, KINDS, all_columns=notes.names)
    assert of(sql, replace(SQLITE, tables={**SQLITE.tables, "notes": other})).scans is scans


def test_parameters_may_be_numbered() -> None:
    found = plan("select count(*) from orders where id = ?2 or id = ?1", [1, 2], SQLITE)
    assert found.bound == (1, 2)
    assert found.query is not None
    assert found.query.sql.index("$p2") < found.query.sql.index("$p1")
    unused = plan("select count(*) from orders where id = ?", [1, 2], SQLITE)
    assert (unused.route.engine, unused.query) == ("oltp", None)


def test_parameters_of_postgres_may_stand_side_by_side() -> None:
    sql = "select count(*) from orders where id in (%s,%s) or id = %s+%s"
    assert plan(sql, [1, 2, 3, 4], POSTGRES).route.engine == "olap"
    found = tables_read("select 1 from orders where id in ($1,$2)", "postgres")
    assert found == frozenset({"orders", "public.orders"})


def test_what_asks_for_history_goes_to_the_mirror_as_it_is() -> None:
    for sql in (
        "select id from orders where _rhei_valid_to is null",
        "select _rhei_valid_from, id from orders where status = 'new'",
        "select _rhei_was_1_status from orders where id = 1",
    ):
        found = of(sql)
        assert (found.route.engine, found.history) == ("olap", True)


@pytest.mark.parametrize(
    "sql",
    [
        "with x as (insert into orders(id) values (1) returning id) select * from x",
        "with x as (delete from orders returning id) select count(*) from x",
        "select * into x from orders",
    ],
)
def test_a_query_that_writes_by_a_part_of_it_is_none(sql: str) -> None:
    assert not plan(sql, (), POSTGRES).reads
