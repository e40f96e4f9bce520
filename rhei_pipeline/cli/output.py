"""What the command line prints: tables for people, JSON for machines."""

import json
import math
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time
from typing import TYPE_CHECKING, Any

from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table as Shown
from rich.text import Text

from rhei_pipeline.cli.printable import columns_of, printable
from rhei_pipeline.cli.shard_choice import for_shard
from rhei_pipeline.model.report import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from rhei_pipeline.model.reports import Finding

#: So many rows of an answer are shown to a person; machines get them all.
SHOWN_ROWS = 40
#: A report's words, such as 'destructive', are no longer than this.
_WORD = 12
#: What a column takes beside its texts, and what one gets at least whose words are cut.
_FRAME, _NARROW = 3, 8
#: What is kept while tables are left out is worth a line from here on; a segment of PostgreSQL's
#: log is as large.
_MUCH_KEPT = 16 * 2**20
_KEEPERS = {
    "slot": "the server keeps {} of its log",
    "log": "the triggers' logs hold about {}",
    "buffer": "the buffer keeps {}",
}

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
#: For notes and progress; silent where nobody wants them.
notes = Console(stderr=True, highlight=False)


def show(
    whole: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    *,
    as_json: bool,
    rare: Collection[str] = (),
    nothing: str = "no tables",
) -> None:
    """Print a report: all of it as JSON, or these columns of its rows as a table.

    Columns in `rare` are shown only if one of the rows has a value. Without rows, `nothing` is
    printed: it is empty where what is printed besides tells why there are none.
    """
    if as_json:
        _write_json(whole)
        return
    if not rows:
        if nothing:
            out.print(nothing)
        return
    wanted = [name for name in columns if name not in rare or any(row.get(name) for row in rows)]
    cells = [[_cell(row.get(name)) for name in wanted] for row in rows]
    numeric = [any(_is_number(row.get(name)) for row in rows) for name in wanted]
    out.print(_report(wanted, cells, numeric, out.width))


def _report(
    names: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool], width: int
) -> Shown:
    """Return a report's table; where it is too wide, long texts and headings take more lines."""
    shown = _table([name.replace("_", " ") for name in names], rows, numeric)
    if _width(names, rows) > width:
        words, texts = [], []
        for column, cells in zip(shown.columns, zip(*rows, strict=True), strict=True):
            column.header = str(column.header).replace(" ", "\n")
            told = (column.header, *cells)
            texts.append(max(map(columns_of, told)))
            words.append(
                max((columns_of(word) for cell in told for word in cell.split()), default=0)
            )
        widths = _widths(words, texts, numeric, width - _FRAME * len(names) - 1)
        for column, each in zip(shown.columns, widths, strict=True):
            column.width = each
    return shown


def _widths(
    words: Sequence[int], texts: Sequence[int], numeric: Sequence[bool], room: int
) -> list[int]:
    """Return the width of each column, by its longest word and its longest text."""
    whole = _kept_whole(words, numeric, room)
    widths = [max(word, 1) if place in whole else 1 for place, word in enumerate(words)]
    left = room - sum(widths)
    # What is left goes to columns whose words are cut first, and to short texts before long ones.
    for some in ({*range(len(words))} - whole, whole):
        asking = sorted(some, key=lambda place: texts[place] - widths[place])
        for waiting, place in zip(range(len(asking), 0, -1), asking, strict=True):
            more = max(min(texts[place] - widths[place], left // waiting), 0)
            widths[place] += more
            left -= more
    return widths


def _kept_whole(words: Sequence[int], numeric: Sequence[bool], room: int) -> set[int]:
    """Return the columns in which no word is cut, by their longest ones.

    No number is, and a name takes as many lines as it needs. Where even that is too wide, the
    longest words of others are cut as well.
    """
    whole = {place for place, word in enumerate(words) if word <= _WORD}
    while sum(words[place] for place in whole) + _NARROW * (len(words) - len(whole)) > room:
        texts = [place for place in whole if not numeric[place]]
        if not texts:
            break
        whole.remove(max(texts, key=words.__getitem__))
    return whole


def say(lines: Iterable[str]) -> None:
    """Print lines without wrapping, whatever the terminal's width."""
    for line in lines:
        out.print(printable(line), soft_wrap=True, markup=False)


def show_rows(table: "pa.Table", *, as_json: bool) -> None:
    """Print an answer's rows: all as JSON, or the first as a table, one below another if wide."""
    from rhei_pipeline.model.plain_values import plain_rows

    if as_json:
        _write_json(plain_rows(table))
        return
    if table.num_rows == 0:
        out.print("no rows")
        return
    for shown in rows_shown(table.slice(0, SHOWN_ROWS), out.width):
        out.print(shown)
    if table.num_rows > SHOWN_ROWS:
        out.print(f"{SHOWN_ROWS} of {table.num_rows:,} rows; --format and --output have all")


def print_error(text: str) -> None:
    """Print an error; a terminal's lines are broken between words."""
    said = printable(for_shard(text))
    err.print(Text.assemble(("error ", "red"), said), soft_wrap=not err.is_terminal)


def print_text(text: str) -> None:
    """Print what is no answer; a terminal's lines are broken between words."""
    err.print(Text(printable(text)), soft_wrap=not err.is_terminal)


def print_note(text: str) -> None:
    """Print what is worth knowing, unless it is not wanted."""
    said = printable(for_shard(text))
    notes.print(Text.assemble(("note ", "yellow"), said), soft_wrap=not notes.is_terminal)


def name_errors(errors: Mapping[str, str]) -> None:
    """Print the tables that were left out, with the reasons."""
    for error in errors.values():
        print_error(error)


def rows_counted(count: int) -> str:
    """Return a number of rows in words."""
    return "1 row" if count == 1 else f"{count:,} rows"


def name_dead_letters(met: Mapping[str, int], still: Collection[str]) -> None:
    """Print how many rows a sync could not mirror, and how to see which.

    Args:
        met: How many it met, by table.
        still: The tables that have dead letters now. A row may have been corrected, or deleted,
            before the sync came to it.
    """
    left = {name: count for name, count in met.items() if count and name in still}
    if left:
        told = f"{rows_counted(sum(left.values()))} of {', '.join(left)} could not be mirrored"
        print_note(f"{told}: 'rhei dead-letters' says why")
    for name, count in met.items():
        if count and name not in still:
            print_note(
                f"table {name!r}: {counted(count, 'dead letter')}, resolved by later changes in the"
                " same sync: the mirror has the rows as they are now, and a history lacks those"
                " versions"
            )


def name_missing(answer: "pa.Table") -> None:
    """Print how many rows the mirror lacks of the tables that an answer is from, or how old."""
    labels = answer.schema.metadata or {}
    for name, since in json.loads(labels.get(b"rhei.not_followed", b"{}")).items():
        print_note(f"table {name!r}: its rows are of {since}: no sync has brought it up since")
    for name, count in json.loads(labels.get(b"rhei.dead_letters", b"{}")).items():
        may = f"{rows_counted(count)} may be missing or old"
        print_note(f"table {name!r}: {may}: 'rhei dead-letters' says why")


def name_not_followed(tables: Mapping[str, datetime], named: Collection[str]) -> None:
    """Print the mirror's tables that are no longer followed, except those printed before."""
    for name, since in tables.items():
        if name not in named:
            print_note(
                f"table {name!r} is no longer followed since {since.isoformat()}: declare it"
                f" again, or drop it from the mirror with 'rhei drop-table {name}'"
            )


def name_kept(held_bytes: Mapping[str, int]) -> None:
    """Print how much is kept, which grows while tables are left out, once it is much."""
    from rich.filesize import decimal

    for keeper, size in held_bytes.items():
        if size >= _MUCH_KEPT:
            print_note(
                f"{_KEEPERS[keeper].format(decimal(size))}, and more while tables are left out:"
                " until they are followed again, or dropped from the mirror by 'rhei drop-table'"
            )


def name_findings(findings: "Iterable[Finding]") -> None:
    """Print what was found beside the tables' state, with what to do."""
    for found in findings:
        print_note(f"table {found.table!r}: {found.what}: {found.why} ({found.remedy})")


def name_not_published(reason: str | None) -> None:
    """Print why the published copy or the Delta tables are out of date, if they are."""
    if reason is not None:
        print_error(reason)


def rows_shown(table: "pa.Table", width: int) -> Iterator[Shown]:
    """Return rows as one table; where it were too wide, as one for each row."""
    from rhei_pipeline.model.plain_values import plain_values

    # A table's columns may share a name, so they are taken by place.
    columns = [[exact(value) for value in plain_values(column)] for column in table.columns]
    names = list(map(exact, table.column_names))
    rows = [list(cells) for cells in zip(*columns, strict=True)]
    if _width(names, rows) <= width:
        yield _table(names, rows, [_is_numeric(column.type) for column in table.columns])
        return
    for row in rows:
        record = Shown(show_header=False)
        for _ in range(2):
            record.add_column(overflow="fold")
        for name, cell in zip(names, row, strict=True):
            record.add_row(name, cell)
        yield record


def _width(names: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    lines = (names, *rows)  # the names alone, where a report has no row
    return sum(max(map(columns_of, column)) + 3 for column in zip(*lines, strict=True)) + 1


def show_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print cells, which are written already, under these names."""
    out.print(_table(list(map(exact, names)), rows, [False] * len(names)))


def _table(names: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> Shown:
    shown = Shown()
    for name, is_numeric in zip(names, numeric, strict=True):
        # Nothing is cut: what is too wide takes more lines.
        justify: JustifyMethod = "right" if is_numeric else "left"
        shown.add_column(name, justify=justify, overflow="fold")
    for row in rows:
        shown.add_row(*row)
    return shown


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_numeric(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def _cell(value: object) -> str:
    """Return a report's value as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}"
    if isinstance(value, list):
        return exact(", ".join(map(str, value)))
    return exact(value)


def exact(value: object) -> str:
    """Return a row's value as exact text; one of several parts as JSON."""
    if value is None:
        return "[dim]null[/]"
    text = json_text(value) if isinstance(value, dict | list) else str(value)
    return escape(printable(text))


def _write_json(value: object) -> None:
    sys.stdout.write(json_text(value) + "\n")


def json_text(value: object) -> str:
    """Return a value as JSON; what JSON cannot hold becomes text."""
    return json.dumps(_json(value))


def _json(value: object) -> object:
    """Return a value as JSON can hold it; others become text, none is left out."""
    if isinstance(value, Mapping):
        return {str(name): _json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json(part) for part in value]
    return _json_scalar(value)


def _json_scalar(value: object) -> object:
    match value:
        case bytes():
            return {"hex": value.hex()}
        case datetime() | date() | time():
            return value.isoformat()
        case str() | int() | None:
            return value
        case float() if math.isfinite(value):
            return value
    return str(value)
