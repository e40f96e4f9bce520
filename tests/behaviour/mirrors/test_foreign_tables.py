"""Tables that others made where a mirror is to have its own: none is replaced, the rest goes on."""

import os
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from rhei_pipeline import HTAP, Settings, reader
from rhei_pipeline.errors import SchemaDriftError
from rhei_pipeline.model.reports import Severity
from rhei_pipeline.protocols import Step
from rhei_pipeline.wiring.adoption import validate_owner
from rhei_pipeline.wiring.foreign_tables import validate_foreign
from rhei_pipeline.wiring.kept_texts import validate_texts
from rhei_pipeline.wiring.places import validate_places
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

MADE = {
    "table": "create table t(precious int); insert into t values (42)",
    "view": "create table kept as select 42 as precious; create view t as from kept",
    "other case": "create table T(precious int); insert into T values (42)",
}


def ask(file: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(duckdb.connect(str(file))) as opened:
        return opened.execute(sql).fetchall()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["table", "view"])
@pytest.mark.parametrize("source", ["sqlite", "postgres"])
def test_a_name_without_a_schema_is_a_mirrored_table_s_wherever_others_have_one(
    request: pytest.FixtureRequest, source: str, kind: str
) -> None:
    """A mirror of PostgreSQL has its tables in `public`, one of SQLite in `main`."""
    make = request.getfixturevalue("make_world" if source == "sqlite" else "make_postgres")
    world = make(tables=[{"name": "t"}, {"name": "o"}])
    for name in ("t", "o"):
        world.run(f"create table {name}(id integer primary key, v text)")
        world.run(f"insert into {name} values (1, 'own')")
    whole = world.settings
    sharded = Settings(**{**whole.model_dump(), "tables": whole.tables, "shards": [["t"], ["o"]]})
    theirs = "public" if source == "sqlite" else "main"
    for pipeline in sharded.pipelines():
        with HTAP(pipeline) as htap:
            htap.sync_now()
    for pipeline in (whole, sharded.pipelines()[0]):
        file = Path(str(pipeline.mirror.path))
        with HTAP(pipeline) as htap:
            htap.sync_now()
        ask(file, f"create schema if not exists {theirs}")
        ask(file, f"create {kind} {theirs}.t as select 2 as id, 'theirs' as v")
        for hint in ("olap", "auto"):
            with HTAP(pipeline) as htap:
                for asked in ("select v from t", "with x as (from t) select v from x"):
                    if hint == "olap" or not asked.startswith("with"):
                        assert htap.query(asked, hint=hint)["v"].to_pylist() == ["own"]
                assert htap.query("select max(v) as v from t", hint=hint)["v"].to_pylist() == [
                    "own"
                ]
                # Theirs can be read as before, under their whole name.
                told = htap.query(f"select v from {theirs}.t", hint="olap")
                assert told["v"].to_pylist() == ["theirs"]
    for declared in (whole, sharded):
        with reader(declared) as opened:
            assert opened.query("select v from t")["v"].to_pylist() == ["own"]


@pytest.mark.long
@pytest.mark.each
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("kind", [*MADE])
def test_a_table_of_others_in_a_duckdb_file_is_not_replaced(
    make_world: Callable[..., World], mode: str, kind: str
) -> None:
    world = make_world(mode=mode)
    file = world.directory / "mirror.duckdb"
    ask(file, MADE[kind])
    for name in ("t", "o"):
        world.run(f"create table {name}(id integer primary key)", f"insert into {name} values (1)")
    for _ in range(2):
        world.htap.sync_now()
        tables = world.htap.sync_status().tables
        assert "somebody else made" in str(tables["t"].error)
        assert tables["o"].error is None
        with pytest.raises(SchemaDriftError, match="rename that one"):
            world.htap.initial_sync("t")
        with pytest.raises(SchemaDriftError, match="rename that one"):
            world.htap.repair("t")
        world.assert_equal("o")
        world.crash()
        assert ask(file, "select precious from t") == [(42,)]
    view = "view" if kind == "view" else "table"
    ask(file, f"alter {view} t rename to theirs")
    world.htap.sync_now()
    world.assert_equal("t", "o")
    world.crash()
    assert ask(file, "select precious from theirs") == [(42,)]


@pytest.mark.parametrize("kind", [*MADE])
def test_a_check_names_the_tables_of_others_and_changes_nothing(
    make_world: Callable[..., World], kind: str
) -> None:
    tables = [{"name": "t"}, {"name": "o"}, {"name": "kept", "mirror_name": "mine"}]
    world = make_world(tables=tables)
    file = world.directory / "mirror.duckdb"
    ask(file, f"{MADE[kind]}; create view if not exists kept as select 1")
    for name in ("t", "o", "kept"):
        world.run(f"create table {name}(id integer primary key)", f"insert into {name} values (1)")
    before = file.read_bytes()
    (finding,) = validate_foreign(world.settings)
    assert finding.table == "t"
    assert "somebody else made" in finding.what
    assert validate_owner(world.settings) == validate_texts(world.settings) == []
    assert (file.read_bytes(), [*world.directory.glob("mirror*")]) == (before, [file])
    world.htap.sync_now()
    world.assert_equal("o")
    assert validate_foreign(world.settings) == []  # who holds the file has named it
    world.crash()
    assert [found.table for found in validate_foreign(world.settings)] == ["t"]
    ask(file, f"alter {'view' if kind == 'view' else 'table'} t rename to theirs")
    assert validate_foreign(world.settings) == []


def test_a_check_names_macros_that_answer_in_the_place_of_functions(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    file = world.directory / "mirror.duckdb"
    world.run("create table t(id integer primary key)", "insert into t values (1), (2)")
    world.htap.sync_now()
    world.crash()
    assert validate_foreign(world.settings) == []
    ask(file, "create macro sum(x) as 7; create macro mine(x) as 7; create macro MAX(x) as 7")
    before = file.read_bytes()
    (finding,) = validate_foreign(world.settings)
    assert finding.severity is Severity.ERROR
    assert finding.what.endswith("functions: max, sum")
    assert file.read_bytes() == before
    assert finding.remedy.startswith("drop them in DuckDB while nothing has the file open")
    ask(file, "drop macro sum; drop macro max")
    assert validate_foreign(world.settings) == []
    world.htap.sync_now()
    assert world.htap.query("select sum(id) as n from t", hint="olap")["n"].to_pylist() == [3]


@pytest.mark.parametrize("storage", ["parquet", "delta"])
def test_a_check_makes_no_mirror_in_a_directory_of_others(
    make_world: Callable[..., World], storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(storage=storage)
    directory = world.directory / storage
    (directory / "data").mkdir(parents=True)
    (directory / "data" / "theirs.parquet").write_text("theirs")
    assert validate_owner(world.settings) == []
    assert [path.name for path in directory.rglob("*")] == ["data", "theirs.parquet"]
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_, **__: False)
        found = validate_places(world.settings)
    assert [each.what.split()[0] for each in found] == ["mirror", "registry"]
    assert validate_places(world.settings) == []
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    world.htap.sync_now()
    world.crash()
    for manifest in directory.glob("manifests/*"):
        manifest.unlink()
    (finding,) = validate_owner(world.settings)
    assert "is missing" in finding.what


@pytest.mark.each
@pytest.mark.parametrize("keep_as", [None, "aside"])
@pytest.mark.parametrize("kind", [*MADE])
def test_a_table_of_others_is_not_dropped(
    make_world: Callable[..., World], kind: str, keep_as: str | None
) -> None:
    world = make_world()
    ask(world.directory / "mirror.duckdb", MADE[kind])
    world.run("create table o(id integer primary key)", "insert into o values (1)")
    world.htap.sync_now()
    with pytest.raises(SchemaDriftError, match="somebody else made"):
        world.htap.drop_table("t", keep_as=keep_as)
    assert world.htap.drop_table("o", keep_as=keep_as).rows == 1
    world.crash()
    assert ask(world.directory / "mirror.duckdb", "select precious from t") == [(42,)]


def test_a_table_that_others_make_while_a_copy_is_cut_off_is_not_replaced(
    make_world: Callable[..., World],
) -> None:
    world = make_world(batch_rows=1)
    world.run("create table t(id integer primary key)", "insert into t values (1), (2), (3)")
    world.faults.arm(Step.COPY_BATCH, 2)
    assert world.surviving(world.htap.sync_now)
    ask(world.directory / "mirror.duckdb", MADE["table"])
    world.htap.sync_now()
    assert "somebody else made" in str(world.htap.sync_status().tables["t"].error)
    world.crash()
    assert ask(world.directory / "mirror.duckdb", "from t") == [(42,)]
    ask(world.directory / "mirror.duckdb", "drop table t")
    world.htap.sync_now()
    world.assert_equal("t")


@pytest.mark.parametrize("lacking", ["_rhei_history", "_rhei_watermark"])
def test_a_table_of_a_mirror_that_is_older_than_its_records_is_its_own(
    make_world: Callable[..., World], lacking: str
) -> None:
    """Where there is a registry, its tables are recorded as the mirror is opened."""
    world = make_world(mode="temporal")
    for name in ("t", "former"):
        world.run(f"create table {name}(id integer primary key)", f"insert into {name} values (1)")
    world.htap.sync_now()
    world.crash()
    ask(world.directory / "mirror.duckdb", f"delete from _rhei_table; delete from {lacking}")
    (world.directory / "registry.json").unlink()
    world.tables = [{"name": "t"}]
    world.run("insert into t values (2)")
    world.htap.initial_sync("t")
    world.assert_equal("t")
    assert world.htap.drop_table("former", discard_history=True).rows == 1


def test_a_table_of_others_in_a_schema_of_postgres_is_not_replaced(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres()
    world.htap.close()
    world.crash()
    file = Path(world.settings.mirror.path)
    file.unlink(missing_ok=True)
    ask(file, "create schema sales; create table sales.t as select 42 as precious")
    world.run(
        "create schema sales",
        "create table sales.t(id int primary key)",
        "create table t(id int primary key)",
        "insert into t values (1)",
    )
    world.htap.sync_now()
    tables = world.htap.sync_status().tables
    assert "somebody else made" in str(tables["sales.t"].error)
    assert tables["t"].error is None
    world.crash()
    assert ask(file, "select precious from sales.t") == [(42,)]


def test_a_table_of_others_where_snapshots_are_kept_is_left(
    make_world: Callable[..., World],
) -> None:
    world = make_world(mode="temporal")
    file = world.directory / "mirror.duckdb"
    ask(file, "create schema snapshot; create table snapshot.t as select 42 as precious")
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    world.htap.sync_now()
    now = datetime.now(UTC)
    with pytest.raises(SchemaDriftError, match="rename that one"):
        world.htap.snapshot("t", {now.date(): now})
    world.crash()
    assert ask(file, "from snapshot.t") == [(42,)]
    ask(file, "alter table snapshot.t rename to theirs")
    assert world.htap.snapshot("t", {now.date(): now}) == {now.date(): 1}


@pytest.mark.long
def test_a_database_of_others_is_not_replaced_by_a_published_copy(tmp_path: Path) -> None:
    place = tmp_path / "copy.duckdb"
    ask(place, MADE["table"])
    world = World(tmp_path, published={"path": place, "interval_seconds": 0})
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    for number in (2, 3):
        assert "is no copy of a mirror" in str(world.htap.sync_now().not_published)
        world.run(f"insert into t values ({number})")
    assert ask(place, "select precious from t") == [(42,)]
    place.rename(tmp_path / "theirs.duckdb")
    for number in (4, 5):
        assert world.htap.sync_now().not_published is None
        world.run(f"insert into t values ({number})")
        world.crash()
    world.htap.sync_now()
    assert ask(place, "select count(*) from t") == [(5,)]
    world.close()


def test_a_delta_table_of_others_is_not_replaced(tmp_path: Path) -> None:
    world = World(tmp_path, storage="delta", delta={"interval_seconds": 0})
    theirs, plain = (tmp_path / "delta" / "delta" / "main" / name for name in ("t", "o"))
    write_deltalake(str(theirs), pa.table({"precious": [42]}))
    plain.mkdir()
    (plain / "theirs.parquet").write_text("no log names it")
    for name in ("t", "o"):
        world.run(f"create table {name}(id integer primary key)", f"insert into {name} values (1)")

    def assert_left() -> None:
        found = DeltaTable(str(theirs))
        assert found.to_pyarrow_dataset().to_table().to_pylist() == [{"precious": 42}]
        assert (plain / "theirs.parquet").read_text() == "no log names it"

    for number in (2, 3):
        assert "somebody else made" in str(world.htap.sync_now().not_published)
        world.run(f"insert into t values ({number})", f"insert into o values ({number})")
        assert_left()
    world.htap.repair("t")
    world.htap.sync_now()
    assert_left()
    assert DeltaTable(str(plain)).to_pyarrow_dataset().count_rows() == 3
    world.assert_equal("t", "o")
    world.run("drop table t")
    world.htap.sync_now()
    world.htap.drop_table("t")
    world.htap.sync_now()
    assert_left()
    world.run("create table t(id integer primary key)", "insert into t values (7)")
    theirs.rename(tmp_path / "away")
    assert world.htap.sync_now().not_published is None
    assert DeltaTable(str(theirs)).to_pyarrow_dataset().to_table().to_pylist() == [{"id": 7}]
    world.close()
