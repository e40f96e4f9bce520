"""Write small states with whichever version of Rhei Pipeline is imported, to be kept as files.

`python tests/stored/write_states.py DIRECTORY`, with an older version's tree first in PYTHONPATH.
The files of version 0.1 were written so by the last commit of that version. Beside each state is
what that version itself answered about it; what the application wrote afterwards is pending.
"""

import json
import sqlite3
import sys
import tarfile
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.wiring.engine import bridge

#: How each state is captured and mirrored.
KINDS: dict[str, dict[str, Any]] = {
    "duckdb": {"mirror": "mirror.duckdb"},
    "parquet": {"mirror": "parquet", "storage": "parquet"},
    "ipc": {"mirror": "ipc", "storage": "ipc"},
    "delta": {"mirror": "delta", "storage": "delta"},
    "buffered": {"mirror": "mirror.duckdb", "buffer": "cdc"},
    "polled": {"mirror": "parquet", "storage": "parquet", "method": "polling"},
}
BEFORE = (
    "create table readings(id integer primary key, name text, at text, amount real, raw blob,"
    " gone text, updated_at integer)",
    "create table items(country text, number integer, quantity integer,"
    " updated_at integer, primary key (country, number))",
    "insert into readings values"
    " (1, 'Recife', '2026-01-01', 1.5, x'00ff', 'a', 1767225600),"
    " (2, '大阪', null, -0.0, null, 'b', 1767225600), (3, '', '', 9e99, x'', null, 1767225600)",
    "insert into items values ('br', 1, 10, 1767225600), ('jp', 1, 20, 1767225600)",
    "create table late(id integer primary key, v text, updated_at integer)",
    "insert into late values (1, 'a', 1767225600), (2, 'b', 1767225600), (3, 'c', 1767225600),"
    " (4, 'd', 1767225600), (5, 'e', 1767225600)",
)
THEN = (
    (
        "update readings set name = 'Olinda', amount = null, updated_at = 1767225700 where id = 1",
        "delete from readings where id = 2",
        "insert into items values ('jp', 2, 30, 1767225700)",
    ),
    (
        "alter table readings add column added integer default 7",
        "alter table readings drop column gone",
        "insert into readings values (2, 'again', null, 2.5, null, 1767225800, 8)",
        "delete from items where country = 'br'",
    ),
    ("update items set quantity = 'many', updated_at = 1767225900 where number = 2",),
)
PENDING = (
    "update readings set name = 'Recife', updated_at = 1767226000 where id = 1",
    "delete from readings where id = 3",
    "update items set quantity = 31, updated_at = 1767226000 where number = 2",
    "update late set v = 'z', updated_at = 1767226000 where id = 1",
)
ASKED = {
    "readings": "select * from readings order by id, _rhei_valid_from",
    "items": "select * from items order by country, number",
    "letters": "",
}


class CutOffError(BaseException):
    """What ends a copy after its first rows, as if the process had died."""


def cut_off(step: Any) -> None:
    """End a copy after its first rows."""
    if step.name == "COPY_BATCH":
        raise CutOffError


def settings(home: Path, kind: dict[str, Any], *, late: bool = False) -> Settings:
    """Return the declaration of a state, with or without the table that comes last."""
    polling = {"polling": {"updated_at": "updated_at"}} if "method" in kind else {}
    buffer = {"buffer": {"path": home / kind["buffer"]}} if "buffer" in kind else {}
    return Settings(
        source={"path": home / "app.db"},
        capture={"method": kind.get("method", "trigger"), **buffer},
        mirror={
            "kind": "datafusion" if "storage" in kind else "duckdb",
            "storage": kind.get("storage"),
            "path": home / kind["mirror"],
        },
        registry={"path": home / "registry.json"},
        tables=[
            {"name": "readings", "mode": "temporal", **polling},
            {"name": "items", "mode": "destructive", **polling},
            *([{"name": "late", "mode": "destructive", **polling}] if late else []),
        ],
        sync={"batch_rows": 2},
    )


def plain(value: Any) -> Any:
    """Return a value as JSON holds it."""
    if isinstance(value, datetime):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else value


def answers(htap: HTAP) -> dict[str, list[dict[str, Any]]]:
    """Return all that the mirror holds, as plain values."""
    found = {table: htap.query(sql, hint="olap") for table, sql in ASKED.items() if sql}
    found["letters"] = htap.dead_letters()
    return {
        table: [{name: plain(value) for name, value in row.items()} for row in rows.to_pylist()]
        for table, rows in found.items()
    }


def write(home: Path, kind: dict[str, Any]) -> None:
    """Make a source, mirror it step by step, note the answers, and leave changes pending."""
    home.mkdir(parents=True)
    app = sqlite3.connect(home / "app.db", isolation_level=None)
    app.execute("pragma journal_mode = wal")
    declared = settings(home, kind)
    for statement in BEFORE:
        app.execute(statement)
    for step in ((), *THEN):
        with HTAP(declared) as htap:
            for statement in step:
                app.execute(statement)
            htap.sync_now()
    with HTAP(declared) as htap:
        (home / "answers.json").write_text(json.dumps(answers(htap), ensure_ascii=False, indent=1))
    with suppress(CutOffError), HTAP(settings(home, kind, late=True), on_step=cut_off) as htap:
        htap.sync_now()
        raise AssertionError("the copy was not cut off")
    for number, statement in enumerate(PENDING):
        app.execute(statement)
        if number == 0 and "buffer" in kind:
            bridge(declared)
    app.close()
    for log in home.glob("cdc/LOG*"):
        log.unlink()  # of RocksDB, for people


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for name, how in KINDS.items():
        write(target / name, how)
        with tarfile.open(target / f"{name}.tar.xz", "w:xz") as archive:
            archive.add(target / name, name)
