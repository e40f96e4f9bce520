"""How an answer's rows are written: a table for people, and formats for programs and files."""

import json
import re
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from rhei_pipeline.cli.opening import settings_of
from rhei_pipeline.cli.output import json_text, print_note, rows_counted, show_rows
from rhei_pipeline.cli.written_file import refuse_own, whole_file
from rhei_pipeline.errors import QueryError
from rhei_pipeline.model.bounds import LARGEST

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from rhei_pipeline.settings.model import Settings


class OutputFormat(StrEnum):
    """A format of rows."""

    TABLE = "table"
    JSON = "json"
    NDJSON = "ndjson"
    CSV = "csv"
    MARKDOWN = "markdown"
    PARQUET = "parquet"


#: What ends a line of Markdown.
_END = re.compile("\r\n?|\n")
_BY_SUFFIX = {
    ".json": OutputFormat.JSON,
    ".ndjson": OutputFormat.NDJSON,
    ".jsonl": OutputFormat.NDJSON,
    ".csv": OutputFormat.CSV,
    ".md": OutputFormat.MARKDOWN,
    ".parquet": OutputFormat.PARQUET,
}

RowFormat = Annotated[
    OutputFormat | None,
    typer.Option("--format", help="How rows are written; left out: by the file's name, or table."),
]
RowFile = Annotated[Path | None, typer.Option("--output", help="Write the rows to this file.")]
RowLimit = Annotated[int | None, typer.Option("--limit", min=0, help="Write at most N rows.")]


@dataclass(frozen=True, slots=True)
class RowWriter:
    """Writes answers as asked for.

    Attributes:
        format: How.
        file: Where; None: standard output.
        limit: The most rows that are written; None: all, of a table for people the first few.
    """

    format: OutputFormat
    file: Path | None = None
    limit: int | None = None

    @classmethod
    def asked(
        cls,
        format_: OutputFormat | None,
        config: Path,
        *,
        as_json: bool,
        file: Path | None,
        limit: int | None,
    ) -> "RowWriter":
        """Return a writer for a command's options.

        Raises:
            BadParameter: They contradict each other, or the format is not known.
            QueryError: The file is one that the pipeline keeps.
        """
        if as_json and format_ not in (None, OutputFormat.JSON):
            raise typer.BadParameter("give '--json' or '--format', not both")
        chosen = OutputFormat.JSON if as_json else format_
        if chosen is None and file is not None:
            if file.suffix.lower() not in _BY_SUFFIX:
                raise typer.BadParameter(f"what format is {file.name!r} to have? Give '--format'")
            chosen = _BY_SUFFIX[file.suffix.lower()]
        if chosen is OutputFormat.PARQUET and file is None and sys.stdout.isatty():
            raise typer.BadParameter("Parquet is not text: give '--output FILE.parquet'")
        if file is not None:
            refuse_own(file, settings_of(config))
        bounded = None if limit is None else min(limit, LARGEST)
        return cls(chosen or OutputFormat.TABLE, file, bounded)

    @classmethod
    def for_file(cls, file: Path, settings: "Settings") -> "RowWriter":
        """Return a writer for a file, by its name.

        Raises:
            QueryError: Its name does not say what format it is to have, or the pipeline keeps it.
        """
        found = _BY_SUFFIX.get(file.suffix.lower())
        if found is None:
            raise QueryError(
                f"file {file.name!r} does not say its format",
                hint=f"end its name with {', '.join(_BY_SUFFIX)}",
            )
        refuse_own(file, settings)
        return cls(found, file)

    @property
    def is_json(self) -> bool:
        """Whether a program reads what is written."""
        return self.format in {OutputFormat.JSON, OutputFormat.NDJSON}

    @property
    def is_for_people(self) -> bool:
        """Whether a person reads what is written, on the screen."""
        return self.format is OutputFormat.TABLE and self.file is None

    def write(self, table: "pa.Table") -> None:
        """Write an answer's rows; no format of files has intervals."""
        from rhei_pipeline.model.interval_texts import with_interval_texts

        rows = with_interval_texts(table if self.limit is None else table.slice(0, self.limit))
        if self.is_for_people:
            show_rows(rows, as_json=False)
        elif self.file is None:
            sys.stdout.flush()
            _WRITERS[self.format](rows, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        else:
            with whole_file(self.file) as opened:
                _WRITERS[self.format](rows, opened)
            print_note(f"{rows_counted(rows.num_rows)} written to {self.file}")


def _write_json(table: "pa.Table", to: IO[bytes]) -> None:
    from rhei_pipeline.model.plain_values import plain_rows

    to.write(json_text(plain_rows(table)).encode() + b"\n")


def _write_ndjson(table: "pa.Table", to: IO[bytes]) -> None:
    from rhei_pipeline.model.plain_values import plain_rows

    for batch in table.to_batches(10_000):
        for row in plain_rows(batch):
            to.write(json_text(row).encode() + b"\n")


def _write_csv(table: "pa.Table", to: IO[bytes]) -> None:
    import pyarrow as pa
    from pyarrow import csv

    columns = [_for_csv(column) for column in table.columns]
    plain = pa.table(columns, list(table.column_names))
    csv.write_csv(plain, to, csv.WriteOptions(quoting_style="needed"))


def _for_csv(column: "pa.ChunkedArray") -> "pa.ChunkedArray | pa.Array":
    """Return a column as CSV can hold it: bytes as hexadecimal digits, nested values as JSON."""
    import pyarrow as pa

    from rhei_pipeline.model.plain_values import plain_values

    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return pa.array([None if v is None else v.hex() for v in plain_values(column)], pa.string())
    if pa.types.is_nested(column.type):
        texts = [None if v is None else json_text(v) for v in plain_values(column)]
        return pa.array(texts, pa.string())
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column


def _write_markdown(table: "pa.Table", to: IO[bytes]) -> None:
    from rhei_pipeline.model.plain_values import plain_values

    columns = [[_cell(value) for value in plain_values(column)] for column in table.columns]
    lines = [
        map(_cell, table.column_names),
        ["---"] * table.num_columns,
        *zip(*columns, strict=True),
    ]
    for line in lines:
        to.write(f"| {' | '.join(line)} |\n".encode())


def _cell(value: object) -> str:
    """Return a value as text that ends neither the cell nor the line."""
    text = "" if value is None else value if isinstance(value, str) else _word(value)
    return _END.sub("<br>", text.replace("\\", "\\\\").replace("|", "\\|"))


def _word(value: object) -> str:
    """Return a value as JSON has it, without quotation marks where it is one word."""
    text = json_text(value)
    found: object = json.loads(text)
    return found if isinstance(found, str) else text


def _write_parquet(table: "pa.Table", to: IO[bytes]) -> None:
    from pyarrow import parquet

    parquet.write_table(table, to)


def _write_table(table: "pa.Table", to: IO[bytes]) -> None:
    from rich.console import Console

    from rhei_pipeline.cli.output import rows_shown

    text = Console(width=10_000, highlight=False)
    with text.capture() as captured:
        for shown in rows_shown(table, text.width):
            text.print(shown)
    to.write(captured.get().encode())


_WRITERS: dict[OutputFormat, "Callable[[pa.Table, IO[bytes]], None]"] = {
    OutputFormat.TABLE: _write_table,
    OutputFormat.JSON: _write_json,
    OutputFormat.NDJSON: _write_ndjson,
    OutputFormat.CSV: _write_csv,
    OutputFormat.MARKDOWN: _write_markdown,
    OutputFormat.PARQUET: _write_parquet,
}
