"""What concerns a whole pipeline, or the place where it runs, and the way out of it."""

import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.buffer import writer as buffer_writer
from rhei_pipeline.cli.demo import tour
from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import (
    BufferFullError,
    MirrorError,
    MirrorMemoryError,
    MirrorUnreachableError,
    MissingExtraError,
    QueryLimitError,
    SchemaError,
    SettingsError,
    SourceBusyError,
    SourceError,
)
from rhei_pipeline.server.flight.access import refuse_open_server
from rhei_pipeline.server.flight.server import FlightSqlServer, ServerOptions
from rhei_pipeline.server.serve import Addresses, access_from, serving, tls_from
from rhei_pipeline.wiring.engine import bridge
from tests.support.fix_object_store import Store
from tests.support.fix_world import World
from tests.support.packages import unload
from tests.support.parts import engine_of
from tests.support.refusals import filled_in, refused, rhei

MakeWorld = Callable[..., World]


@pytest.fixture
def t(make_world: MakeWorld) -> World:
    """Make a table that is mirrored."""
    world = make_world()
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    world.htap.sync_now()
    return world


def synced(world: World) -> None:
    """What is written now is mirrored by the next sync."""
    world.run("insert into t(id) select max(id) + 1 from t")
    assert not world.htap.sync_now().errors
    world.assert_equal("t")


# The mirror


def test_another_storage_has_another_path(make_world: MakeWorld) -> None:
    world = make_world(storage="parquet")
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    world.htap.sync_now()
    path = str(world.settings.mirror.path)
    world.crash()
    world.storage, world.mirror_path = "ipc", path
    with refused("declare that storage, or use another path", MirrorError):
        world.htap.sync_now()
    world.crash()
    world.storage = "parquet"
    synced(world)
    world.crash()
    world.storage, world.mirror_path = "ipc", f"{path}-ipc"
    synced(world)


def test_a_renamed_pipeline_adopts_its_mirror(t: World) -> None:
    def named(name: str, **changed: Any) -> Settings:
        return Settings(**{**t.settings.model_dump(), "name": name, **changed})

    t.crash()
    HTAP(named("shop")).close()
    way_out = "give this pipeline a mirror.path of its own; if it was renamed, run 'rhei adopt'"
    with refused(way_out, MirrorError):
        HTAP(named("store"))
    own = {"path": t.directory / "own.duckdb"}
    with HTAP(named("store", mirror=own, registry={"path": t.directory / "own.json"})) as htap:
        assert htap.sync_now().inserted == 1
    rhei(named("store"), t.directory, "adopt")
    t.run("insert into t values (2, 'b')")
    with HTAP(named("store")) as htap:
        assert htap.sync_now().inserted == 1
    with refused(way_out, MirrorError):
        HTAP(named("shop"))


def test_a_name_that_a_kept_table_has_is_given_back(t: World) -> None:
    """The source gets a table by the name under which a history was kept."""
    t.crash()
    rhei(t.settings, t.directory, "drop-table", "t", "--keep-as", "kept")
    t.run("create table kept(id integer primary key)", "insert into kept values (7)")
    report = t.htap.sync_now()
    t.assert_equal("t")
    way_out = "rename that one with 'rhei drop-table {} --keep-as NAME'"
    (name,) = filled_in(way_out, report.errors["kept"])
    t.crash()
    rhei(t.settings, t.directory, "drop-table", name, "--keep-as", "other")
    assert not t.htap.sync_now().errors
    t.assert_equal("t", "kept")
    assert t.htap.query("select v from other", hint="olap").to_pylist() == [{"v": "a"}]


def test_a_name_that_is_not_there_is_named_with_the_nearest(t: World) -> None:
    with refused("did you mean {}?", SchemaError) as met:
        t.htap.verify("tt")
    assert t.htap.verify(met.told[0].strip("'")).equal
    with refused("known are: {}", SchemaError) as met:
        t.htap.repair("nothing_of_the_kind")
    t.htap.repair(met.told[0].rstrip(")"))
    t.run("drop table t")
    t.crash()
    empty = t.settings.with_fields({"mirror": {"path": t.directory / "empty.duckdb"}})
    empty = empty.with_fields({"registry": {"path": t.directory / "empty.json"}})
    with HTAP(empty) as htap:
        with refused("there is none", SchemaError):
            htap.repair("t")
        t.run("create table t(id integer primary key)", "insert into t values (1)")
        assert htap.sync_now().inserted == 1
        htap.repair("t")


@pytest.mark.long
@pytest.mark.parametrize("storage", [None, "memory"], ids=["duckdb", "datafusion"])
def test_a_query_that_needs_more_memory_is_given_it(make_world: MakeWorld, storage: str) -> None:
    world = make_world(storage=storage)
    world.run("create table t(id integer primary key, v text)")
    world.run(
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < 4000)"
        " insert into t select i, hex(randomblob(2000)) from n"
    )
    large = (
        "select list(v) as l from (select a.v from t a, range(8))"
        if storage is None
        else "select array_agg(v) as l from (select a.v from t a, (values (1), (2), (3), (4),"
        " (5), (6), (7), (8)) as n)"
    )
    declared = world.settings.model_dump()
    declared["mirror"]["memory_limit"] = "64MiB"
    with HTAP(Settings(**declared)) as htap:
        htap.sync_now()
        way_out = "make the query smaller, or raise mirror.memory_limit"
        with refused(way_out, MirrorMemoryError):
            htap.query(large, hint="olap")
        assert htap.query("select count(*) as n from t", hint="olap")["n"].to_pylist() == [4000]
    declared["mirror"]["memory_limit"] = "2GiB"
    with HTAP(Settings(**declared)) as htap:
        htap.sync_now()
        assert htap.query(large, hint="olap").num_rows == 1


def test_a_value_larger_than_a_query_may_make_is_allowed(t: World) -> None:
    t.crash()
    declared = t.settings.model_dump()
    declared["queries"]["query_bytes"] = 2**20
    asked = "select length(hex(zeroblob(400000))) as n"
    with HTAP(Settings(**declared)) as htap:
        with refused(
            "ask for less at once, or raise queries.query_bytes, of which it is a quarter",
            QueryLimitError,
        ):
            htap.query(asked, hint="oltp")
        less = "select length(hex(zeroblob(40000))) as n"
        assert htap.query(less, hint="oltp")["n"].to_pylist() == [80000]
    declared["queries"]["query_bytes"] = 2**22
    with HTAP(Settings(**declared)) as htap:
        assert htap.query(asked, hint="oltp")["n"].to_pylist() == [800000]


# The source


def test_a_source_that_is_no_database_is_checked_and_corrected(t: World) -> None:
    t.crash()
    t.app.close()
    declared = t.settings.model_dump()
    other = t.directory / "other.db"
    other.write_bytes(b"no database" * 1000)
    declared["source"]["path"] = other
    declared["mirror"]["path"] = t.directory / "other.duckdb"
    declared["registry"]["path"] = t.directory / "other.json"
    way_out = "check the path, then run 'pragma integrity_check' in the sqlite3 shell"
    with refused(way_out, SourceError):
        HTAP(Settings(**declared)).sync_now()
    with sqlite3.connect(t.path) as right:
        assert right.execute("pragma integrity_check").fetchall() == [("ok",)]
    right.close()
    declared["source"]["path"] = t.path
    with HTAP(Settings(**declared)) as htap:
        assert htap.sync_now().inserted == 1
    t.app = sqlite3.connect(t.path, isolation_level=None)


def test_a_full_disk_is_freed(t: World) -> None:
    database: Any = engine_of(t.htap).database
    writer = database._writer
    pages = writer.execute("pragma max_page_count").fetchone()[0]
    writer.execute("pragma max_page_count = 20")
    with refused("free space, then try again", SourceError):
        t.htap.execute("insert into t values (2, hex(zeroblob(100000)))")
    writer.execute(f"pragma max_page_count = {pages}")
    assert t.htap.execute("insert into t values (2, hex(zeroblob(100000)))") == 1
    synced(t)


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Let no file grow beyond a size: writes then fail as on a bad disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


LARGE = "insert into t select id + 100, hex(randomblob(300000)) from t"


def test_a_disk_that_fails_the_source_is_mended(t: World) -> None:
    with small_files(100_000), refused("check the disk and its mounts", SourceError):
        t.htap.execute(LARGE)
    assert t.htap.execute(LARGE) == 1
    synced(t)


@pytest.mark.parametrize(
    ("storage", "way_out"),
    [
        (None, "free space, then try again"),
        ("parquet", "fix this, then try again; committed data is not affected"),
    ],
)
def test_a_disk_that_fails_the_mirror_is_mended(
    make_world: MakeWorld, storage: str | None, way_out: str
) -> None:
    world = make_world(storage=storage)
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    world.htap.sync_now()
    world.run(LARGE)
    with small_files(100_000), refused(way_out, MirrorError):
        world.htap.sync_now()
    synced(world)


def test_a_disk_that_fails_the_published_copy_is_mended(t: World) -> None:
    t.crash()
    t.published = {"path": t.directory / "published.duckdb", "interval_seconds": 0}
    t.run("update t set v = 'b'")
    way_out = "fix this, or remove mirror.published; the mirror itself is not affected"
    (t.directory / "published.duckdb").mkdir()
    filled_in(way_out, t.htap.sync_now().not_published)
    t.assert_equal("t")
    (t.directory / "published.duckdb").rmdir()
    t.run("update t set v = 'c'")
    assert t.htap.sync_now().not_published is None
    t.crash()
    (t.directory / "published.duckdb").unlink()
    (t.directory / "published.duckdb").mkdir()
    t.published = None
    t.run("update t set v = 'd'")
    assert t.htap.sync_now().not_published is None
    synced(t)


def test_a_schema_that_keeps_changing_is_synced_once_that_ends(
    t: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = iter(range(100))
    watch = engine_of(t.htap).pipeline._watch
    keep_up = watch.keep_up

    def migrated_behind_its_back() -> None:
        keep_up()
        t.run(f"alter table t add column c{next(turns)} text")

    t.run("update t set v = 'b'")
    with monkeypatch.context() as migrating:
        migrating.setattr(watch, "keep_up", migrated_behind_its_back)
        with refused("sync again once migrations are done", SourceBusyError):
            t.htap.sync_now()
    synced(t)


# The buffer


def test_a_buffer_is_declared(t: World) -> None:
    t.crash()
    t.run("update t set v = 'b'")
    with refused("declare one under 'capture.buffer'", SettingsError):
        bridge(t.settings)
    t.buffered = True
    t.htap.sync_now()
    t.crash()
    t.run("update t set v = 'c'")
    assert bridge(t.settings) == 1
    synced(t)


def test_a_full_buffer_is_given_room_or_emptied(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(buffered=True)
    world.run("create table t(id integer primary key, v blob)")
    world.htap.sync_now()
    world.crash()
    world.limits = {"max_bytes": 50_000}
    world.run("insert into t values (1, randomblob(100000))")
    with refused("let the mirror catch up, or raise capture.buffer.max_bytes", BufferFullError):
        bridge(world.settings)
    world.limits = {"max_bytes": 500_000}
    assert bridge(world.settings) == 1
    world.run("insert into t values (2, randomblob(1000))")
    with monkeypatch.context() as full:
        full.setattr(buffer_writer, "RESERVE_BYTES", 2**60)
        with refused("free space, or let the mirror catch up", BufferFullError):
            bridge(world.settings)
    assert bridge(world.settings) == 1
    synced(world)


# What is installed, and where it is run


def test_a_missing_package_is_installed(t: World, monkeypatch: pytest.MonkeyPatch) -> None:
    t.crash()
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "rocksdict", None)
        unload(without, "rhei_pipeline.buffer.rocksdb")
        t.buffered = True
        with refused("pip install 'rhei-pipeline[{}]'", MissingExtraError) as met:
            t.htap.sync_now()
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "google.protobuf", None)
        unload(without, "rhei_pipeline.server")
        with refused("pip install 'rhei-pipeline[{}]'", MissingExtraError) as serve:
            raise _of("serve", "--config", "any.yaml")
    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    assert any("rocksdict" in package for package in extras[met.told[0].rstrip("'])")])
    assert any("protobuf" in package for package in extras[serve.told[0].rstrip("'])")])


def test_the_demo_is_made_elsewhere_or_anew(tmp_path: Path) -> None:
    place = tmp_path / "demo"
    place.mkdir()
    (place / "file").touch()
    with refused("choose another one with --directory, or remove it", SettingsError):
        raise _of("demo", "--directory", str(place))
    (place / "file").unlink()
    with closing(tour(place)) as chapters:
        assert next(chapters).title


def _of(*arguments: str) -> BaseException:
    found = CliRunner().invoke(app, list(arguments), prog_name="rhei")
    assert found.exit_code != 0, found.output
    assert found.exception is not None
    return found.exception


def test_what_a_command_lacks_is_given(t: World) -> None:
    config = t.directory / "pipeline.yaml"
    config.write_text(t.settings.model_dump_json())
    t.crash()
    for way_out, wrong, right in (
        (
            "give '--keep-as' or '--discard-history', not both",
            ["drop-table", "t", "--keep-as", "k", "--discard-history"],
            ["drop-table", "t", "--keep-as", "k"],
        ),
        ("give a statement, or run this in a terminal", ["query"], ["query", "select 1 as n"]),
        (
            "{} is not a timestamp such as 2026-11-01T12:00Z",
            ["as-of", "t", "yesterday"],
            None,
        ),
        (
            "{} is neither the position of an earlier answer nor a timestamp",
            ["changes", "--table", "t", "--after", "yesterday"],
            None,
        ),
    ):
        found = CliRunner().invoke(app, [*wrong, "--config", str(config)], prog_name="rhei")
        assert found.exit_code == 2
        filled_in(way_out, " ".join(found.output.replace("│", " ").split()))
        if right is not None:
            rhei(t.settings, t.directory, *right)
    t.mode = "temporal"
    t.htap.sync_now()
    t.crash()
    rhei(t.settings, t.directory, "as-of", "t", datetime.now(UTC).isoformat())
    rhei(
        t.settings, t.directory, "changes", "--table", "t", "--after", datetime.now(UTC).isoformat()
    )


# A server


def test_a_server_that_others_reach_is_given_credentials() -> None:
    everywhere = "0.0.0.0"  # noqa: S104
    way_out = (
        "set RHEI_SERVE_TOKEN, or RHEI_SERVE_USER and RHEI_SERVE_PASSWORD, or serve on 127.0.0.1"
    )
    with refused(way_out, SettingsError):
        refuse_open_server(everywhere, access_from({}))
    refuse_open_server(everywhere, access_from({"RHEI_SERVE_TOKEN": "t"}))
    both = {"RHEI_SERVE_USER": "ann", "RHEI_SERVE_PASSWORD": "p"}
    refuse_open_server(everywhere, access_from(both))
    refuse_open_server("127.0.0.1", access_from({}))
    for name, value in both.items():
        with refused("set both, or neither", SettingsError):
            access_from({name: value})
        for empty in ("", " "):
            with refused("give it a value, or unset it", SettingsError):
                access_from({**both, name: empty})
    assert access_from({}).is_open


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_a_certificate_is_given_with_its_key(tmp_path: Path) -> None:
    certificate, key = tmp_path / "a.pem", tmp_path / "b.pem"
    with refused("give both", SettingsError):
        tls_from(certificate, None)
    with refused("correct the path", SettingsError):
        tls_from(certificate, key)
    certificate.write_bytes(b"c")
    key.write_bytes(b"k")
    with refused("give PEM files that belong together, the key without a password", SettingsError):
        tls_from(certificate, key)
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    written = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*made, *written], check=True, capture_output=True)
    assert tls_from(certificate, key) == (certificate.read_bytes(), key.read_bytes())


@pytest.mark.parametrize("which", ["port", "metrics_port"])
def test_a_server_that_cannot_listen_is_given_another_port(t: World, which: str) -> None:
    way_out = "end what listens there, or give another port or an address of this machine"
    options = ServerOptions(access_from({}))
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = replace(Addresses(port=0), **{which: other.getsockname()[1]})
        with refused(way_out, SettingsError), serving(t.htap, taken, options):
            pass
    with serving(t.htap, Addresses(port=0, metrics_port=0), options) as ports:
        assert all(port != 0 for port in ports)


@pytest.fixture
def flight_server(t: World) -> Iterator[Callable[..., FlightSqlServer]]:
    """Start servers that are stopped at the end."""
    servers: list[FlightSqlServer] = []

    def start(**options: Any) -> FlightSqlServer:
        servers.append(FlightSqlServer(t.htap, options=ServerOptions(access_from({}), **options)))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()


def test_a_server_takes_writes_if_it_is_started_with_writes(
    t: World, flight_server: Callable[..., FlightSqlServer]
) -> None:
    flight_sql = pytest.importorskip("adbc_driver_flightsql.dbapi")

    def write(server: FlightSqlServer) -> None:
        address = f"grpc://127.0.0.1:{server.port}"
        with (
            flight_sql.connect(address, autocommit=True) as connection,
            connection.cursor() as cursor,
        ):
            cursor.adbc_statement.set_sql_query("insert into t values (2, 'b')")
            cursor.adbc_statement.execute_update()

    with pytest.raises(Exception, match="this server only reads") as met:
        write(flight_server())
    filled_in("write to the source, or start the server with --writes", str(met.value))
    write(flight_server(writes=True))
    t.htap.sync_now()
    t.assert_equal("t")
    assert t.app.execute("select count(*) from t").fetchone() == (2,)


# A store


@pytest.mark.long
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_store_that_refuses_or_is_away_is_tried_again(
    bucket: Store, make_world: MakeWorld
) -> None:
    world = make_world()
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    declared = world.settings.model_dump()
    given = {**bucket.settings, **bucket.keys, "retry_seconds": 0, "timeout_seconds": 30}
    declared["mirror"] |= {
        "kind": "datafusion",
        "storage": "parquet",
        "path": bucket.url,
        "object_store": given,
    }
    with HTAP(Settings(**declared)) as htap:
        htap.sync_now()
        world.run("update t set v = 'b'")
        for fault, way_out, kind in (
            ("403", "use credentials that may read, write, list and delete there", MirrorError),
            ("503", "try again; committed data is not affected", MirrorUnreachableError),
        ):
            bucket.failing["PUT"] = [fault] * 3
            with refused(way_out, kind):
                htap.sync_now()
            bucket.failing.clear()
        assert htap.sync_now().updated == 1
        assert htap.query("select v from t", hint="olap").to_pylist() == [{"v": "b"}]
