"""Scripts of sqllogictest on each mirror: who answers, and whether as the script recorded it.

The scripts are not part of this project: `select1.test` to `select5.test` of
https://www.sqlite.org/sqllogictest are small enough.
"""

import argparse
import hashlib
import re
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

import rhei_pipeline as rhei
from benchmarks.tpch import MIRRORS

#: A control record is for one engine or for all but one; this is the engine of the source.
_ENGINE = "sqlite"
_HASHED = re.compile(r"(\d+) values hashing to (\w+)")
#: A text that tells rows apart, as the last column of each of the scripts' tables.
_TEXT_LAST = re.compile(r"(x\d+ VARCHAR\(\d+\))\s*\)$")


@dataclass(frozen=True, slots=True)
class Record:
    """A statement or a query of a script.

    Attributes:
        sql: Its text.
        kinds: Of each column whether it is text (T), an integer (I) or a real (R).
        order: How values are sorted before they are compared.
        expected: The values, or how many there are, with their hash; None of a statement.
    """

    sql: str
    kinds: str = ""
    order: str = ""
    expected: list[str] | None = None


def records(script: str) -> Iterator[Record]:
    """Yield the statements and queries of a script that are for SQLite."""
    for block in re.split(r"\n\s*\n", script):
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        if not _strip_conditions(lines) or not lines:
            continue
        kind, *words = lines[0].split()
        if kind == "statement":
            yield Record("\n".join(lines[1:]))
        elif kind == "query":
            end = lines.index("----")
            order = words[1] if len(words) > 1 else "nosort"
            yield Record("\n".join(lines[1:end]), words[0], order, lines[end + 1 :])


def _strip_conditions(lines: list[str]) -> bool:
    """Remove the conditions of a record; return whether they hold."""
    holds = True
    while lines and (words := lines[0].split())[:1] in (["skipif"], ["onlyif"]):
        holds &= (words[0] == "onlyif") == (words[1] == _ENGINE)
        del lines[0]
    return holds


def agrees(found: pa.Table, record: Record) -> bool:
    """Return whether an answer has the values that were recorded."""
    rows = [
        [_shown(value, kind) for value, kind in zip(row, record.kinds, strict=True)]
        for row in zip(*(column.to_pylist() for column in found.columns), strict=True)
    ]
    if record.order == "rowsort":
        rows.sort()
    values = [value for row in rows for value in row]
    if record.order == "valuesort":
        values.sort()
    expected = record.expected or []
    hashed = _HASHED.fullmatch(expected[0]) if len(expected) == 1 else None
    if hashed is None:
        return values == expected
    together = "".join(f"{value}\n" for value in values).encode()
    digest = hashlib.md5(together, usedforsecurity=False).hexdigest()
    return (str(len(values)), digest) == hashed.groups()


def _shown(value: Any, kind: str) -> str:  # noqa: ANN401
    if value is None:
        return "NULL"
    if kind == "T":
        return str(value) or "(empty)"
    return str(int(value)) if kind == "I" else f"{float(value):.3f}"


def with_key(sql: str) -> str:
    """Return a statement that creates a table with a key, where it has none."""
    if not sql.startswith("CREATE TABLE") or "PRIMARY KEY" in sql:
        return sql
    if _TEXT_LAST.search(sql):
        return _TEXT_LAST.sub(r"\1 PRIMARY KEY)", sql)
    return re.sub(r"\)\s*$", ", k INTEGER PRIMARY KEY)", sql)


def play(script: Path, mirror: dict[str, Any], directory: Path, every: int) -> Counter[str]:
    """Run a script; return how often which side answered, and how often otherwise than recorded.

    What the mirror was not asked for is asked of it by the hint `olap`: it then answers alike, or
    refuses.
    """
    told, place = Counter[str](), 0
    settings = rhei.Settings(
        source={"kind": "sqlite", "path": directory / "app.db"},
        mirror={**mirror, "path": directory / "mirror"},
        registry={"path": directory / "registry.json"},
    )
    source = sqlite3.connect(directory / "app.db", isolation_level=None)
    with closing(source), rhei.open(settings) as htap:
        source.execute("pragma journal_mode = wal")
        is_behind = True
        for record in records(script.read_text()):
            if record.expected is None:
                source.execute(with_key(record.sql))
                is_behind = True
                continue
            place += 1
            if place % every:
                continue
            if is_behind:
                htap.sync_now()
                is_behind = False
            told += _asked(htap, record)
    return told


def _asked(htap: rhei.HTAP, record: Record) -> Counter[str]:
    found = htap.query(record.sql)
    side = (found.schema.metadata or {})[b"rhei.engine"].decode()
    told = Counter({"queries": 1, side: 1, "different": not agrees(found, record)})
    if side == "olap":
        return told
    try:
        asked = htap.query(record.sql, hint="olap")
    except rhei.QueryError:
        return told + Counter({"olap refused": 1})
    return told + Counter({"olap by hint": 1, "different": not agrees(asked, record)})


def main(scripts: Sequence[Path], every: int) -> int:
    """Print a table of what each mirror made of each script; return 1 if an answer differs."""
    columns = ("queries", "olap", "oltp", "olap by hint", "olap refused", "different")
    table, different = Table("script", "mirror", *columns), 0
    for script in scripts:
        for name, mirror in MIRRORS.items():
            with TemporaryDirectory() as directory:
                told = play(script, mirror, Path(directory), every)
            table.add_row(script.name, name, *(str(told[column]) for column in columns))
            different += told["different"]
    Console().print(table)
    return 1 if different else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scripts", nargs="+", type=Path)
    parser.add_argument("--every", type=int, default=1, help="ask only every so many-th query")
    options = parser.parse_args()
    sys.exit(main(options.scripts, options.every))
