"""`rhei execute`: it counts what it changed, and answers nothing that `rhei query` should."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from typer.testing import CliRunner, Result

from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import QueryError

READS = (
    "select 1",
    "/* update */ select 'returning' as words",
    "with t as (select 1 as a) select a from t",
    "values (1)",
    "explain select count(*) from orders",
)


@pytest.fixture(params=["sqlite", "postgres"])
def executed(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run the command on a source of either kind that has `orders`, with keys 1 to 3."""
    source: dict[str, Any]
    made = "create table orders(id int primary key, status text)"
    if request.param == "sqlite":
        source = {"path": str(request.getfixturevalue("world").path)}
    else:
        source = {"kind": "postgres", "dsn": request.getfixturevalue("dsn")}
        written(source["dsn"], made, "insert into orders values (1, 'new'), (2, 'new'), (3, 'new')")
    _declare(tmp_path, source, monkeypatch)
    return rhei


def _declare(folder: Path, source: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "config").mkdir()
    declared = {"source": source, "mirror": {"path": str(folder / "m.duckdb")}}
    (folder / "config" / "pipeline.yaml").write_text(yaml.safe_dump(declared))
    monkeypatch.chdir(folder)
    monkeypatch.delenv("RHEI_CONFIG", raising=False)


def written(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as app_connection:
        for statement in statements:
            app_connection.execute(statement.encode())


def rhei(*arguments: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="rhei", input=typed)


@pytest.mark.parametrize("sql", READS)
def test_a_read_is_told_where_it_belongs(executed: Callable[..., Result], sql: str) -> None:
    refused = executed("execute", sql)
    assert isinstance(refused.exception, QueryError), refused.output
    assert refused.exception.hint == "ask it with 'rhei query'"
    asked = executed("query", sql)
    assert asked.exit_code == 0, (asked.output, asked.exception)


@pytest.mark.parametrize("sql", ["", "  ", "-- nothing", "/* nothing */"])
def test_what_is_no_statement_is_wrong_usage(executed: Callable[..., Result], sql: str) -> None:
    refused = executed("execute", "--", sql)
    assert (refused.exit_code, "there is no statement" in refused.output) == (2, True)


def test_rows_are_counted_whatever_a_write_begins_with(executed: Callable[..., Result]) -> None:
    for sql, changed in (
        ("with n as (select 7 as i union select 8) insert into orders(id) select i from n", 2),
        ("/* a note */ update orders set status = 'select' where id > 6", 2),
        ("with n as (select 7 as i) delete from orders where id in (select i from n)", 1),
        ("with n as (select 7 as i) delete from orders where id in (select i from n)", 0),
        ("create table more(id int primary key)", 0),
    ):
        done = executed("execute", sql, "--json")
        assert (done.exit_code, done.exception) == (0, None), (sql, done.output)
        assert json.loads(done.stdout) == {"rows": changed}, sql


def test_a_query_may_write_by_a_function_of_ones_own(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(
        dsn,
        "create table orders(id int primary key)",
        "create function added(k int) returns int language sql as"
        " 'insert into orders values (k) returning id'",
    )
    _declare(tmp_path, {"kind": "postgres", "dsn": dsn}, monkeypatch)
    done = rhei("execute", "select added(4)", "--json")
    assert json.loads(done.stdout) == [{"added": 4}], done.output
    assert rhei("query", "select id from orders", "--json").stdout.strip() == '[{"id": 4}]'


def test_a_log_of_events_runs_no_statement_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _declare(tmp_path, {"kind": "log", "path": str(tmp_path / "log")}, monkeypatch)
    for sql in ("insert into t values (1)", "delete from t"):
        refused = rhei("execute", sql)
        assert isinstance(refused.exception, QueryError), (refused.output, refused.exception)
        assert refused.exception.hint == "query the mirror; write with 'append'"
    shown = rhei("query", "-", typed="select 1 as one; select 2\n as two;")
    assert (shown.exit_code, "two" in shown.stdout) == (0, True), (shown.output, shown.exception)


def test_a_file_of_statements_that_cannot_be_read_is_named(executed: Callable[..., Result]) -> None:
    Path("latin.sql").write_text("select 'é' as v", "latin-1")
    for name, why in (("nope.sql", "No such file"), (".", "Is a"), ("latin.sql", "no UTF-8")):
        refused = executed("query", "--file", name)
        said = " ".join(refused.output.replace("│", " ").split())
        assert (refused.exit_code, f"'{name}' cannot be read:" in said) == (2, True), said
        assert (why in said, "Errno" in said, said.count(f"'{name}'")) == (True, False, 1), said
    Path("latin.sql").write_text("select 'é' as v", "utf-8")
    assert executed("query", "--file", "latin.sql", "--json").exit_code == 0
