"""A temporal table's column takes another type exactly, or not at all, the same on every mirror."""

import math
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rhei_pipeline.errors import SchemaDriftError
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.progress import CopyProgress
from rhei_pipeline.model.schema import Column, Mode, Table, TableSchema
from rhei_pipeline.model.type_names import INSTANT
from rhei_pipeline.protocols import Mirror
from tests.support.fix_world import World

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
Open = Callable[[], Mirror]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
KINDS = ("duckdb", "memory", "ipc", "parquet", "delta")
BIG = 2**53 + 1
STAMP = pa.timestamp("us")
NOON = datetime(2026, 1, 5, 12, 30, 0, 500_000)  # noqa: DTZ001
MIDNIGHT = datetime(2026, 1, 5)  # noqa: DTZ001


@pytest.fixture(params=KINDS)
def open_mirror(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    opened: list[Mirror] = []

    def make() -> Mirror:
        while opened:
            opened.pop().close()
        if request.param == "duckdb":
            opened.append(DuckDBMirror(tmp_path / "m.duckdb"))
        else:
            opened.append(DataFusionMirror(request.param, tmp_path / request.param))
        return opened[-1]

    yield make
    while opened:
        opened.pop().close()


def decimal(precision: int, scale: int) -> pa.DataType:
    return pa.decimal128(precision, scale)


#: Old type, new type, and a value that is the same in both, as the new type has it.
EXACT: tuple[tuple[pa.DataType, pa.DataType, object, object], ...] = (
    (pa.int16(), pa.int32(), -7, -7),
    (pa.int32(), pa.int64(), 2**31 - 1, 2**31 - 1),
    (pa.int64(), pa.int32(), -(2**31), -(2**31)),
    (pa.int64(), pa.int16(), 5, 5),
    (pa.int64(), pa.float64(), 2**53 + 2, float(2**53 + 2)),
    (pa.int64(), pa.float32(), 2**24, float(2**24)),
    (pa.int64(), decimal(10, 2), 7, Decimal("7.00")),
    (pa.int64(), pa.bool_(), 1, True),
    (pa.int64(), pa.string(), -7, "-7"),
    (pa.float64(), pa.int64(), 2.0, 2),
    (pa.float64(), pa.float32(), 1.5, 1.5),
    (pa.float64(), pa.float32(), -0.0, -0.0),
    (pa.float64(), pa.float32(), math.inf, math.inf),
    (pa.float64(), pa.float32(), math.nan, math.nan),
    (pa.float32(), pa.float64(), 0.100000001490116, 0.10000000149011612),
    (pa.float64(), decimal(20, 10), 0.1, Decimal("0.1000000000")),
    (decimal(5, 2), decimal(9, 4), Decimal("1.25"), Decimal("1.2500")),
    (decimal(9, 4), decimal(5, 2), Decimal("1.2500"), Decimal("1.25")),
    (decimal(5, 2), pa.int64(), Decimal("3.00"), 3),
    (decimal(5, 2), pa.float64(), Decimal("0.30"), 0.3),
    (decimal(20, 10), pa.string(), Decimal("0.0000001000"), "0.0000001000"),
    (pa.bool_(), pa.int64(), True, 1),
    (pa.bool_(), pa.string(), False, "false"),
    (pa.string(), pa.int64(), "-12", -12),
    (pa.string(), pa.float64(), "1.5", 1.5),
    (pa.string(), decimal(5, 2), "1.50", Decimal("1.50")),
    (pa.string(), pa.bool_(), "true", True),
    (pa.string(), pa.date32(), "2026-01-05", date(2026, 1, 5)),
    (pa.string(), pa.time64("us"), "12:30:00.5", time(12, 30, 0, 500_000)),
    (pa.string(), STAMP, "2026-01-05 12:30:00.5", NOON),
    (pa.date32(), pa.string(), date(2026, 1, 5), "2026-01-05"),
    (pa.date32(), STAMP, date(2026, 1, 5), MIDNIGHT),
    (STAMP, pa.date32(), MIDNIGHT, date(2026, 1, 5)),
    (STAMP, pa.string(), NOON, "2026-01-05 12:30:00.5"),
    (pa.time64("us"), pa.string(), time(12, 30), "12:30:00"),
)
#: Old type, new type, and a value that the new type does not have.
INEXACT: tuple[tuple[pa.DataType, pa.DataType, object], ...] = (
    (pa.float64(), pa.int64(), 1.5),
    (pa.float64(), pa.int64(), -0.0),
    (pa.float64(), pa.int64(), math.nan),
    (pa.float64(), pa.int64(), math.inf),
    (pa.float64(), pa.int64(), 2.0**63),
    (pa.float64(), pa.int32(), 2.0**31),
    (pa.float64(), pa.float32(), 0.1),
    (pa.float64(), pa.float32(), 1e300),
    (pa.float64(), pa.float32(), 5e-324),
    (pa.float64(), decimal(5, 1), 1.25),
    (pa.float64(), decimal(5, 1), -0.0),
    (pa.float64(), decimal(5, 1), math.nan),
    (pa.float64(), decimal(5, 1), 1e20),
    (pa.float64(), pa.string(), 1.0),
    (pa.int64(), pa.bool_(), 10),
    (pa.int64(), pa.bool_(), -1),
    (pa.int64(), pa.int32(), 2**31),
    (pa.int64(), pa.int16(), -(2**15) - 1),
    (pa.int64(), pa.float64(), BIG),
    (pa.int64(), pa.float64(), 2**63 - 1),
    (pa.int64(), pa.float32(), 2**24 + 1),
    (pa.int64(), decimal(5, 2), 1000),
    (pa.int64(), pa.date32(), 20_000),
    (pa.int64(), STAMP, 1_700_000_000),
    (pa.int64(), INSTANT, 1_700_000_000),
    (pa.int64(), pa.binary(), 7),
    (decimal(5, 3), decimal(5, 1), Decimal("1.234")),
    (decimal(9, 2), decimal(5, 2), Decimal("12345.67")),
    (decimal(5, 2), pa.int64(), Decimal("1.50")),
    (decimal(20, 0), pa.float64(), Decimal(BIG)),
    (decimal(30, 20), pa.float64(), Decimal("0.12345678901234567890")),
    (decimal(5, 2), pa.bool_(), Decimal("1.00")),
    (pa.string(), pa.int64(), "007"),
    (pa.string(), pa.int64(), "-0"),
    (pa.string(), pa.int64(), "+7"),
    (pa.string(), pa.int64(), " 7"),
    (pa.string(), pa.int64(), "seven"),
    (pa.string(), pa.int64(), "9223372036854775808"),
    (pa.string(), pa.float64(), "1.50"),
    (pa.string(), pa.float64(), "1e3"),
    (pa.string(), decimal(5, 2), "1.5"),
    (pa.string(), decimal(5, 2), "1.505"),
    (pa.string(), pa.bool_(), "yes"),
    (pa.string(), pa.bool_(), "1"),
    (pa.string(), pa.date32(), "2026-1-5"),
    (pa.string(), pa.date32(), "2026-01-05 10:00:00"),
    (pa.string(), STAMP, "2026-01-05T12:30:00"),
    (pa.string(), STAMP, "2026-01-05 12:30:00+01"),
    (pa.string(), INSTANT, "2026-01-05 12:30:00+00"),
    (pa.string(), pa.time64("us"), "24:00:00"),
    (pa.string(), pa.binary(), "ab"),
    (pa.binary(), pa.string(), b"ab"),
    (pa.binary(), pa.string(), b"\xff"),
    (pa.binary(), pa.int64(), b"7"),
    (pa.bool_(), pa.float64(), True),
    (STAMP, pa.date32(), NOON),
    (STAMP, pa.time64("us"), NOON),
    (STAMP, pa.int64(), NOON),
    (INSTANT, pa.string(), NOON.replace(tzinfo=UTC)),
    (pa.date32(), pa.int32(), date(2026, 1, 5)),
    (pa.time64("us"), pa.int64(), time(1)),
)


def table_of(*kinds: pa.DataType) -> Table:
    columns = (Column(name, kind) for name, kind in zip(names(kinds), kinds, strict=True))
    schema = TableSchema("t", (Column("k", pa.int64()), *columns), ("k",))
    return Table(schema, Mode.TEMPORAL)


def names(columns: Sequence[object]) -> list[str]:
    return ["v" if number == 0 else f"v{number}" for number in range(len(columns))]


def adopt(mirror: Mirror, table: Table, rows: pa.Table | None = None) -> int | None:
    progress = CopyProgress(table.name, Position(1, "p"), "shape", complete=True)
    with mirror.transaction() as transaction:
        transaction.begin_copy(table, progress)
        if rows is not None:
            transaction.append_copy(table, rows, progress)
        return transaction.adopt_copy(table, NOW)


def rows_of(kind: pa.DataType, *values: object) -> pa.Table:
    keys = pa.array(range(len(values)), pa.int64())
    return pa.table({"k": keys, "v": pa.array(values, kind)})


def held(mirror: Mirror) -> pa.Array:
    return mirror.query("select v from t order by k")["v"].combine_chunks()


def bits(values: list[object]) -> list[str]:
    """NaN is itself, and 0.0 is not -0.0."""
    return [str(v) if isinstance(v, datetime) else repr(v) for v in values]


def test_values_that_both_types_have_stay_the_same(open_mirror: Open) -> None:
    """Each case is a column of one table."""
    old, new, values, expected = zip(*EXACT, strict=True)
    arrays = [pa.array([value, None], kind) for value, kind in zip(values, old, strict=True)]
    rows = pa.table([pa.array([0, 1], pa.int64()), *arrays], names=["k", *names(old)])
    mirror = open_mirror()
    adopt(mirror, table_of(*old), rows)
    adopt(mirror, table_of(*new))
    for _ in range(2):
        found = mirror.query("select * from t order by k")
        for name, kind, value, case in zip(names(new), new, expected, EXACT, strict=True):
            assert found[name].type.equals(kind), case
            assert bits(found[name].to_pylist()) == bits([value, None]), case
        if isinstance(mirror, DataFusionMirror) and mirror.storage == "memory":
            break
        mirror = open_mirror()


@pytest.mark.parametrize("case", INEXACT, ids=lambda c: f"{c[0]}-{c[1]}-{c[2]!r}")
def test_a_value_that_would_change_leaves_the_table_as_it_was(
    open_mirror: Open, case: tuple[pa.DataType, pa.DataType, object]
) -> None:
    old, new, value = case
    mirror = open_mirror()
    adopt(mirror, table_of(old), rows_of(old, value, None))
    with pytest.raises(
        SchemaDriftError, match=r"its history does not fit.*'types: \{v: .*drop-table"
    ):
        adopt(mirror, table_of(new))
    found = held(mirror)
    assert found.type.equals(old)
    assert bits(found.to_pylist()) == bits([value, None])


def test_a_past_without_values_fits_every_type(open_mirror: Open) -> None:
    """Each pair of types is a column of one table."""
    before = (pa.int64(), pa.binary(), INSTANT, pa.string())
    after = (pa.date32(), pa.float64(), pa.binary(), decimal(9, 2))
    old, new = zip(*product(before, after), strict=True)
    empty = (pa.nulls(2, kind) for kind in old)
    mirror = open_mirror()
    adopt(
        mirror,
        table_of(*old),
        pa.table([pa.array([0, 1], pa.int64()), *empty], names=["k", *names(old)]),
    )
    adopt(mirror, table_of(*new))
    found = mirror.query("select * from t order by k")
    for name, kind in zip(names(new), new, strict=True):
        assert found[name].combine_chunks().equals(pa.nulls(2, kind)), kind


def test_versions_that_have_ended_count_as_much_as_open_ones(make_world: MakeWorld) -> None:
    for storage in (None, "ipc", "parquet"):
        world = make_world(mode="temporal", storage=storage)
        world.run("create table t(id integer primary key, v real)", "insert into t values (1, 1.5)")
        world.htap.sync_now()
        world.run("update t set v = 2")
        world.htap.sync_now()
        rebuild(world, "t", "id integer primary key, v integer")
        assert "its history does not fit" in world.htap.sync_now().errors["t"]
        assert [version["v"] for version in world.versions("t")] == [1.5, 2.0]


def rebuild(world: World, name: str, columns: str) -> None:
    """Migrate as SQLite's documentation says: a new table, the rows, the old name."""
    world.run(
        "begin",
        f"create table _new({columns})",
        f"insert into _new select * from {name}",
        f"drop table {name}",
        f"alter table _new rename to {name}",
        "commit",
    )


NARROWED: tuple[tuple[str, str, str, str, str], ...] = (
    ("real", "1.5", "integer", "2", "float64"),
    ("integer", "10", "boolean", "1", "int64"),
    ("decimal(5,3)", "1.234", "decimal(5,1)", "1.2", "decimal(5,3)"),
    ("text", "'007'", "integer", "7", "string"),
    ("text", "'007'", "real", "7.25", "string"),
    ("integer", str(BIG), "real", "2.0", "int64"),
    ("timestamp", "'2026-01-05 12:30:00'", "date", "'2026-01-05'", "timestamp"),
    ("blob", "x'6162'", "text", "'ab'", "binary"),
)


@pytest.mark.parametrize("case", NARROWED, ids=lambda c: f"{c[0]}-{c[2]}")
@pytest.mark.parametrize("storage", [None, "memory", "ipc", "parquet", "delta"])
def test_a_narrower_type_leaves_the_table_out_and_the_old_type_lets_it_go_on(
    make_world: MakeWorld, storage: str | None, case: tuple[str, str, str, str, str]
) -> None:
    old, value, new, now, override = case
    world = make_world(mode="temporal", storage=storage, tables=[{"name": "t"}, {"name": "u"}])
    world.run(
        f"create table t(id integer primary key, v {old})",
        f"insert into t values (1, {value})",
        "create table u(id integer primary key)",
    )
    world.htap.sync_now()
    before = world.versions("t")
    copied = datetime.now(UTC)
    rebuild(world, "t", f"id integer primary key, v {new}")
    world.run("insert into u values (1)", f"update t set v = {now}")
    report = world.htap.sync_now()
    assert "its history does not fit" in report.errors["t"]
    assert "its history does not fit" in (world.htap.sync_status().tables["t"].error or "")
    assert not world.htap.verify().equal
    assert "its history does not fit" in world.htap.verify().errors["t"]
    world.assert_equal("u")
    assert world.versions("t") == before
    auto = world.htap.query("select v from t where _rhei_valid_to is null")
    assert auto["v"].to_pylist() == [before[0]["v"]]
    assert world.htap.as_of("t", copied)["v"].to_pylist() == [before[0]["v"]]
    if storage != "memory":
        world.crash()
        assert "its history does not fit" in world.htap.sync_now().errors["t"]
        assert world.versions("t") == before
        world.crash()
        world.tables = [{"name": "t", "types": {"v": override}}, {"name": "u"}]
        world.run(f"insert into t values (2, {now})")
        report = world.htap.sync_now()
        assert not report.errors
        assert report.dead_letters == 0
        assert world.htap.verify().equal
        assert bits([world.versions("t")[0]["v"]]) == bits([before[0]["v"]])
    else:
        world.htap.drop_table("t", keep_as="t_before")
        assert not world.htap.sync_now().errors
        assert world.htap.verify().equal
        kept: Any = world.htap.query("select v from t_before", hint="olap")["v"].to_pylist()
        assert kept == [before[0]["v"]]
