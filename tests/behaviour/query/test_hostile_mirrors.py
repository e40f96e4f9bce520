"""What hostile statements do to a mirror, by their effects: nothing. Ordinary reads pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from datafusion import SessionContext

from rhei_pipeline.errors import QueryError, RheiError
from rhei_pipeline.mirrors.datafusion import functions as datafusion_functions
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.mirrors.duckdb.functions import (
    ALLOWED,
    ALLOWED_VIEWS,
    INTERNAL,
    REFUSED,
    REFUSED_VIEWS,
    may_call,
)
from rhei_pipeline.mirrors.duckdb.joint import JointDuckDB
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.mirrors.duckdb.read_only import _refuse_forms
from rhei_pipeline.mirrors.joining import Part, every_table
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.progress import CopyProgress
from rhei_pipeline.model.schema import Column, Table, TableSchema
from tests.support.corpus import datafusion as datafusion_corpus
from tests.support.corpus import duckdb as duckdb_corpus
from tests.support.corpus.duckdb import statements
from tests.support.parts import connection_of

SECRET = "the-secret-of-a-file"  # noqa: S105
COLUMNS = (Column("k", pa.int64()), Column("v", pa.string()), Column("w", pa.int64()))
TABLE = Table(TableSchema("t", COLUMNS, ("k",)))
#: Tells of the machine and of what DuckDB did of itself, not of what was set.
_LIVING = {"duckdb_api"}


@dataclass(frozen=True)
class Attacked:
    """A mirror with one table beside a file that holds a secret, and what is asked of it."""

    directory: Path
    mirror: Any
    state: Callable[[Any], dict[str, Any]]
    hostile: Sequence[str]
    reads: Sequence[str]


@pytest.fixture(scope="module")
def duckdb_mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    directory = tmp_path_factory.mktemp("hostile")
    duckdb.connect(str(directory / "other.duckdb")).close()
    with closing(DuckDBMirror(directory / "mirror.duckdb")) as opened:
        connection_of(opened).execute("create table t(id int, v varchar, w int)")
        connection_of(opened).execute(
            "insert into t values (1, 'a', 2), (2, 'b', 3), (3, 'A', null)"
        )
        connection_of(opened).execute("checkpoint")
        asked = statements(duckdb_corpus.HOSTILE), statements(duckdb_corpus.READS)
        yield Attacked(directory, opened, _duckdb_state, *asked)


@pytest.fixture(scope="module")
def datafusion_mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    directory = tmp_path_factory.mktemp("hostile")
    rows = pa.table({"k": [1, 2, 3], "v": ["a", "b", "A"], "w": [2, 3, None]})
    progress = CopyProgress("t", Position(1, "p"), "shape", complete=True)
    with closing(DataFusionMirror("parquet", directory / "mirror")) as opened:
        with opened.transaction() as transaction:
            transaction.begin_copy(TABLE, progress)
            transaction.append_copy(TABLE, rows.cast(TABLE.schema.arrow), progress)
            transaction.adopt_copy(TABLE, datetime(2026, 1, 1, tzinfo=UTC))
        asked = statements(datafusion_corpus.HOSTILE), statements(datafusion_corpus.READS)
        yield Attacked(directory, opened, _datafusion_state, *asked)


@pytest.fixture(params=["duckdb_mirror", "datafusion_mirror"])
def attacked(request: pytest.FixtureRequest) -> Attacked:
    found: Attacked = request.getfixturevalue(request.param)
    return found


def _duckdb_state(mirror: DuckDBMirror) -> dict[str, Any]:
    """Return all that a statement could leave behind, as another session sees it."""
    asked = {
        "settings": "select name, value from duckdb_settings() order by 1",
        "tables": "select database_name, schema_name, table_name, comment, sql from"
        " duckdb_tables() order by all",
        "functions": "select count(*) from duckdb_functions()",
        "views": "select count(*) from duckdb_views()",
        "types": "select count(*) from duckdb_types()",
        "schemas": "select count(*) from duckdb_schemas()",
        "databases": "select database_name, path from duckdb_databases() order by 1",
        "sequences": "select count(*) from duckdb_sequences()",
        "indexes": "select count(*) from duckdb_indexes()",
        "variables": "select count(*) from duckdb_variables()",
        "rows": "select * from t order by id",
        "order": "select v from t order by v, id",
        "equal": "select count(*) from t where v = 'a'",
        "depth": "select 1 + 1 + 1 + 1 + 1 + 1 + abs(-1)",
    }
    with mirror._cursor() as cursor:
        found: dict[str, Any] = {
            name: cursor.execute(sql).fetchall() for name, sql in asked.items()
        }
    found["settings"] = [pair for pair in found["settings"] if pair[0] not in _LIVING]
    return found


def _datafusion_state(mirror: DataFusionMirror) -> dict[str, Any]:
    """Return all that a statement could leave behind in the session that everybody's run in."""
    context = mirror._session._context
    mirror.query("select * from _rhei_dead_letter")  # it is shown once it is asked for
    catalogue = context.catalog("rhei")
    return {
        "rows": mirror.query("select * from t order by k").to_pydict(),
        "order": mirror.query("select v from t order by v nulls first").to_pydict(),
        "names": mirror.query("select count(*) as N from T where v = 'a'").to_pydict(),
        "abs": mirror.query("select abs(-1) as a, count(*) as n from t").to_pydict(),
        "tables": {name: catalogue.schema(name).names() for name in catalogue.names()},
        "catalogues": context.catalog_names(),
        "functions": context.udfs() + context.udafs() + context.udwfs(),
        "zone": mirror.query("select arrow_typeof(now()) as kind").to_pydict(),
    }


def test_no_hostile_statement_has_an_effect(attacked: Attacked) -> None:
    mirror, directory = attacked.mirror, attacked.directory
    (directory / "secret.csv").write_text(f"a\n{SECRET}\n")

    def state() -> dict[str, Any]:
        files = {str(file) for file in directory.rglob("*")}
        return {**attacked.state(mirror), "files": files}

    before = state()
    assert len(attacked.hostile) >= 60
    let_through, told = [], list[str]()
    for place, sql in enumerate(attacked.hostile, 1):
        given = sql.replace("{dir}", str(directory))
        for ask in (mirror.query, lambda sql: list(mirror.stream(sql, (), 10).batches)):
            try:
                answer = ask(given)
            except RheiError as error:
                told.append(str(error))
            else:
                let_through.append((sql, answer))
        if place % 10 == 0 or place == len(attacked.hostile):
            assert state() == before, attacked.hostile[place - 10 : place]
    assert let_through == []
    assert not [text for text in told if SECRET in text or "Traceback" in text]


def test_duckdb_is_asked_nothing_hostile(duckdb_mirror: Attacked) -> None:
    guard = duckdb_mirror.mirror._guard
    with duckdb_mirror.mirror._cursor() as cursor:
        for sql in duckdb_mirror.hostile:
            with pytest.raises(RheiError):
                guard.admitted(sql, cursor)
        explained = "explain (analyze) /* ; drop table t */ select 1"
        assert guard.admitted(explained, cursor) == "explain (analyze) select 1"


def test_a_form_that_is_on_no_list_is_refused() -> None:
    """DuckDB's next version may have forms, and kinds of change, that this one has not."""
    for kind, named in (
        ("NEWER_NODE", "NEWER_NODE"),
        ("NEWER_QUERY_NODE", "changes data by NEWER"),
    ):
        with duckdb.connect() as cursor, pytest.raises(QueryError, match=named):
            _refuse_forms({"statements": [{"node": {"from_table": {"type": kind}}}]}, cursor)


@pytest.mark.parametrize("how", ["alone", "joint"])
def test_a_session_of_duckdb_cannot_be_told_otherwise(tmp_path: Path, how: str) -> None:
    """Also where the guard would have let it through."""
    path = tmp_path / "mirror.duckdb"
    (tmp_path / "secret.csv").write_text(f"a\n{SECRET}\n")
    with ExitStack() as opened:
        mirror: Any = opened.enter_context(closing(DuckDBMirror(path)))
        if how == "joint":
            mirror.close()
            joint = JointDuckDB([(Part("shop", every_table), path)])
            mirror = opened.enter_context(closing(joint))
        cursor = opened.enter_context(connection_of(mirror).cursor())
        for (name,) in cursor.execute("select name from duckdb_settings()").fetchall():
            if name not in _SET_BY_US:
                for sql in (f"set {name} = true", f"set global {name} = 1", f"reset {name}"):
                    with pytest.raises(duckdb.Error, match="has been locked"):
                        cursor.execute(sql)
        outside = pa.table({"a": [SECRET]})
        assert outside.num_rows == 1
        for sql in _OUTSIDE:
            with pytest.raises(duckdb.Error, match=r"Permission|does not exist|not in the catalog"):
                cursor.execute(sql.replace("{dir}", str(tmp_path))).fetchall()
    made = {file.name for file in tmp_path.iterdir()}
    assert {name for name in made if not name.startswith("mirror.duckdb")} == {"secret.csv"}


def test_mirrors_read_together_are_asked_and_told_nothing_hostile(
    tmp_path: Path, duckdb_mirror: Attacked
) -> None:
    path = tmp_path / "mirror.duckdb"
    DuckDBMirror(path).close()
    with closing(JointDuckDB([(Part("shop", every_table), path)])) as joint:
        for sql in duckdb_mirror.hostile:
            with pytest.raises(RheiError):
                joint.query(sql.replace("{dir}", str(tmp_path)))
        with connection_of(joint).cursor() as cursor:
            for sql in ("create table shop.pwned (a int)", "drop table shop._rhei_mirror"):
                with pytest.raises(duckdb.Error, match="read-only mode"):
                    cursor.execute(sql)


#: Each with its older name; and where names are found, which is of a session alone.
_SET_BY_US = {
    *("enable_progress_bar", "memory_limit", "max_memory", "threads", "worker_threads"),
    *("schema", "search_path"),
    *("checkpoint_threshold", "wal_autocheckpoint", "auto_checkpoint_skip_wal_threshold"),
}
_OUTSIDE = (
    "select * from outside",
    "select * from '{dir}/secret.csv'",
    "select * from read_csv('{dir}/secret.csv')",
    "select * from read_text('{dir}/secret.csv')",
    "select * from glob('{dir}/*')",
    "select * from 'https://example.org/secret.csv'",
    "attach '{dir}/other.duckdb'",
    "copy (select 1) to '{dir}/pwned.csv'",
    "export database '{dir}/pwned'",
    "install httpfs",
    "load httpfs",
    "select * from sqlite_scan('{dir}/a', 'b')",
)


def test_datafusion_itself_plans_nothing_that_changes(datafusion_mirror: Attacked) -> None:
    mirror, before = datafusion_mirror.mirror, datafusion_mirror.state(datafusion_mirror.mirror)
    for sql in datafusion_mirror.hostile:
        with suppress(RheiError):
            mirror._session._bound(sql.replace("{dir}", str(datafusion_mirror.directory)), {})
    assert datafusion_mirror.state(mirror) == before


def test_files_of_datafusion_are_read_through_their_tables_alone(
    datafusion_mirror: Attacked,
) -> None:
    mirror = datafusion_mirror.mirror
    assert mirror.query("select k from t").num_rows == 3
    files = mirror._session._context.catalog("rhei").schema("_rhei_segments").names()
    assert files
    for name in files:
        for place in (f'_rhei_segments."{name}"', f'"_rhei_segments"."{name}"'):
            with pytest.raises(QueryError):
                mirror.query(f"select * from {place}")


def test_ordinary_reads_pass(attacked: Attacked) -> None:
    assert len(attacked.reads) >= 60
    for sql in attacked.reads:
        assert attacked.mirror.query(sql).num_columns, sql


def test_every_function_and_view_of_this_duckdb_is_allowed_or_refused() -> None:
    with duckdb.connect() as connection:
        functions = connection.execute(
            "select distinct lower(function_name) from duckdb_functions()"
            " where function_type <> 'pragma'"
        ).fetchall()
        views = connection.execute(
            "select distinct view_name from duckdb_views() where internal"
        ).fetchall()
    names = {name for (name,) in functions if not INTERNAL.fullmatch(name)}
    assert {name for name in names if not may_call(name) and name not in REFUSED} == set()
    assert {name for (name,) in views} - ALLOWED_VIEWS - REFUSED_VIEWS == set()
    assert ALLOWED.isdisjoint(REFUSED)
    assert not any(may_call(name) for name in names if name.startswith("__internal"))


def test_every_function_of_this_datafusion_is_allowed_or_refused(
    datafusion_mirror: Attacked,
) -> None:
    allowed, refused = datafusion_functions.ALLOWED, datafusion_functions.REFUSED
    context = SessionContext()
    names = {*context.udfs(), *context.udafs(), *context.udwfs()}
    assert names - allowed - refused == set()
    assert allowed.isdisjoint(refused)
    for name in refused:
        with pytest.raises(QueryError, match="Invalid function"):
            datafusion_mirror.mirror.query(f"select {name}(1, 2)")


def test_functions_of_datafusion_with_bounds_answer_as_the_engines_own(
    datafusion_mirror: Attacked,
) -> None:
    sql = (
        "select lpad(a, n, b) as l, rpad(a, n, b) as r, repeat(a, n) as x from (values"
        " ('abc', 2, 'x'), ('a', 5, 'xy'), ('é', 3, 'ñ'), (null, 3, 'x'), ('a', null, 'x'),"
        " ('a', 3, ''), ('', 2, 'z'), ('a', 0, 'x'), ('a', 3, null)) v(a, n, b)"
    )
    found = datafusion_mirror.mirror.query(sql)
    assert found.to_pydict() == SessionContext().sql(sql).to_pydict()
