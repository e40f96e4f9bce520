"""Everything opens whatever the source looks like; each fault is named once, with its way out."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rhei_pipeline as rhei
from rhei_pipeline import Settings
from rhei_pipeline.cli.main import app
from rhei_pipeline.cli.repl import Shell
from rhei_pipeline.errors import PermanentError, SchemaError
from rhei_pipeline.monitoring.metrics import Monitoring
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
MakePostgres = Callable[..., PostgresWorld]
#: Each name is a table that cannot be mirrored, and what is said of it.
FAULTS = {
    "gone": "no such table",
    "keyless": "no primary key",
    "mixed": "has no clear type",
    "seen": "it is a view",
    "found": "it is a virtual",
    "twice": "declared more than once",
    "lost": "no primary key",
}


def _broken(make_world: MakeWorld) -> World:
    """A source with every fault there is, beside two good tables; one had a key and a history."""
    world = make_world(tables=[{"name": "good"}, {"name": "lost", "mode": "temporal"}])
    world.run(
        "create table good(id integer primary key, v text)",
        "create table lost(id integer primary key, v text)",
        "insert into good values (1, 'a')",
        "insert into lost values (1, 'a')",
    )
    world.htap.sync_now()
    world.crash()
    world.run(
        "drop table lost",
        "create table lost(id integer, v text)",
        "create table keyless(a, b)",
        "create table mixed(id integer primary key, v numeric)",
        "insert into mixed values (1, 5), (2, 'n/a')",
        "create view seen as select 1 as id",
        "create virtual table found using fts5(a)",
        "create table twice(id integer primary key)",
        "insert into good values (2, 'b')",
    )
    names = ("good", "twice", "Twice", *FAULTS)
    world.tables = [
        {"name": name, **({"mode": "temporal"} if name == "lost" else {})} for name in names
    ]
    return world


def _declared(world: World | PostgresWorld) -> Path:
    file = world.directory / "pipeline.yaml"
    form = json.loads(world.settings.model_dump_json(exclude_none=True, exclude_defaults=True))
    if isinstance(world, PostgresWorld):
        form["source"] = {"kind": "postgres", "dsn": world.dsn}
    file.write_text(json.dumps(form))  # JSON is YAML
    return file


@pytest.mark.long
def test_every_command_goes_on_with_the_rest_and_names_each_fault_once(
    make_world: MakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world = _broken(make_world)
    file, since = _declared(world), datetime.now(UTC).isoformat()
    world.crash()
    for arguments, code in (
        (["sync"], 3),
        (["status"], 3),
        (["verify"], 3),
        (["copy"], 3),
        (["check"], 1),
        (["copy", "--table", "good"], 0),
        (["repair", "good"], 0),
        (["verify", "--table", "good"], 0),
        (["dead-letters"], 0),
        (["query", "select count(*) as n from good"], 0),
        (["as-of", "lost", since], 0),
        (["copy", "--table", "keyless"], 1),
        (["verify", "--table", "mixed"], 1),
    ):
        result = CliRunner().invoke(app, [*arguments, "--config", str(file)])
        if result.exit_code == 1 and result.exception and arguments[0] != "check":
            assert isinstance(result.exception, PermanentError), result.exception
        assert result.exit_code == code, (arguments, result.output, result.exception)
        if code == 3:
            for name, fault in FAULTS.items():
                of_table = [it for it in result.stderr.splitlines() if f"table '{name}'" in it]
                told = [line for line in of_table if " WARNING " not in line]  # of the log
                assert len(told) == 1, (arguments, name, result.stderr)
                assert fault in told[0]
                assert told[0].endswith(")"), told  # the way out
    with rhei.open(file) as htap:
        assert htap.left_out.keys() == FAULTS.keys()
        assert htap.tables() == ["good"]
        assert htap.query("select count(*) as n from good")["n"].to_pylist() == [2]
        assert htap.as_of("lost", datetime.now(UTC)).num_rows == 1
        assert htap.known_since("lost")
        assert Monitoring(htap).readiness() is None
        lines = iter(["\\d", "\\d keyless", "select count(*) from good;"])
        Shell(htap, lambda _: next(lines, "\\q")).run()
        shown = capsys.readouterr().err
        assert shown.count("table 'keyless': it has no primary key") == 2  # by each \\d
        for ask in (htap.initial_sync, htap.verify, htap.register_table, htap.repair):
            with pytest.raises(SchemaError, match="no primary key"):
                ask("keyless")
            with pytest.raises(SchemaError, match="no primary key"):
                ask("lost")


def test_what_is_mended_is_taken_in_by_the_next_sync(make_world: MakeWorld) -> None:
    world = _broken(make_world)
    assert world.htap.sync_now().errors.keys() == FAULTS.keys()
    world.run(
        "create table Gone(id integer primary key)",
        "insert into gone values (7)",
        "drop table keyless",
        "create table keyless(a integer primary key, b)",
        "delete from mixed where id = 2",
        "drop view seen",
        "create table seen(id integer primary key)",
        "drop table lost",
        "create table lost(id integer primary key, v text)",
        "insert into lost values (1, 'b')",
    )
    report = world.htap.sync_now()
    assert report.errors.keys() == {"found", "twice"}
    assert report.tables["Gone"].copied_rows == 1
    assert world.htap.sync_status().tables.keys() == {
        "good",
        "twice",
        "Gone",
        "keyless",
        "mixed",
        "seen",
        "found",
        "lost",
    }
    world.htap.register_table("MIXED")
    assert "mixed" not in world.htap.sync_now().errors
    world.assert_equal("Gone", "keyless", "mixed", "seen", "lost")
    assert len(world.versions("lost")) == 2


@pytest.mark.long
def test_a_table_that_loses_its_key_is_named_though_none_is_declared(
    make_world: MakeWorld,
) -> None:
    world = make_world()
    world.run("create table a(id integer primary key)", "create table z(id integer primary key)")
    world.htap.sync_now()
    world.run("drop table z", "create table z(id integer)", "insert into z values (1)")
    for _ in range(2):
        assert list(world.htap.sync_now().errors) == ["z"]
        assert list(world.htap.verify().errors) == ["z"]
        assert world.htap.query("select count(*) as n from z")["n"].to_pylist() == [1]
        world.crash()
    world.htap.drop_table("z")
    world.crash()
    assert not world.htap.sync_now().errors


def _assert_picks_up(world: World | PostgresWorld) -> None:
    world.run("create table a(id integer primary key)")
    world.htap.sync_now()
    world.run("create table b(id integer primary key)", "insert into b values (1)")
    assert world.htap.sync_now().tables["b"].copied_rows == 1
    world.run("insert into b values (2)")
    world.htap.sync_now()
    world.assert_equal("a", "b")


def test_a_new_table_is_picked_up_by_a_running_process(make_world: MakeWorld) -> None:
    _assert_picks_up(make_world())


def test_a_new_table_of_postgres_is_picked_up_by_a_running_process(
    make_postgres: MakePostgres,
) -> None:
    _assert_picks_up(make_postgres())


@pytest.mark.parametrize("method", ["logical", "trigger", "polling"])
def test_postgres_opens_whatever_it_looks_like(make_postgres: MakePostgres, method: str) -> None:
    names = ("good", "gone", "keyless", "seen", "elsewhere", "secret", "loses")
    world = make_postgres(capture={"method": method}, tables=[{"name": name} for name in names])
    columns = "(id int primary key, v text, updated_at timestamptz default now())"
    world.run(
        *(f"create table {name}{columns}" for name in ("good", "secret", "loses")),
        "create table keyless(id int, v text, updated_at timestamptz)",
        "create view seen as select * from good",
        "create extension if not exists postgres_fdw",
        "create server other foreign data wrapper postgres_fdw",
        "create foreign table elsewhere(id int) server other",
        "insert into good values (1, 'a')",
        "insert into loses values (1, 'a')",
    )
    assert sorted(world.htap.sync_now().errors) == ["elsewhere", "gone", "keyless", "seen"]
    world.run(
        "alter table loses drop constraint loses_pkey",
        "alter table secret rename to hidden",
        "insert into good values (2, 'b')",
    )
    for _ in range(2):
        report = world.htap.sync_now()
        assert sorted(report.errors) == sorted(set(names) - {"good"}), report.errors
        assert all(error.endswith(")") for error in report.errors.values()), report.errors
        world.assert_equal("good")
        world.crash()
    world.run(
        "alter table loses add primary key (id)",
        "alter table hidden rename to secret",
        "insert into loses values (2, 'b')",
    )
    assert sorted(world.htap.sync_now().errors) == ["elsewhere", "gone", "keyless", "seen"]
    world.assert_equal("good", "loses", "secret")


@pytest.mark.parametrize("method", ["logical", "trigger", "polling"])
def test_a_privilege_that_is_lost_is_one_tables_own(
    make_postgres: MakePostgres, method: str
) -> None:
    admin = make_postgres(capture={"method": method}, tables=[{"name": "a"}, {"name": "b"}])
    role = f"rhei_{method}"
    columns = "(id int primary key, v text, updated_at timestamptz default now())"
    admin.run(
        f"create role {role} login replication",
        f"create table a{columns}",
        f"create table b{columns}",
        f"alter table a owner to {role}",
        f"alter table b owner to {role}",
        "insert into a values (1, 'a')",
        "insert into b values (1, 'a')",
        f"grant create on database {admin.app.info.dbname} to {role}",
    )
    own = make_postgres(capture={"method": method}, tables=[{"name": "a"}, {"name": "b"}])
    own.dsn = f"{admin.dsn}&user={role}"
    try:
        own.htap.sync_now()
        admin.run(
            f"revoke all on b from {role}",
            "insert into a values (2, 'b')",
            "insert into b values (2, 'b')",
        )
        report = own.htap.sync_now()
        assert report.tables["a"].inserted == 1
        if method != "logical":  # the log is read whatever may be selected
            assert "permission denied" in report.errors["b"]
            assert "rhei check" in report.errors["b"]
        admin.run(f"grant all on b to {role}")
        assert not own.htap.sync_now().errors
        own.assert_equal("a", "b")
    finally:
        own.close()
        admin.run(f"drop owned by {role} cascade", f"drop role {role}")


def test_the_first_declaration_names_what_it_leaves_out_and_runs_as_it_is(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    world = _broken(make_world)
    file = tmp_path / "made" / "pipeline.yaml"
    made = CliRunner().invoke(app, ["init", str(world.path), "--output", str(file)])
    assert made.exit_code == 0, made.output
    for name in ("keyless", "mixed", "seen", "found", "lost"):
        assert f"left out {name}: " in made.output, made.output
        assert f"#   {name}: " in file.read_text()
    result = CliRunner().invoke(app, ["sync", "--json", "--config", str(file)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["tables"].keys() == {"good", "twice"}


@pytest.mark.parametrize("method", ["logical", "trigger"])
def test_the_first_declaration_of_postgres_runs_as_it_is(
    request: pytest.FixtureRequest, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = request.getfixturevalue("dsn" if method == "logical" else "dating_dsn")
    world = PostgresWorld(dsn, tmp_path)
    world.run(
        'create table "Orders"(id int primary key)',
        "create table orders(id int primary key)",
        'create table c(id int primary key, "A" text, a text)',
        "create table parts(id int primary key) partition by range (id)",
        "create table part partition of parts for values from (0) to (9)",
        "create unlogged table unlogged(id int primary key)",
        "create table keyless(id int)",
        "create view seen as select 1 as id",
        "create materialized view kept as select 1 as id",
    )
    file = tmp_path / "made" / "pipeline.yaml"
    made = CliRunner().invoke(app, ["init", dsn, "--output", str(file)])
    assert made.exit_code == 0, made.output
    text = file.read_text()
    assert f"capture: {{method: {method}}}" in text
    left_out = {"c", "unlogged", "keyless", "seen", "kept", *(["parts"] * (method == "trigger"))}
    for name in left_out:
        assert f"left out {name}: " in made.output, made.output
        assert f"#   {name}: " in text
    monkeypatch.setenv("RHEI__SOURCE__DSN", dsn)
    settings = Settings.load(file)
    with rhei.open(settings) as htap:
        report = htap.sync_now()
    assert not report.errors
    assert {"Orders", "orders"} <= report.tables.keys()
    world.close()


def _reshaped(world: World | PostgresWorld) -> None:
    """Open a source whose table has a new column, and look: no lag is told until a sync."""
    world.htap.sync_now()
    world.crash()
    world.run("alter table t add column x int", "insert into t values (2, 'b', 5)")
    status = world.htap.sync_status().tables["t"]
    assert (status.lag_events, status.lag_seconds) == (None, None)
    assert "its columns have changed" in str(status.doubt)
    assert not world.htap.sync_now().errors
    status = world.htap.sync_status().tables["t"]
    assert (status.lag_events, status.lag_seconds, status.doubt) == (0, 0.0, None)
    world.assert_equal("t")


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("storage", [None, "parquet"])
def test_no_lag_is_told_of_a_table_whose_new_columns_are_still_to_be_read(
    mode: str, *, buffered: bool, storage: str | None, make_world: MakeWorld
) -> None:
    world = make_world(mode=mode, buffered=buffered, storage=storage, tables=[{"name": "t"}])
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    _reshaped(world)


@pytest.mark.long
@pytest.mark.parametrize("capture", ["logical", "trigger"])
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_nor_of_one_of_postgres(capture: str, mode: str, make_postgres: MakePostgres) -> None:
    world = make_postgres(mode=mode, capture={"method": capture}, tables=[{"name": "t"}])
    world.run("create table t(id int primary key, v text)", "insert into t values (1, 'a')")
    _reshaped(world)
