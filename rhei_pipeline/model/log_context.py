"""Log output as JSON, one object a line, with a number that groups the lines of a sync."""

import json
import logging
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

_cycle: ContextVar[str | None] = ContextVar("rhei_cycle", default=None)


@contextmanager
def one_cycle() -> Iterator[None]:
    """Add the same `cycle` to everything that is logged inside; a nested cycle keeps its own."""
    if _cycle.get() is not None:
        yield
        return
    token = _cycle.set(uuid.uuid4().hex[:12])
    try:
        yield
    finally:
        _cycle.reset(token)


class JsonLines(logging.Formatter):
    """Formats a record as JSON: at, level, logger, message, cycle, and the error's type."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if _cycle.get() is not None:
            line["cycle"] = str(_cycle.get())
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line)


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to the current standard error, which may change after this was created."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        self.stream = sys.stderr
        super().emit(record)


def log_to_stderr(*, as_json: bool) -> None:
    """Send the log of this package to standard error."""
    handler = _StandardError()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonLines() if as_json else plain)
    logger = logging.getLogger("rhei_pipeline")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
