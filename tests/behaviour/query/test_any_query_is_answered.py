"""Whatever the source can answer is answered, by either side, with the source's answer."""

from collections import Counter
from collections.abc import Callable

import pytest

from rhei_pipeline import HTAP
from rhei_pipeline.errors import QueryError
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

_JOINS = " ".join(f"join t t{place} on t{place}.id = t.id" for place in range(1, 50))
_IDS = ", ".join(map(str, range(3000)))
_TEXTS = ", ".join(f"'{number}'" for number in range(300))
#: Each nests, or is as long, as hardly any parser or planner likes it.
_DEEP = (
    f"select max({' + '.join(['v'] * 100)}) as x from t",
    f"select count(*) as x from t where {' or '.join(f'v = {n}' for n in range(400))}",
    f"select count(*) as x from t where {' or '.join(['v = 1'] * 900)}",
    f"select count(*) as x from t {_JOINS}",
    " union all ".join(["select v from t"] * 50),
    f"select max({'abs(' * 20}v{')' * 20}) as x from t",
    f"select count(*) as x from t where {'(' * 60}v = 1{')' * 60}",
    f"select count(*) as x from t where id in ({_IDS})",
    f"select count(*) as x from t where c not in ({_TEXTS})",
)


def _make(world: World | PostgresWorld, real: str) -> None:
    world.run(
        f"create table t (id integer primary key, v integer, c text, r {real}, d date)",
        "insert into t values (1, 1, '1', 0.5, '1995-01-31'), (2, null, null, null, null),"
        " (3, 3, 'x', 0.0, '1996-02-29'), (4, 5, '4', -0.0, '2000-12-31')",
        "create table u (id integer primary key, x integer)",
        "insert into u values (1, 1), (2, null)",
    )
    world.htap.sync_now()


def _assert_source_answers(htap: HTAP, sql: str, *params: object) -> str:
    expected = htap.query(sql, params, hint="oltp")
    found = htap.query(sql, params)
    assert found.schema.remove_metadata() == expected.schema.remove_metadata(), sql
    assert sorted(map(repr, found.to_pylist())) == sorted(map(repr, expected.to_pylist())), sql
    return str((found.schema.metadata or {})[b"rhei.engine"].decode())


@pytest.mark.parametrize("storage", [None, "ipc"])
def test_deep_and_long_queries_are_answered(
    make_world: Callable[..., World], storage: str | None
) -> None:
    world = make_world(storage=storage)
    _make(world, "real")
    for sql in _DEEP:
        _assert_source_answers(world.htap, sql)


@pytest.mark.long
def test_conditions_that_no_planner_has_room_for_do_not_reach_it(
    make_world: Callable[..., World],
) -> None:
    world = make_world(storage="ipc")
    _make(world, "real")
    # Thirty thousand of them, nested by DataFusion's planner, end the process.
    sql = f"select count(*) from t where {' or '.join(['v = 1'] * 30_000)}"
    assert "500 conditions" in world.htap.explain_route(sql).reason


@pytest.mark.long
def test_deep_queries_are_answered_as_postgres_does(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres()
    _make(world, "double precision")
    for sql in _DEEP:
        _assert_source_answers(world.htap, sql)


#: What DataFusion's joins make of NULLs and of empty groups.
_NULLS = (
    "select id from t where v not in (select x from u) or id = 1",
    "select id from t where (v in (select x from u)) is null",
    "select count(*) as n from t where 3 not in (select x from u)",
    "select count(*) as n from t where exists (select sum(x) from u where u.x = t.v)",
    "select id from t where not (v in (select x from u where u.id = t.id) and id = 3)",
    "select id, v in (select x from u) as found from t",
    "select id from t where 0 in (select count(*) from u where u.x = t.v)",
)
#: Subqueries that have no row, where a count or a coalesce is of something; each as a value.
_ROWLESS = (
    *(
        "(select count(*) from u having count(*) > 5)",
        "(select count(*) from u group by x limit 0)",
    ),
    *("(select 7 from u where x > 99)", "(select coalesce(x, 1) from u where x > 99)"),
    "(select s.c from (select count(*) as c from u) s where s.c > 9)",
    "(select s.c from (select count(*) as c from u) s where s.c > t.v + 9)",
    *("(select 7 from u where x > 99 union select 8 from u where x > 99)",),
    *(
        f"(select {value} from u where u.x = t.v{behind})"
        for value in ("count(*)", "coalesce(max(u.x), 7)", "max(u.x)")
        for behind in ("", " group by u.x", " having count(*) > 5", " having count(*) = 0")
    ),
    "(select count(*) from u where u.x = t.v limit 0)",
)
#: And what is asked of a value.
_ASKED = (
    "select count(*) as n from t where {} is null",
    "select count(*) as n from t where coalesce({}, 3) = 3",
    "select count(*) as n, sum(t.id) as s from t where {} >= 1",
    "select case when {} is null then 'none' else 'one' end as c, count(*) as n from t group by 1",
)
#: What the parser takes for something else than SQLite does.
_SQLITE = (
    "select max(cast(c as string)) as x from t",
    "select max(cast(c as varchar(1))) as x, max(cast(v as unsigned big int)) as y from t",
    "select + a.v, count(*) from t a group by a.v",
    "select r, count(*) over (partition by r) as n from t",
    "select date('2000-01-31', '+1 month') as x, count(*) as n from t",
    "select strftime('%Y-%m', d) as month, count(*) as n from t where d >= '1996' group by 1",
    "select cast(strftime('%Y', d) as integer) as year, min(d) as first from t group by 1",
    "select count(*) as n from t where d < date('1996-12-01', '-90 day') or d in ('1995-01-31')",
    "select max(cast(null as integer)) as x, count(*) as n from t",
    "select sum(r) / count(*) as x from t having sum(r) > 0.1",
)


@pytest.mark.parametrize("storage", [None, "ipc"])
def test_nulls_and_odd_words_mean_what_they_mean_to_sqlite(
    make_world: Callable[..., World], storage: str | None
) -> None:
    world = make_world(storage=storage)
    _make(world, "real")
    for sql in (*_NULLS, *_SQLITE):
        _assert_source_answers(world.htap, sql)
    _assert_source_answers(world.htap, "select count(*) as n, max(?) as x from t", float("nan"))
    _assert_source_answers(world.htap, "select count(*) as n, max(?) as x from t", 1.5)


@pytest.mark.parametrize("storage", [None, "ipc"])
def test_a_subquery_without_a_row_is_null_as_in_sqlite(
    make_world: Callable[..., World], storage: str | None
) -> None:
    world = make_world(storage=storage)
    _make(world, "real")
    asked = [sql.format(value) for sql in _ASKED for value in _ROWLESS]
    sides = Counter(_assert_source_answers(world.htap, sql) for sql in asked)
    assert sides["olap"] >= 24  # those that are not of a row of the outer query, among others


def test_a_subquery_without_a_row_is_null_as_in_postgres(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres(storage="ipc")
    _make(world, "double precision")
    for sql in (asked.format(value) for asked in _ASKED[:3] for value in _ROWLESS):
        _assert_source_answers(world.htap, sql)


def test_a_semicolon_belongs_to_no_columns_name(make_world: Callable[..., World]) -> None:
    world = make_world()
    _make(world, "real")
    for sql in ("select 1;", "select null ; ", "select 1, (select max(v) from t);\n"):
        found = world.htap.query(sql, hint="oltp").schema.names
        plan = world.htap._access.held.queries.planner.plan(sql)
        assert list(plan.names) == found


def test_what_sqlite_refuses_is_refused(make_world: Callable[..., World]) -> None:
    world = make_world()
    _make(world, "real")
    for sql, params in (
        ("select count(*) from t indexed by nope", ()),
        ("select v from t except all select x from u", ()),
        ("select count(*) from t where v = ?", (1, 2)),
        ("select count(*) from t where v = ?", ()),
    ):
        with pytest.raises(QueryError):
            world.htap.query(sql, params)


def test_what_postgres_refuses_is_refused_and_dates_are_counted_as_it_counts(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres()
    _make(world, "double precision")
    world.run(
        "create table s (id integer primary key, sm smallint)", "insert into s values (1, 32767)"
    )
    world.htap.sync_now()
    for sql, params in (
        ("select sum(sm + %s) from s", (1,)),
        ("select count(sm + %s) from s", (1,)),
        ("select count(*) from t full join u on t.v < u.x", ()),
        ("select max(c::string) from t", ()),
        ("select count(*) from t where v = %s", (1, 2)),
    ):
        with pytest.raises(QueryError):
            world.htap.query(sql, params)
    for sql in (
        *_NULLS,
        "select count(*) as n from t where d < date '1996-03-31' - interval '1 month'",
        "select extract(year from d) as year, count(*) as n from t group by 1",
        "select sum(case when v = 1 then 1.50 else 0 end) as x from t",
        "select max(cast(null as integer)) as x, count(*) as n from t",
    ):
        _assert_source_answers(world.htap, sql)
