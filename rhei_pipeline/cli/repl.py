"""`rhei query` without a statement: a small shell with history and completion."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rhei_pipeline.cli.output import err, name_errors, out, show_rows
from rhei_pipeline.errors import QueryError, RheiError
from rhei_pipeline.holder.held import Hint
from rhei_pipeline.htap import HTAP

HISTORY = Path.home() / ".rhei_history"
_HELP = """\
Statements end with ';'. Commands:
  \\d             the tables           \\d TABLE      its columns
  \\route SQL     which side, and why  \\auto \\oltp \\olap   which side answers next
  \\sync          apply pending changes  \\q             quit"""
_KEYWORDS = frozenset(
    re.findall(
        r"\w+",
        "select from where group by having order limit join left on using with as count sum avg"
        " min max distinct union case when then else end and or not null like between in exists is",
    )
)
_HINTS: tuple[Hint, ...] = ("auto", "oltp", "olap")


class Shell:
    """An interactive prompt for queries.

    Args:
        read: Asks for one line, given a prompt; raises EOFError at the end.
    """

    def __init__(self, htap: HTAP, read: Callable[[str], str] = input) -> None:
        self._htap = htap
        self._read = read
        self._hint: Hint = "auto"

    def run(self) -> None:
        """Answer lines until the end of the input or the quit command."""
        out.print("rhei: \\? for help, \\q to quit")
        pending = ""
        while True:
            try:
                line = self._read("    > " if pending else "rhei> ")
            except EOFError:
                return
            except KeyboardInterrupt:
                pending = ""
                continue
            if not pending and line.strip().startswith("\\"):
                if line.strip() in {"\\q", "\\quit"}:
                    return
                self._guarded(self._command, line.strip())
                continue
            pending = f"{pending}\n{line}".strip()
            if pending.endswith(";"):
                self._guarded(self._answer, pending)
                pending = ""

    def _guarded(self, act: Callable[[str], None], text: str) -> None:
        try:
            act(text)
        except KeyboardInterrupt:
            err.print("interrupted")
        except RheiError as error:
            err.print(f"[red]error[/] {error}", soft_wrap=True)

    def _answer(self, sql: str) -> None:
        started = time.monotonic()
        found = self._htap.query(sql, hint=self._hint)
        seconds = time.monotonic() - started
        show_rows(found, as_json=False)
        labels = found.schema.metadata or {}
        side, reason = (labels.get(name, b"").decode() for name in (b"rhei.engine", b"rhei.reason"))
        out.print(f"{found.num_rows:,} rows in {seconds * 1000:.1f} ms from {side}: {reason}")

    def _command(self, line: str) -> None:
        word, _, rest = line[1:].partition(" ")
        if word in _HINTS:
            self._hint = next(hint for hint in _HINTS if hint == word)
        elif word == "d":
            self._describe(rest.strip())
        elif word == "route":
            route = self._htap.explain_route(rest)
            out.print(f"{route.engine}: {route.reason}")
        elif word == "sync":
            report = self._htap.sync_now()
            out.print(f"{report.events:,} events in {report.duration_seconds:.3f} s")
            name_errors(report.errors)
        elif word == "?":
            out.print(_HELP, markup=False)
        else:
            raise QueryError(f"there is no command '\\{word}'", hint="\\? lists them")

    def _describe(self, name: str) -> None:
        tables = self._htap.table_schemas()
        if not name:
            for each in sorted(tables):
                out.print(each)
            name_errors(self._htap.left_out)
            return
        found = tables.get(name)
        if name in self._htap.left_out:
            raise QueryError(self._htap.left_out[name])
        if found is None:
            raise QueryError(f"table {name!r} is not mirrored", hint="\\d lists the tables")
        for column in found.schema.columns:
            key = " (key)" if column.name in found.schema.primary_key else ""
            out.print(f"{column.name}  {column.type}{key}", markup=False)


def words_of(htap: HTAP) -> list[str]:
    """Return the words for completion: keywords, tables, columns."""
    names = {
        name
        for table in htap.table_schemas().values()
        for name in (table.name, *table.schema.names)
    }
    return sorted({*_KEYWORDS, *names})


@contextlib.contextmanager
def line_editing(htap: HTAP, history: Path = HISTORY) -> Iterator[None]:
    """Give `input` history and completion by tabulator, where the platform has readline."""
    try:
        import readline
    except ModuleNotFoundError:  # Windows
        yield
        return
    words = words_of(htap)

    def complete(text: str, state: int) -> str | None:
        fitting = [word for word in words if word.lower().startswith(text.lower())]
        return fitting[state] if state < len(fitting) else None

    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")
    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    yield
    readline.set_history_length(1000)
    with contextlib.suppress(OSError):
        readline.write_history_file(history)
