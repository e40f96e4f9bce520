"""What hostile statements do to a DuckDB mirror, by their effects: nothing. Ordinary reads pass."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from rhei_pipeline.errors import RheiError
from rhei_pipeline.mirrors.duckdb.functions import (
    ALLOWED,
    ALLOWED_VIEWS,
    INTERNAL,
    REFUSED,
    REFUSED_VIEWS,
    may_call,
)
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from tests.support.corpus.duckdb import HOSTILE, READS, statements

SECRET = "the-secret-of-a-file"  # noqa: S105
#: Tells of the machine and of what DuckDB did of itself, not of what was set.
_LIVING = {"duckdb_api"}


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DuckDBMirror]:
    directory = tmp_path_factory.mktemp("hostile")
    (directory / "secret.csv").write_text(f"a\n{SECRET}\n")
    duckdb.connect(str(directory / "other.duckdb")).close()
    opened = DuckDBMirror(directory / "mirror.duckdb")
    opened._connection.execute("create table t(id int, v varchar, w int)")
    opened._connection.execute("insert into t values (1, 'a', 2), (2, 'b', 3), (3, 'A', null)")
    opened._connection.execute("checkpoint")
    yield opened
    opened.close()


def state(mirror: DuckDBMirror) -> dict[str, Any]:
    """Return all that a statement could leave behind, as another session sees it."""
    directory = Path(mirror.path).parent
    with mirror._cursor() as cursor:
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
        found: dict[str, Any] = {
            name: cursor.execute(sql).fetchall() for name, sql in asked.items()
        }
    found["settings"] = [pair for pair in found["settings"] if pair[0] not in _LIVING]
    found["files"] = {file.name for file in directory.rglob("*")}
    return found


def test_no_hostile_statement_has_an_effect(mirror: DuckDBMirror) -> None:
    before, directory = state(mirror), Path(mirror.path).parent
    hostile = statements(HOSTILE)
    assert len(hostile) >= 60
    let_through, told = [], list[str]()
    for place, sql in enumerate(hostile, 1):
        given = sql.replace("{dir}", str(directory))
        for ask in (mirror.query, lambda sql: list(mirror.stream(sql, (), 10).batches)):
            try:
                answer = ask(given)
            except RheiError as error:
                told.append(str(error))
            else:
                let_through.append((sql, answer))
        if place % 10 == 0 or place == len(hostile):
            assert state(mirror) == before, hostile[place - 10 : place]
    assert let_through == []
    assert not [text for text in told if SECRET in text or "Traceback" in text]


def test_ordinary_reads_pass(mirror: DuckDBMirror) -> None:
    reads = statements(READS)
    assert len(reads) >= 60
    for sql in reads:
        assert mirror.query(sql).num_columns, sql


def test_every_function_and_view_of_this_version_is_allowed_or_refused() -> None:
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
