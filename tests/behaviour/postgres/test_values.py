"""Every type of PostgreSQL, by copy and by the log, to equal values in the mirror."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import adbc_driver_flightsql.dbapi as flight_sql
import duckdb
import numpy as np
import psycopg
import pyarrow as pa
import pytest
import yaml
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rhei_pipeline import HTAP
from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import QueryError
from rhei_pipeline.model.interval_texts import with_interval_texts
from rhei_pipeline.server.flight.server import FlightSqlServer
from rhei_pipeline.sources.postgres.logical import pgoutput
from tests.support.delta_readers import read_by_delta_rs
from tests.support.fix_postgres import PostgresWorld
from tests.support.parts import connection_of, engine_of

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., PostgresWorld]
BOTH_MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])

A_UUID = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
#: Declared type, literals, what the mirror is to hold.
VALUES: list[tuple[str, list[str], list[Any]]] = [
    ("smallint", ["-32768", "32767"], [-(2**15), 2**15 - 1]),
    ("integer", ["-2147483648", "2147483647"], [-(2**31), 2**31 - 1]),
    ("bigint", ["-9223372036854775808", "9223372036854775807"], [-(2**63), 2**63 - 1]),
    ("numeric(10, 2)", ["1.10", "-99999999.99"], [Decimal("1.10"), Decimal("-99999999.99")]),
    (
        "numeric(38, 10)",
        ["1234567890123456789012345678.0123456789"],
        [Decimal("1234567890123456789012345678.0123456789")],
    ),
    (
        "numeric",
        ["1.000", "NaN", "Infinity", "1e300"],
        ["1.000", "NaN", "Infinity", "1" + "0" * 300],
    ),
    ("numeric(50, 5)", ["1.00001"], ["1.00001"]),
    ("real", ["1.1", "-0", "Infinity"], [1.100000023841858, -0.0, float("inf")]),
    ("double precision", ["0.1", "-0", "1e-320", "-Infinity"], [0.1, -0.0, 1e-320, -float("inf")]),
    ("boolean", ["true", "false"], [True, False]),
    (
        "text",
        ["", " ", "\\N", "\\\\N", '"q"', "a,b", "line\nbreak\r\n", "null", "žluť 🐎", "'"],
        ["", " ", "\\N", "\\\\N", '"q"', "a,b", "line\nbreak\r\n", "null", "žluť 🐎", "'"],
    ),
    ("varchar(5)", ["abc"], ["abc"]),
    ("char(4)", ["ab"], ["ab  "]),
    ("bytea", ["\\x", "\\x00", "\\x00ff5c"], [b"", b"\0", b"\0\xff\\"]),
    ("date", ["2024-02-29", "0001-01-01"], [date(2024, 2, 29), date(1, 1, 1)]),
    ("time", ["23:59:59.999999", "00:00"], [time(23, 59, 59, 999999), time(0)]),
    (
        "timestamp",
        ["2024-02-29 12:34:56.789012", "1900-01-01"],
        [
            datetime.fromisoformat("2024-02-29T12:34:56.789012"),
            datetime.fromisoformat("1900-01-01"),
        ],
    ),
    (
        "timestamptz",
        ["2024-02-29 12:34:56.789012+05:30"],
        [datetime.fromisoformat("2024-02-29T07:04:56.789012").replace(tzinfo=ZoneInfo("UTC"))],
    ),
    ("timetz", ["12:00:00+02"], ["12:00:00+02"]),
    (
        "interval",
        ["1 year 2 mons 3 days 04:05:06.789", "30 days", "720:00:00", "-1 mon 1 day -00:00:00.5"],
        ["P1Y2M3DT4H5M6.789S", "P30D", "PT720H", "P-1M1DT-0.5S"],
    ),
    ("interval day to minute", ["3 days 04:05:06"], ["P3DT4H5M"]),
    ("uuid", [A_UUID.upper()], [A_UUID]),
    ("json", ['{"a":  1}'], ['{"a":  1}']),
    ("jsonb", ['{"b": [1, null],  "a": "x"}'], ['{"a": "x", "b": [1, null]}']),
    ("integer[]", ["{1,NULL,3}", "{}"], ["{1,NULL,3}", "{}"]),
    ("text[]", ['{a,"b,c",NULL}'], ['{a,"b,c",NULL}']),
    ("int4range", ["[1,5)", "empty"], ["[1,5)", "empty"]),
    ("tstzrange", ["[2024-01-01 00:00+00,)"], ['["2024-01-01 00:00:00+00",)']),
    ("inet", ["192.168.0.1/24", "::1"], ["192.168.0.1/24", "::1"]),
    ("macaddr", ["08:00:2b:01:02:03"], ["08:00:2b:01:02:03"]),
    ("macaddr8", ["08:00:2b:01:02:03:04:05"], ["08:00:2b:01:02:03:04:05"]),
    ("cidr", ["10.1.0.0/16"], ["10.1.0.0/16"]),
    ("money_domain", ["5.25"], [Decimal("5.25")]),
    ("money", ["-12.50"], ["-$12.50"]),
    ("mood", ["happy"], ["happy"]),
    ("mood[]", ["{sad,NULL,happy}"], ["{sad,NULL,happy}"]),
    ("pair", ["(1,two)", '(,"a ""b"", c")'], ["(1,two)", '(,"a ""b"", c")']),
    ("pair[]", ['{"(1,two)",NULL}'], ['{"(1,two)",NULL}']),
    ("bit(3)", ["101"], ["101"]),
    ("bit varying", ["101", ""], ["101", ""]),
    ("point", ["(1,2)"], ["(1,2)"]),
    ("line", ["{1,2,3}"], ["{1,2,3}"]),
    ("lseg", ["[(1,2),(3,4)]"], ["[(1,2),(3,4)]"]),
    ("box", ["(3,4),(1,2)"], ["(3,4),(1,2)"]),
    ("path", ["((1,2),(3,4))"], ["((1,2),(3,4))"]),
    ("polygon", ["((1,2),(3,4),(5,6))"], ["((1,2),(3,4),(5,6))"]),
    ("circle", ["<(1,2),3>"], ["<(1,2),3>"]),
    ("tsvector", ["'a':1 'b'"], ["'a':1 'b'"]),
    ("tsquery", ["'a' & 'b'"], ["'a' & 'b'"]),
    ("pg_lsn", ["16/B374D848"], ["16/B374D848"]),
    ("name", ["a name"], ["a name"]),
    ("oid", ["4294967295"], [2**32 - 1]),
    ("integer[][]", ["{{1,2},{3,NULL}}", "[0:1]={7,8}"], ["{{1,2},{3,NULL}}", "[0:1]={7,8}"]),
    ("double precision[]", ["{NaN,-0,1e-300}"], ["{NaN,-0,1e-300}"]),
    (
        "uuid[]",
        ["{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}"],
        ["{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}"],
    ),
    ("jsonb[]", ['{"{\\"a\\": 1}"}'], ['{"{\\"a\\": 1}"}']),
    ("numrange", ["(,1.50]"], ["(,1.50]"]),
    ("int4multirange", ["{[1,3),[5,9)}", "{}"], ["{[1,3),[5,9)}", "{}"]),
    ("jsonpath", ['$."a"'], ['$."a"']),
    ("int8range", ["(,9223372036854775807)"], ["(,9223372036854775807)"]),
    ("daterange", ["[2024-02-29,infinity)"], ["[2024-02-29,infinity)"]),
    ("tsrange", ["(2024-01-01,2024-01-02]"], ['("2024-01-01 00:00:00","2024-01-02 00:00:00"]']),
    ("datemultirange", ["{[2024-01-01,2024-01-03)}"], ["{[2024-01-01,2024-01-03)}"]),
    ("interval[]", ['{"1 mon",NULL}'], ["{P1M,NULL}"]),
    ("bytea[]", ['{"\\\\x00ff",NULL}'], ['{"\\\\x00ff",NULL}']),
    ("timestamptz[]", ['{"2024-01-01 02:00+02"}'], ['{"2024-01-01 00:00:00+00"}']),
    ("boolean[]", ["{t,f,NULL}"], ["{t,f,NULL}"]),
    ("numeric[]", ["{1.10,NaN}"], ["{1.10,NaN}"]),
    ('"char"', ["x"], ["x"]),
    ("regtype", ["integer"], ["integer"]),
    ("nested", ['("(1,two)","{1,2}",)'], ['("(1,two)","{1,2}",)']),
]
TYPES = (
    "create domain base_domain as numeric(8, 2)",
    "create domain money_domain as base_domain check (value >= 0)",
    "create type mood as enum ('sad', 'happy')",
    "create type pair as (a int, b text)",
    "create type nested as (one pair, many int[], at timestamptz)",
)


def repr_all(values: list[Any]) -> list[str]:
    return [repr(value) for value in values]


@pytest.mark.parametrize(
    ("capture", "mode", "storage"),
    [
        ("logical", "temporal", None),
        ("logical", "destructive", "delta"),
        ("trigger", "destructive", None),
        ("trigger", "temporal", "parquet"),
        ("polling", "destructive", None),
        ("buffer", "temporal", None),
    ],
)
def test_every_type_by_every_way(
    make_postgres: MakeWorld, capture: str, mode: str, storage: str | None
) -> None:
    tables = [{"name": "t", "polling": {"deletes": "reconcile"}}]
    method = "logical" if capture == "buffer" else capture
    world = make_postgres(mode=mode, storage=storage, tables=tables, capture={"method": method})
    if capture == "buffer":
        world.capture["buffer"] = {"kind": "rocksdb", "path": world.directory / "cdc"}
    columns = ", ".join(f"c{place} {kind}" for place, (kind, _, _) in enumerate(VALUES))
    world.run(
        *TYPES,
        f"create table t(id serial primary key, {columns},"
        " updated_at timestamptz not null default clock_timestamp())",
    )
    count = max(len(literals) for _, literals, _ in VALUES)
    _insert(world, count)
    world.htap.sync_now()
    _insert(world, count)
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 0
    assert world.htap.verify().equal
    for reader, found in _readings(world, capture, mode, storage):
        rows = with_interval_texts(found).sort_by("id")
        for place, (kind, _, expected) in enumerate(VALUES):
            wanted = [*(expected[row % len(expected)] for row in range(count)), None]
            if reader == "delta" and kind == "time":
                wanted = [None if value is None else f"{value:%H:%M:%S.%f}" for value in wanted]
            assert repr_all(rows[f"c{place}"].to_pylist()) == repr_all(wanted * 2), (reader, kind)


def _readings(
    world: PostgresWorld, capture: str, mode: str, storage: str | None
) -> Iterator[tuple[str, pa.Table]]:
    """Yield the table as each reader has it; the last ones are none of ours."""
    names = ", ".join(["id", *(f"c{place}" for place in range(len(VALUES)))])
    yield "query", world.htap.query(f"select {names} from t", hint="olap")
    if capture in {"logical", "trigger"}:
        joined = ", ".join(f"a.{name}" for name in names.split(", "))
        sql = f"select {joined} from t a join t b on a.id = b.id"
        assert world.htap.explain_route(sql).engine == "olap"
        with serving(world.htap) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            yield "flight", cursor.fetch_arrow_table()
    if mode == "temporal":
        now, day = datetime.now(UTC), date(2030, 1, 2)
        yield "as of", world.htap.as_of("t", now)
        world.htap.snapshot("t", {day: now})
        sql = f"select {names} from snapshot.t where snapshot_date = date '2030-01-02'"
        yield "snapshot", world.htap.query(sql, hint="olap")
    world.crash()
    if storage == "delta":
        yield "delta", read_by_delta_rs(DeltaTable(f"{world.directory}/delta/delta/public/t"))
    if storage is None:
        with duckdb.connect(world.directory / "mirror.duckdb", read_only=True) as beside:
            beside.execute("set timezone = 'UTC'")
            yield "duckdb", beside.sql(f"select {names} from public.t").to_arrow_table()


@contextmanager
def serving(htap: HTAP) -> Iterator[Any]:
    """Serve a pipeline by Flight SQL, and connect to it by the driver of ADBC."""
    server = FlightSqlServer(htap)
    try:
        with flight_sql.connect(f"grpc://127.0.0.1:{server.port}", autocommit=True) as connection:
            yield connection
    finally:
        server.shutdown()


def _insert(world: PostgresWorld, count: int) -> None:
    """Insert rows of each type's values in turn, and one of nulls."""
    names = ", ".join(f"c{place}" for place in range(len(VALUES)))
    for row in range(count):
        values = ", ".join(
            psycopg.sql.Literal(literals[row % len(literals)]).as_string(None)
            for _, literals, _ in VALUES
        )
        world.app.execute(f"insert into t({names}) values ({values})".encode())
    world.run("insert into t default values")


@BOTH_MODES
def test_infinite_instants_stay_infinite(make_postgres: MakeWorld, mode: str) -> None:
    world = make_postgres(mode=mode)
    world.run(
        "create table t(id int primary key, d date, ts timestamp, tz timestamptz)",
        "insert into t values (1, 'infinity', '-infinity', 'infinity')",
        "insert into t values (2, '2024-01-01', 'now', 'now')",
    )
    world.htap.sync_now()
    world.run("insert into t values (3, '-infinity', 'infinity', '-infinity')")
    world.htap.sync_now()
    texts = (
        "select d::varchar as d, ts::varchar as ts, tz::varchar as tz from t"
        " where id <> 2 order by id"
    )
    assert world.htap.query(texts, hint="olap").to_pylist() == [
        {"d": "infinity", "ts": "-infinity", "tz": "infinity"},
        {"d": "-infinity", "ts": "infinity", "tz": "-infinity"},
    ]


@BOTH_MODES
def test_what_the_mirror_cannot_hold_is_a_dead_letter(make_postgres: MakeWorld, mode: str) -> None:
    world = make_postgres(mode=mode)
    world.run(
        "create table t(id int primary key, d date, n numeric(6, 2))",
        "insert into t values (1, '0044-03-15 BC', 1), (2, '2024-01-01', 2)",
    )
    world.htap.sync_now()
    world.run("insert into t values (3, '2024-01-03', 'NaN'), (4, '12024-01-01', 4)")
    report = world.htap.sync_now()
    assert report.dead_letters == 2
    letters = world.htap.dead_letters()
    assert sorted(
        zip(letters["key"].to_pylist(), letters["column_name"].to_pylist(), strict=True)
    ) == [
        ('{"id": 1}', "d"),
        ('{"id": 3}', "n"),
        ('{"id": 4}', "d"),
    ]
    world.run("update t set d = '2024-01-04', n = 1")
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 0
    assert world.htap.verify().equal


def test_generated_columns_are_mirrored(
    make_postgres: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_postgres()
    if world.app.info.server_version < 180_000:
        pytest.skip("servers before version 18 log no generated columns, and have no virtual ones")
    world.run(
        "create table t(id int primary key, n int, twice int generated always as (n * 2) stored,"
        " thrice int generated always as (n * 3) virtual)",
        "insert into t(id, n) values (1, 1)",
    )
    world.htap.sync_now()
    world.run("insert into t(id, n) values (2, 2)", "update t set n = 5 where id = 1")
    world.htap.sync_now()
    found = world.htap.query("select * from t order by id", hint="olap").to_pylist()
    assert found == [{"id": 1, "n": 5, "twice": 10}, {"id": 2, "n": 2, "twice": 4}]
    world.crash()
    world.htap.sync_now()
    assert caplog.text.count("generated column 'thrice' is left out") == 1  # and not each time


def test_types_may_be_declared(make_postgres: MakeWorld) -> None:
    world = make_postgres(
        tables=[{"name": "t", "types": {"seen": "timestamp_ms", "n": "decimal(20, 4)"}}]
    )
    world.run(
        "create table t(id int primary key, seen bigint, n numeric, secret text)",
        "insert into t values (1, 1700000000123, 1.5, 'x')",
    )
    world.htap.sync_now()
    (row,) = world.htap.query("select seen, n from t", hint="olap").to_pylist()
    assert row == {"seen": datetime.fromtimestamp(1700000000.123, UTC), "n": Decimal("1.5000")}


def test_declared_columns_alone_are_mirrored(make_postgres: MakeWorld) -> None:
    world = make_postgres(tables=[{"name": "t", "columns": ["id", "v"]}], mode="temporal")
    world.run("create table t(id int primary key, secret text, v int)")
    world.run("insert into t values (1, 'x', 1)")
    world.htap.sync_now()
    world.run("update t set secret = 'y'", "update t set v = 2")
    world.htap.sync_now()
    assert len(world.versions("t")) == 2
    assert "secret" not in world.versions("t")[0]


# A decoder in plain Python, one message after another: the oracle of the vectorised one.


def plain_decode(
    messages: list[bytes],
) -> list[tuple[str, int, list[Any] | None, list[Any] | None]]:
    changes = []
    for message in messages:
        kind = chr(message[0])
        if kind in "IUD":
            oid, place, old, new = int.from_bytes(message[1:5], "big"), 5, None, None
            while place < len(message):
                tag, values, place = chr(message[place]), *_plain_tuple(message, place + 1)
                if tag == "N":
                    new = values
                else:
                    old = values
            changes.append((kind, oid, old, new))
    return changes


def _plain_tuple(message: bytes, place: int) -> tuple[list[Any], int]:
    count, place = int.from_bytes(message[place : place + 2], "big"), place + 2
    values: list[Any] = []
    for _ in range(count):
        tag, place = chr(message[place]), place + 1
        if tag == "t":
            length = int.from_bytes(message[place : place + 4], "big")
            values.append(message[place + 4 : place + 4 + length].decode())
            place += 4 + length
        else:
            values.append(None if tag == "n" else ...)
    return values, place


TEXTS = st.one_of(
    st.none(), st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
)


@pytest.mark.long
@settings(max_examples=25)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 5), TEXTS, TEXTS, st.sampled_from(["put", "move", "gone", "ddl"])),
        min_size=1,
        max_size=25,
    ),
    full=st.booleans(),
    split=st.integers(1, 7),
)
def test_the_vectorised_decoder_equals_a_plain_one(
    dsn: str, rows: list[tuple[int, str | None, str | None, str]], *, full: bool, split: int
) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("drop table if exists t")
        connection.execute("create table t(k int primary key, v text, w text)")
        if full:
            connection.execute("alter table t replica identity full")
        connection.execute("drop publication if exists p")
        connection.execute("create publication p for table t")
        connection.execute("select pg_create_logical_replication_slot('oracle', 'pgoutput')")
        try:
            _write(connection, rows)
            found = connection.execute(
                "select data from pg_logical_slot_get_binary_changes('oracle', null, null,"
                " 'proto_version', '1', 'publication_names', 'p')"
            ).fetchall()
        finally:
            connection.execute("select pg_drop_replication_slot('oracle')")
    messages = [data for (data,) in found]
    assert vectorised(messages, split) == plain_decode(messages)


def _write(
    connection: psycopg.Connection[Any], rows: list[tuple[int, str | None, str | None, str]]
) -> None:
    for place, (key, v, w, kind) in enumerate(rows):
        if kind == "put":
            connection.execute(
                "insert into t values (%s, %s, %s) on conflict (k) do update set v = excluded.v,"
                " w = excluded.w",
                (key, v, w),
            )
        elif kind == "move":
            connection.execute("update t set k = k + %s where k = %s", (100 * (place + 1), key))
        elif kind == "gone":
            connection.execute("delete from t where k = %s", (key,))
        else:
            connection.execute(f"alter table t add column c{place} text default 'd'".encode())


def vectorised(messages: list[bytes], split: int) -> list[Any]:
    """Decode in parts of `split` messages, and put the runs in order."""
    context, changes = pgoutput.DecodingContext(clock=0), []
    for first in range(0, len(messages), split):
        part = messages[first : first + split]
        buffer = b"".join(part)
        lengths = np.array([len(message) for message in part], dtype=np.int64)
        for run in pgoutput.index(buffer, lengths, first, context):
            decoded = pgoutput.decode(buffer, run)
            for row in range(len(run.order)):
                kind = chr(buffer[run.places[row]])
                old = _values(decoded, decoded.old, row) if decoded.has_old[row] else None
                new = _values(decoded, decoded.new, row) if decoded.has_new[row] else None
                changes.append((int(run.order[row]), (kind, run.relation.oid, old, new)))
    return [change for _, change in sorted(changes, key=lambda found: found[0])]


def _values(changes: pgoutput.Changes, tuples: pgoutput.Tuples, row: int) -> list[Any]:
    return [
        ...
        if name in tuples.unchanged and tuples.unchanged[name][row]
        else tuples.texts[name].read(changes.buffer)[row].as_py()
        for name in changes.run.relation.columns
    ]


#: A day, an instant, a moment; and whether the mirror holds the row, or it is a dead letter.
BEYOND = [
    ("infinity", "-infinity", "infinity", True),
    ("-infinity", "infinity", "-infinity", True),
    ("0044-03-15 BC", "10000-01-01 00:00:00+00", "2024-01-01 00:00:00", False),
    ("10000-01-01", "0044-03-15 12:00:00.5+00 BC", "0001-12-31 23:59:59.999999 BC", False),
]


@pytest.mark.long
@pytest.mark.parametrize("storage", [None, "parquet"])
def test_days_beyond_pythons_are_shown_as_the_source_writes_them(
    make_postgres: MakeWorld, storage: str | None
) -> None:
    world = make_postgres(storage=storage, capture={"method": "trigger"})
    world.run("create table t(id int primary key, d date, z timestamptz, w timestamp)")
    for key, (day, instant, moment, _) in enumerate(BEYOND):
        world.run(f"insert into t values ({key}, '{day}', '{instant}', '{moment}')")
    assert world.htap.sync_now().dead_letters == 5
    declaration = world.directory / "pipeline.yaml"
    declared = yaml.safe_dump(world.settings.model_dump(mode="json"))
    # Of the settings only the address is kept from being written.
    declaration.write_text(declared.replace("'**********'", json.dumps(world.dsn)))
    world.crash()
    for hint in ("olap", "oltp", "auto"):
        sql = "select d, z, w from t order by id"
        asked = ["query", sql, "--config", str(declaration), "--hint", hint]
        shown = CliRunner().invoke(app, [*asked, "--json"])
        assert shown.exit_code == 0, shown.output
        expected = [row[:3] for row in BEYOND if row[3] or hint != "olap"]
        found = [(row["d"], row["z"], row["w"]) for row in json.loads(shown.stdout)]
        assert [(d, z, w.replace("T", " ")) for d, z, w in found] == expected
        table = CliRunner().invoke(app, asked)
        assert table.exit_code == 0
        assert "infinity" in table.stdout
    asked = ["query", "select max(d) as m from t where id > 1", "--config", str(declaration)]
    assert "10000-01-01" in CliRunner().invoke(app, asked).stdout


def test_a_type_is_proposed_that_takes_what_is_beyond_arrow(make_postgres: MakeWorld) -> None:
    world = make_postgres(tables=[{"name": "t", "types": {"n": "int64"}}])
    world.run(
        'create table t(id text, "a b" int, at timestamp, m numeric(9, 2), n text,'
        ' primary key(id, "a b"))',
        "insert into t values ('it''s', 1, '12024-01-01', 'NaN', '1.5'),"
        " ('y', 2, '2024-01-01', 1.25, '2'), ('z', 3, '2024-01-01', 1.25, '3')",
    )
    assert world.htap.sync_now().dead_letters == 3
    found = proposed(world)
    assert found == {
        "at": [("string", 1, 1, 0, 2)],
        "m": [("string", 1, 1, 0, 2)],
        "n": [("decimal(38,9)", 1, 1, 0, 2), ("string", 1, 1, 0, 2)],
    }
    world.crash()
    types = {column: each[0][0] for column, each in found.items()}
    world.tables = [{"name": "t", "types": types}]
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 0
    assert world.htap.verify().equal
    assert world.htap.query("select m, n from t where id = 'it''s'", hint="olap").to_pylist() == [
        {"m": "NaN", "n": Decimal("1.5")}
    ]


def proposed(world: PostgresWorld) -> dict[str, list[tuple[object, ...]]]:
    found: dict[str, list[tuple[object, ...]]] = {}
    for each in world.htap.propose_types():
        told = (each.type, each.letters, each.healed, each.refused, each.others)
        found.setdefault(each.column, []).append(told)
    return found


def test_rows_whose_keys_are_such_days_become_dead_letters_and_are_mended(
    make_postgres: MakeWorld,
) -> None:
    days = ("infinity", "-infinity", "2024-01-01")
    tables = [{"name": "t", "types": {"v": "int64"}}]
    world = make_postgres(mode="temporal", tables=tables, capture={"method": "trigger"})
    world.run("create table t(d date primary key, v text)")
    world.run(*(f"insert into t values ('{day}', '1')" for day in days))
    world.htap.sync_now()
    world.run("update t set v = 'many'")
    world.htap.sync_now()
    letters = [json.loads(key)["d"] for key in world.htap.dead_letters()["key"].to_pylist()]
    assert sorted(letters) == sorted(days)
    assert world.htap.initial_sync("t").deleted == 0  # a copy keeps what is not known
    assert world.htap.query("select sum(v) as n from t", hint="olap")["n"].to_pylist() == [3]
    world.run("update t set v = '2'")
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 0
    found = world.htap.query("select sum(v) as n from t where _rhei_valid_to is null", hint="olap")
    assert found["n"].to_pylist() == [6]
    connection_of(engine_of(world.htap).mirror).execute("delete from public.t")
    assert set(world.htap.verify("t").tables["t"].samples["missing"]) == {
        json.dumps({"d": day}) for day in days
    }


def test_a_computed_infinite_date_is_answered_or_refused_with_a_way_out(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres(storage="parquet")
    world.run(
        "create table t(id int primary key, d date, tz timestamptz)",
        "insert into t values (1, 'infinity', '-infinity'), (2, '2024-01-01', '2024-01-01Z')",
    )
    world.htap.sync_now()
    for column, asked in (
        ("d", "cast(d as varchar)"),
        ("tz", "cast(tz as varchar)"),
        ("d", "date_trunc('month', d)"),
        ("d", "d + interval '1 day'"),
    ):
        query = f"select {asked} as s from t"
        with pytest.raises(QueryError, match="infinite or beyond its calendar") as refused:
            world.htap.query(query, hint="olap")
        assert "2147483647" not in str(refused.value)
        assert "9223372036854775807" not in str(refused.value)
        assert world.htap.query(query).num_rows == 2
        way = str(refused.value).partition("'between ")[2].removesuffix("')")
        kept = world.htap.query(f"{query} where {column} between {way}", hint="olap")
        assert kept.num_rows == 1


def test_a_numeric_beyond_128_bits_is_never_another_one(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    tables = [{"name": "wide", "types": {"n": "decimal(38, 0)"}}, {"name": "own"}]
    world = make_postgres(tables=tables)
    world.run(
        "create table wide (id integer primary key, n numeric)",
        # The first is beyond 2 ** 128, the second has 76 digits.
        "insert into wide values (1, 360000000000000000000000000000000000000), (2, 81e74), (3, 9)",
        "create table own (id integer primary key, n numeric(38, 0))",
        "insert into own values (1, 9e37), (2, 9e37)",
    )
    world.htap.sync_now()
    assert world.htap.dead_letters("wide").num_rows == 2
    found = world.htap.query("select id, n from wide order by id", hint="olap")
    assert found.to_pylist() == [{"id": 3, "n": Decimal(9)}]
    # A column's declared digits say nothing of what is computed with it.
    for sql in ("select sum(n + n) as v from own", "select n * n as v from own order by id"):
        expected = [row[0] for row in world.app.execute(sql.encode()).fetchall()]
        assert [Decimal(v) for v in world.htap.query(sql)["v"].to_pylist()] == expected
