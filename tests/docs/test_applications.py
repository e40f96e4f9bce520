"""What the pages show of other programs runs as it stands, beside what they promise of reading."""

import asyncio
import json
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

import rhei_pipeline as rhei
from rhei_pipeline.buffer.log import ChangeLog
from tests.support.fix_world import World

DOCS = Path(__file__).parents[2] / "docs"
PAGES = "".join((DOCS / page).read_text() for page in ("applications.md", "how-to/notebooks.md"))
ASYNC, FASTAPI, DJANGO, NOTEBOOK = re.findall(r"```python\n(.*?)```", PAGES, flags=re.DOTALL)
EXPECTED = [{"status": "new", "orders": 2}, {"status": "paid", "orders": 1}]


@pytest.fixture(name="shop")
def shop_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a program run in a directory with a shop that was synced once."""
    monkeypatch.chdir(tmp_path)
    with closing(sqlite3.connect("app.db")) as app, app:
        app.execute("create table orders(id integer primary key, status text, amount real)")
        app.execute("insert into orders values (1, 'new', 1.5), (2, 'new', 2), (3, 'paid', 3)")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "pipeline.yaml").write_text(
        "source: {path: app.db}\nmirror: {path: mirror.duckdb}\nregistry: {path: registry.json}\n"
        "tables: [{name: orders, mode: temporal}]\n"
    )
    with rhei.open("config/pipeline.yaml") as htap:
        htap.sync_now()


def run(code: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    exec(compile(code, "docs/applications.md", "exec"), made)  # noqa: S102  (the page is ours)
    return made


@pytest.mark.usefixtures("shop")
def test_an_event_loop_has_a_thread_wait() -> None:
    with rhei.open("config/pipeline.yaml") as htap:
        assert asyncio.run(run(ASYNC)["totals"](htap)) == EXPECTED


@pytest.mark.usefixtures("shop")
def test_a_fastapi_application_answers() -> None:
    pytest.importorskip("fastapi")
    app = run(FASTAPI)["app"]

    async def asked() -> object:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://shop") as client,
        ):
            return (await client.get("/orders/by-status")).json()

    assert asyncio.run(asked()) == EXPECTED


@pytest.mark.usefixtures("shop")
def test_a_django_view_answers() -> None:
    django = pytest.importorskip("django")
    from django.conf import settings  # noqa: PLC0415  (an application's choice)
    from django.test import RequestFactory  # noqa: PLC0415

    if not settings.configured:
        settings.configure(DEFAULT_CHARSET="utf-8")
        django.setup()
    made = run(DJANGO)
    answer = made["orders_by_status"](RequestFactory().get("/"))
    assert answer.content == b'[{"status": "new", "orders": 2}, {"status": "paid", "orders": 1}]'
    pipeline = made["pipeline"]()
    assert not pipeline.holds
    pipeline.close()


@pytest.mark.usefixtures("shop")
def test_a_notebook_reads_the_mirror() -> None:
    assert run(NOTEBOOK)["frame"].height == 3


def test_the_example_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((DOCS.parent / "examples" / "notebook.ipynb").read_text())
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    made = run("\n".join(cells))
    assert made["by_country"].columns == ["country", "orders", "amount"]
    assert made["earlier"]["status"].unique().to_list() == ["new"]
    assert made["report"].equal


def test_the_mirror_as_it_is_and_its_past_lack_writes_until_a_sync(world: World) -> None:
    count = "select count(*) as n from orders"
    world.mode = "temporal"
    world.htap.sync_now()
    written = world.htap.execute("insert into orders values (9, 'new', 1)")
    now = datetime.now(UTC)
    assert world.htap.query(count, hint="olap")["n"][0].as_py() == 3
    assert world.htap.as_of("orders", now).num_rows == 3
    assert world.htap.query(count)["n"][0].as_py() == 4
    assert world.htap.query(count, hint="olap", after=written)["n"][0].as_py() == 4


def test_a_log_that_was_pruned_says_so_to_who_reads_from_its_beginning(tmp_path: Path) -> None:
    with ChangeLog(tmp_path / "events") as log:
        for number in range(3):
            log.append(pa.table({"order": [number, number]}))
        assert sum(batch.num_rows for batch in log.read(after=0)) == 6
        deleted = log.prune(3)
        assert 0 < deleted <= 3
        assert deleted == 2
        with pytest.raises(rhei.PositionLostError):
            list(log.read(after=0))
        assert sum(batch.num_rows for batch in log.read(after=deleted)) == 4
