"""A log whose mirror is gone grows without end: it is named, with what ends it."""

import re
import shutil
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.cli.main import app
from rhei_pipeline.protocols import Step
from rhei_pipeline.settings.sections import TableSettings
from rhei_pipeline.testing.faults import Crash
from rhei_pipeline.wiring.source import validate
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

AnyWorld = World | PostgresWorld


def test_a_log_that_no_mirror_reads_is_named_until_it_is_ended(
    make_world: Callable[..., World],
) -> None:
    world = make_world(mode="temporal", tables=[{"name": "u"}])
    other = _abandoned(
        world,
        "update _rhei_consumer set seen_at = 0 where tbl = 't'",
        "update _rhei_log_t set at = 0",
    )
    (named,) = _named(world)
    entries = world.app.execute("select count(*) from _rhei_log_t").fetchone()[0]
    assert f"it has {entries} entries" in named
    config = world.directory / "pipeline.yaml"
    config.write_text(
        f"source: {{kind: sqlite, path: {world.path}}}\n"
        f"mirror: {{kind: duckdb, path: {world.settings.mirror.path}}}\n"
        f"registry: {{path: {world.settings.registry.path}}}\n"
        "tables: [{name: u, mode: temporal}]\n"
    )
    shown = CliRunner().invoke(app, ["status", "--config", str(config)], prog_name="rhei")
    assert named in re.sub(r"\s+", " ", shown.output)
    assert shown.exit_code == 0
    world.app.executescript(named.partition("in the source: ")[2].removesuffix(")"))
    left = world.app.execute("select name from sqlite_master where name glob '_rhei_*_t'")
    assert left.fetchall() == []
    _goes_on(world, other)


@pytest.mark.long
def test_a_log_of_postgres_that_no_mirror_reads_is_named_until_it_is_ended(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres(mode="temporal", tables=[{"name": "u"}], capture={"method": "trigger"})
    seen = "update _rhei.consumer set seen_at = '2020-01-01' where relation = 't'::regclass"
    begun = (
        "do $$ begin execute format('update _rhei.log_%s set at = to_timestamp(0)',"
        " 't'::regclass::oid); end $$"
    )
    other = _abandoned(world, seen, begun)
    (named,) = _named(world)
    assert re.search(r"the log for 7 days; it has \d+ kB", named)
    world.run(named.partition("in the source: ")[2].removesuffix(")"))
    left = world.app.execute("select tgname from pg_trigger where tgrelid = 't'::regclass")
    assert left.fetchall() == []
    _goes_on(world, other)


def test_a_log_that_was_just_made_is_not_named(make_world: Callable[..., World]) -> None:
    _is_not_named_before_it_is_read(make_world())


def test_a_log_of_postgres_that_was_just_made_is_not_named(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    _is_not_named_before_it_is_read(make_postgres(capture={"method": "trigger"}))


def _is_not_named_before_it_is_read(world: AnyWorld) -> None:
    """End between the making of a log and the first that its mirror says of it; then look."""
    world.run("create table t(id integer primary key, v text)")
    world.faults.arm(Step.COPY_BEGUN)
    with pytest.raises(Crash):
        world.htap.sync_now()
    world.run("insert into t values (1, 'a')")
    assert not _named(world)


def _abandoned(world: AnyWorld, *long_ago: str) -> Settings:
    """Have two mirrors follow a source, and one of them vanish long ago; return its settings."""
    for name in "tu":
        world.run(f"create table {name}(id integer primary key, v text)")
    gone = world.directory / "gone"
    other = world.settings.model_copy(
        update={
            "mirror": world.settings.mirror.model_copy(update={"path": gone / "mirror.duckdb"}),
            "registry": world.settings.registry.model_copy(update={"path": gone / "registry.json"}),
            "tables": [TableSettings(name="t"), TableSettings(name="u")],
        }
    )
    for settings in (other, world.settings):
        with HTAP(settings) as htap:
            htap.sync_now()
    world.run("insert into t values (1, 'a'), (2, 'b')", "insert into u values (1, 'a')")
    assert not _named(world), "both mirrors were seen a moment ago"
    shutil.rmtree(gone)
    world.run(*long_ago)
    return other


def _named(world: AnyWorld) -> list[str]:
    world.crash()
    return [
        f"{found.what}: {found.why} ({found.remedy})"
        for found in validate(world.settings)
        if found.table == "t"
    ]


def _goes_on(world: AnyWorld, other: Settings) -> None:
    """Nothing is named any more, the other table flows, and the mirror can be made again."""
    assert not _named(world)
    world.run("update t set v = 'c'", "update u set v = 'c'")
    assert not world.htap.sync_now().errors
    assert len(world.versions("u")) == 2
    assert world.htap.verify().equal
    world.crash()
    with HTAP(other) as htap:
        htap.sync_now()
        world.run("update t set v = 'd'")
        htap.sync_now()
        assert htap.verify().equal
