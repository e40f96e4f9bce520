"""What is known of a statement before it runs, of which tables, and for how long."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from sqlite3 import connect
from typing import TYPE_CHECKING, cast

import pyarrow as pa
import pytest

from rhei_pipeline.model.schema import Table
from rhei_pipeline.query.planner import Engines, Planner
from rhei_pipeline.sources.sqlite.catalog import read_table
from rhei_pipeline.sources.sqlite.database import SqliteDatabase
from rhei_pipeline.testing import StubMirror

if TYPE_CHECKING:
    from rhei_pipeline.sync.pipeline import Pipeline

SQL = "create table orders(id integer primary key, status text, amount real, made timestamp)"


@dataclass
class Followed:
    """The two things of a pipeline that planning depends on."""

    tables: dict[str, Table] = field(default_factory=dict)
    generation: int = 0

    def take_in(self, database: SqliteDatabase, name: str) -> None:
        """Have a table take part from now on."""
        with database.reader() as connection:
            self.tables[name] = Table(read_table(connection, name).schema)
        self.generation += 1


@dataclass
class Planning:
    """A planner over a real SQLite file with the table `orders`."""

    database: SqliteDatabase
    followed: Followed

    def planner(self, *, sidecar: bool = False) -> Planner:
        """Return a planner; a sidecar's source is only read."""
        oltp = None if sidecar else self.database
        pipeline = cast("Pipeline", self.followed)
        engines = Engines(self.database, oltp, StubMirror(), pipeline, ("sqlite", "duckdb"))
        return Planner(engines, {})


@pytest.fixture
def planning(tmp_path: Path) -> Iterator[Planning]:
    with connect(tmp_path / "app.db") as made:
        made.execute(SQL)
        made.execute("create table late(id integer primary key)")
    made.close()
    database, followed = SqliteDatabase(tmp_path / "app.db"), Followed()
    followed.take_in(database, "orders")
    yield Planning(database, followed)
    database.close()


DESCRIBED: list[tuple[str, dict[str, pa.DataType] | None]] = [
    ("select id, amount from orders where id = 1", {"id": pa.int64(), "amount": pa.float64()}),
    ("select made from orders", {"made": pa.timestamp("us")}),
    ("select status, count(*) n from orders group by 1", {"status": pa.string(), "n": pa.int64()}),
    ("select sum(amount) from orders", {"sum(amount)": pa.float64()}),
    # Only rows show these types, or nothing is known of the table, or there is no answer.
    ("select id, strftime('%Y', made) from orders", None),
    ("select id from late", None),
    ("delete from orders", None),
]


@pytest.mark.parametrize(("sql", "columns"), DESCRIBED)
def test_an_answer_is_described_as_far_as_it_is_known_without_its_rows(
    planning: Planning, sql: str, columns: dict[str, pa.DataType] | None
) -> None:
    found = planning.planner().describe(sql)
    assert found == (None if columns is None else pa.schema(columns))


PREPARED: list[tuple[str, list[pa.DataType], dict[str, pa.DataType] | None, bool]] = [
    (
        "select count(*) n from orders where id = ? and status = ?",
        [pa.int64(), pa.string()],
        {"n": pa.int64()},
        True,
    ),
    # The source itself is asked, for no row: what its rows alone would show is text.
    ("select strftime('%Y', made) y from orders", [], {"y": pa.string()}, True),
    ("select id from late where id > ?", [pa.string()], {"id": pa.string()}, True),
    ("update orders set status = ? where id = ?", [pa.string(), pa.int64()], None, False),
    ("select nothing from orders", [], None, True),
]


@pytest.mark.parametrize(("sql", "parameters", "columns", "reads"), PREPARED)
def test_a_statement_is_prepared_by_the_best_guess(
    planning: Planning,
    sql: str,
    parameters: list[pa.DataType],
    columns: dict[str, pa.DataType] | None,
    reads: bool,  # noqa: FBT001
) -> None:
    found = planning.planner().prepare(sql)
    assert found.parameters.types == parameters
    assert found.schema == (None if columns is None else pa.schema(columns))
    assert found.reads is reads


def test_plans_last_until_other_tables_take_part(planning: Planning) -> None:
    planner, sql = planning.planner(), "select count(*) from late"
    first = planner.plan(sql)
    assert (first.route.engine, planner.plan(sql)) == ("oltp", first)
    assert planner.plan(sql) is first
    planning.followed.take_in(planning.database, "late")
    later = planner.plan(sql)
    assert later.route.engine == "olap"
    assert later.tables == frozenset({"late"})


def test_what_the_mirrors_engine_does_not_run_goes_to_the_source_from_then_on(
    planning: Planning,
) -> None:
    planner, sql = planning.planner(), "select count(*) from orders where id > ?"
    before = planner.plan(sql, [1])
    planner.refused(sql, [1], "it does not")
    after = planner.plan(sql, [2])  # of the same type
    assert before.route.engine == "olap"
    assert after.route.engine == "oltp"
    assert after.route.reason == f"{before.route.reason}, but it does not"
    assert after.columns == before.columns
    assert planner.plan(sql, ["x"]).route.reason.find("it does not") == -1


def test_of_a_source_that_is_only_read_the_mirror_says_what_it_answers(
    planning: Planning,
) -> None:
    planner = planning.planner(sidecar=True)
    assert planner.describe("select id from orders") is None
    assert planner.prepare("select 1 as one").schema == pa.schema({"one": pa.int32()})
    assert planner.reads("select id from orders")
    assert not planner.reads("insert into orders(id) values (1)")
