"""Batches are bounded by bytes as well as rows: large values take memory a few at a time."""

import gc
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rhei_pipeline.errors import MirrorDamagedError
from rhei_pipeline.mirrors.datafusion import diff, digests, formats, query_proof
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.mirrors.duckdb import comparison
from rhei_pipeline.model import large_rows, portions
from rhei_pipeline.model.changes import Counts, NetChanges
from rhei_pipeline.model.portions import PORTION_BYTES
from rhei_pipeline.model.schema import Column, Table
from rhei_pipeline.protocols import Step
from rhei_pipeline.sources.postgres import row_texts, rows, types
from rhei_pipeline.sources.postgres.logical import reader, spool
from rhei_pipeline.sources.postgres.logical.moment import LogPortion
from rhei_pipeline.sync import cycle
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.forked import output_of
from tests.support.parts import engine_of

MB = 2**20
RANDOM = np.random.default_rng(1).bytes(100_000)

SYNC = """
import ctypes, re, sqlite3, sys
from pathlib import Path
import pyarrow as pa
from rhei_pipeline import HTAP, Settings
d, storage, mode, count, size, changes = sys.argv[1:]
mirror = {"path": f"{d}/mirror"}
if storage != "duckdb":
    mirror |= {"kind": "datafusion", "storage": storage}
settings = Settings(
    source={"path": f"{d}/app.db"}, mirror=mirror,
    registry={"path": f"{d}/registry.json"}, mode=mode,
)
def held(name):
    status = Path("/proc/self/status").read_text()
    return int(re.search(name + r":\\s+(\\d+)", status)[1]) * 1024
app = sqlite3.connect(f"{d}/app.db", isolation_level=None)
app.execute("create table t(id integer primary key, v text)")
def write(sql):
    app.execute("begin")
    for number in range(int(count)):
        app.execute(sql, (f"{number:08d}" * (int(size) // 8), number))
    app.execute("commit")
with HTAP(settings) as htap:
    if changes == "yes":
        app.executemany("insert into t values (?, 'x')", ((n,) for n in range(int(count))))
        htap.sync_now()
        write("update t set v = ? where id = ?")
    else:
        write("insert into t(v, id) values (?, ?)")
    htap.query("select 1", hint="olap")
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    resting = held("VmRSS")
    report = htap.sync_now().tables["t"]
    print(report.copied_rows or report.updated, held("VmHWM") - resting)
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
@pytest.mark.parametrize(
    ("storage", "mode", "values", "changes", "most"),
    [
        # As one batch, all rows were held some six times over; DuckDB holds what it writes itself.
        ("duckdb", "destructive", (20, 6 * MB), "no", 540 * MB),
        # Each of DuckDB's threads held it: eight times, and its log: four times.
        ("duckdb", "destructive", (1, 80 * MB), "yes", 3.6 * 80 * MB),
        # A copy's rows were written again through the log: eight times.
        ("duckdb", "temporal", (1, 80 * MB), "no", 5 * 80 * MB),
        # A text was spread into words of eight bytes each, and its statistics copied: 17 times it.
        ("parquet", "destructive", (1, 32 * MB), "no", 5 * 32 * MB),
        # What a transaction had staged, and each step of the way had copied: 44 times a value.
        ("ipc", "temporal", (10, 16 * MB), "yes", 8 * 16 * MB),
    ],
)
def test_large_values_are_held_a_few_at_a_time(
    tmp_path: Path, storage: str, mode: str, values: tuple[int, int], changes: str, most: float
) -> None:
    count, size = values
    arguments = [str(tmp_path), storage, mode, str(count), str(size), changes]
    synced, growth = map(int, output_of(SYNC, *arguments).split())
    assert synced == count
    assert growth < most


def test_a_first_copy_from_postgres_is_read_in_portions_of_bytes(
    make_postgres: Callable[..., PostgresWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "PORTION_BYTES", 64 * 1024)
    world = make_postgres(capture={"method": "trigger"})
    world.run(
        "create table t(row_number integer primary key, n text, b bytea)",
        "insert into t select i, repeat(md5(i::text), 400), decode(repeat('ab', 4000), 'hex')"
        " from generate_series(1, 40) i",
    )
    seen: list[int] = []
    world.htap.initial_sync("t", on_progress=lambda _table, done, _total: seen.append(done))
    batches = np.diff([0, *dict.fromkeys(seen)])
    assert batches.sum() == 40
    assert batches.max() <= 4  # each has some 21 KB of text
    world.assert_equal("t")


@pytest.mark.long
@pytest.mark.each
@pytest.mark.parametrize("method", ["trigger", "polling", "logical"])
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_large_value_of_postgres_is_held_once_when_it_is_applied(
    make_postgres: Callable[..., PostgresWorld],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    mode: str,
) -> None:
    """Beside the room that libpq keeps for the largest message of a connection."""
    monkeypatch.setattr(spool, "SPOOL_BYTES", MB)
    monkeypatch.setattr(row_texts, "LARGE_BYTES", MB)
    size, held = 16 * MB, list[float]()
    polling = {"updated_at": "at", "clock": "database"}
    table = {"name": "t", **({"polling": polling} if method == "polling" else {})}
    world = make_postgres(capture={"method": method}, mode=mode, tables=[table])
    world.run(
        "create table t(id integer primary key, v text, at timestamptz default clock_timestamp())",
        "create index on t(at, id)",
        "insert into t values (1, 'a')",
    )
    world.htap.sync_now()
    # Random, or the server would keep it in less.
    random = f"select string_agg(md5(i::text), '') from generate_series(1, {size // 32}) i"
    world.run(f"update t set v = ({random}), at = clock_timestamp()")
    world.faults.do_at(Step.CAPTURED, lambda: held.append(taken() - before))
    gc.collect()  # what is freed within the sync would count against the value
    tracemalloc.start()
    try:
        before = taken()
        world.htap.sync_now()
    finally:
        tracemalloc.stop()
    assert size <= held[0] < 1.5 * size
    world.assert_equal("t")


@pytest.mark.long
def test_a_large_message_of_the_log_is_held_by_its_decoder_alone(
    make_postgres: Callable[..., PostgresWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has bytes as text, which takes twice as much."""
    monkeypatch.setattr(spool, "SPOOL_BYTES", MB)
    monkeypatch.setattr(reader, "STREAM_BYTES", 0)
    monkeypatch.setattr(reader, "PIECE_BYTES", MB)
    world = make_postgres(capture={"method": "logical"}, tables=[{"name": "t"}])
    world.run("create table t(id integer primary key, v bytea)")
    world.htap.sync_now()
    size = 16 * MB
    random = f"select string_agg(md5(i::text), '') from generate_series(1, {size // 16}) i"
    world.run(f"insert into t values (1, decode(({random}), 'hex'))")
    monkeypatch.setattr(portions, "PORTION_BYTES", MB)
    held, received = list[float](), list[int]()
    add = spool.Spool.add

    def noted(self: Any, portion: LogPortion, *others: Any) -> int:
        received.append(sum(map(len, portion.messages)))
        return add(self, portion, *others)

    monkeypatch.setattr(spool.Spool, "add", noted)
    world.faults.do_at(Step.CAPTURED, lambda: held.append(tracemalloc.get_traced_memory()[1]))
    tracemalloc.start()
    try:
        world.htap.sync_now()
    finally:
        tracemalloc.stop()
    assert 2 * size < held[0] < 2.5 * size
    assert sum(received) > 2 * size
    assert max(received) <= 2 * MB
    world.assert_equal("t")


@pytest.mark.parametrize("values", [[None, b"", b"\0", None, RANDOM], [RANDOM[:70_000]]])
def test_long_bytes_are_read_from_their_digits(
    values: list[bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(types, "_PIECE", 4_096)
    column = Column("v", pa.binary())
    digits = [value if value is None else f"\\x{value.hex()}" for value in values]
    texts = pa.array(["?", *digits], pa.large_string()).slice(1)
    found, rejected = types.admit_text(texts, column)
    assert found.equals(pa.array(values, pa.binary()))
    assert not rejected
    bad = pa.array([*digits, f"\\x{'00' * 70_000}0", "\\xzz"], pa.large_string())
    found, rejected = types.admit_text(bad, column)
    assert found.to_pylist() == [*values, None, None]
    assert [one.row for one in rejected] == [len(values), len(values) + 1]


def taken() -> int:
    """Return the bytes that Python's objects and Arrow's buffers take."""
    return tracemalloc.get_traced_memory()[0] + int(pa.total_allocated_bytes())


SOME_TEXTS = pa.array(["", None, "a", "tail", *(f"xyz{n}" * n for n in range(60)), "é" * 700])


@pytest.mark.parametrize("kind", [pa.string(), pa.binary()])
def test_a_large_text_has_the_digest_that_it_always_had(
    kind: pa.DataType, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"v": SOME_TEXTS.cast(kind)})
    before = digests.row_digests(table)
    assert (before[2], before[-1]) == (7889467745792124352, 8060059832755730139)
    monkeypatch.setattr(digests, "_TEXT_BYTES", 16)
    assert (digests.row_digests(table) == before).all()
    assert (digests.row_digests(table.slice(7)) == before[7:]).all()


@pytest.mark.parametrize("form", [formats.Ipc(), formats.Parquet()])
def test_parts_bounded_by_bytes_are_read_as_they_were_written(
    form: formats.Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_PART_BYTES", 2_000)
    monkeypatch.setattr(formats, "_LONG", 500)
    rows = pa.table({"v": SOME_TEXTS, formats.ROW: np.arange(len(SOME_TEXTS), dtype=np.uint32)})
    content = formats.encoded(form, rows)
    parts = list(form.parts(content, rows.column_names))
    assert len(parts) > 5
    assert pa.concat_tables(parts).equals(rows)
    assert form.read(content, rows.column_names).equals(rows)
    positions = np.array([0, 3, 21, 22, 50, len(SOME_TEXTS) - 1])
    assert form.take(content, rows.column_names, positions).equals(rows.take(positions))


def test_a_large_value_is_compressed_where_that_saves_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(formats, "_LARGE", 5_000)
    random = np.random.default_rng(1)
    columns = {
        "random": [None, random.bytes(5_000)],
        "digits": [None, random.bytes(2_500).hex().encode()],
        "short": [None, random.bytes(4_999)],
        "number": [None, 1],
    }
    rows = pa.table(columns | {formats.ROW: np.arange(2, dtype=np.uint32)})
    content = formats.encoded(formats.Parquet(), rows)
    group = pq.read_metadata(pa.BufferReader(content)).row_group(0)
    codecs = [group.column(place).compression for place in range(len(columns))]
    assert codecs == ["UNCOMPRESSED", "ZSTD", "ZSTD", "ZSTD"]
    assert formats.Parquet().read(content, rows.column_names).equals(rows)


def test_queries_are_not_asked_for_the_bounds_of_long_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(formats, "_LONG", 100)
    parts = [pa.table({"v": ["a" * size], "n": [size]}) for size in (1, 101, 2)]
    asked = list[str]()

    def ask(sql: str) -> pa.Table:
        asked.append(sql)
        return pa.table({"n/count": [3], "n/min": [1], "n/max": [102]})

    assert query_proof.misread_columns(parts[0].schema, "t", parts, ask) == ["n"]
    assert len(asked) == 1
    assert '"v"' not in asked[0]


@pytest.mark.parametrize("storage", ["parquet", "ipc", "delta"])
def test_a_large_file_is_written_without_a_copy_and_has_its_checksum(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    size = 8 * MB
    monkeypatch.setattr(large_rows, "LARGE_BYTES", MB)
    world = make_world(mode="temporal", storage=storage, tables=[{"name": "t"}])
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    world.htap.sync_now()
    mirror = engine_of(world.htap).mirror
    assert isinstance(mirror, DataFusionMirror)
    rows = pa.table({"id": [2], "v": [np.random.default_rng(1).bytes(size)]})
    tracemalloc.start()
    try:
        segment = mirror._store.write(rows, None)
        assert tracemalloc.get_traced_memory()[1] < size / 2
    finally:
        tracemalloc.stop()
    place = mirror._store.place(segment.name)
    mirror._store.checked.check_anew(place)
    assert mirror._store.write_shown("data/shown", rows) > size
    assert not mirror._store.checked.sums_of(["data/shown"])
    assert mirror.path is not None
    written = Path(mirror.path) / place
    with written.open("r+b") as file:
        file.seek(written.stat().st_size // 2)
        file.write(b"?")
    with pytest.raises(MirrorDamagedError, match="its content is not what was written"):
        mirror._store.checked.check_anew(place)


@pytest.mark.parametrize("most", [None, 1_000])
def test_portions_hold_every_item_once_within_both_bounds(most: int | None) -> None:
    sizes = [10] * 3_000 + [PORTION_BYTES // 4] * 9 + [3 * PORTION_BYTES] * 2 + [1]
    left = list(sizes)

    def take(count: int) -> Sequence[int]:
        taken = left[:count]
        del left[:count]
        return taken

    def size_of(items: Sequence[int]) -> int:
        return sum(items)

    found = list(portions.portions(take, size_of, most))
    assert [size for portion in found for size in portion] == sizes
    assert all(len(portion) <= (most or len(sizes)) for portion in found)
    # A portion ends with the item that fills it; only where sizes jump are more asked for.
    assert sum(sum(portion[:-1]) > PORTION_BYTES for portion in found) <= 1


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_what_differs_in_another_copy_is_applied_a_few_large_rows_at_a_time(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, storage: str | None
) -> None:
    for module in (comparison, diff):
        monkeypatch.setattr(module, "PORTION_BYTES", 50_000)
    monkeypatch.setattr(large_rows, "LARGE_BYTES", 100_000)
    world = make_world(mode="destructive", storage=storage, tables=[{"name": "t"}])
    world.run(
        "create table t(id integer primary key, v text)",
        "insert into t with recursive n(i) as (values (1) union all select i + 1 from n"
        " where i < 40) select i, hex(randomblob(5000)) from n",
    )
    world.htap.sync_now()
    engine = engine_of(world.htap)
    table = engine.pipeline.table("t")
    wrong = {"id": list(range(3, 43)), "v": [None] * 40}
    with engine.mirror.transaction() as transaction:
        ids = pa.table({"id": [1, 2]}, table.schema.arrow_key)
        transaction.merge(table, NetChanges(pa.table(wrong, table.schema.arrow), ids))
    applied = list[int]()

    def noted(table: Table, changes: NetChanges, *parts: Any) -> Counts:
        applied.append(changes.upserts.num_rows)
        return apply_difference(table, changes, *parts)

    apply_difference = cycle._apply_difference
    monkeypatch.setattr(cycle, "_apply_difference", noted)
    report = world.htap.initial_sync("t")
    assert (report.inserted, report.updated, report.deleted) == (2, 38, 2)
    assert sum(applied) == 40
    assert max(applied) <= 10  # each has some 10,000 bytes, half as many in a file
    world.assert_equal("t")
