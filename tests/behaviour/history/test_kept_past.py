"""What a mirror holds of the past: no mode, key or declaration takes it away, one command does."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rhei_pipeline.errors import QueryError, SchemaDriftError, SchemaError
from tests.support.delta_readers import read_by_delta_rs
from tests.support.fix_world import World
from tests.support.parts import engine_of

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
STORAGES = (None, "memory", "ipc", "parquet", "delta")
ON_DISK = (None, "ipc", "parquet", "delta")


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest) -> str | None:
    found: str | None = request.param
    return found


def a_table(world: World) -> World:
    world.run(
        "create table p(id integer primary key, v text)",
        "insert into p values (1, 'a'), (2, 'b')",
        "create table q(id integer primary key)",
        "insert into q values (1)",
    )
    world.htap.sync_now()
    world.run("update p set v = 'c' where id = 1", "delete from p where id = 2")
    world.htap.sync_now()
    return world


def history(world: World, table: str = "p") -> list[tuple[Any, ...]]:
    order = "id, _rhei_valid_from"
    return [(row["id"], row["v"], row["_rhei_operation"]) for row in world.versions(table, order)]


VERSIONS = [(1, "a", "I"), (1, "c", "U"), (2, "b", "D")]


def rebuilt(world: World, columns: str, *rows: str) -> None:
    world.run("begin", "drop table p", f"create table p({columns})")
    world.run(*(f"insert into p values ({row})" for row in rows), "commit")


# --- a mode that changes


@pytest.mark.parametrize("registry_lost", [False, True])
@pytest.mark.parametrize("storage", ON_DISK)
def test_history_is_refused_to_be_lost_by_a_declared_mode(
    make_world: MakeWorld, storage: str | None, *, registry_lost: bool
) -> None:
    world = a_table(make_world(mode="temporal", storage=storage))
    world.crash()
    if registry_lost:
        (world.directory / "registry.json").unlink()
    world.mode = "destructive"
    world.tables = [{"name": "p"}, {"name": "q", "mode": "temporal"}]
    world.run("insert into q values (2)", "insert into p values (3, 'd')")
    report = world.htap.sync_now()
    assert "history, which would be lost" in report.errors["p"]
    assert not world.htap.verify().equal
    world.assert_equal("q")
    assert history(world) == VERSIONS
    assert world.htap.as_of("p", datetime.now(UTC))["v"].to_pylist() == ["c"]
    world.crash()
    world.mode = "temporal"
    assert not world.htap.sync_now().errors
    assert history(world) == [*VERSIONS, (3, "d", "I")]


@pytest.mark.parametrize("registry_lost", [False, True])
@pytest.mark.parametrize("storage", ON_DISK)
def test_a_mode_that_no_line_asks_for_is_the_one_it_is_mirrored_in(
    make_world: MakeWorld, storage: str | None, *, registry_lost: bool
) -> None:
    world = make_world(storage=storage, mode=None)
    world.run("create table p(id integer primary key, v text)", "insert into p values (1, 'a')")
    world.htap.register_table("p", "temporal")
    world.htap.sync_now()
    world.crash()
    if registry_lost:
        (world.directory / "registry.json").unlink()
    world.run("update p set v = 'b'")
    assert not world.htap.sync_now().errors
    assert history(world) == [(1, "a", "I"), (1, "b", "U")]
    assert world.htap.sync_status().tables["p"].mode == "temporal"


def test_a_table_cannot_be_registered_without_the_history_it_has(
    make_world: MakeWorld, storage: str | None
) -> None:
    world = a_table(make_world(mode="temporal", storage=storage))
    with pytest.raises(SchemaDriftError, match="history, which would be lost"):
        world.htap.register_table("p", "destructive")
    world.run("insert into p values (3, 'd')")
    assert not world.htap.sync_now().errors
    assert history(world) == [*VERSIONS, (3, "d", "I")]


@pytest.mark.parametrize("storage", ON_DISK)
def test_present_rows_become_baseline_versions(make_world: MakeWorld, storage: str | None) -> None:
    world = a_table(make_world(storage=storage))
    world.crash()
    world.mode = "temporal"
    world.run("insert into p values (3, 'd')")
    world.htap.sync_now()
    assert history(world) == [(1, "c", "I"), (3, "d", "I")]
    world.run("update p set v = 'e' where id = 1")
    world.htap.sync_now()
    assert history(world) == [(1, "c", "I"), (1, "e", "U"), (3, "d", "I")]


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("storage", ON_DISK)
def test_a_refused_mode_is_taken_after_the_history_was_dropped_or_set_aside(
    make_world: MakeWorld, storage: str | None, *, kept: bool
) -> None:
    world = a_table(make_world(mode="temporal", storage=storage))
    world.crash()
    world.mode = "destructive"
    world.tables = [{"name": "p"}]
    assert "drop-table p" in world.htap.sync_now().errors["p"]
    if kept:
        world.htap.drop_table("p", keep_as="p_history")
    else:
        world.htap.drop_table("p", discard_history=True)
    assert not world.htap.sync_now().errors
    world.assert_equal("p")
    assert world.htap.query("select * from p", hint="olap").column_names == ["id", "v"]
    if kept:
        assert history(world, "p_history") == VERSIONS


# --- a key that changes


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_another_key_leaves_no_row_twice(
    make_world: MakeWorld, storage: str | None, mode: str
) -> None:
    world = make_world(mode=mode, storage=storage)
    columns = "id integer not null, code integer not null, v text, primary key ({})"
    world.run("create table p(" + columns.format("id") + ")")
    world.run("insert into p values (1, 10, 'a'), (2, 20, 'b'), (3, 30, 'c')")
    world.htap.sync_now()
    for key in ("id, code", "code, id", "code"):
        rebuilt(world, columns.format(key), "1, 10, 'a'", "2, 20, 'x'", "4, 40, 'd'")
        assert not world.htap.sync_now().errors
        world.assert_equal("p")
        world.run("update p set v = v || '!' where id = 1", "delete from p where id = 4")
        world.htap.sync_now()
        world.assert_equal("p")
        assert world.htap.verify().equal
    if mode == "temporal":
        rows = [row for row in world.versions("p") if row["_rhei_valid_to"] is None]
        assert sorted(row["id"] for row in rows) == [1, 2]
        began = min(row["_rhei_valid_from"] for row in world.versions("p"))
        past = world.htap.as_of("p", began)
        assert sorted(past["v"].to_pylist()) == ["a", "b", "c"]


@pytest.mark.parametrize("storage", ON_DISK)
def test_a_key_that_its_past_does_not_fit_is_refused_and_the_past_kept(
    make_world: MakeWorld, storage: str | None
) -> None:
    world = make_world(mode="temporal", storage=storage)
    world.run("create table p(id integer primary key, v text not null)")
    world.run("insert into p values (1, 'a'), (2, 'a')")
    world.htap.sync_now()
    before = history(world)
    rebuilt(world, "id integer, v text primary key not null", "1, 'a'", "3, 'b'")
    for _ in range(2):
        error = world.htap.sync_now().errors["p"]
        assert "key was id and is now v, which its history does not fit" in error
        assert history(world) == before
        world.crash()
    world.htap.drop_table("p", keep_as="p_by_id")
    assert not world.htap.sync_now().errors
    world.assert_equal("p")
    assert history(world, "p_by_id") == before


def test_a_row_whose_new_key_changed_in_the_past_is_refused(make_world: MakeWorld) -> None:
    world = make_world(mode="temporal", storage="ipc")
    world.run("create table p(id integer primary key, v text not null)")
    world.run("insert into p values (1, 'a')")
    world.htap.sync_now()
    world.run("update p set v = 'b'")
    world.htap.sync_now()
    rebuilt(world, "id integer, v text primary key not null", "1, 'b'")
    assert "which its history does not fit" in world.htap.sync_now().errors["p"]


@pytest.mark.parametrize("storage", ON_DISK)
def test_a_key_column_of_another_type_still_finds_its_rows(
    make_world: MakeWorld, storage: str | None
) -> None:
    world = make_world(mode="temporal", storage=storage)
    world.run("create table p(id text primary key not null, v text)")
    world.run("insert into p values ('1', 'a'), ('2', 'b')")
    world.htap.sync_now()
    rebuilt(world, "id integer primary key, v text", "1, 'a'", "2, 'c'")
    assert not world.htap.sync_now().errors
    world.run("update p set v = 'd' where id = 1")
    world.htap.sync_now()
    assert world.htap.verify().equal
    assert history(world) == [(1, "a", "I"), (1, "d", "U"), (2, "b", "I"), (2, "c", "U")]


def test_a_mirror_of_before_keys_were_recorded_takes_the_registrys(make_world: MakeWorld) -> None:
    world = make_world(mode="temporal")
    world.run("create table p(id integer primary key, v text not null)")
    world.run("insert into p values (1, 'a'), (2, 'a')")
    world.htap.sync_now()
    mirror: Any = engine_of(world.htap).mirror
    mirror._connection.execute("delete from _rhei_table")
    world.crash()
    rebuilt(world, "id integer, v text primary key not null", "1, 'a'")
    assert "key was id" in world.htap.sync_now().errors["p"]


@pytest.mark.parametrize("storage", ON_DISK)
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_name_that_changes_its_case_only_keeps_its_rows_and_history(
    make_world: MakeWorld, storage: str | None, mode: str
) -> None:
    world = a_table(make_world(mode=mode, storage=storage))
    world.run("alter table p rename to _p", "alter table _p rename to P")
    world.run("insert into P values (5, 'n')")
    world.crash()
    assert not world.htap.sync_now().errors
    world.assert_equal("P")
    assert not world.htap.sync_status().not_followed
    if mode == "temporal":
        assert history(world, "P") == [*VERSIONS, (5, "n", "I")]


# --- tables no longer followed


@pytest.mark.parametrize("storage", ON_DISK)  # a mirror in memory ends with its declaration
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_table_that_left_the_declaration_is_named_and_answers_no_more(
    make_world: MakeWorld, storage: str | None, mode: str
) -> None:
    world = a_table(make_world(mode=mode, storage=storage))
    world.crash()
    world.tables = [{"name": "q"}]
    world.run("insert into p values (9, 'z')")
    report = world.htap.sync_now()
    assert not report.errors
    (since,) = [report.not_followed["p"]]
    assert datetime.now(UTC) - since < timedelta(minutes=5)
    assert world.htap.sync_status().not_followed == {"p": since}
    verified = world.htap.verify()
    assert verified.equal
    assert verified.not_followed == {"p": since}
    counted = world.htap.query("select count(*) as n from p")
    assert counted["n"].to_pylist() == [2]  # the source's
    found = world.htap.query("select v from p where id = 1 order by v", hint="olap")
    assert found["v"].to_pylist()[-1] == "c"
    told = json.loads(found.schema.metadata[b"rhei.not_followed"])
    assert told == {"p": since.isoformat()}
    if mode == "temporal":
        with pytest.raises(QueryError, match="no longer followed since"):
            world.htap.query("select v from p where _rhei_valid_to is null")
        assert world.htap.as_of("p", since)["v"].to_pylist() == ["c"]
    world.htap.drop_table("p", discard_history=mode == "temporal")
    assert not world.htap.sync_now().not_followed
    with pytest.raises(QueryError):
        world.htap.query("select v from p", hint="olap")
    with pytest.raises(SchemaError, match="not in the mirror"):
        world.htap.drop_table("p")


def test_a_table_that_left_the_source_is_named(make_world: MakeWorld) -> None:
    world = a_table(make_world(mode="temporal"))
    world.crash()
    world.run("drop table p")
    report = world.htap.sync_now()
    assert list(report.not_followed) == ["p"]
    assert history(world) == VERSIONS
    world.htap.drop_table("p", keep_as="p_gone")
    assert history(world, "p_gone") == VERSIONS
    assert not world.htap.sync_now().not_followed


def test_a_table_that_comes_back_is_followed_again(make_world: MakeWorld) -> None:
    world = a_table(make_world(mode="temporal"))
    world.crash()
    world.tables = [{"name": "q"}]
    assert world.htap.sync_now().not_followed
    world.crash()
    world.tables = None
    world.run("update p set v = 'e' where id = 1")
    assert not world.htap.sync_now().not_followed
    assert history(world) == [(1, "a", "I"), (1, "c", "U"), (1, "e", "U"), (2, "b", "D")]


# --- dropping


def test_a_dropped_table_is_copied_anew(make_world: MakeWorld, storage: str | None) -> None:
    world = a_table(make_world(storage=storage))
    world.run("insert into p values (3, x'00')")
    assert world.htap.sync_now().dead_letters == 1
    report = world.htap.drop_table("p")
    assert (report.table, report.rows, report.kept_as) == ("p", 1, None)
    assert world.htap.dead_letters().num_rows == 0
    assert world.htap.sync_status().tables["p"].watermark is None
    world.run("delete from p where id = 3", "insert into p values (4, 'd')")
    assert world.htap.sync_now().tables["p"].copied_rows == 2
    world.assert_equal("p", "q")
    assert world.htap.verify().equal


def test_history_is_dropped_only_when_it_is_said(
    make_world: MakeWorld, storage: str | None
) -> None:
    world = a_table(make_world(mode="temporal", storage=storage))
    with pytest.raises(SchemaError, match=r"would be lost.*--keep-as.*--discard-history"):
        world.htap.drop_table("p")
    with pytest.raises(SchemaError, match="not both"):
        world.htap.drop_table("p", keep_as="x", discard_history=True)
    for name in ("q", "_rhei_x", "", "P", "a.b", "../x", "a/b", "nul\0x"):
        with pytest.raises(SchemaError):
            world.htap.drop_table("p", keep_as=name)
    with pytest.raises(SchemaError, match="did you mean 'p'"):
        world.htap.drop_table("pp", discard_history=True)
    assert history(world) == VERSIONS
    today = datetime.now(UTC)
    world.htap.snapshot("p", {today.date(): today})
    assert world.htap.drop_table("p", keep_as="p_old").rows == 3
    assert history(world, "p_old") == VERSIONS
    world.htap.sync_now()
    assert history(world) == [(1, "c", "I")]
    for name in ("p_old", "P_OLD") if storage is None else ("p_old",):
        with pytest.raises(SchemaError, match="already has a table 'p_old'"):
            world.htap.drop_table("p", keep_as=name)
    kept = world.htap.query("select v from snapshot.p_old", hint="olap")
    assert kept["v"].to_pylist() == ["c"]
    with pytest.raises(QueryError):
        world.htap.query("select v from snapshot.p", hint="olap")
    assert world.htap.as_of("p_old", today)["v"].to_pylist() == ["c"]
    assert not world.htap.sync_status().not_followed
    world.htap.drop_table("p_old", discard_history=True)
    with pytest.raises(QueryError):
        world.htap.query("select v from p_old", hint="olap")


def test_a_history_set_aside_is_never_taken_for_another_tables(
    make_world: MakeWorld, storage: str | None
) -> None:
    world = a_table(make_world(mode="temporal", storage=storage))
    world.htap.drop_table("p", keep_as="r")
    world.run("create table r(id integer primary key, v text)", "insert into r values (1, 'r')")
    world.htap.register_table("r", "temporal")
    assert "another table of this name" in world.htap.sync_now().errors["r"]
    assert history(world, "r") == VERSIONS
    world.htap.drop_table("r", keep_as="r_aside")
    assert not world.htap.sync_now().errors
    assert history(world, "r") == [(1, "r", "I")]
    assert history(world, "r_aside") == VERSIONS


@pytest.mark.parametrize("storage", ON_DISK)
def test_a_copy_that_was_cut_off_is_dropped_with_its_table(
    make_world: MakeWorld, storage: str | None
) -> None:
    from rhei_pipeline.protocols import Step  # noqa: PLC0415

    world = make_world(storage=storage, batch_rows=1)
    world.run("create table p(id integer primary key, v text)")
    world.run("insert into p values (1, 'a'), (2, 'b'), (3, 'c')")
    world.faults.arm(Step.COPY_BATCH)
    assert world.surviving(world.htap.sync_now)
    world.htap.drop_table("p")
    world.run("update p set v = 'z' where id = 1")
    world.htap.sync_now()
    world.assert_equal("p")


@pytest.mark.parametrize("options", [{"buffered": True}, {"method": "polling"}])
def test_a_table_is_dropped_whatever_captures_it(
    make_world: MakeWorld, options: dict[str, Any]
) -> None:
    polled = [{"name": "p", "polling": {"updated_at": "at", "deletes": "reconcile"}}]
    world = make_world(mode="temporal", tables=polled, **options)
    world.run("create table p(id integer primary key, v text, at integer not null)")
    world.run("insert into p values (1, 'a', 1), (2, 'b', 2)")
    world.htap.sync_now()
    world.htap.drop_table("p", keep_as="p_old")
    world.run("update p set v = 'c', at = 3 where id = 1", "delete from p where id = 2")
    world.htap.sync_now()
    world.run("update p set v = 'd', at = 4")
    world.htap.sync_now()
    assert history(world) == [(1, "c", "I"), (1, "d", "U")]
    assert world.htap.verify().equal


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("options", [{}, {"buffered": True}, {"method": "polling"}])
def test_an_integer_is_exact_in_a_column_overridden_as_text(
    make_world: MakeWorld, mode: str, options: dict[str, Any]
) -> None:
    declared = {"name": "p", "types": {"a": "string", "b": "binary", "c": "int64"}}
    declared["polling"] = {"updated_at": "at", "deletes": "reconcile"}
    world = make_world(mode=mode, tables=[declared], **options)
    world.run(
        "create table p(id integer primary key, a integer, b blob, c real, at integer not null)",
        "insert into p values (1, 7, 'x', 2.0, 1), (2, 'seven', x'ff', 3, 1)",
        "insert into p values (3, 1.5, null, null, 1), (4, -9223372036854775808, null, 0, 1)",
    )
    assert world.htap.sync_now().dead_letters == 0
    world.run("update p set a = 8, c = 4.5, at = 2 where id = 2", "update p set a = 9, at = 2")
    assert world.htap.sync_now().dead_letters == 1  # 4.5 is no integer
    world.run("update p set c = 5, at = 3")
    assert world.htap.sync_now().dead_letters == 0
    assert world.htap.verify().equal
    where = " where _rhei_valid_to is null" if mode == "temporal" else ""
    found = world.htap.query(f"select a, b, c from p{where} order by id", hint="olap")
    assert found["a"].to_pylist() == ["9"] * 4
    assert found["b"].to_pylist() == [b"x", b"\xff", None, None]
    assert found["c"].to_pylist() == [5] * 4


@pytest.mark.long
def test_the_command_explains_asks_and_drops(make_world: MakeWorld, tmp_path: Path) -> None:
    from typer.testing import CliRunner  # noqa: PLC0415

    from rhei_pipeline.cli.main import app  # noqa: PLC0415

    world = a_table(make_world(mode="temporal"))
    world.crash()
    settings, config = world.settings, tmp_path / "pipeline.yaml"

    def declare(tables: str) -> None:
        config.write_text(
            f"source: {{kind: sqlite, path: {settings.sqlite_path}}}\n"
            f"mirror: {{kind: duckdb, path: {settings.mirror.path}}}\n"
            f"registry: {{path: {settings.registry.path}}}\n"
            f"tables: {tables}\n"
        )

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, [*arguments, "--config", str(config)], prog_name="rhei")

    declare("[{name: q}]")
    found = json.loads(run("check", "--json").stdout)["findings"]
    assert "no longer followed" in [each["what"] for each in found if each["table"] == "p"]
    for command in ("sync", "status", "verify"):
        found = run(command)
        assert found.exit_code == 0, found.output
        assert "table 'p' is no longer followed since 20" in found.stderr
        assert "rhei drop-table p" in found.stderr
    asked = run("query", "select * from p", "--hint", "olap")
    assert "table 'p': its rows are of 20" in asked.stderr
    assert json.loads(run("sync", "--json").stdout)["not_followed"]["p"].startswith("20")
    assert "followed since 20" in json.dumps(json.loads(run("check", "--json").stdout))
    refused = run("drop-table", "p")
    assert refused.exit_code == 1
    assert "would be lost" in str(refused.exception)
    assert run("drop-table", "p", "--keep-as", "x", "--discard-history").exit_code == 2
    done = run("drop-table", "p", "--keep-as", "p_2026", "--json")
    assert json.loads(done.stdout) == {"table": "p", "rows": 3, "kept_as": "p_2026"}
    assert run("drop-table", "p").exit_code == 1
    asked = run("query", "select count(*) as n from p_2026", "--hint", "olap", "--json")
    assert json.loads(asked.stdout) == [{"n": 3}]
    assert run("drop-table", "p_2026", "--discard-history", "--yes").exit_code == 0
    assert "no longer followed" not in run("status").stderr


def test_a_dropped_table_leaves_no_delta_table_to_others(make_world: MakeWorld) -> None:
    from deltalake import DeltaTable  # noqa: PLC0415

    world = a_table(make_world(mode="temporal", storage="delta"))
    world.crash()  # publishes
    place = world.directory / "delta" / "delta" / "main"
    assert read_by_delta_rs(DeltaTable(place / "p")).num_rows == 3
    world.htap.drop_table("p", keep_as="p_old")
    world.crash()
    assert not DeltaTable.is_deltatable(str(place / "p"))
    assert read_by_delta_rs(DeltaTable(place / "p_old")).num_rows == 3
    world.htap.sync_now()
    world.crash()
    assert read_by_delta_rs(DeltaTable(place / "p")).num_rows == 1
