"""What a declaration says reaches the part that does it, whichever way the pipeline is opened."""

from collections.abc import Callable
from pathlib import Path

import pytest

import rhei_pipeline as rhei
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import QueryLimitError
from rhei_pipeline.model.query_limits import AnswerLimits, QueryLimits
from rhei_pipeline.wiring.engine import bridge, query_limits, unseen_events
from tests.support.fix_world import World
from tests.support.masking import KEY, hashed, holding

MakeWorld = Callable[..., World]


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_what_is_bridged_is_masked_before_it_is_kept(
    make_world: MakeWorld, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buffer is on a disk, and its events go into the mirror as they are."""
    monkeypatch.setenv("RHEI__MASKING__KEY", KEY)
    masked = {"name": "t", "mask": {"mail": "hash"}, "where": "n < 9"}
    world = make_world(buffered=True, mode=mode, tables=[masked])
    settings = world.settings
    world.run("create table t(id integer primary key, mail text, n integer)")
    with HTAP(settings) as htap:
        htap.sync_now()
    world.run("insert into t values (1, 'anna@example.org', 1), (2, 'berta@example.org', 9)")
    assert unseen_events(settings) == 2
    assert bridge(settings) == 2
    # What the source knows to be taken is not yet in the mirror.
    assert unseen_events(settings) == 2
    for name in ("anna", "berta"):
        assert not holding(world.directory / "cdc", f"{name}@example.org")
    with HTAP(settings) as htap:
        htap.sync_now()
        found = htap.query("select id, mail from t", hint="olap").to_pylist()
        assert found == [{"id": 1, "mail": hashed("anna@example.org")}]
    assert unseen_events(settings) == 0


def test_a_table_that_left_the_declaration_leaves_the_buffer(make_world: MakeWorld) -> None:
    """Its events would be kept for ever: no mirror of this pipeline takes them."""
    world = make_world(buffered=True, tables=[{"name": "t"}, {"name": "u"}])
    world.run("create table t(id integer primary key)", "create table u(id integer primary key)")
    world.htap.sync_now()
    world.crash()
    world.tables = [{"name": "t"}]
    world.run("insert into t values (1)", "insert into u values (1), (2)")
    assert bridge(world.settings) == 1
    assert world.htap.sync_now().tables.keys() == {"t"}


def test_a_source_keeps_nothing_for_a_mirror_in_memory_that_is_gone(
    make_world: MakeWorld,
) -> None:
    world = make_world(mirror_path=":memory:")
    world.run("create table t(id integer primary key)")
    world.htap.sync_now()
    assert world.app.execute("select count(*) from _rhei_consumer").fetchone() != (0,)
    world.crash()
    assert world.app.execute("select count(*) from _rhei_consumer").fetchone() == (0,)


def test_the_limits_of_a_query_are_those_that_are_declared(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    asked = {"query_seconds": 5, "turn_seconds": 7, "at_once": 3, "query_rows": 2}
    asked |= {"query_bytes": 2**21}
    world = make_world(method="polling", local={"path": tmp_path / "local.db"})
    form = {name: getattr(world.settings, name) for name in Settings.model_fields}
    settings = Settings(**{**form, "queries": asked})
    assert query_limits(settings) == QueryLimits(5, AnswerLimits(2**21, 2), 3, 7)
    with rhei.open(settings) as htap:
        # Writes, and questions about what was written, go to the local database.
        htap.execute("create table own(id integer primary key)")
        htap.execute("insert into own values (1), (2), (3)")
        with pytest.raises(QueryLimitError, match="more than 2 rows"):
            htap.query("select id from own", hint="oltp")


def test_so_many_states_of_files_are_kept_as_are_declared(make_world: MakeWorld) -> None:
    world = make_world(storage="parquet")
    world.run("create table t(id integer primary key)")

    def kept(count: int) -> int:
        mirror = world.settings.mirror.model_copy(update={"retained_manifests": count})
        with HTAP(world.settings.model_copy(update={"mirror": mirror})) as htap:
            for _ in range(2 * count):
                world.run("insert into t default values")
                htap.sync_now()
        files = world.settings.mirror.path.rglob("*.json")
        return sum(file.stem.isdecimal() for file in files)

    assert kept(5) - kept(2) == 3
