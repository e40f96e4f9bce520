"""The code location is reloaded by the webserver that is asked for it."""

import re
from pathlib import Path

import pytest

from rhei_pipeline import Settings
from tests.dagster.test_live import live_run, passes
from tests.support.dagster_deployment import awaited, deployment
from tests.support.live_worlds import World


@pytest.mark.soak
def test_a_declaration_that_was_changed_is_followed_though_nobody_reloads(tmp_path: Path) -> None:
    """The webserver is away at first: it is asked again, and once more for the next change."""
    root = tmp_path / "shop"
    world = World.made(root, tables=["orders"])
    world.write("create table items(id integer primary key, amount int)")
    world.order()
    with deployment(tmp_path / "home", world.location) as made:
        declaration = root / "pipeline.yaml"
        schedule = "{verify_hour: null, "
        text = declaration.read_text()
        declaration.write_text(
            text.replace(schedule, f"{schedule}webserver: 'http://127.0.0.1:{made.web_port}', ")
        )
        made.kill(world.name)
        made.start_code_server(made.locations[0])
        awaited("the first copy", world.applied)
        first = live_run(made)
        with_items = declaration.read_text().replace("tables: [", "tables: [{name: items}, ")
        declaration.write_text(with_items)
        log = made.home / "daemon.log"
        awaited("it is asked in vain", lambda: "and failed" in log.read_text())
        made.start_webserver()
        awaited("the new table is followed", lambda: passes(made, "items", "followed"))
        assert live_run(made) != first
        declaration.write_text(with_items.replace("{name: items}, ", ""))
        awaited("the table is shown no more", lambda: reloads(log.read_text()) == 2)
        assert [each.name for each in Settings.load(declaration).tables or ()] == ["orders"]


def reloads(log: str) -> int:
    return len(re.findall("was reloaded", log))
