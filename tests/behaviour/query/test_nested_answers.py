"""Parts of maps, composites and ranges: what the mirror answers is what PostgreSQL answers."""

import random
from collections.abc import Callable

import duckdb
import pytest

from tests.behaviour.query.test_equal_answers import assert_same
from tests.support.fix_postgres import PostgresWorld
from tests.support.random_queries import Asked

MakeWorld = Callable[..., PostgresWorld]

TYPES = {
    "labels": "map",
    "price": 'struct(amount decimal(10,2), currency text, "at" timestamptz, code uuid, n int64)',
    "period": "range(timestamptz)",
    "seats": "range(int32)",
    "days": "range(date)",
}
_CREATE = (
    "create extension hstore",
    'create type price_of as (amount numeric(10, 2), currency text, "Since" timestamptz,'
    " code uuid, n int)",
    "create table t (id integer primary key, g integer, v integer, at timestamptz, on_day date,"
    " labels hstore, price price_of, period tstzrange, seats int4range, days daterange)",
)
_KEYS = ("color", "n", "", "a b", "é", 'q"')
_INSTANTS = ("2024-01-01 00:00:00+00", "2024-06-01 12:00:00.5+00", "infinity", "-infinity", None)
_DAYS = ("2024-01-01", "2024-02-29", "infinity", "-infinity", None)
_NUMBERS = (-5, 0, 1, 7, None)


def _rows(seed: int, count: int) -> list[tuple[object, ...]]:
    chance = random.Random(seed)
    return [
        (
            *(number, number % 3, chance.choice(_NUMBERS)),
            *(chance.choice(_INSTANTS), chance.choice(_DAYS)),
            *(chance.choice([None, _labels(chance)]), chance.choice([None, _price(chance)])),
            *(_range(chance, of) for of in (_INSTANTS, _NUMBERS, _DAYS)),
        )
        for number in range(count)
    ]


def _labels(chance: random.Random) -> dict[str, str | None]:
    keys = chance.sample(_KEYS, chance.randint(0, 4))
    return {key: chance.choice(["1", None, "-7" if key == "n" else "x"]) for key in keys}


def _price(chance: random.Random) -> str:
    amount = chance.choice(["", "12.50", "0.00", "-1.00"])
    currency = chance.choice(["", "EUR", '""', '"a, b"'])
    at = chance.choice(["", '"2024-01-01 00:00:00+00"', "infinity"])
    code = chance.choice(["", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"])
    return f"({amount},{currency},{at},{code},{chance.choice(['', '7'])})"


def _range(chance: random.Random, values: tuple[object, ...]) -> str | None:
    if chance.random() < 0.2:
        return chance.choice(["empty", None])
    known = [each for each in values if each is not None]
    low, high = sorted(chance.choices(range(len(known)), k=2), key=lambda n: _order(known[n]))
    ends = ["" if chance.random() < 0.3 else f'"{known[n]}"' for n in (low, high)]
    return f"{chance.choice('[(')}{','.join(ends)}{chance.choice('])')}"


def _order(value: object) -> tuple[int, object]:
    place = {"-infinity": -1, "infinity": 1}.get(str(value), 0)
    return place, value if place == 0 else 0


_TEXTS = [
    *(f"labels -> '{key}'" for key in _KEYS),
    *("(price).currency", "(t.price).currency", "(price).code::text"),
]
_VALUES = [
    *("(price).amount", '(price)."Since"', "(price).code", "upper(period)", "lower(period)"),
    *("lower(seats)", "upper(seats)", "lower(days)", "upper(days)", "t.v", "(labels -> 'n')::int"),
]
_TRUTHS = [
    *(f"labels ? '{key}'" for key in _KEYS),
    *("labels ?| array['color', 'n']", "labels ?& '{color,n}'", "labels -> 'color' is null"),
    *("not labels ? 'n'", "(price).amount > 1.5", "(price).currency is null", "price is not null"),
    *("isempty(seats)", "lower_inc(days)", "upper_inc(period)", "lower_inf(seats)"),
    *("upper_inf(period)", "seats @> v", "seats @> 1", "period @> at", "days @> on_day"),
    *("at <@ period", "not days @> on_day", "days @> date '2024-02-29'"),
    *("lower(seats) < v", "upper(period) is null", "price is null"),
]


def _queries(seed: int, count: int) -> list[str]:
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        text, value = chance.choice(_TEXTS), chance.choice(_VALUES)
        truth, other = chance.sample(_TRUTHS, 2)
        made.append(
            chance.choice(
                [
                    f"select {text} as x, count(*) as n from t group by {text} order by 2, 1",
                    f"select {value} as x, count(*) from t where {truth} group by 1 order by 1",
                    f"select g, count({value}) as n, count(distinct {value}) from t group by g",
                    f"select count(*) from t where {truth} and ({other} or {text} = 'x')",
                    f"select x.k, count(*) from (select id as k from t) x join t on x.k = t.v"
                    f" where {truth} group by 1",
                    f"select count(*) filter (where {truth}) as a, count({text}) from t",
                    f"select {truth} as a, count(*) from t group by 1 order by 1",
                    f"select {text}, {value}, {truth} from t where g = 1 group by 1, 2, 3",
                ]
            )
        )
    return made


@pytest.fixture
def parts(make_postgres: MakeWorld) -> PostgresWorld:
    """Mirror rows of all shapes."""
    world = make_postgres(tables=[{"name": "t", "types": TYPES}])
    world.run(*_CREATE)
    _fill(world)
    world.htap.sync_now()
    assert not world.htap.dead_letters().num_rows
    return world


def _fill(world: PostgresWorld) -> None:
    with world.app.cursor() as cursor:
        for row in _rows(1, 120):
            *values, labels, price, period, seats, days = row
            pairs = (
                (None, None)
                if not isinstance(labels, dict)
                else (list(labels), list(labels.values()))
            )
            cursor.execute(
                "insert into t values (%s, %s, %s, %s, %s, hstore(%s::text[], %s::text[]),"
                " %s::price_of, %s::tstzrange, %s::int4range, %s::daterange)",
                (*values, *pairs, price, period, seats, days),
            )


@pytest.mark.long
def test_random_questions_of_parts_are_answered_as_postgres_does(parts: PostgresWorld) -> None:
    answered = [assert_same(parts.htap, Asked(sql, [])) for sql in _queries(1, 150)]
    assert sum(answered) > 110
    names = ", ".join(f"t.{name}" for name in TYPES)
    whole = f"select t.id, {names} from t join t x on x.id = t.id order by t.id"
    assert assert_same(parts.htap, Asked(whole, []))


#: Of each, why the source answers.
_LEFT = (
    ("select count(*) from t where price is null", "depends on its fields"),
    ("select count(*) from t where not (t.price is not null)", "depends on its fields"),
    ("select labels, count(*) from t group by 1", "another form"),
    ("select count(*) from t where labels -> (labels -> 'n') = 'x'", "not fixed"),
    ("select count(*) from t where labels -> array['n'] = '{x}'", "not fixed"),
    ("select max((price).n) as n from t", "another type"),
    ("select count(*) from t where seats @> v::bigint", "of another type"),
    ("select count(*) from t where seats && '[1,2)'::int4range", "a type of the source's own"),
)


def test_what_only_the_source_knows_of_parts_is_answered_by_it(parts: PostgresWorld) -> None:
    for sql, reason in _LEFT[:-2]:
        labels = parts.htap.query(sql).schema.metadata
        assert labels[b"rhei.engine"] == b"oltp"
        assert reason in labels[b"rhei.reason"].decode(), sql
    for sql, reason in _LEFT[-2:]:
        assert reason in parts.htap.explain_route(sql).reason


def test_keys_are_texts_in_the_mirror_whatever_they_are_declared_as(
    make_postgres: MakeWorld,
) -> None:
    types = {"k": "int32[]", "r": "range(int32)"}
    world = make_postgres(tables=[{"name": "t", "types": types}])
    world.run(
        "create table t(k int[], r int4range, g int, primary key (k, r))",
        "insert into t values ('{1,2}', '[1,2)', 1), ('{}', 'empty', 2)",
    )
    world.htap.sync_now()
    assert assert_same(world.htap, Asked("select a.k, a.r from t a join t b on a.g = b.g", []))
    for sql in ("select count(*) from t where 1 = any(k)", "select max(lower(r)) from t"):
        assert "the mirror" in world.htap.explain_route(sql).reason
        assert not assert_same(world.htap, Asked(sql, []))


def test_a_part_of_what_the_mirror_has_as_text_is_the_source_s(make_postgres: MakeWorld) -> None:
    world = make_postgres(tables=[{"name": "t"}])
    world.run(*_CREATE)
    world.run("insert into t(id, price) values (1, row(1, 'x', null, null, null)), (2, null)")
    world.run("insert into t(id, price) values (3, row(null, null, null, null, null))")
    world.htap.sync_now()
    counted = world.htap.query("select count(*) as n from t where price is null")
    assert counted.to_pylist() == [{"n": 2}]
    world.crash()
    with duckdb.connect(world.directory / "mirror.duckdb") as mirror:
        mirror.execute("create index of_theirs on public.t(price)")  # so that its type stays
    assert world.tables is not None
    world.tables[0]["types"] = TYPES
    world.htap.sync_now()
    for sql in ("select sum((price).amount) as n from t", "select count((price).code) as n from t"):
        found = world.htap.query(sql)
        assert found.schema.metadata[b"rhei.engine"] == b"oltp"
        assert found.to_pylist() == world.htap.query(sql, hint="oltp").to_pylist()
