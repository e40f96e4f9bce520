"""What hostile statements do to a DataFusion mirror, by their effects: nothing. Reads pass."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datafusion import SessionContext

from rhei_pipeline.errors import QueryError, RheiError
from rhei_pipeline.mirrors.datafusion.functions import ALLOWED, REFUSED
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.progress import CopyProgress
from rhei_pipeline.model.schema import Column, Table, TableSchema
from tests.support.corpus.datafusion import HOSTILE, READS
from tests.support.corpus.duckdb import statements

SECRET = "the-secret-of-a-file"  # noqa: S105
COLUMNS = (Column("k", pa.int64()), Column("v", pa.string()), Column("w", pa.int64()))
TABLE = Table(TableSchema("t", COLUMNS, ("k",)))


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataFusionMirror]:
    directory = tmp_path_factory.mktemp("hostile")
    (directory / "secret.csv").write_text(f"a\n{SECRET}\n")
    opened = DataFusionMirror("parquet", directory / "mirror")
    rows = pa.table({"k": [1, 2, 3], "v": ["a", "b", "A"], "w": [2, 3, None]})
    progress = CopyProgress("t", Position(1, "p"), "shape", complete=True)
    with opened.transaction() as transaction:
        transaction.begin_copy(TABLE, progress)
        transaction.append_copy(TABLE, rows.cast(TABLE.schema.arrow), progress)
        transaction.adopt_copy(TABLE, datetime(2026, 1, 1, tzinfo=UTC))
    yield opened
    opened.close()


def state(mirror: DataFusionMirror) -> dict[str, Any]:
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
        "files": {str(file) for file in Path(mirror.path).parent.rglob("*")},
    }


def test_no_hostile_statement_has_an_effect(mirror: DataFusionMirror) -> None:
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


def test_ordinary_reads_pass(mirror: DataFusionMirror) -> None:
    reads = statements(READS)
    assert len(reads) >= 60
    for sql in reads:
        assert mirror.query(sql).num_columns, sql


def test_every_function_of_this_version_is_allowed_or_refused(mirror: DataFusionMirror) -> None:
    context = SessionContext()
    names = {*context.udfs(), *context.udafs(), *context.udwfs()}
    assert names - ALLOWED - REFUSED == set()
    assert ALLOWED.isdisjoint(REFUSED)
    for name in REFUSED:
        with pytest.raises(QueryError, match="Invalid function"):
            mirror.query(f"select {name}(1, 2)")


def test_bounded_functions_answer_as_the_engines_own(mirror: DataFusionMirror) -> None:
    sql = (
        "select lpad(a, n, b) as l, rpad(a, n, b) as r, repeat(a, n) as x from (values"
        " ('abc', 2, 'x'), ('a', 5, 'xy'), ('é', 3, 'ñ'), (null, 3, 'x'), ('a', null, 'x'),"
        " ('a', 3, ''), ('', 2, 'z'), ('a', 0, 'x'), ('a', 3, null)) v(a, n, b)"
    )
    assert mirror.query(sql).to_pydict() == SessionContext().sql(sql).to_pydict()
