"""Nothing that a user writes reaches the mirror as SQL: it is text, or a name, or left out."""

from collections.abc import Callable, Iterator

import pytest

from rhei_pipeline.errors import RheiError
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

#: Each ends a text, a name or a comment in some dialect, and goes on with SQL.
_WRITTEN = [
    "'; drop table a; --",
    "x') from duckdb_settings() --",
    "\\' or 1=1 --",
    "$$ || version() || $$",
    "*/ select 1 /*",
    '"; select 1; "',
    "$p1",
    "\uff07 || version() || \uff07",
    "a\\",
    "U&'\\0027'",
    "x'||read_text('/etc/hosts')||'",
]


def _text(written: str) -> str:
    return "'" + written.replace("'", "''") + "'"


def _name(written: str) -> str:
    return '"' + written.replace('"', '""') + '"'


def _queries(written: str, mark: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    text, name = _text(written), _name(written)
    column, table = _name(f"h{written}"), _name(f"t{written}")
    comment = written.replace("*/", "").replace("/*", "")
    yield f"select count(*) as c, t || {text} as x from a group by t || {text}", ()
    yield f"select count(*) as c from a where t like {text} or t in ({text}, 'x')", ()
    yield (
        f"select case when t < {text} then {text} else replace(t, 'a', {text}) end as r from a",
        (),
    )
    yield f"select count(*) as {name} from a as {name} where {name}.n > 0", ()
    yield f"with {name}({name}) as (select n from a) select count({name}) as c from {name}", ()
    yield f"select max({column}) as m, count(*) as c from hostile", ()
    yield f"select count(*) as c from {table} /* {comment} */ -- {written}", ()
    yield f"select count(*) as c, max(t || {mark}) as r from a where t <> {mark}", (written,) * 2


def _tables() -> list[str]:
    columns = ", ".join(f"{_name(f'h{written}')} integer" for written in _WRITTEN)
    return [
        "create table a (id integer primary key, n integer, t varchar(9))",
        f"create table hostile (id integer primary key, {columns})",
        *(f"create table {_name(f't{each}')} (id integer primary key)" for each in _WRITTEN),
        "insert into a values (1, 1, 'a'), (2, 2, 'x'), (3, 0, '--')",
        "insert into hostile (id) values (1)",
    ]


def _compare(world: World | PostgresWorld, mark: str) -> int:
    world.run(*_tables())
    world.htap.sync_now()
    mirrored = 0
    for written in _WRITTEN:
        for sql, params in _queries(written, mark):
            expected = world.htap.query(sql, params, hint="oltp")
            found = world.htap.query(sql, params)
            assert found.schema.names == expected.schema.names, sql
            assert sorted(map(repr, found.to_pylist())) == sorted(map(repr, expected.to_pylist()))
            mirrored += found.schema.metadata[b"rhei.engine"] == b"olap"
    return mirrored


@pytest.mark.parametrize("storage", [None, "ipc"])
def test_what_is_written_to_break_out_stays_text_or_a_name(
    make_world: Callable[..., World], storage: str | None
) -> None:
    world = make_world(storage=storage)
    assert _compare(world, "?") > 6 * len(_WRITTEN)


@pytest.mark.long
def test_a_text_that_postgres_refuses_is_not_answered_by_the_mirror(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres()
    assert _compare(world, "%s") > 4 * len(_WRITTEN)
    sql = "select count(*) as c, max(t || %s) as r from a"
    assert world.htap.query(sql, ("x",)).schema.metadata[b"rhei.engine"] == b"olap"
    with pytest.raises(RheiError, match="PostgreSQL refused"):
        world.htap.query(sql, ("\0x",))
