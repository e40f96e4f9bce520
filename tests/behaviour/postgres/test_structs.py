"""Composites and ranges that are declared as such: structs in DuckDB, text everywhere else."""

import json
import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.type_names import named_type
from tests.support.fix_postgres import PostgresWorld

MakeWorld = Callable[..., PostgresWorld]

PRICE = (
    'struct(amount decimal(10,2), currency text, "is new" boolean, since timestamptz,'
    " code uuid, n int64, day date, at timestamp)"
)
TYPES = {
    "price": PRICE,
    "period": "range(timestamptz)",
    "seats": "range(int32)",
    "days": "range(date)",
}
#: Rows as SQL: what is quoted, what is empty or null, what looks like something else.
ROWS = [
    """row(12.50, 'a "b", \\ c', true, '2024-01-01 10:00:00.5+00',
        'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', -1, '2024-02-29', '2024-01-01'),
       '[2024-01-01,2024-02-01)', '[1,5)', '[2024-01-01,2024-01-31]'""",
    "row(-0.05, '', false, 'infinity', null, 0, '-infinity', null), '(,)', 'empty', '[,infinity)'",
    "row(null, null, null, null, null, null, null, null), 'empty', '(,7)', '(,)'",
    "row(0, E'NULL (x)\\n\\v ž\\u0301', null, null, null, null, null, 'infinity'),"
    " '(2024-01-01 00:00:00.000001,infinity]', '[3,)', 'empty'",
    "null, null, null, null",
]
_FIELDS = [f'(price)."{name}"' for name in ("amount", "currency", "is new", "n")]
_BOUNDS = [
    f"{of}({name})"
    for name in ("period", "seats", "days")
    for of in ("lower_inc", "upper_inc", "isempty")
]
_BOUNDS += [f"{of}(seats)" for of in ("lower", "upper")]
_TIMES = [
    *("(price).since", '(price)."day"', '(price)."at"', "(price).code"),
    *(f"{of}({name})" for name in ("period", "days") for of in ("lower", "upper")),
]
#: What the source says of the parts; times as text, as they may be infinite.
_TOLD = [*_FIELDS, *_BOUNDS, *(f"({part})::text" for part in _TIMES)]
#: The same parts, asked of the mirror.
_SHOWN = [
    *("price.amount", "price.currency", 'price."is new"', "price.n"),
    *(
        f"{name}.{of}"
        for name in ("period", "seats", "days")
        for of in ("lower_inclusive", "upper_inclusive", "is_empty")
    ),
    *("seats.lower", "seats.upper"),
    *(
        f"(case when isinf({part}) then {part}::varchar else {plain} end)"
        for part, plain in (
            ("price.since", "make_timestamp(epoch_us(price.since))::varchar || '+00'"),
            ('price."day"', 'price."day"::varchar'),
            ('price."at"', 'price."at"::varchar'),
        )
    ),
    "price.code::varchar",
    *(
        f"(case when isinf(period.{of}) then period.{of}::varchar"
        f" else make_timestamp(epoch_us(period.{of}))::varchar || '+00' end)"
        for of in ("lower", "upper")
    ),
    *("days.lower::varchar", "days.upper::varchar"),
]


def _make(make_postgres: MakeWorld, types: dict[str, str] | None, **options: Any) -> PostgresWorld:
    table = {"name": "t", "polling": {"deletes": "reconcile"}, "types": types}
    world = make_postgres(tables=[table], **options)
    world.run(
        'create type price_of as (amount numeric(10,2), currency text, "is new" bool,'
        " since timestamptz, code uuid, n bigint, day date, at timestamp)",
        "create table t(id int primary key, price price_of, period tstzrange, seats int4range,"
        " days daterange, updated_at timestamptz not null default clock_timestamp())",
    )
    return world


def _put(world: PostgresWorld, key: int, row: str) -> None:
    world.run(
        f"insert into t(id, price, period, seats, days) values ({key}, {row})"
        " on conflict (id) do update set price = excluded.price, period = excluded.period,"
        " seats = excluded.seats, days = excluded.days, updated_at = clock_timestamp()"
    )


def _texts(world: PostgresWorld) -> list[tuple[Any, ...]]:
    texts = ", ".join(f"{name}::text" for name in TYPES)
    return world.app.execute(f"select id, {texts} from t order by id".encode()).fetchall()


def _assert_parts(world: PostgresWorld, *, is_history: bool) -> None:
    """Compare each part of the present rows with what the source says of it."""
    present = "where _rhei_valid_to is null" if is_history else ""
    asked = ", ".join(f"{part} as c{place}" for place, part in enumerate(_SHOWN))
    shown = world.htap.query(
        f"select id, {asked}, price is null as n from t {present} order by id", hint="olap"
    )
    told = f"select id, {', '.join(_TOLD)}, price::text is null from t order by id"
    found = [tuple(row.values()) for row in shown.to_pylist()]
    assert found == world.app.execute(told.encode()).fetchall()


def _kinds(world: PostgresWorld) -> set[str]:
    world.crash()
    with duckdb.connect(world.directory / "mirror.duckdb", read_only=True) as connection:
        found = connection.execute(
            "select column_name, data_type from duckdb_columns() where table_name = 't'"
        ).fetchall()
    return {kind.partition("(")[0] for name, kind in found if name in TYPES}


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "mode"),
    [("logical", "temporal"), ("trigger", "destructive"), ("polling", "temporal")],
)
def test_structs_are_the_same_by_every_way(
    make_postgres: MakeWorld, tmp_path: Path, method: str, mode: str
) -> None:
    buffer = (
        {} if method == "polling" else {"buffer": {"kind": "rocksdb", "path": tmp_path / "cdc"}}
    )
    world = _make(make_postgres, TYPES, mode=mode, capture={"method": method, **buffer})
    for key, row in enumerate(ROWS):
        _put(world, key, row)
    world.htap.sync_now()
    _assert_parts(world, is_history=mode == "temporal")
    for key, row in enumerate(ROWS[::-1]):
        _put(world, key, row)
        _put(world, 5 + key, row)
    world.run("delete from t where id = 7")
    world.htap.sync_now()
    _assert_parts(world, is_history=mode == "temporal")
    assert not world.htap.dead_letters().num_rows
    assert world.htap.verify().equal
    changed = world.htap.sync_now()
    assert (changed.inserted, changed.updated) == (0, 0)
    world.htap.initial_sync("t")
    _assert_parts(world, is_history=mode == "temporal")
    if method != "polling":  # whose source is not asked
        names = ", ".join(f"a.{name}" for name in TYPES)
        sql = f"select a.id, {names} from t a join t b using (id) order by 1"
        assert world.htap.explain_route(sql).engine == "olap"
        assert [tuple(row.values()) for row in world.htap.query(sql).to_pylist()] == _texts(world)
    if mode == "temporal":
        assert world.htap.as_of("t", datetime.now(UTC)).num_rows == len(_texts(world))
        rows = world.htap.changes("t").rows
        for place, name in enumerate(TYPES, 1):
            told = {row[place] for row in _texts(world)}
            assert told == set(rows[name].to_pylist())
    assert _kinds(world) == {"STRUCT"}


@pytest.mark.long
def test_text_becomes_structs_and_back_with_its_history(make_postgres: MakeWorld) -> None:
    world = _make(make_postgres, None, mode="temporal")
    for key, row in enumerate(ROWS):
        _put(world, key, row)
    world.htap.sync_now()
    _put(world, 2, ROWS[3])
    world.htap.sync_now()
    order = ", ".join(TYPES)
    as_text = world.htap.query(f"select * from t order by id, {order}", hint="olap")
    assert world.tables is not None
    for types, kind in ((TYPES, "STRUCT"), (None, "VARCHAR")):
        world.crash()
        world.tables[0]["types"] = types
        world.htap.sync_now()
        assert world.htap.verify().equal
        if types is None:
            now = world.htap.query(f"select * from t order by id, {order}", hint="olap")
            assert now.equals(as_text)
        else:
            _assert_parts(world, is_history=True)
        assert _kinds(world) == {kind}


def test_what_is_no_such_struct_is_a_dead_letter(make_postgres: MakeWorld) -> None:
    types = {
        "k": "range(int32)",
        "price": "struct(amount decimal(10,2), of uuid)",
        "r": "range(int32)",
    }
    world = make_postgres(tables=[{"name": "t", "types": types}])
    world.run(
        "create table t(k text primary key, price text, r text)",
        """insert into t values ('[0,)', '(1.50,)', 'empty'), ('0', null, '[1,3]'),
        ('[1,)', '(1.5,)', null), ('[2,)', '(1.50)', null), ('[3,)', '(1.50,,)', null),
        ('[4,)', '(x,)', null), ('[5,)', '(,A0EEBC99-9c0b-4ef8-bb6d-6bb9bd380a11)', null),
        ('[6,)', '("1.50",)', null), ('[7,)', null, '[1.5,2)'), ('[8,)', null, '[4294967296,)'),
        ('[9,)', null, '(1,2,3)')""",
    )
    world.htap.sync_now()
    letters = world.htap.dead_letters()
    found = [key and json.loads(key)["k"] for key in letters["key"].to_pylist()]
    assert {*found} == {None, *(f"[{n},)" for n in range(1, 10))}
    world.run("update t set price = '(2.00,)', r = '[7,)'", "delete from t where k = '0'")
    world.htap.sync_now()
    assert world.htap.dead_letters()["key"].to_pylist() == ['{"k": null}']
    assert world.htap.verify().equal
    shown = world.present("t")
    assert {(str(row["price"]["amount"]), row["r"]["lower"]) for row in shown} == {("2.00", 7)}


@pytest.mark.parametrize("declared", [[None, TYPES], [TYPES, None]], ids=["to", "from"])
def test_snapshots_of_a_column_that_was_text_or_becomes_text_are_text(
    make_postgres: MakeWorld, declared: list[dict[str, str] | None]
) -> None:
    world = _make(make_postgres, declared[0], mode="temporal")
    _put(world, 0, ROWS[0])
    for day, types in enumerate(declared, 1):
        world.crash()
        assert world.tables is not None
        world.tables[0]["types"] = types
        world.htap.sync_now()
        world.htap.snapshot("t", {date(2024, 1, day): datetime.now(UTC)})
    names = ", ".join(TYPES)
    found = world.htap.query(f"select id, {names} from snapshot.t", hint="olap").to_pylist()
    assert [tuple(row.values()) for row in found] == _texts(world) * 2


@pytest.mark.parametrize(
    "name",
    [
        *("struct()", "struct(a int64, A int64)", "struct(1a int64)", "struct(a float64)"),
        *("range(string)", "struct(a struct(b int64))", "struct(a int64"),
        "struct(lower date, upper date, lower_inclusive boolean, upper_inclusive boolean,"
        " is_empty boolean)",
    ],
)
def test_a_type_without_meaning_is_refused_with_one_that_has(name: str) -> None:
    with pytest.raises(SchemaError) as refused:
        named_type(name)
    shown = re.findall("'([^']+)'", refused.value.hint or "")
    assert all(named_type(each).logical for each in shown)
