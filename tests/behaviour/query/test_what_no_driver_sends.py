"""Statements and values that a driver cannot hand on: refused by name, never in its own words."""

import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rhei_pipeline import HTAP
from rhei_pipeline.errors import QueryError
from tests.support.fix_world import World
from tests.support.refusals import refused

HALF = "Hunter\ud800"
TABLE = "create table t(id integer primary key, v text, n bigint)"
ROW = "insert into t values (1, 'a', 1)"


@pytest.fixture(params=["sqlite", "postgres"])
def opened(
    request: pytest.FixtureRequest, make_world: Callable[..., World]
) -> Iterator[tuple[HTAP, str]]:
    """Open a source with a mirror of files, and return the source's placeholder."""
    made = make_world if request.param == "sqlite" else request.getfixturevalue("make_postgres")
    world = made(storage="parquet")
    world.run(TABLE, ROW)
    world.htap.sync_now()
    yield world.htap, "?" if request.param == "sqlite" else "%s"
    assert world.htap.verify().equal


def each_way(htap: HTAP, where: str, params: tuple[Any, ...]) -> dict[str, Callable[[], object]]:
    """Return each way to ask and to write with a condition."""
    asked, written = f"select id from t where {where}", f"update t set id = id where {where}"
    return {
        "auto": lambda: htap.query(asked, params),
        "oltp": lambda: htap.query(asked, params, hint="oltp"),
        "stream": lambda: list(htap.stream(asked, params).batches),
        "execute": lambda: htap.execute(written, params),
        "returning": lambda: htap.execute_returning(f"{written} returning id", params),
        "batch": lambda: htap.execute_batch([("delete from t", ()), (written, params)]),
    }


def test_a_text_that_is_no_unicode_is_refused(opened: tuple[HTAP, str]) -> None:
    """Bytes of another encoding on the command line are such a text."""
    htap, mark = opened
    said = each_way(htap, f"v = '{HALF}'", ())
    for way, ask in [*each_way(htap, f"v = {mark}", (HALF,)).items(), *said.items()]:
        with refused("correct its encoding", QueryError) as met:
            ask()
        assert met.error is not None, way
        assert "Hunter" not in "".join(
            f"{line}"
            for line in traceback.TracebackException.from_exception(
                met.error
            ).format_exception_only()
        ), way
        assert met.error.__cause__ is None, way
    assert htap.query("select count(*) as n from t", hint="oltp")["n"].to_pylist() == [1]


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**30])
def test_a_number_that_sqlite_does_not_have_is_refused(
    make_world: Callable[..., World], value: int
) -> None:
    htap = make_world().htap
    htap.execute(TABLE)
    htap.execute(ROW)
    htap.register_table("t")
    htap.sync_now()
    for ask in each_way(htap, "n = ?", (value,)).values():
        with refused("give it as a text or a real", QueryError) as met:
            ask()
        assert met.error is not None
        assert met.error.__cause__ is None
    assert htap.query("select count(*) as n from t", hint="oltp")["n"].to_pylist() == [1]
    for given in (str(value), float(value)):
        assert htap.query("select id from t where n = ?", (given,), hint="oltp").num_rows == 0


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_a_statement_that_nests_too_deeply_is_refused(
    make_world: Callable[..., World], storage: str | None
) -> None:
    world = make_world(storage=storage)
    world.run(TABLE, ROW)
    world.htap.sync_now()
    deep = 3000
    with refused("nest it less", QueryError):
        world.htap.query(f"select {'(' * deep}1{')' * deep} as a from t", hint="olap")
    shallow = world.htap.query("select ((1)) as a from t", hint="olap")
    assert shallow["a"].to_pylist() == [1]
