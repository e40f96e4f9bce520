"""Queries to which a mirror's engine, left to itself, would give another answer than the source."""

from collections.abc import Callable

import pytest

from rhei_pipeline import HTAP
from rhei_pipeline.errors import QueryError
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

#: DuckDB, and a storage that DataFusion reads.
STORAGES = [None, "memory"]


def assert_alike(htap: HTAP, sql: str) -> str:
    """Compare both sides, in order; return the side that answered."""
    found, expected = htap.query(sql), htap.query(sql, hint="oltp")
    assert found.schema.remove_metadata() == expected.schema.remove_metadata(), sql
    assert list(map(repr, found.to_pylist())) == list(map(repr, expected.to_pylist())), sql
    return str(found.schema.metadata[b"rhei.engine"].decode())


@pytest.fixture(params=STORAGES)
def sqlite(make_world: Callable[..., World], request: pytest.FixtureRequest) -> World:
    world = make_world(storage=request.param)
    world.run(
        "create table t(id integer primary key, m integer, r real, x text, y text)",
        f"insert into t values (1, {2**62}, 9e999, 'a\\b', 'a\\b'), (2, 3, 1e16, 'ab', 'a\\b')",
        "insert into t values (3, -3, 1, '50%', '50\\%'), (4, null, -1e16, 'x', '%')",
        "insert into t values (5, 1, 0, '', '')",
    )
    world.htap.sync_now()
    return world


#: What is asked, and which side answers beside DuckDB, and beside DataFusion.
SQLITE = (
    ("select max(m * 4) as n from t", "oltp oltp"),
    ("select max(m * 4) as n from t where id > 1", "olap olap"),
    ("select max(m + m) as n from t", "oltp oltp"),
    ("select min(-2 - m - m) as n from t where id <> 1", "olap olap"),
    ("select min(-m) as n from t", "olap olap"),
    ("select count(*) as n from t where x like y", "olap olap"),
    ("select count(*) as n from t where x like 'a\\%'", "olap olap"),
    ("select count(*) as n from t where x like '50!%' escape '!'", "olap olap"),
    ("select count(*) as n from t where x like 'a\\\\b' escape '\\'", "olap olap"),
    ("select count(r - r) as n from t", "olap olap"),
    ("select max(r) as n from t group by m order by m", "olap oltp"),
    ("select max(r) as n from t where id > 1 group by m order by m", "olap olap"),
    ("select sum(r) as n from t where id between 2 and 4", "oltp oltp"),
    ("select avg(r) as n from t where id between 2 and 4", "oltp oltp"),
    ("select total(r) as n from t where id = 1", "oltp oltp"),
    ("select sum(r) as n from t where id between 2 and 3", "olap olap"),
)


def test_sqlite_and_the_mirror_answer_alike(sqlite: World) -> None:
    for sql, sides in SQLITE:
        found = assert_alike(sqlite.htap, sql)
        assert found == sides.split()[sqlite.storage is not None], sql


@pytest.fixture(params=STORAGES)
def postgres(
    make_postgres: Callable[..., PostgresWorld], request: pytest.FixtureRequest
) -> PostgresWorld:
    world = make_postgres(storage=request.param)
    world.run(
        "create table t(id integer primary key, n integer, r float8, d numeric(38, 0),"
        ' w numeric(30, 12), x text collate "C", y text collate "C")',
        "insert into t values (1, 2, '0', 9e37, 123456789012345678.987654321987, 'b', '\\b'),"
        " (2, 2, '-0', 9e37, 0.1, 'a\\', 'a\\\\'), (3, 2147483647, '0', 1, 2, 'ab', 'a_'),"
        " (4, null, 'NaN', null, null, 'c', 'c'), (5, 2, '1', 0, 0, 'd', 'd')",
        "create table u(id integer primary key, n integer, day date, at timestamp)",
        "insert into u values (1, 2, 'infinity', '2024-01-31'), (2, 2, '2024-01-31', 'infinity'),"
        " (3, 5, null, '-infinity')",
    )
    world.htap.sync_now()
    return world


#: What is asked, and which side answers beside DuckDB, and beside DataFusion.
POSTGRES = (
    ("select r + 1 as r, a.id from t a join u on true order by a.r, a.id, u.id", "oltp oltp"),
    ("select a.id from t a join u on true order by a.r, a.id, u.id", "olap olap"),
    ("select n from t intersect all select n from u", "olap oltp"),
    (
        "select n from u except all select n from t where n = 2 and id < 2 order by 1",
        "olap oltp",
    ),
    ("select count(*) as n from t where x like y", "olap oltp"),
    ("select count(*) as n from t where x like 'a\\\\'", "olap olap"),
    ("select count(*) as n from t where x like '\\b'", "olap olap"),
    ("select max(r) as r from t group by n order by n", "olap oltp"),
    ("select max(n + id) as n from t where id <> 3", "olap olap"),
    ("select max(w::float8) as n from t", "olap olap"),
    ("select count(*) as n from t where w > 0.5::float8", "olap olap"),
    ("select sum(n) as n, sum(n * 2::bigint) as m from t", "olap olap"),
    ("select count(n) as n, count(distinct r) as m from t", "olap olap"),
    ("select count(*) as n, avg(distinct r) as m from t where id < 4 or id = 5", "olap olap"),
    ("select n, count(distinct coalesce(r, 0)) as m from t group by n order by n", "olap olap"),
    ("select null as n, count(*) as m from t group by 1 order by 1", "olap olap"),
    ("select nullif(null, 1) as n, count(*) as m from t", "oltp oltp"),
    ("select distinct null as n, a.n as m from t a join u on true order by 1, 2", "olap olap"),
    (
        "select null as n, a.n as m from t a join u on true union select 'a', 1 order by 2, 1",
        "olap olap",
    ),
    ("select -2147483648 as n, count(*) as m, max(-9223372036854775807) as o from t", "olap olap"),
    ("select sum(extract(year from day))::float8 as n from u", "oltp oltp"),
    ("select extract(year from at) as n, count(*) as m from u group by 1", "oltp oltp"),
    ("select extract(month from day) as n from u a natural join u b where id > 1", "olap olap"),
    ("select max(extract(month from day)) as n, count(*) as m from u where id > 1", "olap olap"),
)


def test_postgres_and_the_mirror_answer_alike(postgres: PostgresWorld) -> None:
    for sql, sides in POSTGRES:
        found = assert_alike(postgres.htap, sql)
        assert found == sides.split()[postgres.storage is not None], sql


def test_what_overflows_in_postgres_is_refused(postgres: PostgresWorld) -> None:
    with pytest.raises(QueryError):
        postgres.htap.query("select max(n + id) as n from t")


def test_a_sum_of_more_digits_than_a_decimal_has_is_the_sources(postgres: PostgresWorld) -> None:
    found = postgres.htap.query("select sum(d) as d from t")
    ((wanted,),) = postgres.app.execute("select sum(d)::text from t").fetchall()
    assert found.to_pylist() == [{"d": wanted}]
    assert found.schema.metadata[b"rhei.engine"] == b"oltp"
