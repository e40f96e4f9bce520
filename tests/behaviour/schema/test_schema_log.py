"""The schema changes that a mirror has followed are kept, with what each cost."""

import json
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from rhei_pipeline.cli.main import app
from tests.support.fix_world import World


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_each_change_that_was_followed_is_kept(make_world: Callable[..., World], mode: str) -> None:
    world = make_world(mode=mode)
    world.run("create table t (id integer primary key, a integer, b text)")
    world.run(
        "insert into t values (1, 1, 'x'), (2, 2, 'y')", "create table other (k text primary key)"
    )
    world.htap.sync_now()
    assert world.htap.schema_log() == []
    world.run("alter table t add column c real")
    world.htap.sync_now()
    world.crash()  # it is kept on disk
    world.run("alter table t drop column b")
    world.htap.sync_now()
    world.htap.sync_now()
    found = world.htap.schema_log("t")
    told = [(c.version, c.what, c.old, c.new) for c in found]
    assert told == [
        (2, "added 'c'", (), ("c double",)),
        (3, "dropped 'b'", ("b string",), ()),
    ]
    marks = [change.position or 0 for change in found]
    assert marks == sorted(marks)
    assert found[-1].position == world.htap.sync_status().tables["t"].watermark
    assert all(change.rows_read <= 2 for change in found)
    assert found[0].at < found[1].at
    assert world.htap.schema_log("other") == []

    world.crash()
    config = world.directory / "pipeline.yaml"
    config.write_text(world.settings.model_dump_json(exclude_none=True))
    shown = CliRunner().invoke(app, ["schema", "log", "--json", "--config", str(config)])
    assert [change["what"] for change in json.loads(shown.stdout)["changes"]] == [
        t[1] for t in told
    ]
