"""A source of one's own: a directory of JSON lines, mirrored with its history.

Each table is a file of changes that is only ever appended to, and a file with its columns:

    orders.schema.json   {"key": ["k"], "columns": {"k": "int64", "v": "string"}}
    orders.jsonl         {"seq": 1, "at": "2026-01-01T00:00:00+00:00", "put": {"k": 1, "v": "a"}}
                         {"seq": 2, "at": "2026-01-01T00:00:01+00:00", "gone": {"k": 1}}

A line counts once it ends. `python -m examples.json_lines` shows it at work.
"""

import json
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

import rhei_pipeline as rhei

Line = dict[str, Any]


class JsonLinesSource:
    """A `rhei.ChangeSource` over such a directory; it keeps every change."""

    logs_rows = True  # a change holds its row whole

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def append(self, table: str, *changes: Line, seq: int = 0) -> None:
        """Append changes in one piece, numbered on from the last, or from `seq`."""
        number = max(seq, self.read(table)[-1]["seq"] + 1 if self.read(table) else 1)
        at = datetime.now(UTC).isoformat()
        lines = [{"seq": number + n, "at": at, **change} for n, change in enumerate(changes)]
        with (self._directory / f"{table}.jsonl").open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))

    def read(self, table: str) -> list[Line]:
        """Read the lines that have ended."""
        file = self._directory / f"{table}.jsonl"
        text = file.read_text() if file.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def describe(self, name: str) -> rhei.TableSchema:
        """Read a table's schema."""
        file = self._directory / f"{name}.schema.json"
        if not file.exists():
            raise rhei.SchemaError("it has no schema", table=name, hint=f"write {file.name}")
        form = json.loads(file.read_text())
        columns = [rhei.Column(c, rhei.parse_type(kind)[0]) for c, kind in form["columns"].items()]
        return rhei.TableSchema(name, tuple(columns), tuple(form["key"]))

    def install(self, table: rhei.Table, least: int) -> None:
        """Have positions begin behind the least: a line without a change is one."""
        lines = self.read(table.name)
        if not lines or lines[-1]["seq"] < least:
            self.append(table.name, {}, seq=least + 1)

    def is_installed(self, table: rhei.Table) -> bool:
        """Return whether the table is as it is described now."""
        return bool(self.read(table.name)) and self.describe(table.name) == table.schema

    def schema_version(self) -> int:
        """Return a checksum of all schemas."""
        files = sorted(self._directory.glob("*.schema.json"))
        return zlib.crc32("".join(f"{file.name} {file.read_text()}" for file in files).encode())

    @contextmanager
    def snapshot(self) -> Iterator["JsonLinesSnapshot"]:
        """Hold what the files say now."""
        logs = {file.stem: self.read(file.stem) for file in self._directory.glob("*.jsonl")}
        yield JsonLinesSnapshot(logs, self.schema_version())

    def acknowledge(self, _needed_from: Mapping[str, rhei.Position], **_: bool) -> int:
        """Forget nothing: the files are the application's."""
        return 0

    def touch(self, table: rhei.Table, keys: Sequence[tuple[Any, ...]]) -> None:
        """Append the rows of these keys again."""
        key, rows = table.schema.primary_key, _rows(self.read(table.name), table)
        gone = [{"gone": dict(zip(key, each, strict=True))} for each in keys]
        known = [{"put": rows[each]} if each in rows else gone[n] for n, each in enumerate(keys)]
        self.append(table.name, *known)


class JsonLinesSnapshot:
    """A `rhei.SourceSnapshot`: the lines there were when it was taken."""

    shares_log = False  # each table has a file

    def __init__(self, logs: Mapping[str, list[Line]], schema_version: int) -> None:
        self._logs = logs
        self.schema_version = schema_version
        self.clock = datetime.now(UTC)

    def head(self, table: rhei.Table) -> rhei.Position:
        """Return the last line's number."""
        return _position(self._logs[table.name][-1])

    origin = head

    def proves(self, table: rhei.Table, position: rhei.Position) -> bool:
        """Return whether the file still has that line."""
        return any(_position(line) == position for line in self._logs.get(table.name, ()))

    def pending(self, table: rhei.Table, after: rhei.Position) -> int:
        """Count the changes behind a line."""
        return len(self._behind(table, after))

    def oldest_pending(self, table: rhei.Table, after: rhei.Position) -> datetime | None:
        """Return when the first change behind a line was made."""
        return next((_at(line) for line in self._behind(table, after)), None)

    def changes(
        self, table: rhei.Table, after: rhei.Position, limit: int
    ) -> Iterator[rhei.ChangeBatch]:
        """Read every version, in order; the mirror compacts them where it keeps none."""
        lines = self._behind(table, after)
        for low in range(0, len(lines), limit):
            part = [_event(line) for line in lines[low : low + limit]]
            events = pa.Table.from_pylist(part, schema=rhei.event_schema(table.schema))
            yield rhei.ChangeBatch(events, len(part))

    net_changes = changes

    def rows(self, table: rhei.Table, resume: str | None, limit: int) -> rhei.RowBatch | None:
        """Read the next rows in key order."""
        rows = _rows(self._logs[table.name], table)
        keys = [k for k in sorted(rows) if resume is None or k > tuple(json.loads(resume))][:limit]
        if not keys:
            return None
        made = pa.Table.from_pylist([rows[key] for key in keys], schema=table.schema.arrow)
        return rhei.RowBatch(made, json.dumps(keys[-1]))

    def count(self, table: rhei.Table) -> int:
        """Count the rows."""
        return len(_rows(self._logs[table.name], table))

    def _behind(self, table: rhei.Table, after: rhei.Position) -> list[Line]:
        lines = self._logs[table.name]
        return [n for n in lines if n["seq"] > after.order and ("put" in n or "gone" in n)]


def _position(line: Line) -> rhei.Position:
    # Another file would hardly have a line of this number and this moment.
    return rhei.Position(line["seq"], line["at"])


def _at(line: Line) -> datetime:
    return datetime.fromisoformat(line["at"])


def _event(line: Line) -> Line:
    told = {"_rhei_sequence": line["seq"], "_rhei_changed_at": _at(line)}
    return {**told, "_rhei_live": "put" in line, **(line.get("put") or line["gone"])}


def _rows(lines: list[Line], table: rhei.Table) -> dict[tuple[Any, ...], Line]:
    """Return the rows that all lines lead to, by key."""
    rows: dict[tuple[Any, ...], Line] = {}
    for line in lines:
        row = line.get("put") or line.get("gone")
        if row:
            key = tuple(row[name] for name in table.schema.primary_key)
            rows.pop(key, None)
            if "put" in line:
                rows[key] = row
    return rows


def main() -> None:
    """Mirror two changes of an order, and show its history."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        form = {"key": ["id"], "columns": {"id": "int64", "status": "string"}}
        (directory / "orders.schema.json").write_text(json.dumps(form))
        source = JsonLinesSource(directory)
        source.append("orders", {"put": {"id": 1, "status": "new"}})
        mirror = rhei.open_mirror(rhei.MirrorSettings(path=directory / "mirror.duckdb"))
        pipeline = rhei.open_with(source, mirror, {"orders": "temporal"})
        pipeline.sync()
        source.append("orders", {"put": {"id": 1, "status": "paid"}})
        pipeline.sync()
        print(mirror.query("select * from orders order by _rhei_valid_from").to_pylist())
        mirror.close()


if __name__ == "__main__":
    main()
