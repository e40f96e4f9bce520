"""A row or a statement that quotes what an engine or a store says is not taken for its error."""

import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest

from rhei_pipeline.errors import QueryError
from tests.support.fix_world import World

#: What engines and stores say of themselves, as a table of logs may have it.
WORDS = (
    "Generic S3 error: Error performing GET: Server returned non-2xx status code: 403",
    "Generic GCS error: <Code>ExpiredToken</Code>",
    "Resources exhausted: Additional allocation failed",
    "Corrupt database file: computed checksum",
    "Could not set lock on file",
    "No space left on device",
    "has been invalidated because of a previous fatal error",
)


@pytest.mark.parametrize("storage", [None, "parquet", "ipc", "memory", "delta"])
def test_words_of_engines_in_rows_and_statements_are_no_errors_of_theirs(
    make_world: Callable[..., World], storage: str | None
) -> None:
    world = make_world(storage=storage)
    world.run("create table logs(id integer primary key, line text)")
    with closing(sqlite3.connect(world.path)) as database:
        database.executemany("insert into logs values (?, ?)", list(enumerate(WORDS)))
        database.commit()
    world.htap.sync_now()
    for number, words in enumerate(WORDS):
        for sql in (
            f"select cast(line as integer) from logs where id = {number}",
            f"select cast(line as date) from logs where id = {number}",
            f"select cast('{words}' as integer) from logs",
            f'select "{words}" from logs',
            f'select * from "{words}"',
        ):
            with pytest.raises(QueryError) as refused:
                world.htap.query(sql, hint="olap")
            assert words not in str(refused.value) or '"' in sql
    assert world.htap.query("select count(*) as n from logs", hint="olap")["n"].to_pylist() == [7]
