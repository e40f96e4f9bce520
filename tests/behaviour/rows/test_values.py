"""Values arrive bit for bit, or are named as dead letters; never NULL, never a guess."""

import math
import struct
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fix_world import World

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
BOTH_MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])

EXACT = [
    ("integer", [2**63 - 1, -(2**63), 2**53 + 1, 0, None]),
    (
        "real",
        [
            0.1,
            1 / 3,
            5e-324,
            1.7976931348623157e308,
            math.inf,
            -math.inf,
            0.30000000000000004,
            None,
        ],
    ),
    ("text", ["", "a\0b", "'", '"', "\\", "\n", "NULL", "é", "😀", "\u202e", "x" * 100_000, None]),
    ("blob", [b"", b"\0", b"\xff\xfe", b"abc", None]),
    ("boolean", [0, 1, None]),
]


def mirror_values(world: World) -> dict[int, Any]:
    found = world.htap.query("select id, v from t", hint="olap")
    return dict(zip(found["id"].to_pylist(), found["v"].to_pylist(), strict=True))


def same(given: Any, found: Any) -> bool:
    if isinstance(given, float):
        return struct.pack("d", given) == struct.pack("d", found)
    return bool(found == given)


@BOTH_MODES
@pytest.mark.parametrize(("declared", "values"), EXACT)
def test_values_by_copy_and_by_capture(
    make_world: MakeWorld, mode: str, declared: str, values: list[Any]
) -> None:
    world = make_world(mode=mode)
    world.run(f"create table t(id integer primary key, v {declared})")
    world.app.executemany("insert into t values (?, ?)", enumerate(values))
    world.htap.sync_now()
    world.app.executemany("insert into t values (?, ?)", enumerate(values, 100))
    world.htap.sync_now()
    found = mirror_values(world)
    for place, value in enumerate(values):
        assert same(value, found[place])
        assert same(value, found[place + 100])
    assert world.htap.dead_letters().num_rows == 0


@pytest.mark.long
@settings(max_examples=10)
@given(st.lists(st.floats(allow_nan=False), min_size=200, max_size=200))
def test_every_double_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    world = World(tmp_path_factory.mktemp("doubles"))
    world.run("create table t(id integer primary key, v real)")
    world.htap.sync_now()
    world.app.executemany("insert into t values (?, ?)", enumerate(values))
    world.htap.sync_now()
    stored = dict(world.app.execute("select id, v from t").fetchall())
    found = mirror_values(world)
    world.close()
    assert all(same(stored[place], found[place]) for place in stored)


@BOTH_MODES
@pytest.mark.parametrize(
    ("declared", "value", "expected"),
    [
        ("date", "2020-02-29", date(2020, 2, 29)),
        (
            "timestamp",
            "2020-02-29 10:11:12.123456",
            datetime.fromisoformat("2020-02-29T10:11:12.123456"),
        ),
        ("datetime", "2020-02-29T10:11:12", datetime.fromisoformat("2020-02-29T10:11:12")),
        ("decimal(10, 2)", 12.3, Decimal("12.30")),
        ("numeric(38, 0)", 2**62, Decimal(2**62)),
        ("varchar(3)", "longer", "longer"),
    ],
)
def test_declared_types_are_what_the_mirror_has(
    make_world: MakeWorld, mode: str, declared: str, value: object, expected: object
) -> None:
    world = make_world(mode=mode)
    world.run(f"create table t(id integer primary key, v {declared})")
    world.htap.sync_now()
    world.app.execute("insert into t values (1, ?)", (value,))
    world.htap.sync_now()
    assert mirror_values(world) == {1: expected}


@BOTH_MODES
@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("integer", "secret"),
        ("integer", 1.5),
        ("integer", b"\0"),
        ("real", "secret"),
        ("text", b"blob"),
        ("blob", "secret"),
        ("boolean", 2),
        ("boolean", "true"),
        ("date", "2020-02-30"),
        ("date", 20200229),
        ("timestamp", "2020-01-01 00:00:00+01:00"),
        ("timestamp", 1_700_000_000),
        ("decimal(5, 2)", 1234.5),
        ("decimal(5, 2)", 1.234),
        ("numeric(20, 0)", "secret"),
    ],
)
def test_a_value_that_does_not_fit_is_a_dead_letter_and_blocks_nothing(
    make_world: MakeWorld, mode: str, declared: str, value: object
) -> None:
    world = make_world(mode=mode)
    world.run(f"create table t(id integer primary key, v {declared})")
    world.htap.sync_now()
    world.app.execute("insert into t values (1, ?)", (value,))
    world.app.execute("insert into t values (2, null)")
    report = world.htap.sync_now()
    assert report.dead_letters == 1
    assert mirror_values(world) == {2: None}
    letter = world.htap.dead_letters().to_pylist()[0]
    assert (letter["table_name"], letter["key"], letter["column_name"]) == ("t", '{"id": 1}', "v")
    assert "secret" not in letter["reason"]
    assert not world.htap.verify().equal


@BOTH_MODES
def test_a_dead_letter_is_resolved_once_its_row_fits(make_world: MakeWorld, mode: str) -> None:
    world = make_world(mode=mode)
    world.run("create table t(id integer primary key, v date)", "insert into t values (1, 'x')")
    assert world.htap.sync_now().dead_letters == 1
    world.run("update t set v = '2020-01-01'")
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 0
    assert world.htap.verify().equal


@BOTH_MODES
def test_text_that_is_not_utf8_is_a_dead_letter(make_world: MakeWorld, mode: str) -> None:
    world = make_world(mode=mode)
    world.run(
        "create table t(id integer primary key, v text)",
        "insert into t values (1, cast(x'ff' as text)), (2, 'fine')",
    )
    world.htap.sync_now()
    world.run("insert into t values (3, cast(x'41ff' as text)), (4, 'fine')")
    world.htap.sync_now()
    assert mirror_values(world) == {2: "fine", 4: "fine"}
    assert world.htap.dead_letters().num_rows == 2


@BOTH_MODES
def test_keys_that_cannot_be_kept_are_named(make_world: MakeWorld, mode: str) -> None:
    world = make_world(mode=mode, batch_rows=1)
    world.run(
        "create table t(k text primary key, v int)",
        "insert into t values (null, 1), ('a', 2), (cast(x'ff' as text), 3), (x'00', 4), ('z', 5)",
    )
    world.htap.sync_now()
    kept = world.htap.query("select k from t order by k", hint="olap")["k"].to_pylist()
    assert kept == ["a", "z"]
    keys = set(world.htap.dead_letters()["key"].to_pylist())
    assert keys == {'{"k": null}', '{"k": {"hex": "ff"}}', '{"k": {"hex": "00"}}'}


def test_given_types_stand_above_declared_ones(make_world: MakeWorld) -> None:
    world = make_world(tables=[{"name": "t", "types": {"v": "timestamp_ms"}}])
    world.run(
        "create table t(id integer primary key, v timestamp)", "insert into t values (1, 1500)"
    )
    world.htap.sync_now()
    found = world.htap.query("select v from t", hint="olap")["v"].to_pylist()
    assert [value.isoformat() for value in found] == ["1970-01-01T00:00:01.500000+00:00"]


def test_columns_without_a_type_take_it_from_what_they_hold(make_world: MakeWorld) -> None:
    world = make_world()
    world.run(
        "create table t(id integer primary key, v, w)", "insert into t values (1, x'00', 1.5)"
    )
    world.htap.sync_now()
    found = world.htap.query("select v, w from t", hint="olap").to_pylist()
    assert found == [{"v": b"\0", "w": 1.5}]


def test_a_replayed_dead_letter_is_read_again(make_world: MakeWorld) -> None:
    world = make_world()
    world.run("create table t(id integer primary key, v date)", "insert into t values (1, 'x')")
    world.htap.sync_now()
    report = world.htap.replay_dead_letters()
    assert report.dead_letters == 1
    assert world.htap.dead_letters().num_rows == 1


@BOTH_MODES
@pytest.mark.parametrize(
    ("method", "buffered"), [("trigger", False), ("trigger", True), ("polling", False)]
)
@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("text", "cast(x'ff41' as text), x'ff42', cast(x'ff43' as text), x'ff43', 'a'"),
        ("decimal(10, 2)", "1.50, 2"),
    ],
)
def test_letters_stay_as_they_are_where_a_replay_finds_their_rows_as_they_were(
    make_world: MakeWorld, mode: str, method: str, kind: str, keys: str, *, buffered: bool
) -> None:
    values = [f"({key}, 1, cast(x'ff' as text))" for key in keys.split(", ")]
    polling = {"updated_at": "u", "deletes": "disabled"} if method == "polling" else None
    world = make_world(
        mode=mode,
        method=method,
        buffered=buffered,
        tables=[{"name": "t", **({"polling": polling} if polling else {})}],
    )
    world.run(f"create table t(id {kind} primary key, u integer, v text)")
    world.run(f"insert into t values {', '.join(values)}")

    def letters() -> list[tuple[str, str]]:
        found = world.htap.dead_letters().to_pylist()
        return sorted((letter["key"], letter["column_name"]) for letter in found)

    world.htap.sync_now()
    before = letters()
    world.htap.replay_dead_letters()
    assert letters() == before
    world.run("delete from t")
    world.htap.replay_dead_letters()
    assert letters() == []


@BOTH_MODES
def test_a_column_of_no_declared_type_keeps_its_type_and_names_what_does_not_fit(
    make_world: MakeWorld, mode: str
) -> None:
    world = make_world(mode=mode)
    world.run("create table t(id integer primary key, v)", "insert into t values (1, 10)")
    world.htap.sync_now()
    world.run("insert into t values (2, 'odd'), (3, 30)")
    world.htap.sync_now()
    world.crash()
    world.run("create table other(id integer primary key)")
    assert not world.htap.sync_now().errors
    assert mirror_values(world) == {1: 10, 3: 30}
    assert world.htap.dead_letters()["key"].to_pylist() == ['{"id": 2}']


def test_a_column_that_was_empty_takes_the_type_of_its_first_values(make_world: MakeWorld) -> None:
    world = make_world()
    world.run("create table t(id integer primary key, v)")
    world.htap.sync_now()
    world.run("insert into t values (1, 10)")
    world.htap.sync_now()
    world.crash()
    world.htap.sync_now()
    assert mirror_values(world) == {1: 10}


def test_a_real_for_which_a_decimal_has_no_room_is_never_another_one(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    world.run(
        "create table w (id integer primary key, n decimal(38, 0), m decimal(38, 4))",
        "insert into w values (1, 3.6e38, 0), (2, 0, 5e-324), (3, 1e17, 0.0001)",
    )
    world.htap.sync_now()
    assert world.htap.dead_letters("w").num_rows == 2
    found = world.htap.query("select n, m from w", hint="olap")
    assert found.to_pylist() == [{"n": Decimal(10**17), "m": Decimal("0.0001")}]


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_uuids_and_json_are_declared(make_world: MakeWorld, mode: str) -> None:
    types = {"id": "uuid", "owner": "uuid", "doc": "json"}
    world = make_world(mode=mode, tables=[{"name": "t", "types": types}])
    ids = [f"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a{n:02x}" for n in range(5)]
    world.run("create table t(id text primary key, owner uuid, doc json)")
    rows: list[tuple[str, Any, Any]] = [
        (ids[0], bytes.fromhex(ids[1].replace("-", "")), '{"a": [1.10, "\\ud83d\\ude00"]}'),
        (ids[1], ids[2], "12"),  # which the column's affinity makes a number
        (ids[2], None, "1e400"),  # an infinite real by now
        (ids[3], ids[3].upper(), "[]"),
        (ids[4], b"too short", None),
    ]
    world.app.executemany("insert into t values (?, ?, ?)", rows[:2])
    world.htap.sync_now()
    world.app.executemany("insert into t values (?, ?, ?)", rows[2:])
    assert world.htap.sync_now().dead_letters == 3
    present = {row["id"]: (row["owner"], row["doc"]) for row in world.present("t")}
    assert present == {ids[0]: (ids[1], rows[0][2]), ids[1]: (ids[2], "12")}
    world.run(f"update t set owner = null, doc = null where id > '{ids[1]}'")
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 0
    assert world.htap.verify().equal
    found = world.htap.query(
        f"select typeof(id) || typeof(owner) || typeof(doc) as kinds, doc->>'$.a[1]' as v from t"
        f" where id = '{ids[0].upper()}'",
        hint="olap",
    ).to_pylist()
    assert found[-1] == {"kinds": "UUIDUUIDJSON", "v": "\U0001f600"}
    # Texts of SQLite differ by their case, UUIDs do not.
    assert (
        world.htap.explain_route(f"select count(*) from t where id > '{ids[0]}'").engine == "oltp"
    )


@pytest.mark.parametrize(
    ("narrow", "wide"), [("int16", "int64"), ("int32", "int64"), ("float32", "float64")]
)
def test_a_type_that_is_too_narrow_for_sqlite_is_refused_by_name(
    make_world: Callable[..., World], narrow: str, wide: str
) -> None:
    world = make_world(tables=[{"name": "t", "types": {"a": narrow}}, {"name": "u"}])
    world.run(
        "create table t(id integer primary key, a numeric)",
        "create table u(id integer primary key)",
        "insert into t values (1, 5)",
    )
    errors = world.htap.sync_now().errors
    assert errors.keys() == {"t"}
    assert f"column 'a' cannot be '{narrow}'" in str(errors["t"])
    assert f"declare it as {wide}" in str(errors["t"])
    world.crash()
    world.tables = [{"name": "t", "types": {"a": wide}}, {"name": "u"}]
    assert world.htap.sync_now().errors == {}
    assert [row["a"] for row in world.present("t")] == [5]
