"""A cluster finds the rows of snapshots, just as the mirror's own engine does."""

import shutil
import socket
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import date, datetime, timedelta

import dagster as dg
import pyarrow as pa
import pytest

import rhei_pipeline as rhei
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.compute.snapshots import ClusterHistory
from rhei_pipeline.dagster import build_definitions
from rhei_pipeline.model.progress import AsOf
from rhei_pipeline.testing.oracle import Row, arrow_rows
from tests.support.damage import damage
from tests.support.fix_cluster import with_cluster
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.model import instant_between, source_rows

#: A column of each type that a mirror has, with values at the ends of what they hold.
COLUMNS: dict[str, tuple[str, list[str | None]]] = {
    "a_small": ("smallint", ["-32768", "0", "32767", None]),
    "an_int": ("integer", ["-2147483648", "1", "2147483647", None]),
    "A Large one": ("bigint", ["-9223372036854775808", "9007199254740993", None]),
    "a_real": ("real", ["1.1", "-0", "NaN", "-Infinity", None]),
    "a_double": ("double precision", ["0.1", "-0", "NaN", "Infinity", "1e-320", None]),
    "a_decimal": ("numeric(38, 10)", ["1234567890123456789012345678.0123456789", "-7", None]),
    "a_number": ("numeric", ["1.000", "NaN", "1e300", None]),
    "a`text": ("text", ["", " ", "žluť 🐎", "null", "a\nb", 'it\'s "so"', None]),
    "bytes": ("bytea", ["\\x", "\\x00ff5c", None]),
    "is_so": ("boolean", ["f", "t", None]),
    "a_day": ("date", ["0001-01-01", "1582-10-10", "9999-12-31", None]),
    "at_time": ("time", ["00:00:00", "23:59:59.999999", "12:30:00.5", None]),
    "an_hour": ("timestamp", ["0001-01-01 00:00", "9999-12-31 23:59:59.999999", None]),
    "an_instant": ("timestamptz", ["1582-10-10 01:02:03.000004+00", "2024-02-29 12:00+05", None]),
    "a_span": ("interval", ["1 year 2 mons 3 days 04:05:06.789", None]),
    "an_id": ("uuid", ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", None]),
    "a_list": ("integer[]", ["{1,NULL,3}", "{}", None]),
}
TABLES = [{"name": "t", "mode": "temporal"}]


def filled(make_postgres: Callable[..., PostgresWorld]) -> PostgresWorld:
    """Make a table with all types, and nearly as many rows as there are pairs of values."""
    world = make_postgres(storage="delta", tables=TABLES, capture={"method": "trigger"})
    world.run(
        "create table t(id integer primary key, "
        + ", ".join(f'"{name}" {kind}' for name, (kind, _) in COLUMNS.items())
        + ")"
    )
    every = [values for _, values in COLUMNS.values()]
    marks = ", ".join(["%s"] * (len(every) + 1))
    with world.app.cursor() as cursor:
        rows = [[key, *(values[key % len(values)] for values in every)] for key in range(60)]
        cursor.executemany(f"insert into t values ({marks})".encode(), rows)
    return world


def changed(world: PostgresWorld, htap: HTAP) -> dict[date, datetime]:
    """Change the table between instants; return these, each as a day's."""
    days = {}
    for day in range(1, 5):
        htap.sync_now()
        days[date(2030, 1, day)] = instant_between()
        world.run(
            f"update t set a_small = a_small / 2 where id % 5 = {day}",
            f"delete from t where id % 7 = {day}",
            f"insert into t(id, an_int) values ({100 + day}, {day})",
        )
        if day == 2:
            world.run("alter table t add column more integer", "update t set more = id")
    htap.sync_now()
    return days


def kept(htap: HTAP, days: Mapping[date, datetime]) -> dict[date, pa.Table]:
    """Return the snapshots, each in the order of its keys."""
    sql = "select * from snapshot.t where snapshot_date = ? order by id"
    return {day: htap.query(sql, [day], hint="olap") for day in days}


@pytest.fixture
def nobody() -> str:
    """Return an address at which nothing listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    return f"sc://127.0.0.1:{port}"


@pytest.mark.cluster
def test_the_cluster_finds_the_rows_that_the_mirror_finds(
    make_postgres: Callable[..., PostgresWorld], cluster: str, nobody: str
) -> None:
    world = filled(make_postgres)
    with rhei.open(with_cluster(world, cluster, TABLES)) as htap:
        days = changed(world, htap)
        assert htap.dead_letters().num_rows == 0
        taken = htap.snapshot("t", days)
        assert (set(taken.engines.values()), taken.reason) == ({"cluster"}, None)
        by_cluster = kept(htap, days)
    with rhei.open(with_cluster(world, nobody, TABLES)) as htap:
        again = htap.snapshot("t", days)
        assert set(again.engines.values()) == {"mirror"}
        assert again == taken
        by_mirror = kept(htap, days)
    for day in days:
        assert by_cluster[day].schema.equals(by_mirror[day].schema), day
        assert arrow_rows(by_cluster[day]) == arrow_rows(by_mirror[day]), day
        assert by_cluster[day].num_rows == taken[day] > 30


@pytest.mark.cluster
def test_a_snapshot_shows_what_was_committed_just_before(
    make_world: Callable[..., World], cluster: str
) -> None:
    world = make_world(storage="delta", tables=[{"name": "t", "mode": "temporal"}])
    world.run("create table t(id integer primary key, v int)", "insert into t values (1, 1)")
    settings = with_cluster(world, cluster, [{"name": "t", "mode": "temporal"}])
    rarely = settings.mirror.model_dump() | {"delta": {"interval_seconds": 9999}}
    with rhei.open(settings.with_fields({"mirror": rarely})) as htap:
        for key in range(2, 6):
            world.run(f"insert into t values ({key}, 1)", "update t set v = v + 1")
            htap.sync_now()
            now = instant_between()
            taken = htap.snapshot("t", {now.date(): now})
            assert taken.engines == {now.date(): "cluster"}
            found: frozenset[Row] = arrow_rows(
                htap.query("select id, v from snapshot.t", hint="olap")
            )
            assert found == source_rows(world.app, "t")


@pytest.mark.cluster
def test_a_cluster_that_ends_costs_the_day_that_it_was_at(
    make_postgres: Callable[..., PostgresWorld],
    cluster: str,
    monkeypatch: pytest.MonkeyPatch,
    nobody: str,
) -> None:
    world, asked = filled(make_postgres), list[AsOf]()
    with rhei.open(with_cluster(world, cluster, TABLES)) as htap:
        days = changed(world, htap)
        expected = htap.snapshot("t", days)
        rows = ClusterHistory._rows

        def until_the_third(self: ClusterHistory, *asking: object) -> pa.Table:
            asked.append(asking[1])  # type: ignore[arg-type]
            if len(asked) == 3:
                self.engine.endpoint = nobody
            return rows(self, *asking)  # type: ignore[arg-type]

        monkeypatch.setattr(ClusterHistory, "_rows", until_the_third)
        taken = htap.snapshot("t", days)
    assert taken == expected
    assert [*taken.engines.values()] == ["cluster", "cluster", "mirror", "mirror"]
    assert taken.reason is not None
    assert "nothing answers at" in taken.reason
    assert len(asked) == 3


@pytest.mark.long
def test_where_the_cluster_is_away_the_mirror_finds_the_rows_and_dagster_says_why(
    make_world: Callable[..., World], nobody: str
) -> None:
    world = make_world(storage="delta", tables=[{"name": "t", "mode": "temporal"}])
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    settings: Settings = with_cluster(world, nobody, [{"name": "t", "mode": "temporal"}])
    with rhei.open(settings) as htap:
        htap.sync_now()
    today = instant_between().date()
    began = {"snapshots_from": today - timedelta(days=1), "idle_seconds": 0.2}
    declared = settings.with_fields({"schedule": began})
    with dg.instance_for_test() as instance:
        job = build_definitions(declared).resolve_implicit_global_asset_job_def()
        key = dg.AssetKey(["snapshot", "t"])
        assert job.execute_in_process(
            asset_selection=[key], instance=instance, partition_key=today.isoformat()
        ).success
        (present, *_) = instance.fetch_observations(key, limit=5).records
        assert present.asset_observation is not None
        told = present.asset_observation.metadata
    assert told["rows_found_by"].value == "mirror"
    assert "nothing answers at" in str(told["rows_found_by_reason"].value)
    assert told["dagster/partition_row_count"].value == 1


@pytest.mark.cluster
def test_the_cluster_reads_copies_and_sees_no_damage_of_the_mirrors_own_files(
    make_world: Callable[..., World], cluster: str
) -> None:
    tables = [{"name": "t"}]
    world = make_world(storage="delta", tables=tables)
    world.run("create table t(id integer primary key, v int)")
    world.app.executemany("insert into t values (?, 0)", ((key,) for key in range(1000)))
    settings = with_cluster(world, cluster, tables)
    with rhei.open(settings) as htap:
        htap.sync_now()
        world.run("delete from t where id < 10")
        htap.sync_now()
        assert htap.verify().equal
    segments = (world.directory / "delta" / "data").glob("*.parquet")
    largest = max(segments, key=lambda file: file.stat().st_size)
    own = largest.with_suffix(".own")
    shutil.copyfile(largest, own)
    own.rename(largest)  # the published file was another name of it
    assert damage(largest, "flip quarter")
    with rhei.open(settings) as htap:
        found = htap.query("select count(*) as n, sum(id) as s from t", hint="cluster")
        assert found.to_pylist() == [{"n": 990, "s": sum(range(10, 1000))}]
        assert not htap.verify().equal
