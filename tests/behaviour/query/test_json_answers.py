"""Operators of jsonb and of arrays: what the mirror answers is what PostgreSQL answers."""

from collections import Counter
from collections.abc import Callable

import pytest

from tests.behaviour.query.test_equal_answers import _SEEDS, assert_same
from tests.support.fix_postgres import PostgresWorld
from tests.support.random_documents import Documents, json_queries
from tests.support.random_queries import Asked

MakeWorld = Callable[..., PostgresWorld]

_CREATE = "create table t (id integer primary key, g integer, d jsonb, tags text[], sizes int[])"
#: What applications keep in a document.
_ORDERS = [
    '{"status": "paid", "total": 19.90, "lines": [{"sku": "a", "n": 1}], "to": {"city": "Gent"}}',
    '{"status": "open", "total": 20.00, "lines": [], "to": {"city": "Łódź"}, "n": 12}',
    '{"status": "open", "total": 7, "lines": [{"sku": "b", "n": 2}, {"sku": "a", "n": 1}]}',
    '{"status": null, "total": 1e3, "paid": true, "on": "2026-02-28", "to": {"city": null}}',
]
_ANSWERED = (
    "select d->>'status' as s, count(*) as n from t group by d->>'status' order by 1",
    "select d->'to'->>'city' as c, max(d->>'total') as m from t group by 1 order by 1 desc",
    "select d #>> '{to,city}' as c, sum((d->>'n')::int) as n from t group by 1",
    "select count(*) as n from t where d @> '{\"status\": \"open\"}' and d ? 'to'",
    'select count(*) as n from t where d @> \'{"lines": [{"sku": "a"}], "total": 19.9}\'',
    "select sum(jsonb_array_length(d->'lines')) as n from t where d->>'total' like '%0'",
    "select count(*) from t where d ?| array['on', 'paid'] and (d->>'paid')::boolean",
    "select max((d->>'on')::date) as d, avg((d->>'total')::double precision) as a from t",
    "select d->'lines'->0->>'sku', count(*) from t group by 1 order by 1",
    "select cardinality(tags), count(*) from t where 'a' = any(tags) group by 1",
    "select tags[1] as tag, sum(sizes[2]) as n from t where tags @> array['a'] group by 1",
    "select count(*) from t where sizes && '{1,9}' or 7 <> all(sizes)",
)
#: Of each, why the source answers.
_LEFT = (
    ("select d->'to' as o, count(*) from t group by 1", "written differently"),
    ("select d->>'to' as o, count(*) from t group by 1", "for these rows"),
    ("select count(*) from t where d->'lines' = '[]'::jsonb", "written differently"),
    ("select count(*) from t where d->>(d->>'status') = 'x'", "not fixed"),
    ("select count(*) from t where d @> d", "not fixed"),
    ("select d->>'' as x, count(*) from t group by 1", "no key ''"),
    ("select d, count(*) from t group by d", "another form"),
    ("select count(*) from t where tags = '{a}'", "with a opaque"),
    ("select count(*) from t where tags[g] = 'a'", "not fixed"),
    ("select count(*) from t where 'b' < any(tags)", "otherwise than by = any"),
)


@pytest.fixture
def orders(make_postgres: MakeWorld) -> PostgresWorld:
    """Mirror what applications keep in documents and arrays."""
    world = make_postgres(tables=[{"name": "t", "types": {"tags": "string[]", "sizes": "int32[]"}}])
    world.run(_CREATE)
    arrays = ("{a,b}", "{1,2}"), ("{}", "{9}"), ("{NULL,a}", None), (None, "{7,NULL}")
    for number, (text, (tags, sizes)) in enumerate(zip(_ORDERS, arrays, strict=True)):
        row = (number, number % 2, text, tags, sizes)
        world.app.execute("insert into t values (%s, %s, %s::text::jsonb, %s, %s)", row)
    world.htap.sync_now()
    return world


def test_questions_of_json_and_arrays_are_answered_by_the_mirror(orders: PostgresWorld) -> None:
    left = [sql for sql in _ANSWERED if not assert_same(orders.htap, Asked(sql, []))]
    assert left == []


def test_what_only_the_source_writes_is_answered_by_it(orders: PostgresWorld) -> None:
    for sql, reason in _LEFT:
        labels = orders.htap.query(sql).schema.metadata
        assert labels[b"rhei.engine"] == b"oltp"
        assert reason in labels[b"rhei.reason"].decode(), (sql, labels[b"rhei.reason"])


def check_documents(make_postgres: MakeWorld, seed: int, count: int) -> Counter[bool]:
    world = make_postgres()
    world.run(_CREATE)
    documents = Documents(seed)
    rows = [(number, number % 3, documents.make()) for number in range(60)] + [(99, 1, None)]
    with world.app.cursor() as cursor:
        cursor.executemany("insert into t values (%s, %s, %s::text::jsonb)", rows)
    world.htap.sync_now()
    return Counter(assert_same(world.htap, Asked(sql, [])) for sql in json_queries(seed, count))


@pytest.mark.long
def test_random_documents_are_asked_as_postgres_is(make_postgres: MakeWorld) -> None:
    assert check_documents(make_postgres, 1, 120)[True] > 45


@pytest.mark.soak
@pytest.mark.parametrize("seed", _SEEDS)
def test_many_random_documents_are_asked_as_postgres_is(
    make_postgres: MakeWorld, seed: int
) -> None:
    check_documents(make_postgres, 4000 + seed, 400)


def test_an_engine_without_json_leaves_it_to_the_source(make_postgres: MakeWorld) -> None:
    world = make_postgres(storage="ipc")
    world.run(_CREATE, 'insert into t values (1, 1, \'{"a": "x"}\')')
    world.htap.sync_now()
    route = world.htap.explain_route("select d->>'a' as a, count(*) as n from t group by 1")
    assert (route.engine, route.reason) == (
        "oltp",
        "it groups rows, but the mirror's engine has no operators of JSON",
    )
