"""Which side answers a query of a masked table: never the source, whatever the mirror lacks."""

from collections.abc import Callable, Iterator

import pyarrow as pa
import pytest

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import QueryError
from tests.support.fix_world import World
from tests.support.masking import KEY, hashed

PERSON = "Geheim"
#: Which of two groups of one row is kept, the source decides.
TIE = "select n, count(*) as c from people group by 1 order by c desc limit 1"


@pytest.fixture
def world(make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> World:
    """A masked table, a plain one, and one with a history."""
    monkeypatch.setenv("RHEI__MASKING__KEY", KEY)
    world = make_world(
        tables=[
            {"name": "people", "mask": {"email": "hash"}},
            {"name": "plain"},
            {"name": "past", "mode": "temporal"},
        ]
    )
    world.run(
        "create table people(id integer primary key, email text, n integer)",
        f"insert into people values (1, '{PERSON}', 1), (2, '{PERSON}2', 2)",
        "create view everyone as select email from people",
        "create table plain(id integer primary key, v text)",
        "insert into plain values (1, 'x')",
        "create table past(id integer primary key, v text)",
        "insert into past values (1, 'x')",
    )
    world.htap.sync_now()
    return world


@pytest.fixture
def stale(world: World) -> Iterator[HTAP]:
    """The source answers for a mirror that is older than the last write, as this one is."""
    world.crash()
    settings = {**world.settings.model_dump(), "queries": {"when_stale": "oltp"}}
    with HTAP(Settings(**settings)) as htap:
        htap.sync_now()
        htap.execute("update past set v = 'y'")
        yield htap


def streamed(world: World, sql: str) -> pa.Table:
    found = world.htap.stream(sql, (), 1)
    return pa.Table.from_batches(found.batches, found.schema)


@pytest.mark.parametrize("ask", ["query", "stream", "explain_route"])
def test_no_row_that_cannot_be_mirrored_sends_a_query_to_the_source(world: World, ask: str) -> None:
    world.run(f"insert into people values (3, '{PERSON}3', 'no number')")
    world.htap.sync_now()
    asked = {"stream": lambda sql: streamed(world, sql)}.get(ask) or getattr(world.htap, ask)
    with pytest.raises(QueryError, match=r"masked.*rows that cannot be mirrored"):
        asked("select n, count(*) as c from people group by n")


def test_a_route_is_refused_like_its_query(world: World) -> None:
    with pytest.raises(QueryError, match="mask"):
        world.htap.explain_route("select email from everyone")


def test_what_the_mirror_cannot_answer_exactly_is_refused_of_a_stream_too(world: World) -> None:
    with pytest.raises(QueryError, match=r"mask.*exactly"):
        streamed(world, TIE)
    with pytest.raises(QueryError, match=r"mask.*exactly"):
        world.htap.query(TIE)


def test_a_mirror_that_is_too_old_for_a_masked_table_is_synced(stale: HTAP) -> None:
    """Where the source answers for others, that is."""
    sql, masked = "select count(*) as n from plain", "select * from people where id = 1"
    assert stale.explain_route(sql).engine == "oltp"
    assert stale.explain_route(masked).engine == "olap"
    assert stale.query(sql).schema.metadata[b"rhei.engine"] == b"oltp"
    assert stale.query(masked).to_pylist() == [{"id": 1, "email": hashed(PERSON), "n": 1}]


def test_so_is_one_that_is_too_old_for_a_history(stale: HTAP) -> None:
    found = stale.query("select v from past where _rhei_valid_to is null")
    assert found.to_pylist() == [{"v": "y"}]
