"""What the page on types says of ranges, composites and hstore: its statements, on real rows."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.fix_postgres import PostgresWorld

_PAGE = (Path(__file__).parents[2] / "docs" / "types.md").read_text()
_SECTION = _PAGE.partition("## Ranges and composites")[2].partition("\n## ")[0]
_IN_SOURCE, _IN_MIRROR = re.findall(r"```sql\n(.*?)```", _SECTION, re.DOTALL)
#: What the source itself says of each statement that DuckDB runs.
_ORACLES = (
    "select id, lower(period), upper(period) from bookings where not isempty(period)",
    "select id, unnest(periods)::text from bookings",
    "select id, (price).amount from bookings",
    "select id, labels -> 'color' from bookings where labels ? 'color'",
)


def test_texts_are_taken_apart_as_the_page_says(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres(tables=[{"name": "bookings"}])
    world.run(
        "create extension hstore",
        "create type money_of as (amount numeric(10, 2), currency text)",
        "create table bookings (id int primary key, period tstzrange, periods int4multirange,"
        " price money_of, labels hstore)",
        "insert into bookings values (1, '[2024-01-01 00:00+00,2024-02-01 00:00+00)',"
        " '{[1,3),[5,9)}', '(12.50,\"a, \"\"b\"\"\")', 'color=>red, a=>NULL'),"
        " (2, '(,2024-01-01)', '{}', '(,)', ''), (3, 'empty', null, null, null),"
        " (4, '[2024-01-01,)', '{(,7)}', '(7,EUR)', 'b=>c, color=>\"a \\\"b\\\"\"')",
        *(statement for statement in _IN_SOURCE.split(";") if statement.strip()),
    )
    world.htap.sync_now()
    asked = [statement for statement in _IN_MIRROR.split(";") if statement.strip()]
    assert len(asked) == len(_ORACLES)
    for statement, oracle in zip(asked, _ORACLES, strict=True):
        answer = world.htap.query(statement, hint="olap").to_pylist()
        found = [tuple(row.values()) for row in answer]
        told = world.app.execute(oracle.encode()).fetchall()
        if "color" in statement:
            found = [(key, text.replace('\\"', '"')) for key, text in found if text]
        assert _shown(found) == _shown(told), statement
    parts = world.app.execute("select starts, amount from bookings order by id").fetchall()
    held = world.htap.query("select starts, amount from bookings order by id", hint="olap")
    assert [tuple(row.values()) for row in held.to_pylist()] == parts


def _shown(rows: list[tuple[Any, ...]]) -> list[list[str]]:
    return sorted([str(value) for value in row] for row in rows)
