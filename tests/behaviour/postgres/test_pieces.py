"""A large value of PostgreSQL comes in pieces, and is in the mirror as it was."""

from collections.abc import Callable, Generator
from typing import Any

import pytest

from rhei_pipeline.sources.postgres import pieces, row_texts
from rhei_pipeline.sources.postgres.copy import copy_out
from tests.support.fix_postgres import PostgresWorld

LARGE, PIECE = 2**16, 2**12
#: Texts of several bytes a character, of what CSV quotes, and bytes; two of them in one row.
_VALUES = (
    "(select string_agg(md5(n::text) || 'ä\"b, ' || chr(10), '') from generate_series(1, 5000) n)",
    "(select string_agg(md5(n::text), ' ')::tsvector from generate_series(1, 5000) n)",
    "(select decode(string_agg(md5(n::text), ''), 'hex') from generate_series(1, 9000) n)",
)
#: Bytes that take less than a large value where they lie.
_COMPRESSED = "decode(repeat('ab', 300000), 'hex')"
_UPDATE = "update t set v = {}, j = {}, b = {}, at = clock_timestamp() where id % 3 = 0"


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have values be large soon; return how long the longest message was."""
    monkeypatch.setattr(pieces, "LARGE_VALUE_BYTES", LARGE)
    monkeypatch.setattr(pieces, "_LEAST_STORED", 2**10)
    monkeypatch.setattr(pieces, "_PIECE_BYTES", PIECE)
    found = [0]

    def noted(*given: Any) -> Generator[bytes]:
        for message in copy_out(*given):
            found[0] = max(found[0], len(message))
            yield message

    monkeypatch.setattr(row_texts, "copy_out", noted)
    return found


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "mode"),
    [("trigger", "destructive"), ("trigger", "temporal"), ("polling", "destructive")],
)
def test_a_large_value_comes_in_pieces(
    make_postgres: Callable[..., PostgresWorld], longest: list[int], method: str, mode: str
) -> None:
    polling = {"polling": {"updated_at": "at", "deletes": "disabled"}}
    table = {"name": "t", **(polling if method == "polling" else {})}
    world = make_postgres(capture={"method": method}, mode=mode, tables=[table])
    world.run(
        "create table t (id int primary key, v text, j tsvector, b bytea, at timestamptz)",
        "insert into t select n, 'small ' || n, '', '\\x00', now() from generate_series(1, 9) n",
        _UPDATE.format(*_VALUES),
    )
    world.htap.sync_now()  # the first copy
    world.assert_equal("t")
    world.run(_UPDATE.format(_VALUES[0], "null", _COMPRESSED))
    world.htap.sync_now()
    world.assert_equal("t")
    assert PIECE < longest[0] < LARGE


def test_what_looks_like_a_piece_is_a_value(
    make_postgres: Callable[..., PostgresWorld], longest: list[int]
) -> None:
    world = make_postgres(capture={"method": "trigger"}, tables=[{"name": "t"}])
    world.run(
        "create table t (a text primary key, v text)",
        "insert into t values ('\\N', '70000:00'), ('70000:00', '\\N'), ('\\N,', null)",
        f"insert into t values ('5:00', {_VALUES[0]})",
    )
    world.htap.sync_now()
    world.assert_equal("t")
    assert longest[0] < LARGE
