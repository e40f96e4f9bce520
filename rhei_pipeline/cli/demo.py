"""`rhei demo`: creates a small shop database, mirrors it and shows the steps."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from rhei_pipeline.errors import SettingsError
from rhei_pipeline.htap import HTAP
from rhei_pipeline.htap import open as open_htap

ORDERS = 50_000
_CUSTOMERS = 2_000

_DECLARATION = """\
# A shop's database, mirrored in DuckDB. Check it with `rhei check --config FILE`.
source:
  kind: sqlite
  path: shop.db
mirror:
  kind: duckdb
  path: mirror.duckdb
registry:
  path: registry.json
tables:
  - name: orders
    mode: temporal      # every version is kept
  - name: customers     # a plain mirror
"""

_SHOP = f"""
create table customers(id integer primary key, name text not null, country text not null);
create table orders(
    id integer primary key, customer_id integer not null references customers(id),
    status text not null, amount decimal(10, 2) not null
);
with recursive n(i) as (select 1 union all select i + 1 from n where i < {_CUSTOMERS})
insert into customers select i, 'Customer ' || i, substr('DEFRITESPL', i % 5 * 2 + 1, 2) from n;
with recursive n(i) as (select 1 union all select i + 1 from n where i < {ORDERS})
insert into orders
    select i, i * 7919 % {_CUSTOMERS} + 1, 'new', round(i * 104729 % 100000 / 100.0, 2) from n;
"""

#: What the shop does while the mirror looks away; in one transaction.
_TRADE = (
    "update orders set status = 'paid' where id % 10 < 4",
    "update orders set status = 'sent' where id % 10 < 2",
    "delete from orders where id % 500 = 0",
    f"insert into orders select id + {ORDERS}, customer_id, 'new', amount"
    " from orders where id <= 1000 and id % 2 = 1",
)

BY_STATUS = "select status, count(*) as orders from orders group by status order by status"
BY_COUNTRY = (
    "select c.country, count(*) as orders, sum(o.amount) as amount"
    " from orders o join customers c on c.id = o.customer_id group by c.country order by c.country"
)


@dataclass(frozen=True, slots=True)
class DemoStep:
    """The report of one step of the demo.

    Attributes:
        title: What was done.
        seconds: How long it took.
        answer: The result of a query, if the step made one.
    """

    title: str
    seconds: float = 0.0
    answer: pa.Table | None = None


def declaration(directory: Path) -> Path:
    """Return the path of the demo's declaration."""
    return directory / "pipeline.yaml"


def tour(directory: Path) -> Iterator[DemoStep]:
    """Create a shop in a new directory, mirror it, change it, sync, query, compare.

    Raises:
        SettingsError: The directory is not empty.
    """
    if directory.exists() and any(directory.iterdir()):
        raise SettingsError(
            f"directory {str(directory)!r} is not empty",
            hint="choose another one with --directory, or remove it",
        )
    directory.mkdir(parents=True, exist_ok=True)
    declaration(directory).write_text(_DECLARATION)
    with closing(sqlite3.connect(directory / "shop.db")) as shop:
        shop.executescript(_SHOP)
        yield DemoStep(f"a shop's SQLite database: {_CUSTOMERS:,} customers, {ORDERS:,} orders")
        with open_htap(declaration(directory)) as htap:
            yield from _mirrored(htap, shop)


def _mirrored(htap: HTAP, shop: sqlite3.Connection) -> Iterator[DemoStep]:
    started = time.monotonic()
    copied = sum(report.rows for report in htap.initial_sync_all())
    yield DemoStep(f"initial sync: {copied:,} rows", time.monotonic() - started)
    before = datetime.now(UTC)
    with shop:
        for statement in _TRADE:
            shop.execute(statement)
    report = htap.sync_now()
    yield DemoStep(
        f"the application wrote, and one sync caught up: {report.inserted:,} inserts,"
        f" {report.updated:,} updates, {report.deleted:,} deletes",
        report.duration_seconds,
    )
    yield DemoStep("orders by status before that", 0.0, _as_of(htap, before))
    yield DemoStep("and now", 0.0, htap.query(BY_STATUS))
    started = time.monotonic()
    found = htap.query(BY_COUNTRY)
    reason = htap.explain_route(BY_COUNTRY)
    yield DemoStep(
        f"orders by country, answered by the {reason.engine.upper()} side: {reason.reason}",
        time.monotonic() - started,
        found,
    )
    started = time.monotonic()
    verified = htap.verify()
    rows = sum(table.rows for table in verified.tables.values())
    outcome = "all equal" if verified.equal else "NOT equal: see rhei verify"
    yield DemoStep(
        f"every row compared, both ways: {rows:,}, {outcome}", time.monotonic() - started
    )


def _as_of(htap: HTAP, instant: datetime) -> pa.Table:
    counted = htap.as_of("orders", instant).group_by("status").aggregate([([], "count_all")])
    return counted.rename_columns(["status", "orders"]).sort_by("status")
