"""A consumer of changes: it counts orders by status, and never counts one twice.

What it has counted and where it stands are written in one transaction of its own database. It may
be killed at any instant: it then goes on where it stood. `python -m examples.consume_changes` shows
it at work.
"""

import sqlite3
import tempfile
from pathlib import Path

import rhei_pipeline as rhei


def follow(htap: rhei.HTAP, totals: sqlite3.Connection) -> rhei.TableChanges:
    """Bring the totals up to date with the mirror."""
    totals.execute("create table if not exists kept(position text)")
    totals.execute("create table if not exists total(status text primary key, orders integer)")
    kept = totals.execute("select position from kept").fetchone()
    found = htap.changes("orders", after=kept and kept[0], on_lost="snapshot")
    with totals:
        if found.snapshot:  # the whole table: what was counted before goes
            totals.execute("delete from total")
        for row in found.rows.to_pylist():
            if row["_rhei_operation"] != "I":
                count(totals, row["_rhei_old_status"], -1)
            if row["_rhei_operation"] != "D":
                count(totals, row["status"], 1)
        totals.execute("delete from kept")
        totals.execute("insert into kept values (?)", (str(found.position),))
    return found


def count(totals: sqlite3.Connection, status: str, orders: int) -> None:
    """Count orders of a status, more or fewer."""
    totals.execute(
        "insert into total values (?, ?) on conflict do update set orders = orders + ?",
        (status, orders, orders),
    )


def main() -> None:
    """Write orders, and print the totals after each sync."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        app = sqlite3.connect(path / "shop.db", isolation_level=None)
        app.execute("create table orders(id integer primary key, status text)")
        totals = sqlite3.connect(path / "totals.db")
        settings = rhei.Settings(
            source={"path": path / "shop.db"},
            mirror={"path": path / "mirror.duckdb"},
            registry={"path": path / "registry.json"},
            mode="temporal",
        )
        for statement in (
            "insert into orders values (1, 'new'), (2, 'new')",
            "update orders set status = 'paid' where id = 1",
            "delete from orders where id = 2",
        ):
            app.execute(statement)
            with rhei.open(settings) as htap:
                htap.sync_now()
                follow(htap, totals)
            print(dict(totals.execute("select * from total where orders > 0").fetchall()))
        app.close()
        totals.close()


if __name__ == "__main__":
    main()
