"""How the command line prints what changed in a table: for people, one line a row."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from rhei_pipeline.cli.output import SHOWN_ROWS, exact, out, show_table
from rhei_pipeline.model.change_feed import OLD_PREFIX
from rhei_pipeline.model.plain_values import plain_rows
from rhei_pipeline.model.schema import OPERATION, RESERVED_PREFIX
from rhei_pipeline.model.set_aside import is_kept_past

_NAMES = {"I": "insert", "U": "update", "D": "delete"}


def show_differences(rows: pa.Table) -> None:
    """Print changed rows: what happened, to which key, and the values, old and new."""
    if not rows.num_rows:
        out.print("no changes")
        return
    names = [n for n in rows.column_names if is_kept_past(n) or not n.startswith(RESERVED_PREFIX)]
    key = [name for name in names if OLD_PREFIX + name not in rows.column_names]
    shown = plain_rows(rows.slice(0, SHOWN_ROWS))
    lines = [[_NAMES[row[OPERATION]], *_cells(row, key, names)] for row in shown]
    show_table(["change", *key, "values"], lines)
    if rows.num_rows > SHOWN_ROWS:
        out.print(f"{SHOWN_ROWS} of {rows.num_rows:,} changes; --json prints all")


def _cells(row: dict[str, Any], key: Sequence[str], names: Sequence[str]) -> list[str]:
    values = [name for name in names if name not in key]
    return [*(exact(row[name]) for name in key), "\n".join(_values(row, values))]


def _values(row: dict[str, Any], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        new, old = row[name], row[OLD_PREFIX + name]
        match row[OPERATION]:
            case "I":
                yield f"{exact(name)}: {exact(new)}"
            case "D":
                yield f"{exact(name)}: {exact(old)}"
            case _ if repr(new) != repr(old):
                yield f"{exact(name)}: {exact(old)} -> {exact(new)}"
