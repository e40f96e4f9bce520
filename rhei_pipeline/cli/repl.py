"""`rhei query` without a statement: a shell, in a terminal or over a script."""

from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from rhei_pipeline.cli.interrupting import interruptible
from rhei_pipeline.cli.output import (
    err,
    name_errors,
    name_missing,
    out,
    print_error,
    rows_counted,
    say,
)
from rhei_pipeline.cli.printable import printable
from rhei_pipeline.cli.rows import OutputFormat, RowWriter
from rhei_pipeline.cli.statements import is_open, keywords, says_something, whole_statements
from rhei_pipeline.cli.watching import watch
from rhei_pipeline.errors import QueryError, RheiError
from rhei_pipeline.model.bounds import LONGEST_SECONDS

if TYPE_CHECKING:
    import pyarrow as pa

    from rhei_pipeline.holder.held import Hint
    from rhei_pipeline.htap import HTAP
    from rhei_pipeline.query.router import Route

_HELP = """\
A statement ends with ';', and may have many lines. Commands:
  \\d                 the tables             \\d TABLE    its columns
  \\route [SQL]       which side would answer this, or the last statement, and why
  \\auto \\oltp \\olap  which side answers from now on
  \\sync              apply what is pending  \\timing     show answers' times, or not
  \\watch [SECONDS]   ask the last statement again and again; Ctrl-C ends that
  \\export FILE       write the last answer: .csv, .json, .ndjson, .md, .parquet
  \\q, exit           leave the shell (Ctrl-D does, too); Ctrl-C ends a query"""
COMMANDS = (
    *("\\d", "\\route", "\\auto", "\\oltp", "\\olap", "\\sync", "\\timing"),
    *("\\watch", "\\export", "\\q", "\\?"),
)
_HINTS: tuple["Hint", ...] = ("auto", "oltp", "olap")
_ENDS = {"\\q", "\\quit", "exit", "quit", "exit;", "quit;"}
#: Between two answers of `\\watch`.
_PAUSE_SECONDS = 2.0


class Shell:
    """Answers statements and commands, one after another.

    Args:
        htap: What is asked.
        read: Asks for one line or more, given a prompt; raises EOFError at the end.
        writer: How rows are written; left out: as tables for people.
        hint: The side that answers first.
        is_script: Say nothing beside the answers, and end at the first error.
        max_staleness: How many seconds an answer of the mirror may be behind the source.
    """

    def __init__(
        self,
        htap: "HTAP",
        read: Callable[[str], str] = input,
        writer: RowWriter | None = None,
        hint: "Hint" = "auto",
        *,
        is_script: bool = False,
        max_staleness: float | None = None,
    ) -> None:
        self._htap = htap
        self._read = read
        self._writer = writer or RowWriter(OutputFormat.TABLE)
        self._hint: Hint = hint
        self._max_staleness = max_staleness
        self._is_script = is_script
        self._shows_time = not is_script
        self._last = ""
        self._answer: pa.Table | None = None

    def run(self) -> None:
        """Answer what is read until the end of the input or the quit command."""
        if not self._is_script:
            out.print("rhei: \\? for help, \\q to quit", markup=False)
        pending = ""
        while True:
            try:
                read = self._read("    > " if pending else "rhei> ")
            except EOFError:
                break
            except KeyboardInterrupt:
                pending = ""
                continue
            pending, is_over = self._answered_lines(read, pending)
            if is_over:
                return
        if says_something(pending, self._dialect):
            self._guarded(self._ask, pending.strip())

    def _answered_lines(self, read: str, pending: str) -> tuple[str, bool]:
        """Answer lines, of which each may be a command; return what is not whole, and if to end."""
        for line in read.split("\n"):
            pending, command = self._taken(line, pending)
            if command.lower() in _ENDS:
                return "", True
            if command:
                self._guarded(self._command, command)
        return pending, False

    def _taken(self, line: str, pending: str) -> tuple[str, str]:
        """Answer what is whole; return what is not, and the command that ends the line."""
        said, command = _parts(line)
        if pending and (not _is_known(command) or self._goes_on(pending)):
            said, command = line, ""
        # The end of a line stays as it is: a text may be open, which goes on in the next one.
        return self._answered(f"{pending}\n{said}".lstrip()), command

    def _goes_on(self, pending: str) -> bool:
        """Return whether a line is part of a script's text, or comment, that is open.

        Who types in a terminal gets out of one by a command.
        """
        return self._is_script and is_open(pending, self._dialect)

    def read_by(self, read: Callable[[str], str]) -> None:
        """Ask for lines in another way from now on."""
        self._read = read

    def is_whole(self, text: str) -> bool:
        """Return whether what is typed is a command, or ends with a statement's end."""
        typed = text.strip()
        if not typed or _parts(typed)[1]:
            return True
        found, rest = whole_statements(typed, self._dialect)
        return bool(found) and not says_something(rest, self._dialect)

    def words(self) -> list[str]:
        """Return the words for completion: keywords, tables, columns."""
        names = {
            name
            for table in self._htap.table_schemas().values()
            for name in (table.name, *table.schema.names)
        }
        return sorted({*keywords(self._dialect), *names})

    @property
    def _dialect(self) -> str:
        """The dialect that statements are read in, only to see where they end."""
        is_for_mirror = self._hint == "olap"
        return "duckdb" if is_for_mirror else self._htap.settings.source.dialect

    def _answered(self, text: str) -> str:
        """Answer the statements that end in a text; return what is left of it."""
        if text[:1].isalpha() and ";" not in text:
            return text  # read again with each of its lines, a long statement took minutes
        found, rest = whole_statements(text, self._dialect)
        for statement in found:
            self._guarded(self._ask, statement)
        return rest if says_something(rest, self._dialect) else ""

    def _guarded(self, act: Callable[[str], None], text: str) -> None:
        """Do something; an error, or Ctrl-C, ends that alone."""
        if self._is_script:
            act(text)
            return
        try:
            act(text)
        except KeyboardInterrupt:
            err.print("interrupted")
        except RheiError as error:
            print_error(str(error))

    def _ask(self, sql: str) -> None:
        self._last = sql
        started = monotonic()
        self._answer = found = interruptible(
            lambda begun: self._htap.query(sql, (), self._hint, self._max_staleness, begun=begun)
        )
        seconds = monotonic() - started
        self._writer.write(found)
        name_missing(found)
        labels = found.schema.metadata or {}
        side, reason = (labels.get(name, b"").decode() for name in (b"rhei.engine", b"rhei.reason"))
        if not self._is_script:
            took = f" in {seconds * 1000:.1f} ms" if self._shows_time else ""
            told = printable(f"{rows_counted(found.num_rows)}{took} from {side}: {reason}")
            out.print(told, markup=False)

    def _command(self, line: str) -> None:
        word, _, rest = line[1:].rstrip(";").partition(" ")
        rest = rest.strip()
        if word in _HINTS:
            self._hint = next(hint for hint in _HINTS if hint == word)
            return
        commands: dict[str, Callable[[str], None]] = {
            "d": self._describe,
            "route": self._route,
            "sync": self._sync,
            "timing": self._time,
            "watch": self._watch,
            "export": self._export,
            "?": lambda _: out.print(_HELP, markup=False),
        }
        if word not in commands:
            raise QueryError(f"there is no command '\\{word}'", hint="\\? lists them")
        commands[word](rest)

    def _describe(self, name: str) -> None:
        from rhei_pipeline.sync.naming import in_any_case

        tables = self._htap.table_schemas()
        if not name:
            say(sorted(tables))
            name_errors(self._htap.left_out)
            return
        if name.startswith('"') and name.endswith('"'):
            name = name[1:-1].replace('""', '"')
        found = in_any_case(name, tables)
        if found is None:
            if name in self._htap.left_out:
                raise QueryError(self._htap.left_out[name])
            raise QueryError(f"table {name!r} is not mirrored", hint="\\d lists the tables")
        schema = found.schema
        for column in schema.columns:
            key = " (key)" if column.name in schema.primary_key else ""
            say([f"{column.name}  {column.type}{key}"])

    def _route(self, sql: str) -> None:
        route = route_of(self._htap, sql.rstrip(";") or self._asked_last(), self._hint)
        how_new = f"; {route.freshness}" if route.freshness else ""
        out.print(printable(f"{route.engine}: {route.reason}{how_new}"), markup=False)

    def _sync(self, _: str) -> None:
        report = self._htap.sync_now()
        out.print(f"{report.events:,} events in {report.duration_seconds:.3f} s")
        name_errors(report.errors)

    def _time(self, _: str) -> None:
        self._shows_time = not self._shows_time
        out.print(f"timing is {'on' if self._shows_time else 'off'}")

    def _watch(self, seconds: str) -> None:
        try:
            # At least a tenth of a second; what is no number compares with none.
            pause = max(0.1, float(seconds)) if seconds else _PAUSE_SECONDS
        except ValueError:
            raise QueryError(
                f"{seconds!r} is not a number of seconds", hint="such as '\\watch 5'"
            ) from None
        sql = self._asked_last()
        watch(lambda: self._ask(sql), min(pause, LONGEST_SECONDS))

    def _export(self, file: str) -> None:
        if self._answer is None:
            raise QueryError("there is no answer to write yet", hint="ask something first")
        if not file:
            raise QueryError("'\\export' needs a file", hint="such as '\\export orders.csv'")
        RowWriter.for_file(Path(file), self._htap.settings).write(self._answer)

    def _asked_last(self) -> str:
        if not self._last:
            raise QueryError("there is no last statement", hint="ask something first")
        return self._last


def _parts(typed: str) -> tuple[str, str]:
    """Return what is typed before a command in the last line, and the command, if there is one."""
    *before, last = typed.strip().splitlines() or [""]
    command = last.strip()
    is_alone = command.startswith("\\") or command.lower() in _ENDS
    if _is_known(command) or (is_alone and not before):
        return "\n".join(before), command
    return typed, ""


def _is_known(command: str) -> bool:
    return command.partition(" ")[0].rstrip(";") in COMMANDS


def route_of(htap: "HTAP", sql: str, hint: "Hint") -> "Route":
    """Return which side would answer, where one may be asked for."""
    from rhei_pipeline.query.router import Route

    return htap.explain_route(sql) if hint == "auto" else Route(hint, "asked for")


def reading(text: str) -> Callable[[str], str]:
    """Return a function that reads a text line by line, whatever the prompt."""
    lines = iter(text.split("\n"))  # others that Python knows, such as U+2028, are in texts

    def read(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    return read
