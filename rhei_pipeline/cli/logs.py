"""The log of a command: lines for people, or JSON, one object a line."""

import logging
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, TextIO

from rhei_pipeline.cli.output import print_text
from rhei_pipeline.cli.printable import printable
from rhei_pipeline.model.log_context import current_cycle


def log_to_stderr(*, as_json: bool) -> None:
    """Send the log of this package to standard error, and other libraries' in the same form."""
    handler = _StandardError()
    plain = _Plain("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(json_lines() if as_json else plain)
    root = logging.getLogger()
    root.handlers[:] = [each for each in root.handlers if not isinstance(each, _StandardError)]
    root.addHandler(handler)
    logging.getLogger("rhei_pipeline").setLevel(logging.INFO)
    _leave_out_told_errors()


def log_as_text() -> None:
    """Send warnings that nobody else logs to standard error, as errors are told."""
    logging.lastResort = _Told(logging.WARNING)
    _leave_out_told_errors()


def _leave_out_told_errors() -> None:
    """Leave out each attempt of the PostgreSQL driver: what it ends in is raised, and told here."""
    logging.getLogger("psycopg").setLevel(logging.ERROR)


def json_lines() -> logging.Formatter:
    """Return a formatter of JSON: at, level, logger, message, cycle, and the error's type."""
    from structlog import processors, stdlib

    return stdlib.ProcessorFormatter(
        foreign_pre_chain=[stdlib.add_log_level, stdlib.add_logger_name, stdlib.ExtraAdder()],
        processors=[
            _complete,
            stdlib.ProcessorFormatter.remove_processors_meta,
            processors.EventRenamer("message"),
            processors.JSONRenderer(),
        ],
    )


def _complete(_: object, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the time and the cycle; of an error its type alone, since its text may quote a row."""
    record: logging.LogRecord = line["_record"]
    line["at"] = datetime.fromtimestamp(record.created, UTC).isoformat()
    if (cycle := current_cycle()) is not None:
        line["cycle"] = cycle
    if raised := line.pop("exc_info", None):
        line["error"] = raised[0].__name__
    return line


class _Plain(logging.Formatter):
    """Writes lines that have no effect on the terminal they come to."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's text."""
        return printable(super().format(record))


class _Told(logging.Handler):
    """Prints messages; a terminal's lines are broken between words."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        print_text(record.getMessage())


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to the current standard error, which may change after this was created."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        self.stream = sys.stderr
        super().emit(record)
