"""What one side of a pipeline cannot do just now, and what the rest makes of it."""

import json
import re
import signal
from collections.abc import Callable

import adbc_driver_flightsql.dbapi as flight_sql
import duckdb
import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

from rhei_pipeline import HTAP
from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import MirrorError
from rhei_pipeline.server.flight.server import ServerOptions
from rhei_pipeline.server.serve import Addresses, serving
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.wiring.adoption import validate_owner
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.forked import run

MakeWorld = Callable[..., World]
MakePostgres = Callable[..., PostgresWorld]


def test_a_registry_that_cannot_be_written_costs_no_sync_and_is_written_later(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = world.directory / "blocked"
    blocked.write_text("a file where the registry's directory is to be")
    registry = blocked / "registry.json"
    settings = world.settings.model_copy(
        update={"registry": world.settings.registry.model_copy(update={"path": registry})}
    )
    with HTAP(settings) as htap:
        assert htap.sync_now().inserted == 3
        world.run("update orders set status = 'x'")
        assert htap.sync_now().updated == 3
        for file in ("registry.json", "read.json"):
            assert caplog.text.count(f"{file}' cannot be written") == 1
        assert "correct registry.path" in caplog.text
        blocked.unlink()
        htap.sync_now()
    assert list(json.loads(registry.read_text())["tables"]) == ["orders"]


_INTERRUPTED = """
import signal, sys, json
from rhei_pipeline import HTAP, Settings
from tests.support.parts import connection_of, engine_of
# A process that was started in the background has the signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
# One task of one thread, and not of this one, mostly: DuckDB does not tell that thread of a signal.
long = "select sum(hash(range)) from range(10000000000000)"
with HTAP(Settings(**json.loads(sys.argv[1]))) as htap:
    htap.sync_now()
    for work in ("query", "transaction"):
        # Again where the first falls into a finalizer, which swallows it, as a user presses again.
        signal.setitimer(signal.ITIMER_REAL, 0.3, 20)
        try:
            if work == "query":
                htap.query(long, hint="olap")
            else:
                with engine_of(htap).mirror.transaction() as transaction:
                    connection_of(transaction).execute(long).fetchall()
        except BaseException as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            print(work, type(error).__name__)
    htap.execute("update orders set status = 'x'")
    print(htap.sync_now().updated, htap.left_out)
"""


def test_an_interrupt_is_one_wherever_it_comes(world: World) -> None:
    found = run(_INTERRUPTED, world.settings.model_dump_json())
    told = ["query KeyboardInterrupt", "transaction KeyboardInterrupt", "3 {}"]
    assert found.stdout.splitlines() == told, found.stderr


def test_a_command_that_is_interrupted_ends_as_such(world: World) -> None:
    world.htap.sync_now()
    world.crash()
    file = world.directory / "p.yaml"
    file.write_text("source: {path: app.db}\nmirror: {path: mirror.duckdb}\n")
    long = "select count(*) from range(9000000) a, range(9000000) b where a.range < b.range"
    code = (
        "import signal, sys; from rhei_pipeline.cli.main import main;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        "signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT));"
        "from rhei_pipeline.htap import HTAP; query = HTAP.query;"
        "begin = lambda: signal.setitimer(signal.ITIMER_REAL, 0.3, 20);"
        "HTAP.query = lambda *a, **k: (begin(), query(*a, **k))[1];"
        f"sys.argv = ['rhei', 'query', {long!r}, '--hint', 'olap', '--config', {str(file)!r}];"
        "main()"
    )
    found = run(code)
    assert found.returncode == 128 + signal.SIGINT, found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.long
@pytest.mark.parametrize("method", ["logical", "trigger", "polling"])
def test_connections_that_ended_with_their_server_fail_nothing(
    make_postgres: MakePostgres, method: str
) -> None:
    world = make_postgres(capture={"method": method}, tables=[{"name": "t"}])
    world.run(
        "create table t(id int primary key, v text, updated_at timestamptz default now())",
        "insert into t values (1, 'a')",
    )
    assert world.htap.verify().equal
    for work in (world.htap.verify, world.htap.sync_now, world.htap.sync_status):
        world.run(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        work()
    assert world.htap.verify().equal


def test_the_source_answers_where_the_mirror_fails_for_good(make_world: MakeWorld) -> None:
    world = make_world(storage="parquet")
    world.run(
        "create table t(id integer primary key, v integer)",
        "insert into t with recursive n(i) as"
        " (select 1 union all select i + 1 from n where i < 999) select i, i % 7 from n",
    )
    sql = "select v, count(*) as n from t group by v order by v"
    world.htap.sync_now()
    assert world.htap.query(sql).schema.metadata[b"rhei.engine"] == b"olap"
    world.crash()
    (damaged,) = (world.directory / "parquet" / "data").glob("*.parquet")
    damaged.unlink()
    answer = world.htap.query(sql)
    reason = answer.schema.metadata[b"rhei.reason"].decode()
    assert answer.schema.metadata[b"rhei.engine"] == b"oltp"
    assert "but the mirror fails: " in reason
    assert "rhei repair t" in reason
    assert answer.num_rows == 7


def test_check_names_a_mirror_of_another_source(make_world: MakeWorld) -> None:
    first, second = make_world(), make_world()
    for world in (first, second):
        world.run("create table t(id integer primary key)")
    first.htap.sync_now()
    settings = second.settings.model_copy(update={"mirror": first.settings.mirror})
    assert validate_owner(settings) == []  # it is held by who owns it
    first.crash()
    assert validate_owner(first.settings) == []
    (finding,) = validate_owner(settings)
    assert "belongs to another source" in finding.what
    assert "mirror.path of its own" in finding.remedy


def _damaged_database(world: World) -> None:
    file = world.directory / "mirror.duckdb"
    file.write_bytes(b"no database" + file.read_bytes()[11:])


def _newer_database(world: World) -> None:
    with duckdb.connect(str(world.directory / "mirror.duckdb")) as mirror:
        mirror.execute("update _rhei_mirror set format = 99")


def _damaged_files(world: World) -> None:
    for manifest in (world.directory / "mirror" / "manifests").iterdir():
        manifest.write_bytes(b"no manifest")


@pytest.mark.parametrize(
    ("mirror", "break_it"),
    [
        ({"kind": "duckdb", "path": "mirror.duckdb"}, _damaged_database),
        ({"kind": "duckdb", "path": "mirror.duckdb"}, _newer_database),
        ({"kind": "datafusion", "storage": "parquet", "path": "mirror"}, _damaged_files),
    ],
    ids=["damaged database", "newer database", "damaged files"],
)
def test_a_mirror_that_cannot_be_opened_stops_nothing_that_does_not_need_it(
    mirror: dict[str, str],
    break_it: Callable[[World], None],
    world: World,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = world.directory / "p.yaml"
    file.write_text(
        json.dumps({"source": {"path": str(world.settings.sqlite_path)}, "mirror": mirror})
    )
    settings = Settings.load(file)
    with HTAP(settings) as htap:
        htap.sync_now()
        types = htap.query("select * from orders", hint="oltp").schema.types
    break_it(world)
    with HTAP(settings, hold=False) as htap:
        with pytest.raises(MirrorError) as fault:
            htap.query("select * from orders", hint="olap")
        assert fault.value.hint
        assert htap.execute("update orders set status = 'x'") == 3
        for hint in ("oltp", "auto"):
            found = htap.query("select * from orders where status = ?", ["x"], hint=hint)
            assert (found.num_rows, found.schema.types) == (3, types)
        told = f"the mirror cannot be opened: {fault.value}"
        assert found.schema.metadata[b"rhei.reason"].decode() == told
        assert htap.explain_route("select count(*) from orders").reason == told
        assert str(fault.value) in caplog.text
        with pytest.raises(MirrorError, match=re.escape(fault.value.message)):
            htap.sync_now()

    caplog.clear()
    _assert_served(settings, types, fault.value)
    assert caplog.text.count("cannot be opened, and the source answers") == 1

    def rhei(*given: str, typed: str | None = None) -> Result:
        return CliRunner().invoke(
            app, [*given, "--config", str(file)], prog_name="rhei", input=typed
        )

    shell = rhei("query", "-", typed="select count(*) as found from orders;\n\\d orders\n")
    assert (shell.exit_code, "3" in shell.stdout, "amount" in shell.stdout) == (0, True, True)
    assert rhei("execute", "update orders set status = 'y'").exit_code == 0
    for given in ([], ["--hint", "oltp"]):
        caplog.clear()
        shown = rhei("query", "select distinct status from orders", "--json", *given)
        assert (shown.exit_code, json.loads(shown.stdout)) == (0, [{"status": "y"}]), shown.output
        assert str(fault.value) in caplog.text
    refused = rhei("query", "select * from orders", "--hint", "olap")
    assert refused.exit_code == 1


def _assert_served(settings: Settings, types: list[pa.DataType], fault: MirrorError) -> None:
    """A process that holds the pipeline answers from the source, also in batches and to others."""
    with HTAP(settings) as htap, serving(htap, Addresses(port=0), ServerOptions()) as (port, _):
        streamed = htap.stream("select * from orders where id > ?", [0])
        assert (streamed.schema.types, htap.holds) == (types, False)
        assert sum(batch.num_rows for batch in streamed.batches) == 3
        address = f"grpc://127.0.0.1:{port}"
        with flight_sql.connect(address, autocommit=True) as client, client.cursor() as cursor:
            cursor.execute("select id, status from orders where id < ?", [3])
            assert cursor.fetch_arrow_table().num_rows == 2
            cursor.execute("select count(*) as n from orders")
            assert cursor.fetch_arrow_table().to_pylist() == [{"n": 3}]
            listed = client.adbc_get_objects(depth="tables").read_all().to_pylist()
            assert "orders" in str(listed)
        for only_mirror in (htap.sync_now, htap.sync_status, lambda: htap.row_count("orders")):
            with pytest.raises(MirrorError, match=re.escape(fault.message)):
                only_mirror()
